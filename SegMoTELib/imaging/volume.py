"""Volume: voxels and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from SegMoTELib.errors import VolumeError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACINGS = (1e-4, 1e6)  # millimetres that a voxel may measure; planes are told apart to a tenth of a micrometre
FLATTEST = 1e-6  # volume of a cell whose edges have the length 1, from which its directions span space


@dataclass(frozen=True)
class Volume:
    """A scalar or RGB volume in its own RAS space; a parent transform is not applied.

    Attributes:
        array: (K, J, I) or (K, J, I, 3), any number type; held, not copied, unless it is a float of another size than
            32 or 64 bits.
        ijk_to_ras: (4, 4) float64, voxel index (i, j, k, 1) to RAS millimetres, of voxel centres; may be oblique,
            anisotropic or left-handed.
        modality: DICOM modality ("CT", "MR", ...) where known. name: for messages.
        sources: the DICOM files it was read from, in the order of its slices; empty for other formats.

    Raises:
        VolumeError: no voxels, not numbers, a matrix that does not span space, or a spacing beyond ``SPACINGS``.
    """

    array: np.ndarray = field(repr=False)
    ijk_to_ras: np.ndarray
    modality: str = ""
    name: str = ""
    sources: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
            raise VolumeError(f"{self._called()} has the shape {array.shape}; choose one 3D volume or one frame.")
        if array.size == 0:
            raise VolumeError(f"{self._called()} has no voxels; load its image data first.")
        if array.dtype.kind not in "buif":
            raise VolumeError(f"{self._called()} holds {array.dtype} values; numbers are needed.")
        if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
            array = array.astype(np.float32)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "ijk_to_ras", np.array(self.ijk_to_ras, np.float64))
        self._check_geometry()

    def _check_geometry(self) -> None:
        matrix = self.ijk_to_ras
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not self.spacing.all():
            raise VolumeError(f"{self._called()} has an unusable geometry; check its spacing and directions.")
        if self.spacing.min() < SPACINGS[0] or self.spacing.max() > SPACINGS[1]:
            sizes = " x ".join(f"{size:.3g}" for size in self.spacing)
            raise VolumeError(f"{self._called()} has voxels of {sizes} mm, which is beyond what can be told apart; "
                              "check the unit of its spacing.")
        if abs(np.linalg.det(self.directions)) < FLATTEST:
            raise VolumeError(f"{self._called()} has an unusable geometry; check its spacing and directions.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        return self.array.shape[2], self.array.shape[1], self.array.shape[0]

    @property
    def spacing(self) -> np.ndarray:
        """(3,) millimetres along i, j, k."""
        return np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) unit vectors of i, j, k in RAS, one a column."""
        return self.ijk_to_ras[:3, :3] / self.spacing

    @property
    def is_rgb(self) -> bool:
        """True for colour voxels."""
        return self.array.ndim == 4

    def to_ras(self, ijk: np.ndarray) -> np.ndarray:
        """(..., 3) voxel coordinates -> RAS millimetres."""
        return np.asarray(ijk, np.float64) @ self.ijk_to_ras[:3, :3].T + self.ijk_to_ras[:3, 3]

    def to_ijk(self, ras: np.ndarray) -> np.ndarray:
        """(..., 3) RAS millimetres -> voxel coordinates, float64."""
        return (np.asarray(ras, np.float64) - self.ijk_to_ras[:3, 3]) @ np.linalg.inv(self.ijk_to_ras[:3, :3]).T

    def contains(self, ras: np.ndarray) -> np.ndarray:
        """(...,) True for points in a voxel."""
        ijk = self.to_ijk(ras)
        return np.all((ijk >= -0.5) & (ijk <= np.array(self.shape) - 0.5), axis=-1)

    def _called(self) -> str:
        return f"The volume {self.name!r}" if self.name else "The volume"
