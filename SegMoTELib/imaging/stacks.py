"""PlaneStack: the parallel slices of a volume, from one end to the other, with pixels that lie over each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.planes import LARGEST_SIDE, ON_FACE, SlicePlane
from SegMoTELib.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class PlaneStack:
    """Parallel planes a voxel apart; a pixel (row, column) of one lies straight above that of the next.

    Attributes:
        planes: all of one shape, ordered along their normal. volume: that they cut.
    """

    planes: tuple[SlicePlane, ...]
    volume: Volume

    @classmethod
    def parallel_to(cls, volume: Volume, slice_to_ras: np.ndarray) -> PlaneStack:
        """All slices of a volume parallel to a view, see ``SlicePlane.from_slice_to_ras``.

        Along the voxel grid these are the volume's own slices; oblique, they are as far apart as voxels are along the
        normal, and each is as large as the largest cross-section.
        """
        matrix = np.array(slice_to_ras, np.float64)
        middle = volume.to_ras((np.array(volume.shape) - 1) / 2)
        normal = np.cross(matrix[:3, 0], matrix[:3, 1])
        normal /= np.linalg.norm(normal)
        steps = np.abs(normal @ volume.ijk_to_ras[:3, :3])
        reach = float(steps @ (np.array(volume.shape) - 1)) / 2  # to the last voxel centre
        count = int(np.floor(2 * reach / steps.max() + 1e-6)) + 1
        planes = []
        for offset in (np.arange(count) - (count - 1) / 2) * steps.max():
            matrix[:3, 3] = middle + offset * normal
            planes.append(SlicePlane.from_slice_to_ras(volume, matrix))
        return cls(_aligned(planes), volume)

    @classmethod
    def along(cls, volume: Volume, orientation: str) -> PlaneStack:
        """The volume's own "axial", "sagittal" or "coronal" slices; errors of ``SlicePlane.through``."""
        middle = SlicePlane.through(volume, orientation, volume.to_ras((np.array(volume.shape) - 1) / 2))
        return cls.parallel_to(volume, middle.pixel_to_ras @ np.diag([1.0, -1, 1, 1]))

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.planes)

    @property
    def step(self) -> float:
        """Millimetres from slice to slice."""
        return self.planes[0].thickness(self.volume)

    def nearest(self, ras: np.ndarray) -> int:
        """Index of the slice nearest to a point, RAS millimetres.

        Raises:
            VolumeError: beyond the first or last slice.
        """
        offset = float(self.planes[0].distance(np.asarray(ras, np.float64))) / self._signed_step
        index = int(np.clip(np.round(offset), 0, len(self.planes) - 1))
        if abs(offset - index) > 0.5 + ON_FACE:
            raise VolumeError("The point lies outside the volume; choose one inside it.")
        return index

    @property
    def _signed_step(self) -> float:
        last = self.planes[-1]
        return float(self.planes[0].distance(last.pixel_to_ras[:3, 3])) / max(1, len(self.planes) - 1) or self.step


def _aligned(planes: list[SlicePlane]) -> tuple[SlicePlane, ...]:
    """The planes with one rectangle for all, as large as all of them together; as they are where they agree already."""
    first = max(planes, key=lambda plane: plane.spacing)  # coarser where a cross-section was too large
    corners = np.array([first.to_pixels(plane.to_ras([(0, 0), (plane.shape[1] - 1, plane.shape[0] - 1)]))
                        for plane in planes])
    if all(plane.shape == first.shape for plane in planes) and np.ptp(corners, axis=0).max() < 1e-3:
        return tuple(planes)
    low, high = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
    # Cross-sections of a thin slab may each be small and lie far apart: all together must not be too large either.
    coarser = max(1.0, float((high - low).max()) / (LARGEST_SIDE - 2))
    low = np.floor(low / coarser + 1e-6)
    columns, rows = (np.ceil(high / coarser - 1e-6) - low + 1).astype(int)
    aligned = []
    for plane in planes:
        matrix = plane.pixel_to_ras.copy()
        # The rectangle's first pixel, in the first plane, moved along the normal into this one.
        start = first.to_ras(low * coarser)
        matrix[:3, 3] = start - plane.distance(start) * plane.normal
        matrix[:3, :2] = first.pixel_to_ras[:3, :2] * coarser
        aligned.append(SlicePlane(matrix, (int(rows), int(columns))))
    return tuple(aligned)
