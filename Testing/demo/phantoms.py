"""Images made here, for pictures and tests: an ultrasound with a head in it, a CT with a kidney in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

KIDNEY = np.array([20.0, -30.0, 12.0])  # RAS millimetres, its centre


def write_ultrasound(path: Path, slices: int = 3, seed: int = 5) -> Path:
    """A bright ring in speckle, as a head looks in fetal ultrasound: slices of 256 x 256, 0.5 mm, uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256].astype(float)
    along = (columns - 128) * 0.94 + (rows - 122) * 0.34
    across = (rows - 122) * 0.94 - (columns - 128) * 0.34
    radius = np.hypot(along / 78, across / 58)
    tissue = np.where(radius < 1, 26, 62) + 150 * np.exp(-((radius - 1) / 0.055) ** 2)
    tissue += 45 * np.exp(-(across / 2.5) ** 2) * (np.abs(along) < 50)  # the midline echo
    tissue *= (np.hypot(rows + 60, columns - 128) < 300) & (np.abs(np.arctan2(columns - 128, rows + 60)) < 0.62)
    speckle = [ndimage.gaussian_filter(rng.rayleigh(1.0, rows.shape), (0.8, 1.6)) / 1.25 for _ in range(slices)]
    image = np.clip(tissue * np.array(speckle) ** 1.7, 0, 255).round().astype(np.uint8)
    return _write(path, image[:, ::-1], (0.5, 0.5, 2.0))  # the probe is in front


def write_ct(path: Path) -> Path:
    """An ellipsoid of 30 HU in fat of -90 HU around ``KIDNEY``: 24 slices of 96 x 96, 1.5 x 1.5 x 3 mm, int16."""
    k, j, i = np.mgrid[:24, :96, :96]
    inside = np.sqrt(((i - 48) * 1.5 / 17) ** 2 + ((j - 48) * 1.5 / 15) ** 2 + ((k - 12) * 3 / 18) ** 2) <= 1
    noise = np.random.default_rng(0).normal(0, 9, inside.shape)
    return _write(path, np.round(-90 + 120 * inside + noise).astype(np.int16), (1.5, 1.5, 3.0),
                  KIDNEY - np.array([48 * 1.5, 48 * 1.5, 12 * 3]))


def _write(path: Path, array: np.ndarray, spacing: tuple, origin: np.ndarray = np.zeros(3)) -> Path:  # noqa: B008
    """Write (K, J, I) voxels along R, A and S."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetDirection((-1.0, 0, 0, 0, -1, 0, 0, 0, 1))  # the file speaks LPS
    image.SetOrigin((-origin[0], -origin[1], origin[2]))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path
