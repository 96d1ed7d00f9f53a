"""Prompts to segments with the bundled model in a real scene."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.errors import SegmentError, VolumeError  # noqa: E402
from SegMoTELib.imaging.planes import MaskPatch, SlicePlane  # noqa: E402
from SegMoTELib.interaction.predictor import Predictor  # noqa: E402
from SegMoTELib.mrml.markups import POSITIVE  # noqa: E402
from SegMoTELib.mrml.segmenter import SceneSegmenter  # noqa: E402
from SegMoTELib.mrml.segments import Change, prepare_segmentation, segment_mask  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.mrml.volumes import volume_of  # noqa: E402
from SegMoTELib.network import load_checkpoint  # noqa: E402
from SegMoTELib.zoo import resolve_model  # noqa: E402

SHAPE = (24, 64, 64)  # k, j, i
AXIAL = np.column_stack([(-1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)])


def ball(center, radius):
    """(k, j, i) bool, radius in voxels of the slice."""
    k, j, i = np.mgrid[:SHAPE[0], :SHAPE[1], :SHAPE[2]]
    return (i - center[0]) ** 2 + (j - center[1]) ** 2 + ((k - center[2]) * 2) ** 2 <= radius ** 2


ONE, TWO = ball((24, 30, 12), 12), ball((50, 44, 12), 8)
AROUND_ONE, AROUND_TWO = ((11, 17, 12), (37, 43, 12)), ((41, 35, 12), (59, 53, 12))  # corners of boxes


@pytest.fixture(scope="module")
def predictor():
    """The bundled model."""
    return Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu")


@pytest.fixture
def told():
    """Sentences for the status line."""
    return []


@pytest.fixture
def segmenter(scene, predictor, told):
    """A segmenter of the scene."""
    segmenter = SceneSegmenter(scene, lambda text, error: told.append(text))
    segmenter.predictor = predictor
    segmenter.mapping = "percentiles"
    yield segmenter
    segmenter.close()


@pytest.fixture
def image(scene):
    """A volume with two balls, 1 x 1 x 2 mm, LPS."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "balls")
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    slicer.util.updateVolumeFromArray(node, (100 + 120 * (ONE | TWO) + noise).astype(np.int16))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1, 2, 1])))
    node.SetOrigin(40, 50, -20)
    return node


@pytest.fixture
def target(image, segmentation):
    """A new segment on the volume."""
    prepare_segmentation(segmentation, image)
    return Target(image, segmentation, segmentation.GetSegmentation().AddEmptySegment("first"))


def world(node, *ijk):
    """RAS of a voxel; the volume has no transform."""
    return volume_of(node).to_ras(np.array(ijk, float))


def click(segmenter, target, ijk, positive=True):
    """Place a point in an axial view and wait for the answer."""
    segmenter.prompts(target).add_point(world(target.volume, *ijk), positive, AXIAL)
    segmenter.update(target)
    segmenter.jobs.finish()


def box(segmenter, target, low, high):
    """Draw a box between two voxels in an axial view and wait for the answer."""
    segmenter.prompts(target).add_box([world(target.volume, *low), world(target.volume, *high)], AXIAL)
    segmenter.update(target)
    segmenter.jobs.finish()


def mask(target):
    """(k, j, i) bool."""
    return segment_mask(target.segmentation, target.segment_id, target.volume,
                        (0, SHAPE[2] - 1, 0, SHAPE[1] - 1, 0, SHAPE[0] - 1))


def dice(found, truth):
    """Of two masks."""
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_a_click_fills_the_object_on_its_slice_only(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    found = mask(target)
    assert dice(found[12], ONE[12]) > 0.85
    assert found.sum() == found[12].sum()
    assert {"extract", "encode", "decode"} <= set(segmenter.seconds)


def test_a_second_click_finds_its_slice_encoded(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    click(segmenter, target, (26, 32, 12))
    assert set(segmenter.seconds) == {"decode"}


def test_prompts_on_two_slices_answer_each_on_its_own(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    first = mask(target)[12]
    click(segmenter, target, (24, 30, 10))
    found = mask(target)
    np.testing.assert_array_equal(found[12], first)
    assert dice(found[10], ONE[10]) > 0.85
    assert found.any(axis=(1, 2)).sum() == 2


def test_undo_and_redo_take_one_prompt_each_with_its_marker(segmenter, target):
    states = [mask(target)]
    points = segmenter.prompts(target).node(POSITIVE)
    for ijk in ((24, 30, 12), (24, 30, 10), (50, 44, 12)):
        click(segmenter, target, ijk)
        states.append(mask(target))
    for count in (2, 1, 0):
        assert segmenter.undo()
        assert points.GetNumberOfControlPoints() == count
        np.testing.assert_array_equal(mask(target), states[count])
    assert not segmenter.undo()
    for count in (1, 2, 3):
        assert segmenter.redo()
        assert points.GetNumberOfControlPoints() == count
        np.testing.assert_array_equal(mask(target), states[count])
    assert not segmenter.redo()
    assert segmenter.can_undo()


def test_clicking_goes_on_after_an_undo(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    click(segmenter, target, (50, 44, 12))
    segmenter.undo()
    click(segmenter, target, (24, 30, 10))
    assert not segmenter.can_redo()
    assert dice(mask(target)[10], ONE[10]) > 0.85


def test_deleting_the_last_point_of_a_slice_takes_its_mask_away(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    click(segmenter, target, (24, 30, 10))
    segmenter.prompts(target).node(POSITIVE).RemoveNthControlPoint(0)
    segmenter.update(target)
    segmenter.jobs.finish()
    assert not mask(target)[12].any()
    assert mask(target)[10].any()


def test_what_was_in_the_segment_stays(segmenter, target):
    painted = np.zeros(SHAPE, bool)
    painted[12, 2:6, 2:6] = painted[3, 2:6, 2:6] = True
    whole = MaskPatch((0, 63, 0, 63, 0, 23), painted, painted)
    segmenter.writer.write(target.segmentation, target.segment_id, target.volume, [Change(whole)])
    click(segmenter, target, (24, 30, 12))
    click(segmenter, target, (40, 10, 12), positive=False)
    assert mask(target)[painted].all()
    segmenter.undo()
    segmenter.undo()
    np.testing.assert_array_equal(mask(target), painted)


def test_a_box_and_a_correction(segmenter, target):
    box(segmenter, target, *AROUND_TWO)
    assert dice(mask(target)[12], TWO[12]) > 0.85
    click(segmenter, target, (50, 44, 12))
    assert dice(mask(target)[12], TWO[12]) > 0.85


def test_a_box_for_each_piece_finds_both_and_undo_takes_the_second_back(segmenter, target):
    prompts = segmenter.prompts(target)
    box(segmenter, target, *AROUND_ONE)
    box(segmenter, target, *AROUND_TWO)
    both = mask(target)[12]
    assert dice(both, ONE[12] | TWO[12]) > 0.85
    assert segmenter.undo()
    one = mask(target)[12]
    assert dice(one, ONE[12]) > 0.85
    assert not one[TWO[12]].any()
    assert len(prompts.boxes()) == 1
    assert segmenter.redo()
    np.testing.assert_array_equal(mask(target)[12], both)
    assert len(prompts.boxes()) == 2


def test_a_click_in_one_piece_leaves_the_other_as_it_was(segmenter, target):
    box(segmenter, target, *AROUND_ONE)
    box(segmenter, target, *AROUND_TWO)
    before = mask(target)[12]
    click(segmenter, target, (59, 44, 12))
    after = mask(target)[12]
    np.testing.assert_array_equal(after[:, :38], before[:, :38])
    assert not np.array_equal(after, before)


def test_an_oblique_box_stays_in_its_plane(segmenter, target):
    tilt = 0.5
    view = AXIAL @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    center = world(target.volume, 24, 30, 12)
    prompts = segmenter.prompts(target)
    prompts.add_box([center - view @ (13, 13, 0), center + view @ (13, 13, 0)], view)
    segmenter.update(target)
    segmenter.jobs.finish()
    found = mask(target)
    k, j, i = np.nonzero(found)
    away = (volume_of(target.volume).to_ras(np.column_stack([i, j, k]).astype(float)) - center) @ view[:, 2]
    assert np.abs(away).max() <= 0.5 * (np.sin(tilt) + 2 * np.cos(tilt))  # the cells that the plane passes through
    assert (found & ONE).sum() / found.sum() > 0.85
    assert len(np.unique(k)) > 5


def test_moving_volume_and_segmentation_together_changes_nothing(segmenter, target, move):
    click(segmenter, target, (24, 30, 12))
    expected = mask(target)
    segmenter.undo()
    transform = move(target.volume, [[0, -1, 0, 30], [1, 0, 0, -8], [0, 0, 1, 4], [0, 0, 0, 1]])
    target.segmentation.SetAndObserveTransformNodeID(transform.GetID())
    matrix = slicer.util.arrayFromVTKMatrix(transform.GetMatrixTransformToParent())
    point = matrix[:3, :3] @ world(target.volume, 24, 30, 12) + matrix[:3, 3]
    segmenter.prompts(target).add_point(point, True,
                                                                        matrix[:3, :3] @ AXIAL)
    segmenter.update(target)
    segmenter.jobs.finish()
    np.testing.assert_array_equal(mask(target), expected)


def test_excluded_points_alone_are_explained_and_write_nothing(segmenter, target, told):
    click(segmenter, target, (24, 30, 12), positive=False)
    assert told == ["Only excluded points: add a point inside the object, or a box."]
    assert not mask(target).any()
    click(segmenter, target, (30, 30, 12))
    assert mask(target).any()


def test_a_locked_segment_is_refused_before_anything_is_computed(segmenter, target):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(target.segmentation.GetSegmentation().GetSegment("first"), logic.Completed)
    with pytest.raises(SegmentError, match="locked"):
        click(segmenter, target, (24, 30, 12))
    assert not segmenter.jobs.busy()


def test_a_label_map_is_refused(scene, segmenter, segmentation):
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(node, np.zeros(SHAPE, np.uint8))
    target = Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("s"))
    with pytest.raises(VolumeError, match="label map"):
        segmenter.update(target)


@pytest.mark.parametrize("gone", ["volume", "segmentation", "segment", "scene"])
def test_deleting_what_a_running_answer_is_for_is_harmless(scene, segmenter, target, told, gone):
    segmenter.prompts(target).add_point(world(target.volume, 24, 30, 12), True, AXIAL)
    segmenter.update(target)
    if gone == "scene":
        segmenter.scene_closing()
        scene.Clear(False)
    elif gone == "segment":
        target.segmentation.GetSegmentation().RemoveSegment(target.segment_id)
    else:
        scene.RemoveNode(getattr(target, gone))
    segmenter.jobs.finish()
    assert told == []
    assert not segmenter.undo()


@pytest.mark.parametrize("gone", ["segmentation", "segment"])
def test_the_prompts_of_a_deleted_segment_are_removed(scene, segmenter, target, gone):
    click(segmenter, target, (24, 30, 12))
    if gone == "segment":
        target.segmentation.GetSegmentation().RemoveSegment(target.segment_id)
    else:
        scene.RemoveNode(target.segmentation)
    segmenter.forget_deleted()
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 0
    assert not segmenter.can_undo()


def test_a_newer_click_replaces_the_one_still_computing(segmenter, target):
    prompts = segmenter.prompts(target)
    for ijk in ((24, 30, 12), (50, 44, 12)):
        prompts.add_point(world(target.volume, *ijk), True, AXIAL)
        segmenter.update(target)
    segmenter.jobs.finish()
    assert segmenter.undo()
    assert not segmenter.can_undo()  # both points became one answer


def test_cancelling_leaves_the_segment_as_it_was(segmenter, target):
    segmenter.prompts(target).add_point(world(target.volume, 24, 30, 12), True, AXIAL)
    segmenter.update(target)
    segmenter.jobs.cancel()
    segmenter.jobs.finish()
    assert not mask(target).any()
    segmenter.update(target)  # the point is still there
    segmenter.jobs.finish()
    assert mask(target)[12].any()


def test_a_changed_volume_is_encoded_again(segmenter, target):
    click(segmenter, target, (24, 30, 12))
    array = slicer.util.arrayFromVolume(target.volume)
    array[:] = np.roll(array, 20, axis=2)
    slicer.util.arrayFromVolumeModified(target.volume)
    click(segmenter, target, (46, 32, 12))
    assert "encode" in segmenter.seconds


def test_a_prefetched_slice_answers_without_encoding(segmenter, target):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = AXIAL, world(target.volume, 24, 30, 12)
    segmenter.prefetch(target.volume, SlicePlane.from_slice_to_ras(volume_of(target.volume), matrix))
    segmenter.jobs.finish()
    click(segmenter, target, (30, 28, 12))
    assert set(segmenter.seconds) == {"decode"}


def test_accepting_an_object_keeps_its_mask_and_removes_its_prompts(scene, segmenter, target):
    click(segmenter, target, (24, 30, 12))
    found = mask(target)
    segmenter.accept(target.segmentation, target.segment_id)
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 0
    np.testing.assert_array_equal(mask(target), found)
    click(segmenter, target, (50, 44, 12))
    assert mask(target)[found].all()


def test_an_unexpected_error_is_told_and_the_next_click_works(segmenter, target, told, monkeypatch):
    good = segmenter.predictor.predict
    monkeypatch.setattr(segmenter.predictor, "predict", lambda **_: 1 / 0)
    click(segmenter, target, (24, 30, 12))
    assert "details are in the log" in told[0]
    monkeypatch.setattr(segmenter.predictor, "predict", good)
    click(segmenter, target, (25, 30, 12))
    assert mask(target)[12].any()


def test_smoothing_rounds_the_outline(segmenter, target):
    segmenter.smoothing = 2.0
    click(segmenter, target, (24, 30, 12))
    assert dice(mask(target)[12], ONE[12]) > 0.8


def test_an_rgb_image_of_one_slice(scene, segmenter, segmentation):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    array = np.full((1, 64, 64, 3), 60, np.uint8)
    array[0, ONE[12]] = (200, 80, 80)
    slicer.util.updateVolumeFromArray(node, array)
    target = Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("lesion"))
    click(segmenter, target, (24, 30, 0))
    found = segment_mask(segmentation, "lesion", node, (0, 63, 0, 63, 0, 0))
    assert dice(found[0], ONE[12]) > 0.85
