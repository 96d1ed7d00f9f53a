"""The panel: its real .ui file, its buttons pressed, its labels read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import vtk

pytest.importorskip("PySide6.QtWidgets")
slicer = pytest.importorskip("slicer")
from PySide6 import QtCore, QtGui, QtWidgets  # noqa: E402

from SegMoTELib.mrml.segments import segment_mask  # noqa: E402
from Testing.slicer_stub.hands import interaction, place, until, wait  # noqa: E402

ROOT = Path(__file__).parents[2]
PLACE = slicer.vtkMRMLInteractionNode.Place


@pytest.fixture
def ready(panel, image):
    """The panel with the volume chosen."""
    panel.ui.volumeSelector.setCurrentNode(image)
    return panel


def mask(panel):
    """(k, j, i) bool of the selected segment."""
    return segment_mask(panel.target.segmentation, panel.target.segment_id, panel.target.volume,
                        (0, 63, 0, 63, 0, 19))


def status(panel):
    """The status line."""
    return panel.ui.statusLabel.text


def dice(found, truth):
    """Of two masks."""
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def described(module):
    """What the module tells Slicer about itself."""
    parent = types.SimpleNamespace()
    module.SegMoTE(parent)
    return parent


def test_opening_the_module_loads_and_creates_nothing():
    code = ("import sys; sys.path.insert(0, '.')\n"
            "from Testing.slicer_stub import install, start_scene\n"
            "install(); scene = start_scene(); import slicer; count = scene.GetNumberOfNodes()\n"
            "import SegMoTE; panel = SegMoTE.SegMoTEWidget(); panel.setup(); panel.enter(); panel.exit()\n"
            "assert scene.GetNumberOfNodes() == count\n"
            "assert 'torch' not in sys.modules and 'segment_anything' not in sys.modules\n")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_without_a_volume_the_tools_are_off_and_say_why(panel):
    assert status(panel) == "Choose a volume first."
    for name in ("addPointButton", "excludePointButton", "boxButton", "autoButton", "nextObjectButton"):
        button = getattr(panel.ui, name)
        assert not button.enabled
        assert button.toolTip.startswith("Choose a volume first.")


def test_every_control_has_a_tool_tip(panel):
    for kind in (QtWidgets.QPushButton, QtWidgets.QComboBox, QtWidgets.QDoubleSpinBox):
        for widget in panel.parent.real.findChildren(kind):
            assert widget.toolTip(), widget.objectName()


def test_the_first_click_makes_segmentation_segment_and_mask(ready, truth):
    ready.ui.addPointButton.click()
    assert interaction()[0].GetCurrentInteractionMode() == PLACE
    assert interaction()[0].GetPlaceModePersistence() == 1
    place(ready, (0, 0, 0))
    assert dice(mask(ready)[10], truth[10]) > 0.85
    assert status(ready) == "Ready."
    assert ready.ui.undoButton.enabled
    assert "segmote-tiny" in ready.ui.modelStateLabel.text
    assert "gave the mask" in ready.ui.expertLabel.text
    assert "no CUDA or Apple GPU" in ready.ui.modelStateLabel.text or "found this GPU" in ready.ui.modelStateLabel.text
    assert ready.ui.segmentationSelector.currentNode().GetName() == "ellipsoid segmentation"


def test_excluding_undoing_redoing_and_clearing(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    first = mask(ready)
    ready.ui.excludePointButton.click()
    assert not ready.ui.addPointButton.checked
    place(ready, (10, 0, 0))
    second = mask(ready)
    ready.ui.undoButton.click()
    np.testing.assert_array_equal(mask(ready), first)
    ready.ui.redoButton.click()
    np.testing.assert_array_equal(mask(ready), second)
    ready.ui.clearButton.click()
    wait(ready)
    assert not mask(ready).any()
    assert not ready.ui.clearButton.enabled
    ready.ui.undoButton.click()
    np.testing.assert_array_equal(mask(ready), second)


def test_dragging_and_deleting_a_point_updates_the_mask(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    before = mask(ready)
    node = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")[0]
    node.SetNthControlPointPosition(0, 0, 0, 5)  # to another slice
    node.InvokeEvent(slicer.vtkMRMLMarkupsNode.PointEndInteractionEvent)
    wait(ready)
    assert before[10].any()
    assert mask(ready)[12].any()
    assert not mask(ready)[10].any()
    node.RemoveNthControlPoint(0)
    wait(ready)
    assert not mask(ready).any()
    ready.ui.undoButton.click()
    ready.ui.undoButton.click()
    np.testing.assert_array_equal(mask(ready), before)


@pytest.mark.parametrize("told", [True, False], ids=["second corner told", "second corner not told"])
def test_a_box_is_drawn_with_two_clicks_and_placing_ends(ready, truth, told):
    ready.ui.boxButton.click()
    node = slicer.mrmlScene.GetNodeByID(interaction()[1].GetActivePlaceNodeID())
    node.AddControlPoint([-15.0, -11, 0])
    if not told:  # as happens by chance: the ROI drops the point before it tells of it
        ready.removeObserver(node, slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent, ready.onBoxCorner)
    node.AddControlPoint([15.0, 11, 0])
    until(lambda: not ready.ui.boxButton.checked)
    wait(ready)
    assert dice(mask(ready)[10], truth[10]) > 0.85
    assert not ready.ui.boxButton.checked
    assert interaction()[0].GetCurrentInteractionMode() != PLACE
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsROINode") == 1


def test_a_point_belongs_to_the_view_that_shows_it(ready, truth):
    ready.ui.addPointButton.click()
    place(ready, (2, 0, 0), "Yellow")
    found = mask(ready)
    assert found.any(axis=(0, 1)).sum() == 1
    assert dice(found[:, :, 32], truth[:, :, 32]) > 0.8


def test_next_object_keeps_the_mask_and_goes_on_with_a_new_segment(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    first, kept = ready.target, mask(ready)
    ready.ui.nextObjectButton.click()
    assert ready.target.segment_id != first.segment_id
    assert ready.ui.addPointButton.checked
    assert not ready.ui.undoButton.enabled
    np.testing.assert_array_equal(
        segment_mask(first.segmentation, first.segment_id, first.volume, (0, 63, 0, 63, 0, 19)), kept)
    place(ready, (0, 0, 2.5))
    assert mask(ready)[11].any()
    assert not mask(ready)[10].any()


def test_prompts_of_the_selected_segment_are_shown_alone(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    first = ready.target.segment_id
    ready.ui.addSegmentButton.click()
    place(ready, (0, 0, 2.5))
    nodes = {node.GetAttribute("SegMoTE.Segment"): node
             for node in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")}
    assert len(nodes) == 2
    for one, node in nodes.items():
        assert bool(node.GetDisplayVisibility()) == (one != first)


def test_auto_makes_a_segment_named_and_coloured_by_its_target(ready):
    ready.ui.autoButton.click()
    wait(ready)
    name = ready.logic.targets()[0][0]
    segment = ready.target.segmentation.GetSegmentation().GetSegment(ready.target.segment_id)
    assert segment.GetName() == name
    color = next(one.color for one in ready.logic._segmenter.predictor.auto_targets if one.name == name)
    np.testing.assert_allclose(np.array(segment.GetColor()) * 255, color, atol=0.5)
    assert name in status(ready)
    terminology = vtk.reference("")
    assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    assert "SCT^" in str(terminology)
    ready.ui.autoButton.click()
    wait(ready)
    assert ready.target.segmentation.GetSegmentation().GetNumberOfSegments() == 1


def test_auto_over_the_whole_volume_shows_progress_and_can_be_cancelled(ready):
    ready.ui.scopeComboBox.setCurrentIndex(2)
    ready.ui.autoButton.click()
    until(lambda: "s left" in status(ready))
    assert ready.ui.cancelButton.enabled
    ready.ui.cancelButton.click()
    assert not ready.logic.busy()  # at once, whatever the thread still computes
    assert status(ready).startswith(("Stopped", "Cancelled"))
    wait(ready)
    assert not ready.ui.cancelButton.enabled
    if ready.ui.discardButton.enabled:
        assert not mask(ready).any()
        ready.ui.discardButton.click()
    assert not ready.ui.applyButton.enabled
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    assert mask(ready).any()


def test_propagate_fills_the_neighbouring_slices_within_the_range(ready):
    assert not ready.ui.bothWaysButton.enabled
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    prompted = np.flatnonzero(mask(ready).any(axis=(1, 2)))
    assert len(prompted) == 1
    ready.ui.rangeWidget.setValues(prompted[0], prompted[0] + 2)
    ready.ui.bothWaysButton.click()
    wait(ready)
    filled = set(np.flatnonzero(mask(ready).any(axis=(1, 2))))
    assert prompted[0] in filled
    assert 1 < len(filled) <= 3
    ready.ui.undoButton.click()
    assert set(np.flatnonzero(mask(ready).any(axis=(1, 2)))) == set(prompted)


def test_a_candidate_of_everything_is_picked_with_a_click(ready):
    assert not ready.ui.pickButton.enabled
    ready.ui.everythingButton.click()
    wait(ready)
    assert "candidate" in status(ready) or "Nothing stands out" in status(ready)
    if not ready.logic._runs.candidates[2]:
        return
    _, plane, found = ready.logic._runs.candidates
    row, column = np.argwhere(found[0].mask)[0]
    ready.ui.pickButton.click()
    place(ready, plane.to_ras([column, row]))
    until(lambda: ready.target is not None)
    assert mask(ready).any()
    assert ready.ui.pickButton.checked  # for the next one
    ready.ui.discardButton.click()
    assert not ready.ui.pickButton.enabled


def test_a_key_whose_button_is_off_is_left_to_others(ready):
    enabled = {shortcut.real.key().toString(): shortcut.real.isEnabled() for shortcut, _ in ready.shortcuts}
    assert {key for key, on in enabled.items() if on} == {"P", "X", "D", "A", "E", "Esc"}
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    enabled = {shortcut.real.key().toString(): shortcut.real.isEnabled() for shortcut, _ in ready.shortcuts}
    assert {key for key, on in enabled.items() if not on} == {"Y", "Return"}


def test_no_key_is_one_that_slice_views_use_for_something_else(ready):
    taken = {"B", "F", "G", "R", "T", "V", "[", "]", "{", "}", "Left", "Right"}  # vtkMRMLSliceIntersectionWidget.cxx
    assert not taken & {shortcut.real.key().toString() for shortcut, _ in ready.shortcuts}


def test_every_key_is_named_by_its_button_and_in_the_help(ready, module):
    help_text = described(module).helpText
    for shortcut, button in ready.shortcuts:
        key = shortcut.real.key().toString()
        assert re.search(rf"\b{key}\b", help_text), key
        assert button is None or button.real.property("SegMoTE.help").endswith(f"Shortcut: {key}")
    assert ready.ui.cancelButton.real.property("SegMoTE.help").endswith("Shortcut: Esc")


def test_tab_goes_through_the_panel_from_top_to_bottom(ready):
    window = ready.parent.real
    for name in ("modelButton", "expertsButton", "advancedButton"):
        getattr(ready.ui, name).collapsed = False
    QtWidgets.QApplication.processEvents()
    order, widget = [], window
    for _ in range(500):
        widget = widget.nextInFocusChain()
        if widget == window:
            break
        if widget.focusPolicy() & QtCore.Qt.FocusPolicy.TabFocus and widget.objectName() in vars(ready.ui):
            place = widget.mapTo(window, QtCore.QPoint(0, 0))
            order.append((place.y() // 10, place.x()))
    assert len(order) > 25
    assert order == sorted(order)


def test_the_panel_fits_into_400_pixels(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    for name in ("modelButton", "expertsButton", "advancedButton"):
        getattr(ready.ui, name).collapsed = False
    wait(ready)
    assert ready.parent.real.minimumSizeHint().width() <= 400


def test_keys_work_only_while_the_module_is_entered(ready):
    window = ready.parent.real
    assert {shortcut.real.key().toString() for shortcut, _ in ready.shortcuts} == set("PXDZYNACE") | {"Esc", "Return"}
    assert len(window.findChildren(QtGui.QShortcut)) == 11
    next(s for s, _ in ready.shortcuts if s.real.key().toString() == "P").real.activated.emit()
    assert ready.ui.addPointButton.checked
    next(s for s, _ in ready.shortcuts if s.real.key().toString() == "Esc").real.activated.emit()
    assert not ready.ui.addPointButton.checked
    ready.exit()
    QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
    assert window.findChildren(QtGui.QShortcut) == []
    ready.enter()


def test_leaving_the_module_ends_placing_and_finishes_work_quietly(ready):
    ready.ui.addPointButton.click()
    node = slicer.mrmlScene.GetNodeByID(interaction()[1].GetActivePlaceNodeID())
    node.AddControlPoint([0.0, 0, 0])
    ready.exit()
    assert interaction()[0].GetCurrentInteractionMode() != PLACE
    wait(ready)
    ready.enter()
    assert mask(ready).any()


def test_escape_when_nothing_runs_leaves_the_message_alone(ready):
    ready.ui.addPointButton.click()
    place(ready, (500, 0, 0))
    assert not ready.logic.busy()
    escape = next(shortcut for shortcut, _ in ready.shortcuts if shortcut.real.key().toString() == "Esc")
    escape.real.activated.emit()  # stops placing
    escape.real.activated.emit()
    assert "outside the volume" in status(ready)


def test_ending_place_mode_elsewhere_releases_the_button(ready):
    ready.ui.addPointButton.click()
    interaction()[0].SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
    assert not ready.ui.addPointButton.checked


@pytest.mark.parametrize("gone", ["volume", "segmentation", "scene"])
def test_deleting_things_while_it_works_is_harmless(ready, scene, image, gone):
    ready.ui.addPointButton.click()
    node = slicer.mrmlScene.GetNodeByID(interaction()[1].GetActivePlaceNodeID())
    node.AddControlPoint([0.0, 0, 0])
    if gone == "scene":
        scene.Clear(False)
    else:
        scene.RemoveNode(image if gone == "volume" else ready.ui.segmentationSelector.currentNode())
    wait(ready)
    assert not status(ready).startswith("⚠")
    assert not ready.ui.addPointButton.checked


@pytest.mark.parametrize(("ras", "message"), [((500, 0, 0), "outside the volume")])
def test_a_point_outside_is_explained_and_the_next_one_works(ready, ras, message):
    ready.ui.addPointButton.click()
    place(ready, ras)
    assert message in status(ready)
    place(ready, (0, 0, 0))
    assert mask(ready).any()


def test_a_locked_segment_is_explained(ready):
    ready.ui.addSegmentButton.click()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(ready.target.segmentation.GetSegmentation().GetSegment(ready.target.segment_id),
                           logic.Completed)
    ready.ui.addPointButton.click()
    assert "locked" in status(ready)
    assert not ready.ui.addPointButton.checked


def test_memory_that_runs_out_is_explained_and_the_next_click_is_answered(ready, monkeypatch):
    ready.ui.addPointButton.click()
    wait(ready)
    predictor = ready.logic._segmenter.predictor

    def full(*_arguments):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:73] . DefaultCPUAllocator: can't allocate memory: you tried "
                           "to allocate 1000000000000 bytes. Error code 12 (Cannot allocate memory)")

    with monkeypatch.context() as context:
        context.setattr(predictor.model, "encode", full)
        place(ready, (0, 0, 0))
    assert status(ready).startswith("⚠ The memory ran out; close other volumes")
    place(ready, (2, 0, 0))
    assert mask(ready).any()


def test_falling_back_from_the_gpu_is_told(ready):
    ready.ui.addPointButton.click()
    wait(ready)
    ready.logic._device = "cuda"  # as if it had been loaded there
    place(ready, (0, 0, 0))
    assert mask(ready).any()
    assert status(ready).startswith("⚠ The GPU's memory ran out; going on with CPU")
    assert ready.ui.modelStateLabel.text.endswith("choose the device again to try it once more.")


WITHOUT_PACKAGES = """
import importlib.abc, importlib.metadata, importlib.util, sys
sys.path.insert(0, ".")
names = "torch torchvision segment_anything timm safetensors platformdirs psutil pooch filelock".split()
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
version, find_spec = importlib.metadata.version, importlib.util.find_spec
def installed(name):
    if name.replace("-", "_") in names:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
importlib.util.find_spec = lambda name, *_: None if name.split(".")[0] in names else find_spec(name)
from Testing.slicer_stub import install, start_scene
install(); scene = start_scene()
import numpy, slicer, SegMoTE
slicer.util.confirmOkCancelDisplay = lambda text, *_: print("asked:", text) or False
panel = SegMoTE.SegMoTEWidget(); panel.setup(); panel.enter()
node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
slicer.util.updateVolumeFromArray(node, numpy.zeros((5, 20, 20), numpy.int16))
panel.ui.volumeSelector.setCurrentNode(node)
print(panel.ui.statusLabel.text)
panel.ui.addSegmentButton.click(); panel.ui.nextObjectButton.click()
print(panel.ui.statusLabel.text)
getattr(panel.ui, sys.argv[1]).click()
print(panel.ui.statusLabel.text)
"""


@pytest.mark.parametrize("button", ["autoButton", "everythingButton", "addPointButton"])
def test_whatever_is_pressed_first_asks_to_install_what_is_missing(button):
    found = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES, button], cwd=ROOT, capture_output=True,
                           encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    lines = found.stdout.splitlines()
    assert lines[:2] == ["Ready.", "Ready."], found.stderr
    assert lines[2].startswith("asked: SegMoTE needs torch")
    assert lines[3].startswith("⚠ SegMoTE cannot work without torch")


def test_missing_packages_are_asked_for_once_and_refusing_changes_nothing(ready, monkeypatch):
    asked = []
    monkeypatch.setattr("SegMoTEModule.compatibility.missingPackages", lambda: ["torch>=2.2"])
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_: asked.append(text) or False)
    ready.ui.addPointButton.click()
    assert len(asked) == 1
    assert "torch" in asked[0]
    assert "cannot work without" in status(ready)
    assert not ready.ui.addPointButton.checked


def test_the_users_own_nodes_stay_as_they_are(ready, scene):
    users = [scene.AddNewNodeByClass(name, "mine") for name in
             ("vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode", "vtkMRMLSegmentationNode")]
    users[0].AddControlPoint([1.0, 2, 3])
    before = slicer.util.arrayFromVolume(ready.ui.volumeSelector.currentNode()).copy()
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    ready.ui.clearButton.click()
    ready.ui.nextObjectButton.click()
    wait(ready)
    assert [node.GetName() for node in users] == ["mine"] * 3
    assert all(node.GetScene() is scene for node in users)
    assert users[0].GetNumberOfControlPoints() == 1
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(ready.ui.volumeSelector.currentNode()), before)


def test_embeddings_are_kept_on_disk_when_asked_for(ready, monkeypatch, tmp_path):
    monkeypatch.setattr("SegMoTELib.interaction.embeddings.default_folder", lambda: tmp_path)
    ready.ui.keepEmbeddingsCheckBox.setChecked(True)
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    assert list(tmp_path.glob("*.embedding"))
    ready.ui.keepEmbeddingsCheckBox.setChecked(False)
    assert ready.logic._segmenter.predictor.cache.disk is None
