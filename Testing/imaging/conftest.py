"""Volumes of every awkward geometry, all showing the same ball in space."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from SegMoTELib.imaging.volume import Volume

CENTER, RADIUS = np.array([12.0, -20.0, 33.0]), 14.0  # RAS millimetres


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


DIRECTIONS = {
    "RAS": np.eye(3), "LPS": np.diag([-1.0, -1, 1]), "left-handed": np.diag([1.0, 1, -1]),
    "sagittal acquisition": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": rotation(20, 0) @ rotation(-15, 2), "oblique left-handed": rotation(25, 1) @ np.diag([-1.0, 1, 1])}
SPACINGS = {"isotropic": (1.0, 1.0, 1.0), "anisotropic": (0.8, 0.8, 3.0), "all different": (0.7, 1.1, 2.5)}


def make_volume(directions: np.ndarray, spacing: tuple, side: float = 60.0) -> Volume:
    """A volume of ``side`` millimetres around the ball: 200 inside, 50 outside."""
    shape = np.round(side / np.array(spacing)).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = CENTER - matrix[:3, :3] @ ((shape - 1) / 2)
    k, j, i = np.mgrid[:shape[2], :shape[1], :shape[0]]
    ras = np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    inside = np.linalg.norm(ras - CENTER, axis=-1) <= RADIUS
    return Volume(np.where(inside, 200, 50).astype(np.int16), matrix, "CT", "ball")


def save_volume(volume: Volume, path) -> None:
    """Write a volume by SimpleITK's own conventions (LPS)."""
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.ijk_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))


@pytest.fixture(params=[(d, s) for d in DIRECTIONS for s in SPACINGS], ids=lambda p: f"{p[0]}, {p[1]}")
def ball(request) -> Volume:
    """The ball in a volume of some geometry."""
    return make_volume(DIRECTIONS[request.param[0]], SPACINGS[request.param[1]])


@pytest.fixture
def make_ball():
    """Function: directions name, spacing name -> volume of the ball."""
    return lambda directions, spacing: make_volume(DIRECTIONS[directions], SPACINGS[spacing])


@pytest.fixture
def disk():
    """Function: plane -> (rows, columns) bool, the ball's disk on it, from geometry alone."""
    def draw(plane):
        rows, columns = np.mgrid[:plane.shape[0], :plane.shape[1]]
        return np.linalg.norm(plane.to_ras(np.stack([columns, rows], axis=-1)) - CENTER, axis=-1) <= RADIUS
    return draw


@pytest.fixture
def center():
    """(3,) RAS centre of the ball."""
    return CENTER


@pytest.fixture(params=["tilted", "steep"])
def slice_to_ras(request):
    """(4, 4) of an oblique slice view through the ball."""
    turn = {"tilted": rotation(30, 0) @ rotation(20, 1), "steep": rotation(65, 1) @ rotation(-40, 2)}[request.param]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, CENTER + turn @ (5, -3, 2)
    return matrix


def slice_of(series: str, index: int, count: int, step: float) -> Dataset:
    """pydicom's CT slice, 128 x 128, at one place of a series: 100 times its index, 1000 in its first 20 rows."""
    one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    pixels = np.full((128, 128), 100 * index, np.int16)
    pixels[:20] = 1000
    one.PixelData = pixels.tobytes()
    one.SeriesInstanceUID, one.InstanceNumber = series, count - index
    one.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[series, str(index)])
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.ImagePositionPatient = [-158.1, -179.0, -75.7 + step * index]
    return one


@pytest.fixture
def write_series():
    """Function: folder, change(index, slice), uid -> uid; slices from below, files named from above."""
    def write(folder, change=lambda index, one: None, uid="1.2.3.1111", count=6, step=3.0):
        folder.mkdir(exist_ok=True, parents=True)
        for index in range(count):
            one = slice_of(uid, index, count, step)
            change(index, one)
            one.save_as(folder / f"{count - index:03d}_{uid[-4:]}.dcm")
        return uid
    return write


def item(**values) -> pydicom.Sequence:
    """A sequence of one item."""
    one = Dataset()
    for name, value in values.items():
        setattr(one, name, value)
    return pydicom.Sequence([one])


@pytest.fixture
def write_enhanced():
    """Function: path, order of the frames' places, change(data set) -> path of an enhanced multi-frame CT.

    The frame at place k is 100 k everywhere, 3 mm above place k - 1, with an intercept of -1000 - k of its own.
    """
    def write(path, order=(0, 1, 2, 3), change=lambda one: None):
        one = slice_of("1.2.3.4444", 0, 1, 3.0)
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                     "RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
            delattr(one, name)
        one.NumberOfFrames = len(order)
        one.PixelData = np.repeat(100 * np.array(order, np.int16), 128 * 128).tobytes()
        one.SharedFunctionalGroupsSequence = item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.7], SliceThickness=3))
        one.PerFrameFunctionalGroupsSequence = pydicom.Sequence([item(
            PlanePositionSequence=item(ImagePositionPatient=[-10, -20, 30 + 3 * place]),
            FrameContentSequence=item(DimensionIndexValues=[place + 1]),
            PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-1000 - place, RescaleType="HU"),
        )[0] for place in order])
        change(one)
        one.save_as(path)
        return path
    return write
