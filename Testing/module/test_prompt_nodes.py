"""Markups as Slicer lets people handle them: deleted in views, kept by scenes, moved with their volume."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PySide6.QtWidgets")
slicer = pytest.importorskip("slicer")

from SegMoTELib.mrml.segments import segment_mask  # noqa: E402
from Testing.slicer_stub.hands import draw_box, interaction, place, wait  # noqa: E402

LOW, HIGH = (-16, -12, 0), (16, 12, 0)


@pytest.fixture
def ready(panel, image):
    """The panel with the volume chosen."""
    panel.ui.volumeSelector.setCurrentNode(image)
    return panel


def mask(panel, volume=None):
    """(k, j, i) bool of the selected segment, on its own volume or another."""
    return segment_mask(panel.target.segmentation, panel.target.segment_id, volume or panel.target.volume,
                        (0, 63, 0, 63, 0, 19))


def markups(kind="Node"):
    """The scene's markups nodes."""
    return slicer.util.getNodesByClass(f"vtkMRMLMarkups{kind}")


def prompts(panel):
    """The selected segment's prompts."""
    return panel.logic._segmenter.prompts(panel.target)


def under(scene, node, shift):
    """Put a node under a translation, millimetres."""
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())


def world(node, index=0):
    """World RAS of a control point."""
    found = [0.0] * 3
    node.GetNthControlPointPositionWorld(index, found)
    return np.array(found)


@pytest.mark.parametrize("tool", ["addPointButton", "excludePointButton"])
def test_after_undo_the_tool_still_places_its_own_kind(ready, tool):
    draw_box(ready, LOW, HIGH)
    draw_box(ready, (-16, -12, 5), (16, 12, 5))
    getattr(ready.ui, tool).click()
    active = interaction()[1].GetActivePlaceNodeID()
    ready.ui.undoButton.click()
    assert interaction()[1].GetActivePlaceNodeID() == active
    before = mask(ready)
    place(ready, (5, 3, 0))
    placed = prompts(ready).snapshot()
    assert len(placed["positive" if tool == "addPointButton" else "negative"]) == 1
    assert len(placed["box"]) == 1
    assert "AddNControlPoints" not in ready.ui.statusLabel.text
    assert not np.array_equal(mask(ready), before) or tool == "addPointButton"


def test_a_scripts_prompts_do_not_take_the_users_clicks(ready, module, image):
    ready.ui.addPointButton.click()
    active = interaction()[1].GetActivePlaceNodeID()
    logic = module.SegMoTELogic()
    segment = logic.addSegment(ready.target.segmentation, image, "other")
    logic.segmentInBox(image, ready.target.segmentation, segment, [LOW, HIGH])
    assert interaction()[1].GetActivePlaceNodeID() == active
    logic.close()


def test_deleting_a_box_by_its_menu_takes_its_mask_back(ready, scene):
    draw_box(ready, LOW, HIGH)
    assert mask(ready).any()
    scene.RemoveNode(markups("ROINode")[0])
    wait(ready)
    assert not mask(ready).any()
    ready.ui.undoButton.click()
    assert mask(ready).any()
    assert len(markups("ROINode")) == 1


def test_deleting_the_centre_of_a_box_deletes_the_box(ready):
    draw_box(ready, LOW, HIGH)
    markups("ROINode")[0].RemoveNthControlPoint(0)
    wait(ready)
    assert not mask(ready).any()
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    assert mask(ready).any()
    ready.ui.undoButton.click()
    ready.ui.undoButton.click()
    assert len(prompts(ready).boxes()) == 1
    assert mask(ready).any()


def test_deleting_a_list_of_points_takes_its_mask_back(ready, scene):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    scene.RemoveNode(next(node for node in markups("FiducialNode") if node.GetNumberOfControlPoints()))
    wait(ready)
    assert not mask(ready).any()


def test_boxes_on_a_moved_volume_come_back_to_their_places(ready, scene, image):
    under(scene, image, (0, 12, 0))
    draw_box(ready, (-16, 0, 0), (16, 24, 0))
    draw_box(ready, (-16, 0, 5), (16, 24, 5))
    ready.ui.undoButton.click()
    ready.ui.undoButton.click()
    ready.ui.redoButton.click()
    (box,) = markups("ROINode")
    center = [0.0] * 3
    box.GetCenterWorld(center)
    np.testing.assert_allclose(center, (0, 12, 0), atol=1e-6)


def test_hardening_the_volumes_transform_leaves_prompts_and_masks_in_place(ready, scene, image):
    under(scene, image, (0, 12, 0))
    ready.ui.addPointButton.click()
    place(ready, (0, 12, 0))
    before = mask(ready)
    ready.ui.addPointButton.click()
    image.HardenTransform()
    ready.ui.addPointButton.click()
    (points,) = [node for node in markups("FiducialNode") if node.GetNumberOfControlPoints()]
    np.testing.assert_allclose(world(points), (0, 12, 0), atol=1e-6)
    place(ready, (0, 12, 5))
    assert (mask(ready)[10] & before[10]).sum() > 0.9 * before[10].sum()
    assert mask(ready)[12].any()
    ready.ui.undoButton.click()
    np.testing.assert_allclose(world(points), (0, 12, 0), atol=1e-6)
    np.testing.assert_array_equal(mask(ready), before)


def test_prompts_on_another_volume_leave_those_of_the_first_alone(ready, scene, image):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    place(ready, (0, 0, 5))
    before = mask(ready)
    first, segment = markups("FiducialNode"), ready.target.segment_id
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    slicer.util.updateVolumeFromArray(other, slicer.util.arrayFromVolume(image) + 5)
    other.SetOrigin(-30, -26, -25)
    other.SetSpacing(1, 1, 2.5)
    other.CreateDefaultDisplayNodes()
    under(scene, other, (0, 2, 0))
    ready.ui.volumeSelector.setCurrentNode(other)
    ready.selectSegment(segment)
    assert not any(node.GetDisplayVisibility() for node in first)
    ready.ui.addPointButton.click()
    place(ready, (0, 0, -5))
    after = mask(ready, image)
    np.testing.assert_array_equal(after[[10, 12]], before[[10, 12]])
    assert after[8].any()
    ready.ui.nextObjectButton.click()
    wait(ready)
    assert not markups()[:1] or all(node.GetAttribute("SegMoTE.Segment") != segment for node in markups())


def test_prompts_of_a_loaded_scene_are_corrected_and_cleared(ready, scene, image, module):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    draw_box(ready, (-16, -12, 5), (16, 12, 5))
    before, segment, segmentation = mask(ready), ready.target.segment_id, ready.target.segmentation
    ready.cleanup()  # what a saved scene brings back: the nodes, and nothing that this panel knew
    panel = module.SegMoTEWidget()
    panel.setup()
    panel.enter()
    panel.ui.mappingComboBox.setCurrentIndex(1)
    panel.ui.volumeSelector.setCurrentNode(image)
    panel.ui.segmentationSelector.setCurrentNode(segmentation)
    panel.selectSegment(segment)
    panel.ui.excludePointButton.click()
    place(panel, (9, 0, 0))
    corrected = mask(panel)
    assert corrected[10].sum() < before[10].sum()
    assert not corrected[10, 26, 39]
    np.testing.assert_array_equal(corrected[12], before[12])
    panel.ui.undoButton.click()
    np.testing.assert_array_equal(mask(panel), before)
    panel.onClear()
    wait(panel)
    assert not mask(panel).any()
    panel.ui.undoButton.click()
    np.testing.assert_array_equal(mask(panel), before)
    assert len(prompts(panel).boxes()) == 1
    panel.cleanup()


def test_prompts_of_a_loaded_scene_can_be_cleared_at_once(ready, image, module):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    segment, segmentation = ready.target.segment_id, ready.target.segmentation
    assert mask(ready).any()
    ready.cleanup()
    panel = module.SegMoTEWidget()
    panel.setup()
    panel.enter()
    panel.ui.mappingComboBox.setCurrentIndex(1)
    assert not panel.ui.clearButton.enabled
    panel.ui.volumeSelector.setCurrentNode(image)
    panel.ui.segmentationSelector.setCurrentNode(segmentation)
    panel.selectSegment(segment)
    assert panel.ui.clearButton.enabled
    panel.ui.clearButton.click()
    wait(panel)
    assert not mask(panel).any()
    assert not panel.ui.clearButton.enabled
    panel.cleanup()


def test_a_loaded_scene_is_propagated_from_its_prompts(ready, image, module, truth):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    segment, segmentation = ready.target.segment_id, ready.target.segmentation
    logic = module.SegMoTELogic()
    logic.mapping = "percentiles"
    logic.propagate(image, segmentation, segment, "axial")
    found = mask(ready)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    logic.close()


def test_the_markups_of_a_segment_deleted_elsewhere_go_with_it(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    first = ready.target
    ready.ui.addSegmentButton.click()
    first.segmentation.GetSegmentation().RemoveSegment(first.segment_id)
    ready.onSegmentSelected()
    assert all(node.GetAttribute("SegMoTE.Segment") != first.segment_id for node in markups())


def test_undo_of_another_segments_box_does_not_show_it(ready):
    draw_box(ready, LOW, HIGH)
    ready.ui.clearButton.click()
    wait(ready)
    ready.ui.addSegmentButton.click()
    ready.ui.undoButton.click()
    (box,) = markups("ROINode")
    assert not box.GetDisplayVisibility()


def test_leaving_and_entering_keeps_view_and_range(ready):
    ready.ui.viewComboBox.setCurrentIndex(1)
    ready.ui.rangeWidget.setValues(5, 9)
    chosen = ready.ui.viewComboBox.currentData
    ready.exit()
    ready.enter()
    assert ready.ui.viewComboBox.currentData == chosen
    assert (ready.ui.rangeWidget.minimumValue, ready.ui.rangeWidget.maximumValue) == (5, 9)


def test_the_users_own_way_of_placing_is_given_back(ready):
    node = interaction()[0]
    before = node.GetPlaceModePersistence()
    ready.ui.addPointButton.click()
    assert node.GetPlaceModePersistence() == 1
    ready.ui.addPointButton.click()
    assert node.GetPlaceModePersistence() == before


def points(panel):
    """How many points the selected segment has."""
    return sum(node.GetNumberOfControlPoints() for node in markups("FiducialNode"))


def click_without_waiting(ras):
    """Place a point in the Red view, the other views being elsewhere."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*(np.array(ras, float) + (0 if node.GetName() == "Red" else 40)))
    slicer.mrmlScene.GetNodeByID(interaction()[1].GetActivePlaceNodeID()).AddControlPointWorld(ras)


@pytest.mark.parametrize("why", ["outside the volume", "still computed"])
def test_undo_takes_back_just_a_prompt_that_has_no_answer(ready, why):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    before = mask(ready)
    if why == "still computed":
        click_without_waiting((3.0, 0.0, 5.0))
    else:
        place(ready, (500, 0, 0))
    ready.ui.undoButton.click()
    wait(ready)
    np.testing.assert_array_equal(mask(ready), before)
    assert points(ready) == 1
    ready.ui.undoButton.click()
    assert not mask(ready).any()
    assert points(ready) == 0


def test_the_prompts_of_a_locked_segment_are_not_cleared(ready):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(ready.target.segmentation.GetSegmentation().GetSegment(ready.target.segment_id),
                           logic.Completed)
    ready.ui.clearButton.click()
    assert "locked" in ready.ui.statusLabel.text
    assert points(ready) == 1


@pytest.fixture
def reopened(ready, module, image):
    """Function: the panel as a loaded scene finds it, with a segment selected."""
    panels = []

    def reopen(target):
        ready.cleanup()
        panel = module.SegMoTEWidget()
        panels.append(panel)
        panel.setup()
        panel.enter()
        panel.ui.mappingComboBox.setCurrentIndex(1)
        panel.ui.volumeSelector.setCurrentNode(image)
        panel.ui.segmentationSelector.setCurrentNode(target.segmentation)
        panel.selectSegment(target.segment_id)
        return panel

    yield reopen
    for panel in panels:
        panel.cleanup()


def test_next_object_removes_the_prompts_of_a_loaded_scene(ready, reopened):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    panel = reopened(ready.target)
    panel.ui.nextObjectButton.click()
    assert markups() == []


def test_selecting_a_segment_of_a_loaded_scene_shows_its_prompts_alone(ready, reopened):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    first = ready.target
    ready.ui.addSegmentButton.click()
    place(ready, (0, 0, 5))
    panel = reopened(first)
    shown = {node.GetAttribute("SegMoTE.Segment"): bool(node.GetDisplayVisibility()) for node in markups()}
    assert shown.pop(first.segment_id)
    assert list(shown.values()) == [False]
    assert panel.logic._segmenter is None  # nothing was loaded for it


@pytest.mark.parametrize("loaded", [False, True])
def test_propagate_waits_for_the_click_before_it(ready, reopened, loaded):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    panel = reopened(ready.target) if loaded else ready
    panel.ui.addPointButton.setChecked(True)
    wait(panel)
    click_without_waiting((0.0, 0.0, 10.0))
    panel.ui.rangeWidget.setValues(6, 10)  # both slices, which the Red view counts from the head
    panel.ui.bothWaysButton.click()
    wait(panel)
    assert panel.ui.statusLabel.text.startswith("Propagated")
    assert np.flatnonzero(mask(panel).any(axis=(1, 2))).tolist() == [10, 11, 12, 13, 14]
    assert [len(one.positives) for one in prompts(panel).on_planes()[0]] == [1, 1]


def test_auto_keeps_the_slices_of_a_loaded_scenes_prompts(ready, reopened, bright):
    ready.ui.autoButton.click()
    wait(ready)
    target = ready.target
    ready.ui.clearButton.click()
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 5))
    ready.ui.excludePointButton.click()
    place(ready, (9, 0, 5))
    prompted = mask(ready)[12]
    panel = reopened(target)
    red = slicer.util.getNode("Red")
    red.JumpSliceByOffsetting(0, 0, 5)
    panel.ui.autoButton.click()
    wait(panel)
    np.testing.assert_array_equal(mask(panel)[12], prompted)
    red.JumpSliceByOffsetting(0, 0, 10)
    panel.ui.autoButton.click()
    wait(panel)
    assert mask(panel)[14].any()


def test_hardening_the_transform_of_volume_and_segmentation_keeps_corrections_and_undo_exact(ready, scene, image):
    under(scene, image, (0, 12, 0))
    ready.ui.addPointButton.click()
    place(ready, (0, 12, 0))
    before = mask(ready)
    ready.target.segmentation.HardenTransform()
    image.HardenTransform()
    ready.ui.excludePointButton.click()
    place(ready, (9, 12, 0))
    assert 0 < mask(ready).sum() < before.sum()
    assert not mask(ready)[10, 26, 39]
    ready.ui.undoButton.click()
    np.testing.assert_array_equal(mask(ready), before)
    ready.ui.undoButton.click()
    assert not mask(ready).any()
    ready.ui.redoButton.click()
    np.testing.assert_array_equal(mask(ready), before)


def test_a_box_that_is_being_drawn_is_not_saved(ready):
    ready.ui.boxButton.click()
    assert [node.GetSaveWithScene() for node in markups("ROINode")] == [0]
    draw_box(ready, LOW, HIGH)
    assert [node.GetSaveWithScene() for node in markups("ROINode")] == [1]


@pytest.mark.parametrize("gone", ["segment", "list"])
def test_the_tool_is_released_when_what_it_places_into_was_deleted_elsewhere(ready, scene, gone):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    if gone == "segment":
        ready.target.segmentation.GetSegmentation().RemoveSegment(ready.target.segment_id)
        ready.onSegmentSelected()  # the table says so
    else:
        scene.RemoveNode(scene.GetNodeByID(interaction()[1].GetActivePlaceNodeID()))
    assert not ready.ui.addPointButton.checked
    assert interaction()[0].GetCurrentInteractionMode() != slicer.vtkMRMLInteractionNode.Place


def test_dragging_a_point_of_a_loaded_scene_moves_its_mask_before_any_tool_was_pressed(ready, reopened):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    panel = reopened(ready.target)
    (node,) = markups("FiducialNode")
    node.SetNthControlPointPosition(0, 0, 0, 5)
    node.InvokeEvent(slicer.vtkMRMLMarkupsNode.PointEndInteractionEvent)
    wait(panel)
    assert np.flatnonzero(mask(panel).any(axis=(1, 2))).tolist() == [12]
    panel.ui.undoButton.click()
    assert np.flatnonzero(mask(panel).any(axis=(1, 2))).tolist() == [10]


@pytest.mark.parametrize("end", ["scene", "panel"])
def test_prompts_of_a_loaded_scene_are_watched_until_the_scene_or_the_panel_is_closed(ready, reopened, scene, end):
    ready.ui.addPointButton.click()
    place(ready, (0, 0, 0))
    panel = reopened(ready.target)
    (node,) = markups("FiducialNode")
    if end == "scene":
        scene.Clear(False)
    else:
        panel.cleanup()
        node.RemoveNthControlPoint(0)
    assert panel.logic._segmenter is None  # which a change asks for
