"""Everything public in the library is described, and so is each error that it raises itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from SegMoTELib import errors
from Testing.architecture.test_layers import LIBRARY

FILES = sorted(LIBRARY.rglob("*.py"))
Described = ast.Module | ast.ClassDef | ast.FunctionDef


def public(node: Described, name: str = "") -> Iterator[tuple[str, Described]]:
    """A module or class and what is public in it, by name."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            where = f"{name}.{child.name}".lstrip(".")
            yield from public(child, where) if isinstance(child, ast.ClassDef) else [(where, child)]


def raised(node: ast.AST) -> Iterator[str]:
    """Names of the errors that a function raises past its own ``try`` and outside of the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and isinstance(child.exc.func, ast.Name):
            yield child.exc.func.id
        elif isinstance(child, ast.Try) and child.handlers:
            for part in (*child.handlers, *child.orelse, *child.finalbody):
                yield from raised(part)
        elif not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from raised(child)


def names_of(error: str) -> list[str]:
    """The error and what it is a kind of."""
    kind = getattr(errors, error, None)
    return [error] if kind is None else [one.__name__ for one in kind.__mro__ if issubclass(one, errors.SegMoTEError)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_what_is_public_is_described(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "cli"],
                         ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_public_function_names_the_errors_that_it_raises(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [f"{name}: {error}" for name, node in public(tree) if isinstance(node, ast.FunctionDef)
              for error in raised(node) if not any(one in ast.get_docstring(node) for one in names_of(error))]
    assert silent == []
