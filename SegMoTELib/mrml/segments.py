"""Masks into segments through vtkSlicerSegmentEditorLogic, as the Segment Editor would write them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from scipy import ndimage
from vtk.util import numpy_support

from SegMoTELib.errors import SegmentError
from SegMoTELib.imaging.planes import MaskPatch
from SegMoTELib.mrml.volumes import world_to_volume

EDITOR = "vtkMRMLSegmentEditorNode"
MOST_VOXELS = 1 << 30  # of a mask on the segmentation's grid


@dataclass(frozen=True)
class Written:
    """What one answer has changed, so that the next can replace just that.

    Attributes:
        grid: (4, 4), from the voxels that the segmentation stores to its own RAS; they need not be the volume's.
        extent: a block of these voxels. added: (k, j, i) bool, voxels that were not in the segment before.
        taken: segment id -> (k, j, i) bool, voxels that the overwrite mode took from that segment.
        frame: the segmentation's reference geometry, as Slicer writes it, where a transform was above it; else "".
    """

    grid: np.ndarray = field(repr=False)
    extent: tuple[int, ...]
    added: np.ndarray = field(repr=False)
    taken: dict[str, np.ndarray] = field(repr=False)
    frame: str = ""


@dataclass(frozen=True)
class Change:
    """A mask to write (None for none), in place of what was written before (None for nothing)."""

    patch: MaskPatch | None
    previous: Written | None = None


class SegmentWriter:
    """Writes masks with the user's overwrite mode and masking, and takes exactly them back.

    The user's own editor node is read and never changed; the writer has a hidden one of its own.

    Args:
        scene: vtkMRMLScene.
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)
        self.node = scene.GetSingletonNode("SegMoTE", EDITOR)
        if self.node is None:
            self.node = slicer.vtkMRMLSegmentEditorNode()
            self.node.SetSingletonTag("SegMoTE")
            self.node.SetHideFromEditors(True)
            self.node.SetSaveWithScene(False)
            self.node = scene.AddNode(self.node)
        self.logic.SetSegmentEditorNode(self.node)

    def write(self, segmentation: Any, segment_id: str, volume: Any, changes: list[Change]) -> list[Written | None]:
        """Put masks into a segment, after taking back what the same prompts wrote before.

        Other voxels of the segment stay, and a neighbour gets back what a replaced answer had taken from it.

        Args:
            segmentation, volume: nodes, see ``prepare_segmentation``. changes: in the volume's voxels.

        Returns:
            For each change what it wrote.

        Raises:
            SegmentError: no such segment, or it is locked. VolumeError: a transform that is not linear.
        """
        self.check(segmentation, segment_id)
        self._follow(segmentation, segment_id, volume)
        self._take_back(segmentation, segment_id,
                        [change.previous for change in changes if change.previous is not None])
        patches = [change.patch for change in changes]
        put = iter(self._put(segmentation, segment_id, volume, [patch for patch in patches if patch is not None]))
        return [None if patch is None else next(put) for patch in patches]

    def exchange(self, segmentation: Any, segment_id: str, volume: Any, back: list[Written],
                 again: list[Written]) -> None:
        """Take answers back and put others in again exactly as they were, for undo and redo; errors as in ``write``."""
        self.check(segmentation, segment_id)
        self._follow(segmentation, segment_id, volume)
        self._take_back(segmentation, segment_id, back)
        for grid, extent, added, taken in _merged(segmentation, again):
            self._modify(segmentation, segment_id, grid, extent, added, self.logic.ModificationModeAdd, exact=True)
            for other, mask in taken.items():
                self._modify(segmentation, other, grid, extent, mask, self.logic.ModificationModeRemove, exact=True)

    def show(self, segmentation: Any, segment_id: str, volume: Any, patches: list[MaskPatch]) -> None:
        """Add masks to a segmentation of the module's own; masking is for the user's, and would mean other segments."""
        self._follow(segmentation, segment_id, volume)
        grid, extent, owner = self._owners(segmentation, volume, patches)
        self._modify(segmentation, segment_id, grid, extent, owner > 0, self.logic.ModificationModeAdd, exact=True)

    @property
    def masked(self) -> bool:
        """Whether the masking that the latest write followed leaves something out."""
        return bool(self.node.GetSourceVolumeIntensityMask()
                    or self.node.GetMaskMode() != slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)

    def held(self, segmentation: Any, segment_id: str, volume: Any, patch: MaskPatch) -> Written:
        """What a segment holds of a mask, as if it had been written there: for prompts that came with a scene."""
        self._follow(segmentation, segment_id, volume)
        grid, extent, owner = self._owners(segmentation, volume, [patch])
        return Written(grid, extent, _stored(segmentation, segment_id, grid, extent) & (owner > 0), {},
                       _frame(segmentation))

    @staticmethod
    def check(segmentation: Any, segment_id: str) -> None:
        """Raise the ``SegmentError`` that writing would raise."""
        segment = segmentation.GetSegmentation().GetSegment(segment_id) if segmentation is not None else None
        if segment is None:
            raise SegmentError("Choose a segment first, or add one.")
        if _is_locked(segment):
            raise SegmentError(f"The segment {segment.GetName()} is locked; unlock it, or choose another.")
        SegmentWriter.check_voxels(segmentation)

    @staticmethod
    def check_voxels(segmentation: Any) -> None:
        """Raise a ``SegmentError`` where segments are stored as something else than voxels."""
        labelmap = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
        if segmentation.GetSegmentation().GetSourceRepresentationName() != labelmap and not all(
                is_empty(segmentation, one) for one in segmentation.GetSegmentation().GetSegmentIDs()):
            raise SegmentError(f"{segmentation.GetName()} is not made of voxels; in the Segmentations module create "
                               "its binary labelmap and make that the source, or choose another segmentation.")

    def _take_back(self, segmentation: Any, segment_id: str, written: list[Written]) -> None:
        for grid, extent, added, taken in _merged(segmentation, written):
            self._modify(segmentation, segment_id, grid, extent, added, self.logic.ModificationModeRemove, exact=True)
            for other, mask in taken.items():
                self._modify(segmentation, other, grid, extent, mask, self.logic.ModificationModeAdd, exact=True)

    def _put(self, segmentation: Any, segment_id: str, volume: Any, patches: list[MaskPatch]) -> list[Written]:
        """Add masks at once; a voxel that several of them add counts for the first."""
        if not patches:
            return []
        grid, extent, owner = self._owners(segmentation, volume, patches)
        ids = [segment_id]
        if self.node.GetOverwriteMode() != slicer.vtkMRMLSegmentEditorNode.OverwriteNone:
            ids = list(segmentation.GetSegmentation().GetSegmentIDs())
        before = _stored_all(segmentation, ids, grid, extent)
        self._modify(segmentation, segment_id, grid, extent, owner > 0, self.logic.ModificationModeAdd)
        added = _stored(segmentation, segment_id, grid, extent) & ~before.pop(segment_id)
        taken = {one: was & ~_stored(segmentation, one, grid, extent) for one, was in before.items()
                 if (was & (owner > 0)).any()}
        found = []
        for number, block in enumerate(ndimage.find_objects(owner, len(patches)), 1):
            block = block or (slice(0, 1),) * 3  # all its voxels are others', or it has none on this grid
            own = owner[block] == number
            found.append(Written(grid, _part(extent, block), added[block] & own,
                                 {one: lost[block] & own for one, lost in taken.items()}, _frame(segmentation)))
        return found

    def _owners(self, segmentation: Any, volume: Any, patches: list[MaskPatch]) -> tuple:
        """Stored grid, extent and (k, j, i) uint16 of it: the number, from 1, of the first patch that holds a voxel."""
        extent, grid = _union([patch.extent for patch in patches]), _voxels_in(segmentation, volume)
        owner = np.zeros(_shape(extent), np.uint16)
        for number, patch in reversed(list(enumerate(patches, 1))):
            owner[_inside(extent, patch.extent)][patch.array] = number
        if _is_stored_on(segmentation, grid):
            return grid, extent, owner
        aligned = self._aligned(_image(grid, extent, owner))
        extent, owner = aligned.GetExtent(), _array(aligned)
        filled = ndimage.find_objects((owner > 0).astype(np.uint8))
        block = filled[0] if filled else (slice(0, 1),) * 3
        return _matrix_of(aligned), _part(extent, block), owner[block]

    def _aligned(self, image: Any) -> Any:
        """An image on the grid of the segmentation, beyond its edges too: of each voxel there the nearest value.

        Raises:
            SegmentError: the grid is so fine that there would be more voxels than fit into memory.
        """
        reference, aligned = self.logic.GetReferenceGeometryImage(), slicer.vtkOrientedImageData()
        finer = abs(np.linalg.det(_matrix_of(image)) / np.linalg.det(_matrix_of(reference)))
        if finer * image.GetNumberOfPoints() > MOST_VOXELS:
            raise SegmentError("The segmentation stores its voxels far more finely than the image has them; choose "
                               "another segmentation, or give this one the image's geometry in the Segment Editor.")
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            image, reference, aligned, False, True)
        return aligned

    def close(self) -> None:
        """Remove the writer's own node, e.g. before the scene closes."""
        self.logic.SetSegmentEditorNode(None)
        if self.node is not None and self.node.GetScene() is self.scene:
            self.scene.RemoveNode(self.node)
        self.node = None

    def _follow(self, segmentation: Any, segment_id: str, volume: Any) -> None:
        """Take over the masking that the user set in the Segment Editor; without any, neighbours stay whole."""
        users = self.scene.GetSingletonNode("SegmentEditor", EDITOR)
        self.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        self.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
        self.node.SetSourceVolumeIntensityMask(False)
        if users is not None:
            self.node.SetOverwriteMode(users.GetOverwriteMode())
            single = users.GetMaskMode() == slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
            if not single or users.GetSegmentationNode() in (None, segmentation):  # an id means nothing in another one
                self.node.SetMaskMode(users.GetMaskMode())
                self.node.SetMaskSegmentID(users.GetMaskSegmentID())
            self.node.SetSourceVolumeIntensityMask(users.GetSourceVolumeIntensityMask())
            self.node.SetSourceVolumeIntensityMaskRange(*users.GetSourceVolumeIntensityMaskRange())
        self.logic.SetSegmentationNode(segmentation)
        self.logic.SetSourceVolumeNode(volume)
        self.logic.SetCurrentSegmentID(segment_id)
        self.logic.UpdateReferenceGeometryImage()
        # Both take time with the volume's size, and only masking asks for them.
        if self.node.GetSourceVolumeIntensityMask():
            self.logic.UpdateAlignedSourceVolume()
        if self.node.GetMaskMode() != slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere:
            self.logic.UpdateMaskLabelmap()

    def _modify(self, segmentation, segment_id, grid, extent, array, mode, exact: bool = False) -> None:
        """Change a segment by a mask; ``exact``: whatever the masking says, and without touching its neighbours."""
        if not array.any() or segmentation.GetSegmentation().GetSegment(segment_id) is None:
            return
        labelmap = _image(grid, extent, array.astype(np.uint8))
        if not _is_stored_on(segmentation, grid):  # its geometry was changed since
            labelmap = self._aligned(labelmap)
        overwrite, by_intensity = self.node.GetOverwriteMode(), self.node.GetSourceVolumeIntensityMask()
        if exact:
            self.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
            self.node.SetSourceVolumeIntensityMask(False)  # the logic's own bypass leaves this one on
        self.logic.ModifySegmentByLabelmap(segmentation, segment_id, labelmap, mode, False, exact)
        self.node.SetOverwriteMode(overwrite)
        self.node.SetSourceVolumeIntensityMask(by_intensity)


def prepare_segmentation(segmentation: Any, volume: Any) -> None:
    """Give an empty segmentation the volume's geometry and parent transform; one with content is left as it is."""
    if all(is_empty(segmentation, one) for one in segmentation.GetSegmentation().GetSegmentIDs()):
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if segmentation.GetDisplayNode() is None:
        segmentation.CreateDefaultDisplayNodes()


def is_empty(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment has nothing in it, in whatever way the segmentation stores it."""
    labelmap = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    if labelmap is not None:
        return labelmap.IsEmpty()
    source = segmentation.GetSegmentation().GetSourceRepresentationName()
    return segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation(source) is None


def segment_mask(segmentation: Any, segment_id: str, volume: Any, extent: tuple[int, ...]) -> np.ndarray:
    """(k, j, i) bool: which voxels of a block of the volume are in a segment."""
    return _stored(segmentation, segment_id, _voxels_in(segmentation, volume), extent)


def _stored(segmentation: Any, segment_id: str, grid: np.ndarray, extent: tuple[int, ...]) -> np.ndarray:
    """(k, j, i) bool: which voxels of a block of a grid in the segmentation's RAS are in a segment."""
    return _stored_all(segmentation, [segment_id], grid, extent)[segment_id]


def _stored_all(segmentation: Any, ids: list[str], grid: np.ndarray, extent: tuple[int, ...]) -> dict[str, np.ndarray]:
    """``_stored`` of several segments; labels that share an image are read from it once."""
    reference = _image(grid, extent, np.zeros(_shape(extent), np.uint8))
    layers: dict[Any, np.ndarray] = {}
    stored = {}
    for one in ids:
        layer = segmentation.GetBinaryLabelmapInternalRepresentation(one)
        if layer is None or layer.IsEmpty():
            stored[one] = np.zeros(_shape(extent), bool)
            continue
        if layer not in layers:
            found = slicer.vtkOrientedImageData()
            slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(layer, reference, found)
            layers[layer] = _array(found)
        stored[one] = layers[layer] == segmentation.GetSegmentation().GetSegment(one).GetLabelValue()
    return stored


def _image(grid: np.ndarray, extent: tuple[int, ...], array: np.ndarray) -> Any:
    """vtkOrientedImageData of a (k, j, i) uint8 or uint16 array."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*(int(value) for value in extent))
    image.AllocateScalars(numpy_support.get_vtk_array_type(array.dtype), 1)
    numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = array.ravel()
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(grid))
    return image


def _array(image: Any) -> np.ndarray:
    """(k, j, i) values of a vtkOrientedImageData."""
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(_shape(image.GetExtent()))


def _matrix_of(image: Any) -> np.ndarray:
    """(4, 4) from the voxels of a vtkOrientedImageData to its RAS."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _voxels_in(segmentation: Any, volume: Any) -> np.ndarray:
    """(4, 4) from the volume's voxels to the segmentation's own RAS."""
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(ijk_to_ras)
    own = slicer.util.arrayFromVTKMatrix(ijk_to_ras)
    if segmentation.GetTransformNodeID() == volume.GetTransformNodeID():
        return own
    return world_to_volume(segmentation) @ np.linalg.inv(world_to_volume(volume)) @ own


def _is_stored_on(segmentation: Any, grid: np.ndarray) -> bool:
    """Whether the segmentation stores its labels on these voxels."""
    stored = _read(_geometry(segmentation))
    return stored is not None and np.allclose(_matrix_of(stored), grid, atol=1e-4)


def _geometry(segmentation: Any) -> str:
    """The grid that the segmentation stores its labels on, as Slicer writes it."""
    return segmentation.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName())


def _read(geometry: str) -> Any:
    """An image without voxels of a geometry as Slicer writes it; None where it writes none."""
    image = slicer.vtkOrientedImageData()
    read = slicer.vtkSegmentationConverter.DeserializeImageGeometry
    return image if geometry and read(geometry, image, False) else None


def _frame(segmentation: Any) -> str:
    return _geometry(segmentation) if segmentation.GetTransformNodeID() else ""


def _placed(segmentation: Any, written: Written) -> Written:
    """Where an answer lies by now: moved with its voxels, if the transform above them was hardened since."""
    then, now = _read(written.frame), _read(_geometry(segmentation))
    if then is None or now is None or then.GetExtent() != now.GetExtent():  # given another grid instead
        return written
    return replace(written, grid=_matrix_of(now) @ np.linalg.inv(_matrix_of(then)) @ written.grid)


def _is_locked(segment: Any) -> bool:
    return slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment) == \
        slicer.vtkSlicerSegmentationsModuleLogic.Completed


def _shape(extent: tuple[int, ...]) -> tuple[int, ...]:
    """(k, j, i) voxels of an inclusive extent."""
    return tuple(int(extent[2 * axis + 1] - extent[2 * axis] + 1) for axis in (2, 1, 0))


def _union(extents: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The smallest extent around others."""
    array = np.array(extents)
    return tuple(int(array[:, i].min() if i % 2 == 0 else array[:, i].max()) for i in range(6))


def _inside(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """Index of an extent in an array of another."""
    return tuple(slice(int(inner[2 * axis] - outer[2 * axis]), int(inner[2 * axis + 1] - outer[2 * axis] + 1))
                 for axis in (2, 1, 0))


def _part(extent: tuple[int, ...], block: tuple[slice, ...]) -> tuple[int, ...]:
    """The extent of a block of an array of another."""
    return tuple(value for axis, part in zip((0, 1, 2), reversed(block), strict=True)
                 for value in (extent[2 * axis] + part.start, extent[2 * axis] + part.stop - 1))


def _merged(segmentation: Any, written: list[Written]) -> list[tuple[np.ndarray, tuple[int, ...], np.ndarray,
                                                                     dict[str, np.ndarray]]]:
    """The answers of each grid as one: grid, extent, added, taken."""
    grids: dict[bytes, list[Written]] = {}
    for one in (_placed(segmentation, answer) for answer in written):
        grids.setdefault(one.grid.tobytes(), []).append(one)
    merged = []
    for answers in grids.values():
        extent = _union([one.extent for one in answers])
        added = np.zeros(_shape(extent), bool)
        taken: dict[str, np.ndarray] = {}
        for one in answers:
            block = _inside(extent, one.extent)
            added[block] |= one.added
            for other, mask in one.taken.items():
                taken.setdefault(other, np.zeros(_shape(extent), bool))[block] |= mask
        merged.append((answers[0].grid, extent, added, taken))
    return merged
