"""Planes: what is cut out of a volume lies where it should, and a mask goes back to the same place."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.volume import Volume

ORIENTATIONS = ("axial", "coronal", "sagittal")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_ball_is_where_geometry_says(ball, disk, center, orientation):
    plane = SlicePlane.through(ball, orientation, center)
    image = plane.extract(ball)
    assert image.shape == plane.shape
    assert dice(image > 125, disk(plane)) > 0.93


def test_an_oblique_view_shows_the_ball_where_geometry_says(ball, disk, slice_to_ras):
    plane = SlicePlane.from_slice_to_ras(ball, slice_to_ras)
    assert abs(plane.distance(slice_to_ras[:3, 3])) < 1e-6
    assert dice(plane.extract(ball) > 125, disk(plane)) > 0.9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_on_the_grid_goes_back_to_the_voxels_it_came_from(ball, center, orientation):
    plane = SlicePlane.through(ball, orientation, center)
    mask = plane.extract(ball) > 125
    patch = plane.insert(mask, ball)
    assert min(patch.array.shape) == 1
    assert patch.claimed.all()
    found = np.zeros(ball.array.shape, bool)
    found[patch.slices] = patch.array
    axis = int(np.argmin(patch.array.shape))
    layer = patch.slices[axis].start
    truth = np.zeros(ball.array.shape, bool)
    np.moveaxis(truth, axis, 0)[layer] = np.moveaxis(ball.array, axis, 0)[layer] > 125
    assert dice(found, truth) > 0.97


def test_an_oblique_mask_becomes_one_layer_without_holes(ball, disk, slice_to_ras):
    plane = SlicePlane.from_slice_to_ras(ball, slice_to_ras)
    patch = plane.insert(disk(plane), ball)
    axis = 2 - int(np.abs(plane.normal @ ball.ijk_to_ras[:3, :3]).argmax())
    assert patch.array.sum(axis=axis).max() == 1
    assert patch.array.sum(axis=axis).min() == 0
    indices = np.argwhere(patch.array) + [part.start for part in patch.slices]
    ras = ball.to_ras(indices[:, ::-1])
    assert np.abs(plane.distance(ras)).max() <= ball.spacing.max() / 2 + 1e-6
    assert dice(ball.array[tuple(indices.T)] > 125, np.ones(len(indices), bool)) > 0.93
    covered = patch.array.any(axis=axis)
    expected = np.pi * 14.0 ** 2 * abs(plane.normal @ ball.directions[:, 2 - axis])
    other = np.delete(ball.spacing, 2 - axis)
    assert covered.sum() * other.prod() == pytest.approx(expected, rel=0.15)


def test_pixels_and_millimetres_are_inverse(ball, slice_to_ras):
    plane = SlicePlane.from_slice_to_ras(ball, slice_to_ras)
    pixels = np.array([[0.0, 0.0], [10.5, 3.25]])
    np.testing.assert_allclose(plane.to_pixels(plane.to_ras(pixels)), pixels, atol=1e-9)
    np.testing.assert_allclose(plane.distance(plane.to_ras(pixels)), 0, atol=1e-9)


def test_a_view_along_the_grid_snaps_to_the_nearest_slice(make_ball, center):
    volume = make_ball("RAS", "anisotropic")
    view = np.eye(4)
    view[:3, 3] = center + (0, 0, 1.0)
    plane = SlicePlane.from_slice_to_ras(volume, view)
    depth = volume.to_ijk(plane.to_ras([0, 0]))[2]
    assert depth == pytest.approx(round(depth))
    again = SlicePlane.from_slice_to_ras(volume, view)
    assert plane.key() == again.key()
    view[2, 3] += 3.0
    assert SlicePlane.from_slice_to_ras(volume, view).key() != plane.key()


def test_pixels_on_the_grid_are_the_stored_values(make_ball, center):
    volume = make_ball("RAS", "isotropic")
    volume = Volume(np.random.default_rng(0).integers(-999, 999, volume.array.shape).astype(np.int16),
                    volume.ijk_to_ras)
    image = SlicePlane.through(volume, "axial", center).extract(volume)
    k = round(volume.to_ijk(center)[2])
    np.testing.assert_array_equal(image, volume.array[k, ::-1, ::-1])


def test_slices_are_shown_as_slicer_shows_them(ball, center):
    """Axial: the patient's left is on the right of the picture, the front is at the top."""
    plane = SlicePlane.through(ball, "axial", center)
    right, down = plane.pixel_to_ras[:3, 0], plane.pixel_to_ras[:3, 1]
    assert right[0] < 0
    assert down[1] < 0


def test_colour_stays_colour():
    rgb = np.random.default_rng(1).integers(0, 255, (1, 20, 30, 3), dtype=np.uint8)
    volume = Volume(rgb, np.eye(4))
    image = SlicePlane.through(volume, "axial", [10, 10, 0]).extract(volume)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb[0, ::-1, ::-1])


def test_voxels_that_are_not_numbers_become_background(make_ball, center):
    volume = make_ball("RAS", "isotropic")
    array = volume.array.astype(np.float32)
    array[:, 10:12] = np.nan
    array[:, 12] = np.inf
    image = SlicePlane.through(volume, "axial", center).extract(Volume(array, volume.ijk_to_ras))
    assert np.isfinite(image).all()
    assert image.min() == 50


def test_an_empty_mask_claims_next_to_nothing(ball, center):
    plane = SlicePlane.through(ball, "axial", center)
    patch = plane.insert(np.zeros(plane.shape, bool), ball)
    assert not patch.array.any()
    assert patch.array.size < 50


def test_memory_follows_the_object_not_the_volume(slice_to_ras, center):
    matrix = np.eye(4)
    matrix[:3, 3] = -1024, -1024, -500
    huge = Volume(np.broadcast_to(np.int16(0), (1000, 2048, 2048)), matrix)
    slice_to_ras[:3, 3] = 0
    plane = SlicePlane.from_slice_to_ras(huge, slice_to_ras)
    mask = np.zeros(plane.shape, bool)
    row, column = np.round(plane.to_pixels([0, 0, 0])[::-1]).astype(int)
    mask[row - 20:row + 20, column - 20:column + 20] = True
    assert plane.insert(mask, huge).array.size < 100 ** 3
    assert plane.extract(huge).shape == plane.shape


@pytest.mark.parametrize(("make", "message"), [
    (lambda v: SlicePlane.through(v, "axial", [0, 0, 500]), "outside the volume"),
    (lambda v: SlicePlane.through(v, "diagonal", [0, 0, 0]), "choose axial"),
    (lambda v: SlicePlane.from_slice_to_ras(v, np.diag([1.0, 1, 1, 1]) + 500 * np.eye(4, k=1)[:, [0, 1, 2, 3]]
                                            * np.array([0, 0, 0, 1])), "outside the volume|does not meet"),
    (lambda v: Volume(np.zeros((0, 4, 4)), np.eye(4)), "no voxels"),
    (lambda v: Volume(np.zeros((2, 3, 4, 5, 6)), np.eye(4)), "one 3D volume"),
    (lambda v: Volume(np.zeros((2, 2, 2)), np.zeros((4, 4))), "unusable geometry"),
    (lambda v: Volume(np.array([[["a"]]]), np.eye(4)), "numbers are needed"),
])
def test_what_cannot_be_used_is_said(make_ball, make, message):
    with pytest.raises(VolumeError, match=message):
        make(make_ball("RAS", "isotropic"))


@pytest.mark.parametrize("thickness", [0.3, 1.5, 8.0])
@pytest.mark.parametrize("tilt", [0.0, 0.05, 0.3, 0.7, 1.2, 1.5])
def test_a_solid_mask_fills_every_cell_that_an_oblique_plane_passes_through(tilt, thickness):
    volume = Volume(np.zeros((40, 40, 40), np.uint8), np.diag([1.0, 1.0, thickness, 1.0]))
    matrix = np.eye(4)
    matrix[:3, :3] = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    matrix[:3, 3] = (20, 20, 20 * thickness)
    plane = SlicePlane.from_slice_to_ras(volume, matrix)
    patch = plane.insert(np.ones(plane.shape, bool), volume, solid=True)
    filled = np.zeros((40, 40, 40), bool)
    filled[patch.slices] = patch.array
    pixels = np.stack(np.meshgrid(np.arange(0, plane.shape[1] - 1, 0.37), np.arange(0, plane.shape[0] - 1, 0.37)), -1)
    ijk = np.round(volume.to_ijk(plane.to_ras(pixels))).astype(int).reshape(-1, 3)
    ijk = ijk[((ijk >= 0) & (ijk < 40)).all(axis=1)]
    assert filled[tuple(ijk[:, ::-1].T)].mean() > 0.999
    once = plane.insert(np.ones(plane.shape, bool), volume)
    assert filled[once.slices][once.array].all()
