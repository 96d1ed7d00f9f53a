"""PySide6 as PythonQt shows Qt: properties without parentheses, signals by their signature, ``name`` for objectName."""

from __future__ import annotations

import types
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

_kept: list[Any] = []  # slots and objects that PythonQt would keep alive


class Object:
    """A QObject as PythonQt shows it."""

    def __init__(self, real: QtCore.QObject) -> None:
        object.__setattr__(self, "real", real)

    def __getattr__(self, name: str) -> Any:
        real = self.real
        if name == "name":
            return real.objectName()
        own = type(real).__mro__[0].__dict__.get(name)
        if isinstance(own, types.FunctionType) and name not in getattr(real, "REACHABLE", (name,)):
            raise AttributeError(f"PythonQt does not show {type(real).__name__}.{name}")
        if not isinstance(own, types.FunctionType) and real.metaObject().indexOfProperty(name) >= 0:
            return shown(real.property(name))
        return shown(getattr(real, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if self.real.metaObject().indexOfProperty(name) < 0:
            raise AttributeError(f"{type(self.real).__name__} has no property {name}")
        self.real.setProperty(name, hidden(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Object) and other.real is self.real

    def __hash__(self) -> int:
        return hash(id(self.real))

    def connect(self, signature: str, slot: Any) -> None:
        """Connect "name(types)"; the slot gets as many arguments as there are types."""
        name, _, rest = signature.partition("(")
        count = len([part for part in rest.rstrip(")").split(",") if part])

        def call(*arguments: Any) -> None:
            slot(*(shown(argument) for argument in arguments[:count]))

        _kept.append(call)
        getattr(self.real, name).connect(call)


class Class:
    """A Qt class: calling it makes an :class:`Object`, its enums and static methods are attributes."""

    def __init__(self, real: type) -> None:
        self.real = real

    def __call__(self, *arguments: Any) -> Any:
        made = self.real(*(hidden(argument) for argument in arguments))
        _kept.append(made)
        return shown(made)

    def __getattr__(self, name: str) -> Any:
        return shown(getattr(self.real, name))


def shown(value: Any) -> Any:
    """What PythonQt would show of a PySide6 value."""
    if isinstance(value, QtCore.QObject):
        return Object(value)
    if isinstance(value, list | tuple):
        return type(value)(shown(one) for one in value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType) \
            or type(value).__name__ in ("builtin_function_or_method", "method_descriptor"):
        return lambda *arguments: shown(value(*(hidden(argument) for argument in arguments)))
    return value


def hidden(value: Any) -> Any:
    """The PySide6 value behind what PythonQt shows."""
    return value.real if isinstance(value, Object) else value


class FileDialog:
    """Answers instead of a person: ``answer`` is the file that is chosen."""

    answer = ""

    @classmethod
    def getOpenFileName(cls, *_arguments: Any) -> str:  # noqa: N802
        """PythonQt returns the name alone."""
        return cls.answer


def qt_module(custom_widgets: list[type]) -> types.ModuleType:
    """The module ``qt``."""
    module = types.ModuleType("qt")
    for source in (QtCore, QtGui, QtWidgets):
        for name in dir(source):
            if name.startswith("Q"):
                value = getattr(source, name)
                setattr(module, name, Class(value) if isinstance(value, type) else value)

    class Loader(QtUiTools.QUiLoader):
        def __init__(self) -> None:
            super().__init__()
            for widget in custom_widgets:
                self.registerCustomWidget(widget)

    module.QUiLoader = Class(Loader)
    module.QFileDialog = FileDialog
    return module
