"""Propagate, Auto and everything in a real scene: previewed, written once, undone once, cancelled at any moment."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.errors import PromptError  # noqa: E402
from SegMoTELib.imaging.planes import MaskPatch, SlicePlane  # noqa: E402
from SegMoTELib.interaction.predictor import Predictor  # noqa: E402
from SegMoTELib.mrml.preview import NAME  # noqa: E402
from SegMoTELib.mrml.runs import VolumeRuns  # noqa: E402
from SegMoTELib.mrml.segmenter import PREFETCH, SceneSegmenter  # noqa: E402
from SegMoTELib.mrml.segments import Change, prepare_segmentation, segment_mask  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.mrml.volumes import stack_along, view_along, volume_of  # noqa: E402
from SegMoTELib.network import load_checkpoint  # noqa: E402
from SegMoTELib.zoo import resolve_model  # noqa: E402

SHAPE = (20, 64, 64)
GRID = np.indices(SHAPE)
TRUTH = sum(((GRID[axis] - center) / radius) ** 2 for axis, (center, radius) in
            enumerate(((10, 7), (30, 15), (28, 13)))) <= 1


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu")
    predictor.focus = False
    return predictor


@pytest.fixture
def told():
    return []


@pytest.fixture
def segmenter(scene, predictor, told):
    segmenter = SceneSegmenter(scene, lambda text, error: told.append(text))
    segmenter.predictor, segmenter.mapping = predictor, "percentiles"
    yield segmenter
    segmenter.close()


@pytest.fixture
def runs(segmenter):
    return VolumeRuns(segmenter)


@pytest.fixture
def target(scene):
    """An empty segment on a noisy volume with one ellipsoid, LPS, 1 x 1 x 2 mm."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    noise = np.random.default_rng(0).normal(0, 6, SHAPE)
    slicer.util.updateVolumeFromArray(node, (100 + 80 * TRUTH + noise).astype(np.int16))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1, 2, 1])))
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    prepare_segmentation(segmentation, node)
    return Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("", "object"))


@pytest.fixture
def stack(target):
    return stack_along(view_along(target.volume, "axial"), target.volume)


def world(i, j, k):
    return np.array([-i, -j, 2.0 * k])


def click(segmenter, target, i, j, k, positive=True):
    segmenter.prompts(target).add_point(world(i, j, k), positive, view_along(target.volume, "axial"))
    segmenter.update(target)
    segmenter.jobs.finish()


def mask(target) -> np.ndarray:
    return segment_mask(target.segmentation, target.segment_id, target.volume, (0, 63, 0, 63, 0, 19))


def slices_of(target) -> list[int]:
    return np.flatnonzero(mask(target).any(axis=(1, 2))).tolist()


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def previews(scene) -> int:
    return sum(node.GetName().startswith(NAME) for node in slicer_nodes(scene))


def slicer_nodes(scene):
    found = scene.GetNodesByClass("vtkMRMLSegmentationNode")
    found.UnRegister(None)
    return [found.GetItemAsObject(i) for i in range(found.GetNumberOfItems())]


def test_one_prompt_is_propagated_to_the_ends_as_one_undo_step(scene, segmenter, runs, target, stack, told):
    click(segmenter, target, 28, 30, 10)
    one_slice = mask(target)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert dice(mask(target), TRUTH) > 0.85
    np.testing.assert_array_equal(mask(target)[10], one_slice[10])
    assert "slice" in told[-1]
    assert previews(scene) == 0
    assert segmenter.undo()
    np.testing.assert_array_equal(mask(target), one_slice)
    assert segmenter.redo()
    assert dice(mask(target), TRUTH) > 0.85


def test_finished_slices_are_shown_while_it_runs_and_the_segment_waits(scene, segmenter, runs, target, stack,
                                                                       monkeypatch):
    monkeypatch.setattr("SegMoTELib.mrml.runs.SHOWN_EVERY", 0.0)
    click(segmenter, target, 28, 30, 10)
    before = mask(target)
    runs.propagate(target, stack, 0, len(stack) - 1)
    while not previews(scene) and segmenter.jobs.busy():
        segmenter.jobs.deliver(0.01)
    assert previews(scene) == 1
    np.testing.assert_array_equal(mask(target), before)
    segmenter.jobs.finish()


@pytest.mark.parametrize("choice", ["apply", "discard"])
def test_after_a_stop_the_user_chooses_what_happens_to_finished_slices(scene, segmenter, runs, target, stack, choice):
    click(segmenter, target, 28, 30, 10)
    before = mask(target)
    runs.propagate(target, stack, 0, len(stack) - 1)
    while len(runs.pending.masks) < 3 and segmenter.jobs.busy():
        segmenter.jobs.deliver(0.01)
    runs.stop()
    assert not segmenter.jobs.busy()
    assert previews(scene) == 1
    np.testing.assert_array_equal(mask(target), before)
    getattr(runs, choice)()
    assert previews(scene) == 0
    changed = np.flatnonzero((mask(target) != before).any(axis=(1, 2)))
    assert (len(changed) >= 2) if choice == "apply" else (len(changed) == 0)


LONG_WORK = {
    "propagate": lambda runs, target, stack: runs.propagate(target, stack, 0, len(stack) - 1),
    "auto": lambda runs, target, stack: runs.auto(
        target, runs.segmenter.predictor.auto_targets[0].name, stack, 0, len(stack) - 1),
    "everything": lambda runs, target, stack: runs.everything(target.volume, stack.planes[10]),
}


def stopped_at_a_random_moment(segmenter, runs, told, work, target, stack, seed) -> bool:
    """Start some work on a segment and stop it; True where it had finished before."""
    told.clear()
    LONG_WORK[work](runs, target, stack)
    end = time.monotonic() + np.random.default_rng(seed).uniform(0, 0.6)
    while time.monotonic() < end:
        segmenter.jobs.deliver(0.01)
    finished = bool(told)
    runs.stop()
    return finished


@pytest.mark.parametrize("work", LONG_WORK)
@pytest.mark.parametrize("seed", range(8))
def test_cancelling_and_discarding_at_any_moment_leaves_the_scene_as_before(scene, segmenter, runs, target, stack,
                                                                            told, bright, seed, work):
    click(segmenter, target, 28, 30, 10)
    before, nodes = mask(target), scene.GetNumberOfNodes()
    finished = stopped_at_a_random_moment(segmenter, runs, told, work, target, stack, seed)
    runs.discard()
    segmenter.jobs.deliver(0.3)  # what was in flight comes too late
    assert previews(scene) == 0
    if not finished:
        np.testing.assert_array_equal(mask(target), before)
        assert scene.GetNumberOfNodes() <= nodes + 1  # the writer's hidden node
    click(segmenter, target, 30, 32, 10)
    assert mask(target)[10].any()


@pytest.mark.parametrize("work", ["propagate", "auto"])
@pytest.mark.parametrize("seed", range(8))
def test_cancelling_and_applying_at_any_moment_keeps_whole_slices_as_one_undo_step(segmenter, runs, target, stack,
                                                                                   told, bright, seed, work):
    click(segmenter, target, 28, 30, 10)
    before = mask(target)
    finished = stopped_at_a_random_moment(segmenter, runs, told, work, target, stack, seed)
    shown = {} if runs.pending is None else {index: crop.full() for index, crop in runs.pending.masks.items()}
    if not runs.apply():
        assert finished or not shown
        return
    expected = before.copy()
    for index, found in shown.items():
        patch = stack.planes[index].insert(found, volume_of(target.volume))
        expected[patch.slices] |= patch.array
    np.testing.assert_array_equal(mask(target), expected)
    assert segmenter.undo()
    np.testing.assert_array_equal(mask(target), before)


@pytest.mark.parametrize("work", LONG_WORK)
@pytest.mark.parametrize("seed", range(4))
def test_a_scene_closed_at_any_moment_leaves_nothing_running(scene, segmenter, runs, target, stack, bright, seed, work):
    click(segmenter, target, 28, 30, 10)
    LONG_WORK[work](runs, target, stack)
    end = time.monotonic() + np.random.default_rng(seed).uniform(0, 0.6)
    while time.monotonic() < end:
        segmenter.jobs.deliver(0.01)
    runs.reset()
    segmenter.close()
    scene.Clear(0)
    segmenter.jobs.deliver(0.3)  # what was in flight finds no scene
    assert not segmenter.jobs.busy()
    for thread in threading.enumerate():
        if "segmote" in thread.name.lower():
            thread.join(timeout=20)
            assert not thread.is_alive()
    assert slicer_nodes(scene) == []


def test_a_correction_is_carried_on_and_stays(segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    click(segmenter, target, 28, 30, 13)
    click(segmenter, target, 28, 30 + 13, 13, positive=False)
    corrected = mask(target)[13]
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    np.testing.assert_array_equal(mask(target)[13], corrected)
    assert dice(mask(target), TRUTH) > 0.75


def test_a_prompt_on_a_propagated_slice_corrects_what_is_there(segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    before = mask(target)[12]
    click(segmenter, target, 28, 30, 12)
    assert dice(mask(target)[12], before) > 0.8


def test_an_excluded_point_alone_corrects_a_propagated_slice(segmenter, runs, target, stack, told):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    before = mask(target)
    assert before[12, 30, 36]
    for i, sentences in ((36, len(told)), (35, len(told))):  # the second corrects the first's answer
        click(segmenter, target, i, 30, 12, positive=False)
        assert len(told) == sentences
        assert mask(target)[12].any()
        assert not mask(target)[12, 30, i]
    assert segmenter.undo()
    assert segmenter.undo()
    np.testing.assert_array_equal(mask(target), before)


def test_other_content_of_the_segment_stays(segmenter, runs, target, stack):
    painted = np.zeros(SHAPE, bool)
    painted[2:5, 50:60, 50:60] = True
    segmenter.writer.write(target.segmentation, target.segment_id, target.volume,
                           [Change(MaskPatch((0, 63, 0, 63, 0, 19), painted, painted))])
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert mask(target)[painted].all()


def test_auto_waits_for_apply_when_asked_for_a_preview(scene, segmenter, runs, target, stack, predictor, told,
                                                       monkeypatch):
    monkeypatch.setattr("SegMoTELib.interaction.session.Session.auto_logits",
                        lambda self, plane, name: (np.where(stacked(self, plane), 5.0, -5.0).astype(np.float32), 0.9))

    def stacked(session, plane):
        return session.image_on(plane)[..., 0] > 140

    name = predictor.auto_targets[0].name
    runs.auto(target, name, stack, 0, len(stack) - 1, preview=True)
    segmenter.jobs.finish()
    assert "preview" in told[-1]
    assert not mask(target).any()
    assert previews(scene) == 1
    assert runs.apply()
    assert previews(scene) == 0
    assert dice(mask(target), TRUTH) > 0.9
    assert segmenter.undo()
    assert not mask(target).any()


def test_auto_on_an_empty_volume_says_that_it_found_nothing(segmenter, runs, target, stack, predictor, told):
    slicer.util.updateVolumeFromArray(target.volume, np.zeros(SHAPE, np.int16))
    name = predictor.auto_targets[0].name
    runs.auto(target, name, stack_along(view_along(target.volume, "axial"), target.volume), 0, 19)
    segmenter.jobs.finish()
    assert "nothing found here. It was trained on" in told[-1]
    assert not mask(target).any()


def test_a_segment_locked_meanwhile_costs_nothing_of_the_result(scene, segmenter, runs, target, stack, told):
    click(segmenter, target, 28, 30, 10)
    one_slice, logic = mask(target), slicer.vtkSlicerSegmentationsModuleLogic
    runs.propagate(target, stack, 8, 12)
    segment = target.segmentation.GetSegmentation().GetSegment(target.segment_id)
    logic.SetSegmentStatus(segment, logic.Completed)
    segmenter.jobs.finish()
    assert "locked" in told[-1]
    np.testing.assert_array_equal(mask(target), one_slice)
    assert previews(scene) == 1
    logic.SetSegmentStatus(segment, logic.InProgress)
    assert runs.apply()
    assert slices_of(target) == [7, 8, 9, 10, 11]
    assert previews(scene) == 0


def test_a_run_keeps_what_an_earlier_one_found_outside_its_range(segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 8, 12)
    segmenter.jobs.finish()
    assert slices_of(target) == [7, 8, 9, 10, 11]
    runs.propagate(target, stack, 8, 11, direction=1)  # k = 10 to 8: the stack runs against k
    segmenter.jobs.finish()
    assert slices_of(target) == [7, 8, 9, 10, 11]


def test_a_volume_that_got_another_geometry_meanwhile_is_not_written_to(segmenter, runs, target, stack, told):
    click(segmenter, target, 28, 30, 10)
    before = mask(target)
    runs.propagate(target, stack, 8, 12)
    target.volume.SetSpacing(2.0, 2.0, 2.0)
    segmenter.jobs.finish()
    assert "another geometry" in told[-1]
    target.volume.SetSpacing(1.0, 1.0, 2.0)
    np.testing.assert_array_equal(mask(target), before)


def test_a_run_does_not_wait_for_slices_that_are_prepared(segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    segmenter.prefetch(target.volume, stack.planes[3])
    prefetching = next(job for job in segmenter.jobs._all() if job.key == PREFETCH)
    runs.propagate(target, stack, 9, 11)
    assert prefetching.cancelled()
    segmenter.jobs.finish()


def test_a_target_that_the_model_lacks_is_refused(runs, target, stack):
    with pytest.raises(PromptError, match="it offers"):
        runs.auto(target, "unicorn", stack, 0, 3)


def test_without_prompts_in_this_direction_there_is_nothing_to_propagate(segmenter, runs, target):
    click(segmenter, target, 28, 30, 10)
    sagittal = stack_along(view_along(target.volume, "sagittal"), target.volume)
    with pytest.raises(PromptError, match="Nothing to propagate"):
        runs.propagate(target, sagittal, 0, len(sagittal) - 1)


def test_a_picked_candidate_becomes_the_segment(scene, segmenter, runs, target):
    plane = SlicePlane.through(volume_of(target.volume), "axial", world(28, 30, 10))
    runs.everything(target.volume, plane)
    segmenter.jobs.finish()
    assert previews(scene) == 1
    assert not runs.pick(target, world(900, 0, 10))
    assert runs.pick(target, world(28, 30, 10))
    assert dice(mask(target)[10], TRUTH[10]) > 0.7
    runs.discard()
    assert previews(scene) == 0


def test_candidates_are_picked_on_their_slice_of_their_volume_only(scene, segmenter, runs, target):
    plane = SlicePlane.through(volume_of(target.volume), "axial", world(28, 30, 10))
    runs.everything(target.volume, plane)
    segmenter.jobs.finish()
    assert not runs.pick(target, world(28, 30, 11))
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    slicer.util.updateVolumeFromArray(other, np.zeros(SHAPE, np.int16))
    with pytest.raises(PromptError, match="those of scan; choose it as volume"):
        runs.pick(Target(other, target.segmentation, target.segment_id), world(28, 30, 10))
    target.volume.SetSpacing(1, 1, 3)
    with pytest.raises(PromptError, match="another geometry now"):
        runs.pick(target, world(28, 30, 10))
    assert not mask(target).any()
    target.volume.SetSpacing(1, 1, 2)
    assert runs.pick(target, world(28, 30, 10.3))


def test_a_volume_deleted_while_everything_looks_at_it_leaves_no_candidates(scene, segmenter, runs, target):
    plane = SlicePlane.through(volume_of(target.volume), "axial", world(28, 30, 10))
    runs.everything(target.volume, plane)
    scene.RemoveNode(target.volume)
    segmenter.jobs.finish()
    assert runs.candidates is None
    assert previews(scene) == 0


@pytest.mark.parametrize("how", ["undo", "clear"])
def test_what_was_carried_from_a_prompt_that_was_taken_back_waits_for_the_user(scene, segmenter, runs, target, stack,
                                                                              told, how):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    if how == "undo":
        assert segmenter.undo()
    else:
        segmenter.prompts(target).clear()
        segmenter.update(target)
    segmenter.jobs.finish()
    assert not mask(target).any()
    assert "taken back meanwhile; apply or discard" in told[-1]
    assert previews(scene) == 1
    assert runs.apply()
    assert dice(mask(target), TRUTH) > 0.85
    assert segmenter.undo()
    assert not mask(target).any()


def test_a_segment_that_goes_on_to_the_next_object_meanwhile_is_finished(segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.accept(target.segmentation, target.segment_id)
    segmenter.jobs.finish()
    assert dice(mask(target), TRUTH) > 0.85


def test_a_preview_whose_segment_was_deleted_says_so_when_it_is_applied(scene, segmenter, runs, target, stack, told):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    while len(runs.pending.masks) < 3 and segmenter.jobs.busy():
        segmenter.jobs.deliver(0.01)
    runs.stop()
    scene.RemoveNode(target.volume)
    assert not runs.apply()
    assert "was deleted, and the result with it" in told[-1]
    assert previews(scene) == 0
    assert runs.pending is None


def test_deleting_the_segment_or_closing_the_scene_mid_run_is_harmless(scene, segmenter, runs, target, stack):
    click(segmenter, target, 28, 30, 10)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.deliver(0.05)
    target.segmentation.GetSegmentation().RemoveSegment(target.segment_id)
    segmenter.jobs.finish()
    runs.reset()
    segmenter.scene_closing()
    scene.Clear(True)
    segmenter.jobs.finish()


def test_an_oblique_prompt_is_propagated_without_holes_under_a_transform(scene, segmenter, runs, target):
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    shift = np.eye(4)
    shift[:3, 3] = 11, -7, 5
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
    for node in (target.volume, target.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    view = view_along(target.volume, "axial")
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    view = view @ turn
    view[:3, 3] = world(28, 30, 10) + shift[:3, 3]
    segmenter.prompts(target).add_point(view[:3, 3], True, view)
    segmenter.update(target)
    segmenter.jobs.finish()
    stack = stack_along(view, target.volume)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert dice(mask(target), TRUTH) > 0.75
    core = sum(((GRID[axis] - center) / radius) ** 2 for axis, (center, radius) in
               enumerate(((10, 3), (30, 6), (28, 5)))) <= 1
    assert mask(target)[core].all()
