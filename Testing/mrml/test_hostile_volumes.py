"""Propagate, Auto and everything on volumes that break naive code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.imaging.planes import SlicePlane  # noqa: E402
from SegMoTELib.interaction import everything  # noqa: E402
from SegMoTELib.interaction.predictor import Predictor  # noqa: E402
from SegMoTELib.interaction.session import Session  # noqa: E402
from SegMoTELib.mrml.runs import VolumeRuns  # noqa: E402
from SegMoTELib.mrml.segmenter import SceneSegmenter  # noqa: E402
from SegMoTELib.mrml.segments import prepare_segmentation, segment_mask  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.mrml.volumes import stack_along, view_along, volume_of, world_to_volume  # noqa: E402
from SegMoTELib.network import load_checkpoint  # noqa: E402
from SegMoTELib.zoo import resolve_model  # noqa: E402

SHAPE, CENTER, RADII = (20, 64, 64), (10, 30, 28), (7, 15, 13)  # k, j, i
PLAIN = np.diag([-1.0, -1, 2, 1])


def turned(degrees: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) geometry turned about all three axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about = ([[1, 0, 0], [0, c, -s], [0, s, c]], [[c, 0, s], [0, 1, 0], [-s, 0, c]], [[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.multi_dot(about) * spacing
    matrix[:3, 3] = 40, -25, 300
    return matrix


@dataclass(frozen=True)
class Kind:
    """A volume with one ellipsoid: geometry, orientation of its slices, and what else is odd about it."""

    matrix: np.ndarray
    shape: tuple[int, int, int] = SHAPE
    center: tuple[int, int, int] = CENTER
    radii: tuple[float, float, float] = RADII
    orientation: str = "axial"
    parent: np.ndarray | None = None
    odd: str = ""
    thin: bool = False  # slices of a few voxels' width, on which everything may find nothing
    least: float = 0.8  # Dice of what is propagated; a row of voxels tells the model little

    @property
    def truth(self) -> np.ndarray:
        """(k, j, i) bool."""
        grid = np.indices(self.shape)
        return sum(((grid[axis] - self.center[axis]) / self.radii[axis]) ** 2 for axis in range(3)) <= 1

    def array(self) -> np.ndarray:
        """Voxels."""
        values = 100 + 80 * self.truth + np.random.default_rng(0).normal(0, 6, self.shape)
        if self.odd == "rgb":
            return np.repeat(np.clip(values, 0, 255)[..., None], 3, axis=-1).astype(np.uint8)
        if self.odd == "no numbers":
            values = values.astype(np.float32)
            places = np.random.default_rng(1).random(self.shape)
            values[places < 0.02], values[places > 0.99], values[0] = np.nan, np.inf, -np.inf
            return values
        return values.astype(np.int16)


KINDS = {
    "slices of 0.3 x 0.3 x 8 mm": Kind(np.diag([-0.3, -0.3, 8, 1]), (7, 96, 96), (3, 44, 46), (2.6, 22, 19)),
    "across slices of 8 mm": Kind(np.diag([-0.3, -0.3, 8, 1]), (7, 96, 96), (3, 44, 46), (2.6, 22, 19), "coronal",
                                   thin=True),
    "a single slice": Kind(PLAIN, (1, 64, 64), (0, 30, 28)),
    "left-handed": Kind(np.diag([1.0, 1, -2, 1])),
    "oblique": Kind(turned(20, (1, 1, 2))),
    "oblique and left-handed": Kind(turned(20, (1, 1, -2))),
    "under a linear transform": Kind(PLAIN, parent=turned(35, (1, 1, 1))),
    "under a mirror that scales": Kind(PLAIN, parent=np.diag([-1.5, 1.5, 1.5, 1])),
    "NaN and infinite voxels": Kind(PLAIN, odd="no numbers"),
    "colour": Kind(PLAIN, odd="rgb"),
    "one voxel wide, along its width": Kind(PLAIN, (20, 64, 1), (10, 30, 0), (7, 15, 1), "sagittal"),
    "one voxel wide, across": Kind(PLAIN, (20, 64, 1), (10, 30, 0), (7, 15, 1), thin=True, least=0.0),
}


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu")
    predictor.focus = False
    return predictor


@pytest.fixture
def told():
    return []


@pytest.fixture
def segmenter(scene, predictor, told, monkeypatch):
    monkeypatch.setattr(everything, "GRID", 6)
    segmenter = SceneSegmenter(scene, lambda text, error: told.append((text, error)))
    segmenter.predictor, segmenter.mapping = predictor, "percentiles"
    yield segmenter
    segmenter.close()


@pytest.fixture
def runs(segmenter):
    return VolumeRuns(segmenter)


@pytest.fixture
def load(scene, move):
    """Function: voxels, geometry, parent transform -> an empty segment on a new volume."""
    def make(array, matrix=PLAIN, parent=None) -> Target:
        node = scene.AddNewNodeByClass(f"vtkMRML{'Vector' if array.ndim == 4 else 'Scalar'}VolumeNode", "scan")
        slicer.util.updateVolumeFromArray(node, array)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
        if parent is not None:
            move(node, parent)
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
        prepare_segmentation(segmentation, node)
        return Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("", "object"))
    return make


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def target(load, kind):
    return load(kind.array(), kind.matrix, kind.parent)


def world(node, k, j, i) -> np.ndarray:
    to_world = np.linalg.inv(world_to_volume(node))
    return to_world[:3, :3] @ volume_of(node).to_ras(np.array([i, j, k], float)) + to_world[:3, 3]


def box(segmenter, target, kind):
    """A box around the ellipsoid on the slice through its middle, as a user draws it."""
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[kind.orientation]
    low, high = (np.array(kind.center, float) + sign * (np.array(kind.radii) + 0.9) for sign in (-1, 1))
    low[axis] = high[axis] = kind.center[axis]
    segmenter.prompts(target).add_box([world(target.volume, *low), world(target.volume, *high)],
        view_along(target.volume, kind.orientation))
    segmenter.update(target)
    segmenter.jobs.finish()


def stack_of(target, kind):
    return stack_along(view_along(target.volume, kind.orientation), target.volume)


def mask(target) -> np.ndarray:
    i, j, k = volume_of(target.volume).shape
    return segment_mask(target.segmentation, target.segment_id, target.volume, (0, i - 1, 0, j - 1, 0, k - 1))


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_a_box_is_propagated_through_the_object_and_undone(segmenter, runs, target, kind, told):
    box(segmenter, target, kind)
    prompted, stack = mask(target), stack_of(target, kind)
    assert prompted.any(), told
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert not any(error for _, error in told), told
    assert dice(mask(target), kind.truth) > kind.least
    assert (mask(target) >= prompted).all()
    assert segmenter.undo()
    np.testing.assert_array_equal(mask(target), prompted)


def test_auto_puts_what_it_finds_where_it_is(segmenter, runs, target, kind, predictor, told, monkeypatch):
    def bright(session, plane, name):
        values = session.image_on(plane).mean(axis=-1)
        return np.where(values > 128, 5.0, -5.0).astype(np.float32), 0.9

    monkeypatch.setattr(Session, "auto_logits", bright)
    stack = stack_of(target, kind)
    runs.auto(target, predictor.auto_targets[0].name, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert not any(error for _, error in told), told
    assert dice(mask(target), kind.truth) > 0.95
    assert segmenter.undo()
    assert not mask(target).any()


def test_the_models_own_auto_ends_in_a_sentence(segmenter, runs, target, kind, predictor, told):
    stack, name = stack_of(target, kind), predictor.auto_targets[0].name
    middle = len(stack) // 2
    runs.auto(target, name, stack, max(0, middle - 2), min(len(stack) - 1, middle + 2))
    segmenter.jobs.finish()
    assert len(told) == 1
    assert told[0][0].startswith(f"{name}: ")
    assert not told[0][1]


def test_a_candidate_of_everything_becomes_the_segment(segmenter, runs, target, kind, told):
    volume = volume_of(target.volume)
    plane = SlicePlane.through(volume, kind.orientation, volume.to_ras(np.array(kind.center[::-1], float)))
    runs.everything(target.volume, plane)
    segmenter.jobs.finish()
    if kind.thin:
        assert [error for _, error in told] == [False]  # something or nothing, but no failure
        return
    assert runs.pick(target, world(target.volume, *kind.center)), told
    patch = plane.insert(np.ones(plane.shape, bool), volume, solid=True)
    on_plane = np.zeros(kind.shape, bool)
    on_plane[patch.slices] = patch.claimed
    found = mask(target)
    assert not found[~on_plane].any()
    assert dice(found, kind.truth & on_plane) > 0.9
    assert segmenter.undo()
    assert not mask(target).any()
