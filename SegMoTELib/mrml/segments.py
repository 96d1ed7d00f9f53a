"""Masks into segments through vtkSlicerSegmentEditorLogic, as the Segment Editor would write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util import numpy_support

from SegMoTELib.errors import SegmentError
from SegMoTELib.imaging.planes import MaskPatch
from SegMoTELib.mrml.volumes import world_to_volume

EDITOR = "vtkMRMLSegmentEditorNode"
UNDO_STATES = 20


@dataclass(frozen=True)
class Written:
    """What one answer has changed, so that the next can replace just that.

    Attributes:
        extent: the block of the volume's voxels. added: (k, j, i) bool, voxels that were not in the segment before.
        taken: segment id -> (k, j, i) bool, voxels that the overwrite mode took from that segment.
    """

    extent: tuple[int, int, int, int, int, int]
    added: np.ndarray = field(repr=False)
    taken: dict[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Change:
    """A mask to write (None for none), in place of what was written before (None for nothing)."""

    patch: MaskPatch | None
    previous: Written | None = None


class SegmentWriter:
    """Writes masks with the user's overwrite mode and masking, one undo step each.

    The user's own editor node is read and never changed; the writer has a hidden one of its own.

    Args:
        scene: vtkMRMLScene.
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)
        self.logic.SetMaximumNumberOfUndoStates(UNDO_STATES)
        self.node = scene.GetSingletonNode("SegMoTE", EDITOR)
        if self.node is None:
            self.node = slicer.vtkMRMLSegmentEditorNode()
            self.node.SetSingletonTag("SegMoTE")
            self.node.SetHideFromEditors(True)
            self.node.SetSaveWithScene(False)
            self.node = scene.AddNode(self.node)
        self.logic.SetSegmentEditorNode(self.node)

    def write(self, segmentation: Any, segment_id: str, volume: Any, changes: list[Change]) -> list[Written | None]:
        """Put masks into a segment; what the same prompts wrote before is taken back first. One undo step.

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
        self.logic.SaveStateForUndo()
        for change in changes:
            if change.previous is not None:
                self._take_back(segmentation, segment_id, volume, change.previous)
        return [self._add(segmentation, segment_id, volume, change.patch) for change in changes]

    @staticmethod
    def check(segmentation: Any, segment_id: str) -> None:
        """Raise the ``SegmentError`` that writing would raise."""
        segment = segmentation.GetSegmentation().GetSegment(segment_id) if segmentation is not None else None
        if segment is None:
            raise SegmentError("Choose a segment first, or add one.")
        if _is_locked(segment):
            raise SegmentError(f"The segment {segment.GetName()} is locked; unlock it, or choose another.")

    def _take_back(self, segmentation: Any, segment_id: str, volume: Any, written: Written) -> None:
        if written.added.any():
            self._modify(segmentation, segment_id, volume, written.extent, written.added,
                         self.logic.ModificationModeRemove, bypass=True)
        for other, mask in written.taken.items():
            if segmentation.GetSegmentation().GetSegment(other) is not None:
                self._modify(segmentation, other, volume, written.extent, mask, self.logic.ModificationModeAdd,
                             bypass=True)

    def _add(self, segmentation: Any, segment_id: str, volume: Any, patch: MaskPatch | None) -> Written | None:
        if patch is None:
            return None
        ids = [segment_id]
        if self.node.GetOverwriteMode() != slicer.vtkMRMLSegmentEditorNode.OverwriteNone:
            ids = list(segmentation.GetSegmentation().GetSegmentIDs())
        before = {one: segment_mask(segmentation, one, volume, patch.extent) for one in ids}
        self._modify(segmentation, segment_id, volume, patch.extent, patch.array, self.logic.ModificationModeAdd)
        after = {one: segment_mask(segmentation, one, volume, patch.extent) for one in ids
                 if one == segment_id or before[one].any()}
        taken = {one: before[one] & ~mask for one, mask in after.items()
                 if one != segment_id and (before[one] & ~mask).any()}
        return Written(patch.extent, after[segment_id] & ~before[segment_id], taken)

    def undo(self) -> bool:
        """Take the last write back; False where there is none."""
        possible = bool(self.logic.CanUndo())
        if possible:
            self.logic.Undo()
        return possible

    def redo(self) -> bool:
        """Write again what was taken back; False where there is nothing."""
        possible = bool(self.logic.CanRedo())
        if possible:
            self.logic.Redo()
        return possible

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
        if users is not None:
            self.node.SetOverwriteMode(users.GetOverwriteMode())
            self.node.SetMaskMode(users.GetMaskMode())
            self.node.SetMaskSegmentID(users.GetMaskSegmentID())
            self.node.SetSourceVolumeIntensityMask(users.GetSourceVolumeIntensityMask())
            self.node.SetSourceVolumeIntensityMaskRange(*users.GetSourceVolumeIntensityMaskRange())
        self.logic.SetSegmentationNode(segmentation)
        self.logic.SetSourceVolumeNode(volume)
        self.logic.SetCurrentSegmentID(segment_id)
        self.logic.UpdateReferenceGeometryImage()
        self.logic.UpdateAlignedSourceVolume()
        self.logic.UpdateMaskLabelmap()

    def _modify(self, segmentation, segment_id, volume, extent, array, mode, bypass: bool = False) -> None:
        labelmap = slicer.vtkOrientedImageData()
        labelmap.SetExtent(*(int(value) for value in extent))
        labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())[:] = array.ravel()
        labelmap.SetImageToWorldMatrix(_voxels_in(segmentation, volume))
        if not _same_place(segmentation, volume):
            aligned = slicer.vtkOrientedImageData()
            slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
                labelmap, self.logic.GetReferenceGeometryImage(), aligned, False, True)  # nearest, beyond its edges
            labelmap = aligned
        self.logic.ModifySegmentByLabelmap(segmentation, segment_id, labelmap, mode, False, bypass)


def prepare_segmentation(segmentation: Any, volume: Any) -> None:
    """Give an empty segmentation the volume's geometry and parent transform; one with segments is left as it is."""
    if segmentation.GetSegmentation().GetNumberOfSegments() == 0:
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if segmentation.GetDisplayNode() is None:
        segmentation.CreateDefaultDisplayNodes()


def segment_mask(segmentation: Any, segment_id: str, volume: Any, extent: tuple[int, ...]) -> np.ndarray:
    """(k, j, i) bool: which voxels of a block of the volume are in a segment."""
    reference = slicer.vtkOrientedImageData()
    reference.SetExtent(*(int(value) for value in extent))
    reference.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    reference.SetImageToWorldMatrix(_voxels_in(segmentation, volume))
    shape = tuple(extent[2 * axis + 1] - extent[2 * axis] + 1 for axis in (2, 1, 0))
    source = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(segment_id, source)
    if source.IsEmpty():
        return np.zeros(shape, bool)
    found = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(source, reference, found)
    return numpy_support.vtk_to_numpy(found.GetPointData().GetScalars()).reshape(shape) != 0


def _voxels_in(segmentation: Any, volume: Any) -> Any:
    """vtkMatrix4x4 from the volume's voxels to the segmentation's own RAS."""
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(ijk_to_ras)
    if segmentation.GetTransformNodeID() == volume.GetTransformNodeID():
        return ijk_to_ras
    matrix = (world_to_volume(segmentation) @ np.linalg.inv(world_to_volume(volume))
              @ slicer.util.arrayFromVTKMatrix(ijk_to_ras))
    return slicer.util.vtkMatrixFromArray(matrix)


def _same_place(segmentation: Any, volume: Any) -> bool:
    """Whether the segmentation stores its labels on the volume's voxels."""
    geometry = segmentation.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName())
    stored = slicer.vtkOrientedImageData()
    if not geometry or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(geometry, stored, False):
        return False
    matrix = vtk.vtkMatrix4x4()
    stored.GetImageToWorldMatrix(matrix)
    own = slicer.util.arrayFromVTKMatrix(_voxels_in(segmentation, volume))
    return np.allclose(slicer.util.arrayFromVTKMatrix(matrix), own, atol=1e-4)


def _is_locked(segment: Any) -> bool:
    return slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment) == \
        slicer.vtkSlicerSegmentationsModuleLogic.Completed
