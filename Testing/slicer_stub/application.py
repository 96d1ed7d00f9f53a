"""``slicer.app``, ``slicer.mrmlScene``, module logics and the scripted module bases."""

from __future__ import annotations

import os
import sys
import types
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import slicer.util
import vtk

MODULE = Path(__file__).parents[2] / "SegMoTE"


def segmentations_logic(scene: Any) -> Any:
    """A logic on a scene that leaves one set of conversion rules: every scene adds another, and each slows them all."""
    rules = slicer.vtkSegmentationConverterFactory.GetInstance()
    for rule in rules.GetConverterRules():
        rules.UnregisterConverterRule(rule)
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    return logic


def start_scene() -> Any:
    """A fresh ``slicer.mrmlScene`` with three slice nodes, a crosshair and the logics that segments need."""
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    logics = {"Segmentations": segmentations_logic(scene), "Volumes": slicer.vtkSlicerVolumesLogic(),
              "Markups": slicer.vtkSlicerMarkupsLogic(), "Colors": application.GetColorLogic()}
    for name, logic in logics.items():
        if name != "Colors":
            logic.SetMRMLApplicationLogic(application)
            logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
    slicer.mrmlScene = scene
    slicer.app = SimpleNamespace(applicationLogic=lambda: application, started=[],
                                 connect=lambda signal, slot: slicer.app.started.append((signal, slot)))
    slicer.modules = SimpleNamespace(**{name.lower(): SimpleNamespace(logic=lambda logic=logic: logic)
                                        for name, logic in logics.items()})
    add_views(scene)
    return scene


def add_views(scene: Any) -> None:
    """Red, Yellow and Green, and the crosshair."""
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        node = scene.AddNewNodeByClass("vtkMRMLSliceNode", name)
        node.SetLayoutName(name)
        node.SetOrientation(orientation)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetSingletonTag("default")
    scene.AddNode(crosshair)


def install() -> None:
    """Put the stand-ins where the module imports them from, and the module on the path."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6 import QtWidgets

    from Testing.slicer_stub.pythonqt import Object, qt_module
    from Testing.slicer_stub.widgets import WIDGETS, qMRMLWidget

    if QtWidgets.QApplication.instance() is None:
        install.application = QtWidgets.QApplication([])
    sys.modules["qt"] = qt_module(WIDGETS)
    sys.modules["ctk"] = types.ModuleType("ctk")
    i18n = sys.modules["slicer.i18n"] = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)

    class ScriptedLoadableModule:
        def __init__(self, parent: Any) -> None:
            self.parent = parent

    class ScriptedLoadableModuleWidget:
        def __init__(self, parent: Any = None) -> None:
            self.parent = parent or Object(qMRMLWidget())
            QtWidgets.QVBoxLayout(self.parent.real)

        def setup(self) -> None:
            self.layout = self.parent.layout()

        def resourcePath(self, name: str) -> str:  # noqa: N802
            return str(MODULE / "Resources" / name)

    class ScriptedLoadableModuleLogic:
        def __init__(self, parent: Any = None) -> None:
            self.parent = parent

    class ScriptedLoadableModuleTest(unittest.TestCase):
        def delayDisplay(self, message: str, msec: int = 0) -> None:  # noqa: N802
            print(message)

    bases = sys.modules["slicer.ScriptedLoadableModule"] = types.ModuleType("slicer.ScriptedLoadableModule")
    for base in (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic,
                 ScriptedLoadableModuleTest):
        setattr(bases, base.__name__, base)
    slicer.util.mainWindow = lambda *_: None
    if str(MODULE) not in sys.path:
        sys.path.insert(0, str(MODULE))


def volume_node(path: Path, name: str = "") -> Any:
    """A volume node of an image file; the wheel has no volume reader of its own."""
    from SegMoTELib.imaging.files import read_volume

    volume = read_volume(path)
    kind = "vtkMRMLVectorVolumeNode" if volume.is_rgb else "vtkMRMLScalarVolumeNode"
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name or path.name.split(".")[0])
    slicer.util.updateVolumeFromArray(node, volume.array)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(volume.ijk_to_ras.ravel().tolist())
    node.SetIJKToRASMatrix(matrix)
    node.CreateDefaultDisplayNodes()
    return node
