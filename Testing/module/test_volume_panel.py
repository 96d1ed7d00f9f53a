"""Whole volumes from the panel: ranges of views that are turned, candidates of other volumes, unusable segments."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PySide6.QtWidgets")
slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

from SegMoTELib.mrml.segments import segment_mask  # noqa: E402
from Testing.slicer_stub.hands import place, wait  # noqa: E402


@pytest.fixture
def ready(panel, image):
    """The panel with the volume chosen."""
    panel.ui.volumeSelector.setCurrentNode(image)
    return panel


@pytest.fixture
def surfaces(scene):
    """A segmentation of surfaces."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "implant")
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(8)
    sphere.Update()
    node.SetSourceRepresentationToClosedSurface()  # as loading an STL file does
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "screw", [1, 0, 0], "screw")
    node.CreateDefaultDisplayNodes()
    return node


def status(panel):
    return panel.ui.statusLabel.text


def names(panel):
    """Of the chosen segmentation's segments."""
    segmentation = panel.ui.segmentationSelector.currentNode().GetSegmentation()
    return [segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()]


def slices(panel, axis=0):
    """Along k, or another axis (k, j, i), on which the selected segment has voxels."""
    mask = segment_mask(panel.target.segmentation, panel.target.segment_id, panel.target.volume, (0, 63, 0, 63, 0, 19))
    return np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))).tolist()


def red():
    """The view that runs work in by default."""
    return slicer.util.getNode("Red")


def test_all_slices_of_a_view_are_all_of_them_after_it_was_turned(ready):
    assert ready.ui.rangeWidget.maximumValue == 20
    ready.ui.addPointButton.click()
    red().SetOrientation("Sagittal")
    place(ready, (6, 0, 0))  # slice 37 of 64
    ready.ui.bothWaysButton.click()
    wait(ready)
    assert status(ready).startswith("Propagated")
    assert len(slices(ready, 2)) > 10
    assert ready.ui.rangeWidget.maximumValue == 64


def test_a_range_outlives_the_first_click_and_ends_with_another_view(ready):
    ready.ui.rangeWidget.setValues(9, 12)
    ready.ui.addPointButton.click()  # makes a segmentation
    place(ready, (0, 0, 0))
    assert (ready.ui.rangeWidget.minimumValue, ready.ui.rangeWidget.maximumValue) == (9, 12)
    ready.ui.bothWaysButton.click()
    wait(ready)
    assert {index + 1 for index in slices(ready)} == {9, 10, 11, 12}
    ready.ui.viewComboBox.setCurrentIndex(1)
    assert (ready.ui.rangeWidget.minimumValue, ready.ui.rangeWidget.maximumValue) == (1, 64)


def test_a_range_that_was_set_before_a_view_was_turned_is_not_taken_for_the_new_slices(ready):
    ready.ui.addPointButton.click()
    ready.ui.rangeWidget.setValues(8, 12)
    red().SetOrientation("Sagittal")
    place(ready, (6, 0, 0))
    ready.ui.bothWaysButton.click()
    wait(ready)
    assert "Set it anew" in status(ready)
    assert len(slices(ready, 2)) == 1
    assert (ready.ui.rangeWidget.minimumValue, ready.ui.rangeWidget.maximumValue) == (1, 64)
    ready.ui.bothWaysButton.click()
    wait(ready)
    assert status(ready).startswith("Propagated")


def test_a_click_on_candidates_of_another_volume_or_slice_adds_no_segment(ready, image):
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    slicer.util.updateVolumeFromArray(other, np.zeros((20, 64, 64), np.int16))
    red().JumpSliceByOffsetting(0, 0, 0)
    ready.ui.everythingButton.click()
    wait(ready)
    assert "candidate" in status(ready)
    pick = ready.guarded(lambda position: ready.pickAt(np.array(position)))
    pick((0, 0, 5.0))
    assert status(ready) == "There is no candidate here."
    assert names(ready) == []
    segmentation = ready.ui.segmentationSelector.currentNode()
    ready.ui.volumeSelector.setCurrentNode(other)
    ready.ui.segmentationSelector.setCurrentNode(segmentation)
    pick((0, 0, 0))
    assert "The candidates are those of ellipsoid" in status(ready)
    assert names(ready) == []
    ready.ui.volumeSelector.setCurrentNode(image)
    pick((0, 0, 0))
    assert names(ready) == ["Object 1"]


def test_auto_and_pick_leave_a_segmentation_of_surfaces_as_it_is(ready, surfaces):
    ready.ui.segmentationSelector.setCurrentNode(surfaces)
    ready.ui.autoButton.click()
    wait(ready)
    assert "not made of voxels" in status(ready)
    assert names(ready) == ["screw"]
    red().JumpSliceByOffsetting(0, 0, 0)
    ready.ui.everythingButton.click()
    wait(ready)
    ready.guarded(lambda: ready.pickAt(np.zeros(3)))()
    assert "not made of voxels" in status(ready)
    assert names(ready) == ["screw"]


def everything(panel):
    """What stands out on the axial slice through the ellipsoid's middle."""
    red().JumpSliceByOffsetting(0, 0, 0)
    panel.ui.everythingButton.click()
    wait(panel)
    return panel.guarded(lambda: panel.pickAt(np.zeros(3)))


def test_a_candidate_that_was_picked_is_not_picked_again_until_it_is_undone(ready):
    pick = everything(ready)
    pick()
    pick()
    assert "This candidate is the segment Object 1 already" in status(ready)
    assert names(ready) == ["Object 1"]
    ready.ui.undoButton.click()
    pick()
    assert names(ready) == ["Object 1", "Object 2"]
    assert slices(ready) == [10]


def test_a_picked_candidate_is_propagated(ready, truth):
    everything(ready)()
    ready.ui.bothWaysButton.click()
    wait(ready)
    assert status(ready).startswith("Propagated")
    found = segment_mask(ready.target.segmentation, ready.target.segment_id, ready.target.volume,
                         (0, 63, 0, 63, 0, 19))
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    ready.ui.undoButton.click()
    assert slices(ready) == [10]


def test_a_click_corrects_a_picked_candidate_and_leaves_it_on_other_slices(ready):
    everything(ready)()
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 5))
    assert slices(ready) == [10, 12]
    ready.ui.excludePointButton.click()
    place(ready, (9, 0, 0))
    assert slices(ready) == [10, 12]


def test_a_picked_segment_gets_a_name_that_no_other_has(ready):
    everything(ready)()
    segmentation = ready.ui.segmentationSelector.currentNode().GetSegmentation()
    segmentation.GetSegment(segmentation.GetNthSegmentID(0)).SetName("Object 2")
    ready.ui.undoButton.click()
    ready.guarded(lambda: ready.pickAt(np.zeros(3)))()
    assert names(ready) == ["Object 2", "Object 1"]


def test_looking_for_everything_leaves_no_segmentation_behind(ready):
    everything(ready)
    assert ready.ui.segmentationSelector.currentNode() is None
    ready.ui.discardButton.click()
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == []


@pytest.mark.parametrize("when", ["at once", "with a preview"])
def test_auto_that_is_given_up_leaves_no_empty_segment(ready, bright, when):
    ready.ui.scopeComboBox.setCurrentIndex(2)
    ready.ui.autoButton.click()
    if when == "at once":
        ready.ui.cancelButton.click()
    else:
        wait(ready)
        assert "preview" in status(ready)
        ready.ui.discardButton.click()
    assert names(ready) == []
    assert not ready.ui.removeSegmentButton.enabled
    ready.ui.autoButton.click()
    wait(ready)
    ready.ui.applyButton.click()
    assert len(names(ready)) == 1
    ready.ui.autoButton.click()
    wait(ready)
    ready.ui.discardButton.click()
    assert len(slices(ready)) > 5  # it was there before


def test_a_segment_of_auto_that_was_undone_is_still_there_for_redo_when_another_run_is_given_up(ready, bright):
    red().JumpSliceByOffsetting(0, 0, 0)
    ready.ui.autoButton.click()
    wait(ready)
    ready.ui.undoButton.click()
    everything(ready)
    ready.ui.discardButton.click()
    assert len(names(ready)) == 1
    ready.ui.redoButton.click()
    assert slices(ready) == [10]


def test_the_names_of_views_follow_their_orientation_and_the_layout(ready, scene):
    def listed():
        return [ready.ui.viewComboBox.itemText(index) for index in range(ready.ui.viewComboBox.count)]

    red().SetOrientation("Coronal")
    assert listed() == ["Red (Coronal)", "Yellow (Sagittal)", "Green (Coronal)"]
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Slice4")
    node.SetLayoutName("Slice4")
    node.SetOrientation("Axial")
    assert listed()[3:] == ["Slice4 (Axial)"]


@pytest.mark.parametrize("mode", ["InsideAllSegments", "InsideVisibleSegments"])
def test_masking_by_segments_does_not_empty_the_preview(ready, scene, mode):
    editor = slicer.vtkMRMLSegmentEditorNode()
    editor.SetSingletonTag("SegmentEditor")
    scene.AddNode(editor).SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, f"EditAllowed{mode}"))
    everything(ready)
    preview = slicer.util.getNode("SegMoTE preview")
    first = preview.GetSegmentation().GetNthSegmentID(0)
    assert segment_mask(preview, first, ready.ui.volumeSelector.currentNode(), (0, 63, 0, 63, 0, 19))[10].any()
