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
