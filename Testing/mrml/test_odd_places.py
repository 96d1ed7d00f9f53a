"""Propagation, Auto and everything under transforms of one node or both; nodes that are no image are refused."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

from SegMoTELib.errors import VolumeError  # noqa: E402
from SegMoTELib.imaging.planes import MaskPatch  # noqa: E402
from SegMoTELib.interaction import everything  # noqa: E402
from SegMoTELib.mrml.runs import VolumeRuns  # noqa: E402
from SegMoTELib.mrml.segmenter import SceneSegmenter  # noqa: E402
from SegMoTELib.mrml.segments import Change, segment_mask  # noqa: E402
from SegMoTELib.mrml.volumes import plane_of, stack_along, view_along, volume_of  # noqa: E402

TURN = np.array([[0.94, -0.342, 0, 30], [0.342, 0.94, 0, -8], [0, 0, 1, 4], [0, 0, 0, 1]])
TRANSFORMS = {"turned": TURN, "mirrored": np.diag([-1.0, 1, 1, 1]), "scaled": np.diag([1.5, 0.8, 1.2, 1]),
              "sheared": np.array([[1, 0.2, 0, 5], [0, 1, 0.1, 0], [0, 0, 1, -7], [0, 0, 0, 1.0]])}


@pytest.fixture
def told():
    return []


@pytest.fixture
def segmenter(scene, bundled, told, monkeypatch):
    monkeypatch.setattr(everything, "GRID", 6)
    segmenter = SceneSegmenter(scene, lambda text, error: told.append((text, error)))
    segmenter.predictor, segmenter.mapping = bundled, "percentiles"
    yield segmenter
    segmenter.close()


@pytest.fixture
def runs(segmenter):
    return VolumeRuns(segmenter)


def mask(target) -> np.ndarray:
    i, j, k = volume_of(target.volume).shape
    return segment_mask(target.segmentation, target.segment_id, target.volume, (0, i - 1, 0, j - 1, 0, k - 1))


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + np.count_nonzero(other))


def expect_all_three_right(segmenter, runs, target, truth, told, close=0.85):
    """Propagation from a click, Auto and everything find the object; undo takes each back to the last voxel."""
    view = view_along(target.volume, "axial")
    stack, middle = stack_along(view, target.volume), view.copy()
    plane = plane_of(middle, target.volume)
    segmenter.prompts(target).add_point(middle[:3, 3], True, view)
    segmenter.update(target)
    segmenter.jobs.finish()
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert dice(mask(target), truth) > close
    assert segmenter.undo()
    assert segmenter.undo()
    assert not mask(target).any()
    runs.auto(target, segmenter.predictor.auto_targets[0].name, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert dice(mask(target), truth) > close
    assert segmenter.undo()
    assert not mask(target).any()
    runs.everything(target.volume, plane)
    segmenter.jobs.finish()
    assert runs.pick(target, middle[:3, 3])
    k = int(np.flatnonzero(mask(target).any(axis=(1, 2)))[0])
    assert dice(mask(target)[k], truth[k]) > close
    runs.discard()
    assert segmenter.undo()
    assert not mask(target).any()
    assert [text for text, error in told if error] == []


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_a_transform_of_both_it_is_as_without(segmenter, runs, ellipsoid, bright, told, move, transform):
    target, truth = ellipsoid()
    above = move(target.volume, TRANSFORMS[transform])
    target.segmentation.SetAndObserveTransformNodeID(above.GetID())
    expect_all_three_right(segmenter, runs, target, truth, told)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("moved", ["volume", "segmentation"])
def test_a_transform_of_only_one_is_undone_to_the_last_voxel(segmenter, runs, ellipsoid, bright, told, move, moved,
                                                             transform):
    target, truth = ellipsoid()
    paint_far_away(segmenter, target)  # or the segmentation would follow the volume
    move(getattr(target, moved), TRANSFORMS[transform])
    expect_all_three_right(segmenter, runs, target, truth, told, close=0.75)  # nearest voxels of another grid


@pytest.mark.parametrize("transform", ["turned", "sheared"])
@pytest.mark.parametrize("moved", ["volume", "segmentation"])
def test_a_transform_of_only_one_puts_voxels_where_the_object_is_seen(segmenter, runs, ellipsoid, bright, move, moved,
                                                                      transform):
    target, truth = ellipsoid()
    paint_far_away(segmenter, target)
    move(getattr(target, moved), TRANSFORMS[transform])
    stack = stack_along(view_along(target.volume, "axial"), target.volume)
    runs.auto(target, segmenter.predictor.auto_targets[0].name, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert dice(mask(target), truth) > 0.75  # nearest voxels of another grid


def paint_far_away(segmenter, target):
    """A voxel in another segment, in a corner."""
    other = target.segmentation.GetSegmentation().AddEmptySegment("", "other")
    one = np.ones((1, 1, 1), bool)
    segmenter.writer.write(target.segmentation, other, target.volume, [Change(MaskPatch((0,) * 6, one, one))])


@pytest.mark.parametrize("kind", ["vtkMRMLDiffusionTensorVolumeNode", "vtkMRMLStreamingVolumeNode",
                                  "vtkMRMLDiffusionWeightedVolumeNode", "vtkMRMLModelNode"])
def test_a_node_that_is_no_image_is_refused_with_its_name(scene, kind):
    node = scene.AddNewNodeByClass(kind, "odd one")
    if node.IsA("vtkMRMLVolumeNode"):
        image = vtk.vtkImageData()
        image.SetDimensions(5, 4, 3)
        image.AllocateScalars(vtk.VTK_FLOAT, 3)
        node.SetAndObserveImageData(image)
    with pytest.raises(VolumeError, match=r"odd one is a .* choose a scalar or colour volume"):
        volume_of(node)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1e-9, 1e-9, 1e-9), (1e12, 1, 1)])
def test_a_node_whose_spacing_makes_no_sense_is_refused_before_any_work(segmenter, runs, ellipsoid, spacing):
    target, _ = ellipsoid()
    target.volume.SetSpacing(*spacing)
    with pytest.raises(VolumeError, match=r"unusable geometry|check the unit"):
        segmenter.update(target)
    with pytest.raises(VolumeError, match=r"unusable geometry|check the unit"):
        view_along(target.volume, "axial")
    assert not segmenter.jobs.busy()
