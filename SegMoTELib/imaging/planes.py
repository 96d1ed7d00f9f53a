"""SlicePlane: take a slice out of a volume and put a mask back, along the grid or oblique.

The one place where RAS millimetres become pixels and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.volume import Volume

NORMALS = {"axial": (0.0, 0.0, 1.0), "coronal": (0.0, 1.0, 0.0), "sagittal": (1.0, 0.0, 0.0)}
# As Slicer shows them: direction of increasing column and of increasing row.
SCREEN = {"axial": ((-1.0, 0, 0), (0, -1.0, 0)), "coronal": ((-1.0, 0, 0), (0, 0, -1.0)),
          "sagittal": ((0, -1.0, 0), (0, 0, -1.0))}
PARALLEL = 1 - 1e-6  # cosine above which a plane counts as lying along the voxel grid
ON_FACE = 1e-6  # of a voxel: rounding of a point on the outer face of a volume
LARGEST_SIDE = 4096  # pixels


@dataclass(frozen=True)
class MaskPatch:
    """A block of voxels that a mask decided about.

    Attributes:
        extent: (i0, i1, j0, j1, k0, k1), inclusive, as Slicer writes extents.
        array: (k, j, i) bool, inside the mask. claimed: (k, j, i) bool, voxels that the plane passes through.
    """

    extent: tuple[int, int, int, int, int, int]
    array: np.ndarray = field(repr=False)
    claimed: np.ndarray = field(repr=False)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the block in a (K, J, I) array."""
        i0, i1, j0, j1, k0, k1 = self.extent
        return slice(k0, k1 + 1), slice(j0, j1 + 1), slice(i0, i1 + 1)


@dataclass(frozen=True, eq=False)
class SlicePlane:
    """A rectangle of square pixels in space.

    Attributes:
        pixel_to_ras: (4, 4), (column, row, 0, 1) to RAS millimetres, of pixel centres; its third column is the unit
            normal.
        shape: (rows, columns).
    """

    pixel_to_ras: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def through(cls, volume: Volume, orientation: str, ras: np.ndarray) -> SlicePlane:
        """The volume's own plane nearest to "axial", "coronal" or "sagittal" through a point, on the voxel grid.

        Raises:
            VolumeError: another orientation, or a point outside the volume.
        """
        if orientation not in NORMALS:
            raise VolumeError(f"{orientation!r} is not a plane; choose axial, coronal or sagittal.")
        normal_axis = _axis_for(volume, orientation)
        across, down = (axis for axis in range(3) if axis != normal_axis)
        screen = np.array(SCREEN[orientation])
        if abs(screen[0] @ volume.directions[:, across]) < abs(screen[0] @ volume.directions[:, down]):
            across, down = down, across
        columns = [volume.directions[:, axis] * (1 if wanted @ volume.directions[:, axis] >= 0 else -1)
                   for axis, wanted in zip((across, down), screen, strict=True)]
        return cls._spanned(volume, np.column_stack(columns), np.asarray(ras, np.float64))

    @classmethod
    def from_slice_to_ras(cls, volume: Volume, slice_to_ras: np.ndarray) -> SlicePlane:
        """The plane of a slice view: spanned by the first two columns of ``slice_to_ras`` (4, 4), through its origin.

        The second column points up on the screen, so rows run against it.

        Raises:
            VolumeError: the plane does not meet the volume.
        """
        matrix = np.array(slice_to_ras, np.float64)
        spans = matrix[:3, :2] / np.linalg.norm(matrix[:3, :2], axis=0)
        return cls._spanned(volume, spans * (1, -1), matrix[:3, 3])

    @classmethod
    def _spanned(cls, volume: Volume, spans: np.ndarray, ras: np.ndarray) -> SlicePlane:
        """Cover the volume's cross-section with pixels of the smallest spacing of the voxel axes that it follows."""
        normal = np.cross(spans[:, 0], spans[:, 1])
        normal /= np.linalg.norm(normal)
        ijk = volume.to_ijk(ras)
        axis = int(np.abs(normal @ volume.directions).argmax())
        on_grid = _grid_normal(volume, axis)
        if abs(normal @ on_grid) > PARALLEL:
            last = volume.shape[axis] - 1
            if not -0.5 - ON_FACE <= ijk[axis] <= last + 0.5 + ON_FACE:
                raise VolumeError("The point lies outside the volume; choose one inside it.")
            ijk[axis] = np.clip(np.round(ijk[axis]), 0, last)  # its outer faces belong to a volume
            ras, normal = volume.to_ras(ijk), np.sign(normal @ on_grid) * on_grid
        spacing = float(volume.spacing[[other for other in range(3) if other != axis]].min())
        corners = _cross_section(volume, ras, normal)
        if len(corners) < 3:
            raise VolumeError("The slice view does not meet the volume; move it onto the image.")
        coordinates = (corners - ras) @ spans @ np.linalg.inv(spans.T @ spans)
        low, high = coordinates.min(axis=0), coordinates.max(axis=0)
        count = np.maximum(1, np.round((high - low) / spacing)).astype(int)
        if count.max() > LARGEST_SIDE:
            spacing *= count.max() / LARGEST_SIDE
            count = np.ceil((high - low) / spacing - 1e-6).astype(int)  # half a pixel may be several voxels now
        matrix = np.eye(4)
        matrix[:3, :2], matrix[:3, 2] = spans * spacing, normal
        # Whole pixels, centred on the cross-section: on the grid, pixel centres are voxel centres.
        matrix[:3, 3] = ras + spans @ ((low + high - (count - 1) * spacing) / 2)
        return cls(matrix, (int(count[1]), int(count[0])))

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector."""
        return self.pixel_to_ras[:3, 2]

    @property
    def spacing(self) -> float:
        """Millimetres per pixel."""
        return float(np.linalg.norm(self.pixel_to_ras[:3, 0]))

    def thickness(self, volume: Volume) -> float:
        """Millimetres between neighbouring slices of a volume along the normal."""
        return float(np.abs(self.normal @ volume.ijk_to_ras[:3, :3]).max())

    def key(self) -> tuple:
        """Equal for equal planes; hashable."""
        return (*np.round(self.pixel_to_ras[:3], 4).ravel().tolist(), *self.shape)

    def distance(self, ras: np.ndarray) -> np.ndarray:
        """(...,) signed distance of (..., 3) points along the normal, millimetres."""
        return (np.asarray(ras, np.float64) - self.pixel_to_ras[:3, 3]) @ self.normal

    def to_pixels(self, ras: np.ndarray) -> np.ndarray:
        """(..., 3) RAS millimetres -> (..., 2) column, row of the nearest point in the plane."""
        offset = np.asarray(ras, np.float64) - self.pixel_to_ras[:3, 3]
        return (offset @ np.linalg.inv(self.pixel_to_ras[:3, :3]).T)[..., :2]

    def to_ras(self, pixels: ArrayLike) -> np.ndarray:
        """(..., 2) column, row -> (..., 3) RAS millimetres."""
        return np.asarray(pixels, np.float64) @ self.pixel_to_ras[:3, :2].T + self.pixel_to_ras[:3, 3]

    def extract(self, volume: Volume) -> np.ndarray:
        """The volume's values on the plane, linearly interpolated: (rows, columns) or (rows, columns, 3), float32.

        RGB uint8 stays uint8. Outside the volume, and for NaN or infinite voxels, the value is the plane's smallest.
        """
        to_ijk = np.linalg.inv(volume.ijk_to_ras) @ self.pixel_to_ras
        rows, columns = np.mgrid[:self.shape[0], :self.shape[1]]
        ijk = np.tensordot(to_ijk[:3, :2], np.stack([columns, rows]), axes=1) + to_ijk[:3, 3, None, None]
        order: Literal[0, 1] = 0 if np.allclose(ijk, np.round(ijk), atol=1e-3) else 1
        channels = [volume.array[..., c] for c in range(3)] if volume.is_rgb else [volume.array]
        found = [_sample(channel, ijk, order) for channel in channels]
        if not volume.is_rgb:
            return found[0]
        image = np.stack(found, axis=-1)
        return np.clip(np.round(image), 0, 255).astype(np.uint8) if volume.array.dtype == np.uint8 else image

    def insert(self, mask: np.ndarray, volume: Volume, solid: bool = False) -> MaskPatch:
        """The voxels of a (rows, columns) mask.

        The block covers the mask, not the volume, so that memory follows the object. An empty mask gives one voxel.

        Args:
            solid: every voxel whose cell the plane passes through, so that an oblique view shows no gaps. Otherwise one
                voxel per column along the voxel axis whose steps lead furthest along the normal, so that planes one
                ``thickness`` apart share none and leave none out.
        """
        along = self.normal @ volume.ijk_to_ras[:3, :3]  # millimetres along the normal per voxel step
        axis = int(np.abs(along).argmax())
        low, high = self._voxel_extent(mask, volume)
        reach = 0.5 * np.abs(along).sum() / abs(along[axis]) - 1e-6  # steps between a plane and the cells it meets
        if solid:
            last = volume.shape[axis] - 1
            low[axis], high[axis] = max(0, low[axis] - 1), min(last, high[axis] + 1)
        others = [other for other in range(3) if other != axis]
        counts = high - low + 1
        grid = np.zeros((counts[others[0]], counts[others[1]], 3))
        grid[..., others[0]] = (low[others[0]] + np.arange(counts[others[0]]))[:, None]
        grid[..., others[1]] = low[others[1]] + np.arange(counts[others[1]])
        meets = -self.distance(volume.to_ras(grid)) / along[axis]  # where the column meets the plane
        claimed, array = np.zeros(counts[::-1], bool), np.zeros(counts[::-1], bool)
        for offset in (0, -1, 1) if solid else (0,):
            depth = np.round(meets).astype(int) + offset
            grid[..., axis] = depth if offset else meets
            columns, rows = np.moveaxis(np.round(self.to_pixels(volume.to_ras(grid))).astype(int), -1, 0)
            inside = ((depth >= low[axis]) & (depth <= high[axis]) & (rows >= 0) & (rows < self.shape[0])
                      & (columns >= 0) & (columns < self.shape[1]))
            if offset:
                inside &= np.abs(depth - meets) < reach
            index = np.empty((int(inside.sum()), 3), int)
            first, second = np.nonzero(inside)
            index[:, others[0]], index[:, others[1]], index[:, axis] = first, second, depth[inside] - low[axis]
            place = tuple(index[:, ::-1].T)
            claimed[place] = True
            array[place] = mask[rows[inside], columns[inside]]
        return MaskPatch((low[0], high[0], low[1], high[1], low[2], high[2]), array, claimed)

    def _voxel_extent(self, mask: np.ndarray, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest voxel index that the mask can touch."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            rows, columns = np.array([self.shape[0] // 2]), np.array([self.shape[1] // 2])
        corners = np.array([(column, row) for column in (columns[0] - 0.5, columns[-1] + 0.5)
                            for row in (rows[0] - 0.5, rows[-1] + 0.5)])
        ijk = volume.to_ijk(self.to_ras(corners))
        last = np.array(volume.shape) - 1
        # A little inside the outermost half voxel, or a mask on the grid would claim its neighbours' slices.
        low = np.clip(np.ceil(ijk.min(axis=0) - 0.5 + 1e-6), 0, last).astype(int)
        high = np.clip(np.floor(ijk.max(axis=0) + 0.5 - 1e-6), 0, last).astype(int)
        return np.minimum(low, high), np.maximum(low, high)


def _grid_normal(volume: Volume, axis: int) -> np.ndarray:
    """Unit normal of the voxel planes counted by an axis; its own direction unless the grid is sheared."""
    first, second = (volume.directions[:, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    return normal / np.linalg.norm(normal)


def _axis_for(volume: Volume, orientation: str) -> int:
    """The voxel axis that counts the slices of an orientation; the three orientations get three axes."""
    names = list(NORMALS)
    likeness = np.abs(np.array([NORMALS[name] for name in names]) @ volume.directions)
    axes: dict[str, int] = {}
    for _ in range(3):
        row, column = np.unravel_index(likeness.argmax(), (3, 3))
        axes[names[row]] = int(column)
        likeness[row], likeness[:, column] = -1, -1
    return axes[orientation]


def _cross_section(volume: Volume, ras: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(N, 3) RAS corners of the plane's polygon inside the volume's box of voxels."""
    ends = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners = volume.to_ras(ends * volume.shape - 0.5)
    height = (corners - ras) @ normal
    found = []
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(ends[a] - ends[b]).sum() == 1 and height[a] * height[b] <= 0 and height[a] != height[b]:
                share = height[a] / (height[a] - height[b])
                found.append(corners[a] + share * (corners[b] - corners[a]))
    return np.array(found).reshape(-1, 3)


def _sample(channel: np.ndarray, ijk: np.ndarray, order: Literal[0, 1]) -> np.ndarray:
    """(rows, columns) float32 values of a (K, J, I) array at (3, rows, columns) voxel coordinates."""
    channel = channel.view(np.uint8) if channel.dtype == bool else channel
    values = ndimage.map_coordinates(channel, ijk[::-1], output=np.float32, order=order, mode="nearest")
    limits = np.array(channel.shape[::-1])[:, None, None] - 0.5
    usable = ((ijk >= -0.501) & (ijk <= limits + 0.001)).all(axis=0) & np.isfinite(values)
    return np.where(usable, values, values[usable].min() if usable.any() else 0).astype(np.float32)
