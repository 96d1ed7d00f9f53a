"""Volumes of every odd kind: propagation, Auto and everything either work on them or end in one clear sentence."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.errors import PromptError, SegMoTEError, VolumeError
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.planes import NORMALS, SlicePlane
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction import everything
from SegMoTELib.interaction.auto import segment_slices
from SegMoTELib.interaction.embeddings import EmbeddingCache
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.interaction.propagation import propagate
from SegMoTELib.interaction.session import Session
from SegMoTELib.interaction.targets import best_orientation
from SegMoTELib.network import load_checkpoint
from SegMoTELib.zoo import resolve_model

SHAPE = (8, 30, 32)  # k, j, i
PLAIN = np.eye(3)
TILT = np.array([[1, 0, 0], [0, 0.94, -0.342], [0, 0.342, 0.94]]) @ np.array(
    [[0.966, 0.259, 0], [-0.259, 0.966, 0], [0, 0, 1]])
SHEAR = np.array([[1, 0, 0.4], [0, 1, 0], [0, 0, 0.917]])
GEOMETRIES = {  # shape, spacing of i, j, k in mm, directions
    "strongly anisotropic": ((10, 48, 48), (0.3, 0.3, 8), np.eye(3)),
    "slices along i": ((48, 48, 10), (8, 0.3, 0.3), np.eye(3)),
    "left-handed": (SHAPE, (1, 1, 2), np.diag([-1.0, 1, 1])),
    "oblique": (SHAPE, (1, 1.1, 2), TILT), "oblique left-handed": (SHAPE, (1, 1.1, 2), TILT @ np.diag([1.0, -1, 1])),
    "sheared": (SHAPE, (1, 1, 2), SHEAR), "huge spacing": (SHAPE, (1e4, 1e4, 2e4), np.eye(3)),
    "tiny spacing": (SHAPE, (2e-4, 2e-4, 4e-4), np.eye(3)), "thick slices": (SHAPE, (1, 1, 5000), np.eye(3))}
VALUES = {
    "NaN and infinite borders": lambda a: np.where(np.arange(a.shape[1])[:, None] < 5, [[np.nan, np.inf] * 16], a),
    "a nodata value": lambda a: np.where(np.arange(a.shape[2]) < 6, -np.finfo(np.float64).max, a),
    "RGB of 8 bits": lambda a: np.stack([a] * 3, -1).clip(0, 255).astype(np.uint8),
    "vectors of floats": lambda a: np.stack([a, a, a], -1).astype(np.float32),
    "bool": lambda a: a > 140, "half precision": lambda a: a.astype(np.float16),
    "long double": lambda a: a.astype(np.longdouble), "large integers": lambda a: a.astype(np.uint64) * 10 ** 15,
    "the other byte order": lambda a: a.astype(">i2"), "a view": lambda a: np.repeat(a, 2, 2)[:, :, ::2]}
FLAT = {"constant": lambda a: np.full(a.shape, 7, np.int16), "zero": lambda a: np.zeros(a.shape, np.uint8)}
THIN = {"one voxel": (1, 1, 1), "one voxel wide": (10, 24, 1), "one voxel high": (10, 1, 24), "a line": (12, 1, 1),
        "two voxels": (2, 2, 2), "longer than an image may be": (3, 2, 5000)}


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu", cache=EmbeddingCache(1 << 28))
    predictor.focus = False
    return predictor


@pytest.fixture
def scan(predictor, monkeypatch):
    """Function: shape, spacing, directions, change of the values -> session on one noisy ellipsoid, and its truth.

    Auto answers with what is bright: the bundled model's own targets are not in such volumes.
    """
    def make(shape=SHAPE, spacing=(1, 1, 2), directions=PLAIN, values=lambda a: a):
        grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
        truth = sum((grid[axis] / max(0.3 * shape[axis], 0.6)) ** 2 for axis in range(3)) <= 1
        array = 100 + 80 * truth + np.random.default_rng(0).normal(0, 6, shape)
        matrix = np.eye(4)
        matrix[:3, :3] = directions * np.array(spacing, float)
        volume = Volume(values(array), matrix)
        return Session(predictor, volume, range_of(volume, "percentiles")), truth

    monkeypatch.setattr(Session, "auto_logits", lambda self, plane, name: (
        (self.image_on(plane)[..., 0].astype(np.float32) - 140) / 10, 0.9))
    monkeypatch.setattr(everything, "GRID", 5)
    return make


def voxels(masks, stack) -> np.ndarray:
    """(K, J, I) count of how often each voxel is written."""
    count = np.zeros(stack.volume.array.shape[:3], int)
    for index, mask in masks.items():
        patch = stack.planes[index].insert(mask.full(), stack.volume)
        count[patch.slices] += patch.array
    return count


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + np.count_nonzero(other))


def centre(session) -> np.ndarray:
    return session.volume.to_ras(np.array(session.volume.shape) // 2)


def carried(session, stack) -> np.ndarray:
    """One click in the middle of the volume, carried to both ends."""
    index = stack.nearest(centre(session))
    answer = session.predict(stack.planes[index], positives=centre(session)[None])
    return voxels(propagate(session, stack, {index: answer.mask}, 0, len(stack) - 1).masks, stack)


def found_by_auto(session, stack) -> np.ndarray:
    name = session.predictor.auto_targets[0].name
    return voxels(segment_slices(session, stack, name, 0, len(stack) - 1).masks, stack)


def expect_everything_right(session, truth, orientation):
    """Propagation, Auto and everything find the ellipsoid and write no voxel twice."""
    stack = PlaneStack.along(session.volume, orientation)
    for found in (carried(session, stack), found_by_auto(session, stack)):
        assert found.max() == 1
        assert dice(found > 0, truth) > 0.85
    plane = stack.planes[stack.nearest(centre(session))]
    on_plane = plane.extract(Volume(truth.astype(np.uint8), session.volume.ijk_to_ras)) > 0
    assert max(dice(one.mask, on_plane) for one in session.everything(plane)) > 0.85


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_geometry_is_segmented_along_its_best_slices(scan, geometry):
    session, truth = scan(*GEOMETRIES[geometry])
    expect_everything_right(session, truth, best_orientation(session.volume))


@pytest.mark.parametrize("orientation", NORMALS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_slices_of_every_direction_cover_every_voxel_once(scan, geometry, orientation):
    session, _ = scan(*GEOMETRIES[geometry])
    stack = PlaneStack.along(session.volume, orientation)
    count = np.zeros(session.volume.array.shape, int)
    for plane in stack.planes:
        patch = plane.insert(np.ones(plane.shape, bool), session.volume)
        count[patch.slices] += patch.array
    np.testing.assert_array_equal(count, 1)
    assert len({plane.key() for plane in stack.planes}) == len(stack)


@pytest.mark.parametrize("values", VALUES)
def test_every_kind_of_values_is_segmented(scan, values):
    session, truth = scan(values=VALUES[values])
    if values in ("NaN and infinite borders", "a nodata value"):
        assert np.isfinite(PlaneStack.along(session.volume, "axial").planes[0].extract(session.volume)).all()
    expect_everything_right(session, truth, "axial")


@pytest.mark.parametrize("values", FLAT)
def test_where_nothing_can_be_seen_nothing_is_found_and_nothing_runs_on(scan, values):
    session, _ = scan(values=FLAT[values])
    stack = PlaneStack.along(session.volume, "axial")
    assert found_by_auto(session, stack).max() == 0
    assert session.everything(stack.planes[4]) == []
    mask = np.zeros(stack.planes[0].shape, bool)
    mask[12:18, 12:18] = True
    found = propagate(session, stack, {4: mask}, 0, len(stack) - 1)
    assert len(found.masks) <= 5
    assert "grey values do not show its end" in found.in_words()


def test_a_single_slice_is_propagated_to_itself(scan):
    session, truth = scan((1, 48, 48), (1, 1, 1))
    expect_everything_right(session, truth, "axial")


@pytest.mark.parametrize("orientation", NORMALS)
@pytest.mark.parametrize("thin", THIN)
def test_thin_volumes_work_or_say_why_not(scan, thin, orientation):
    session, truth = scan(THIN[thin], (1, 1, 1))
    stack = PlaneStack.along(session.volume, orientation)
    if len(stack) > 100:
        stack = PlaneStack(stack.planes[2490:2510], session.volume)  # a few in the middle will do
    index = stack.nearest(centre(session))
    if session.predict(stack.planes[index], positives=centre(session)[None]).mask.any():
        assert carried(session, stack).max() == 1
    else:
        with pytest.raises(PromptError, match="segment the object on one slice first"):
            carried(session, stack)
    seed = stack.planes[index].extract(Volume(truth.astype(np.uint8), session.volume.ijk_to_ras)) > 0
    if seed.any():
        found = voxels(propagate(session, stack, {index: seed}, 0, len(stack) - 1).masks, stack)
        assert found.max() == 1
    assert found_by_auto(session, stack).max() <= 1
    assert len(session.everything(stack.planes[index])) <= everything.MOST


@pytest.mark.parametrize("values", [np.nan, np.inf, -np.inf, 1e300])
def test_a_volume_without_a_value_to_show_is_refused(scan, values):
    with pytest.raises(VolumeError, match="no finite value"):
        scan(values=lambda a: np.full(a.shape, values))


@pytest.mark.parametrize(("spacing", "words"), [
    ((0, 1, 1), "unusable geometry"), ((1, 1, np.nan), "unusable geometry"), ((1, 1, np.inf), "unusable geometry"),
    ((1e-5, 1, 1), r"voxels of 1e-05 x 1 x 1 mm.*check the unit"), ((1e-6, 1e-6, 1e-6), "check the unit"),
    ((1, 1, 1e9), "check the unit"), ((1e200, 1e200, 1e200), "check the unit")])
def test_a_spacing_beyond_sense_is_refused_with_its_size(spacing, words):
    with np.errstate(invalid="ignore", over="ignore"), pytest.raises(VolumeError, match=words):
        Volume(np.zeros(SHAPE), np.diag([*map(float, spacing), 1.0]))


def test_directions_that_lie_in_one_plane_are_refused_whatever_the_spacing():
    matrix = np.diag([1000.0, 1000, 1000, 1])
    matrix[:3, 2] = 1000, 1000, 0
    with pytest.raises(VolumeError, match="unusable geometry"):
        Volume(np.zeros(SHAPE), matrix)


@pytest.mark.parametrize("components", [1, 2, 4, 7])
def test_several_values_that_are_no_colours_are_refused_with_words(components):
    with pytest.raises(VolumeError, match="choose one 3D volume or one frame"):
        Volume(np.zeros((*SHAPE, components)), np.eye(4))


@pytest.mark.parametrize("prompt", [
    {"positives": [[500.0, 0, 8]]}, {"positives": [[15.0, 15, 8]], "negatives": [[-400.0, 15, 8]]},
    {"box": [[500.0, 500, 8], [600, 600, 8]]}, {"positives": [[1e30, 0, 8]]}, {"positives": [[15.0, 15, 99]]}])
def test_a_prompt_out_of_the_volume_is_one_sentence_and_the_next_one_works(scan, prompt):
    session, _ = scan()
    plane = SlicePlane.through(session.volume, "axial", [15, 15, 8])
    with pytest.raises(SegMoTEError, match=r"outside the volume|does not lie on the slice"):
        session.predict(plane, **{name: np.array(value) for name, value in prompt.items()})
    assert session.predict(plane, positives=np.array([[15.0, 15, 8]])).mask.any()


@pytest.mark.parametrize("orientation", NORMALS)
@pytest.mark.parametrize("geometry", ["oblique", "oblique left-handed", "sheared", "strongly anisotropic"])
def test_a_view_that_no_voxel_axis_follows_is_brought_back_without_holes_or_doubles(scan, geometry, orientation):
    session, truth = scan(*GEOMETRIES[geometry])
    middle = SlicePlane.through(session.volume, orientation, centre(session)).pixel_to_ras @ np.diag([1.0, -1, 1, 1])
    middle[:3, :3] = (middle / np.linalg.norm(middle, axis=0))[:3, :3] @ TILT
    stack = PlaneStack.parallel_to(session.volume, middle)
    count = np.zeros(truth.shape, int)
    for plane in stack.planes:
        mask = plane.extract(Volume(truth.astype(np.uint8), session.volume.ijk_to_ras)) > 0.5
        patch = plane.insert(mask, session.volume)
        count[patch.slices] += patch.array
    assert count.max() == 1
    assert dice(count > 0, truth) > 0.85
    grid = np.indices(truth.shape) - (np.array(truth.shape)[:, None, None, None] - 1) / 2
    core = sum((grid[axis] / (0.2 * truth.shape[axis])) ** 2 for axis in range(3)) <= 1
    assert count[core].all()
