"""Stacks of parallel slices, along the grid and oblique."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.planes import LARGEST_SIDE, SlicePlane
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume

BASIS, _ = np.linalg.qr(np.array([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [-0.05, 0.2, 0.98]]))
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3], OBLIQUE[:3, 3] = BASIS * (0.8, 0.9, 2.5), (12, -30, 7)
TILT = np.eye(4)
TILT[:3, :3] = [[1, 0, 0], [0, np.cos(0.5), -np.sin(0.5)], [0, np.sin(0.5), np.cos(0.5)]]


@pytest.fixture(params=["plain", "LPS", "oblique"])
def volume(request):
    matrix = {"plain": np.diag([1.0, 1, 3, 1]), "LPS": np.diag([-1.0, -1, 2, 1]), "oblique": OBLIQUE}[request.param]
    return Volume(np.random.default_rng(0).integers(0, 99, (9, 14, 12)).astype(np.int16), matrix)


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal"])
def test_a_stack_along_the_grid_holds_every_slice_and_the_planes_that_prompts_get(volume, orientation):
    stack = PlaneStack.along(volume, orientation)
    assert len(stack) in volume.shape
    for index, plane in enumerate(stack.planes):
        center = plane.to_ras((np.array(plane.shape[::-1]) - 1) / 2)
        assert SlicePlane.through(volume, orientation, center).key() == plane.key()
        assert stack.nearest(center) == index


def test_pixels_of_a_tilted_stack_lie_over_each_other_and_cover_the_volume(volume):
    stack = PlaneStack.parallel_to(volume, TILT)
    assert len({plane.shape for plane in stack.planes}) == 1
    normal = stack.planes[0].normal
    for before, after in zip(stack.planes, stack.planes[1:], strict=False):
        step = after.pixel_to_ras[:3, 3] - before.pixel_to_ras[:3, 3]
        np.testing.assert_allclose(step, (step @ normal) * normal, atol=1e-6)
        assert abs(step @ normal) == pytest.approx(stack.step)
    filled = np.zeros(volume.array.shape, int)
    for plane in stack.planes:
        patch = plane.insert(np.ones(plane.shape, bool), volume)
        filled[patch.slices] += patch.array
    assert filled.max() == 1  # no voxel twice
    assert (filled[1:-1, 1:-1, 1:-1] == 1).all()  # and no holes


@pytest.mark.parametrize("spacing", [(0.01, 1, 1), (0.001, 1, 10), (0.02, 0.02, 5)])
def test_slices_of_a_thin_slab_are_not_larger_together_than_one_may_be(spacing):
    volume = Volume(np.zeros((20, 300, 300), np.uint8), np.diag([*spacing, 1.0]))
    view = np.eye(4)
    view[:3, :3] = BASIS @ TILT[:3, :3] @ BASIS
    stack = PlaneStack.parallel_to(volume, view)
    assert max(stack.planes[0].shape) <= LARGEST_SIDE
    first, last = stack.planes[0], stack.planes[-1]
    assert first.shape == last.shape
    np.testing.assert_array_equal(first.pixel_to_ras[:3, :3], last.pixel_to_ras[:3, :3])
    corners = volume.to_ras(np.array([[i, j, k] for i in (0, 299) for j in (0, 299) for k in (0, 19)]))
    pixels = first.to_pixels(corners) / (np.array(first.shape[::-1]) - 1)
    assert pixels.min() > -0.02  # all of the volume is on them
    assert pixels.max() < 1.02


def test_a_point_beyond_the_slices_is_refused(volume):
    with pytest.raises(VolumeError, match="outside"):
        PlaneStack.along(volume, "axial").nearest(volume.to_ras(np.array([0, 0, 99])))


@pytest.mark.parametrize("count", [4, 5])
def test_a_point_on_an_outer_face_belongs_to_the_slice_there(count):
    """At both ends alike, though 0.5 and 1.5 are rounded to even numbers."""
    volume = Volume(np.zeros((count, 9, 9), np.int16), np.diag([1.0, 1, 2, 1]))
    stack = PlaneStack.along(volume, "axial")
    for face, last in ((-0.5, 0), (count - 0.5, count - 1)):
        point = volume.to_ras([4, 4, face])
        assert SlicePlane.through(volume, "axial", point).pixel_to_ras[2, 3] == pytest.approx(2 * last)
        assert stack.planes[stack.nearest(point)].pixel_to_ras[2, 3] == pytest.approx(2 * last)
        with pytest.raises(VolumeError, match="outside"):
            stack.nearest(volume.to_ras([4, 4, face + np.sign(face) * 0.01]))
        with pytest.raises(VolumeError, match="outside"):
            SlicePlane.through(volume, "axial", volume.to_ras([4, 4, face + np.sign(face) * 0.01]))


def test_a_single_slice_is_a_stack_of_one():
    volume = Volume(np.zeros((1, 5, 6), np.uint8), np.eye(4))
    stack = PlaneStack.along(volume, "axial")
    assert len(stack) == 1
    assert stack.nearest([2, 2, 0]) == 0
