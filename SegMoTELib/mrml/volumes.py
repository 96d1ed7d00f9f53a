"""Volume nodes as volumes, without a copy, and the transforms above them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer.util
import vtk

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume

IMAGES = ("vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode")


def volume_of(node: Any) -> Volume:
    """The voxels and geometry of a scalar or RGB volume node; the array is the node's own memory.

    Raises:
        VolumeError: no node, a label map or another kind of node, no voxels, or several values per voxel that are not
            RGB.
    """
    if node is None:
        raise VolumeError("Choose a volume first.")
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise VolumeError(f"{node.GetName()} is a label map; choose the image it was drawn on.")
    if node.GetClassName() not in IMAGES:
        raise VolumeError(f"{node.GetName()} is a {node.GetNodeTagName()} node, no image that can be segmented; choose "
                          "a scalar or colour volume.")
    if node.GetImageData() is None or node.GetImageData().GetPointData().GetScalars() is None:
        raise VolumeError(f"{node.GetName()} has no voxels; load its image data first.")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    array = slicer.util.arrayFromVolume(node)
    if array.ndim == 4 and array.shape[3] == 4:
        array = array[..., :3]  # RGBA
    return Volume(array, slicer.util.arrayFromVTKMatrix(matrix), _modality(node), node.GetName())


def world_to_volume(node: Any) -> np.ndarray:
    """(4, 4) world RAS -> the node's own RAS, from the transforms above it.

    Raises:
        VolumeError: a transform that is not linear.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise VolumeError(f"{node.GetName()} is under a non-linear transform; harden the transform first.")
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformFromWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def to_own_ras(node: Any, world: np.ndarray) -> np.ndarray:
    """(..., 3) world RAS -> the node's own RAS, millimetres."""
    matrix = world_to_volume(node)
    return np.asarray(world, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def plane_of(slice_to_world: np.ndarray, node: Any) -> SlicePlane:
    """The plane of a slice view, (4, 4) slice to world RAS, in the volume's own RAS.

    Raises:
        VolumeError: the view does not meet the volume, or a transform that is not linear.
    """
    return SlicePlane.from_slice_to_ras(volume_of(node), world_to_volume(node) @ slice_to_world)


def view_along(node: Any, orientation: str) -> np.ndarray:
    """(4, 4) slice-to-world matrix of a view along the volume's own "axial", "coronal" or "sagittal" slices, centred.

    Raises:
        VolumeError: another orientation, or a volume that cannot be segmented.
    """
    volume = volume_of(node)
    plane = SlicePlane.through(volume, orientation, volume.to_ras((np.array(volume.shape) - 1) / 2))
    matrix = plane.pixel_to_ras @ np.diag([1.0, -1, 1, 1])
    matrix[:3, :3] /= np.linalg.norm(matrix[:3, :3], axis=0)
    matrix[:3, 3] = volume.to_ras((np.array(volume.shape) - 1) / 2)
    return np.linalg.inv(world_to_volume(node)) @ matrix


def stack_along(slice_to_world: np.ndarray, node: Any) -> PlaneStack:
    """All slices of the volume parallel to a view, from one end to the other; errors of ``plane_of``."""
    return PlaneStack.parallel_to(volume_of(node), world_to_volume(node) @ slice_to_world)


def window_of(node: Any) -> tuple[float, float] | None:
    """(width, centre) of the volume's display; None without one, or where it tells no black from white."""
    display = node.GetScalarVolumeDisplayNode() if node.IsA("vtkMRMLScalarVolumeNode") else None
    if display is None:
        return None
    width, center = display.GetWindow(), display.GetLevel()
    black, white = center - width / 2, center + width / 2
    return (width, center) if np.isfinite([black, white]).all() and black < white else None  # infinite voxels spoil it


def _modality(node: Any) -> str:
    """DICOM modality, where Slicer's DICOM import leaves it: with the volume's item of the subject hierarchy."""
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    scene = node.GetScene()
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode") if scene is not None else None
    listed = ""
    if hierarchy is not None and (item := hierarchy.GetItemByDataNode(node)):
        listed = hierarchy.GetItemAttribute(item, name)
    return listed or node.GetAttribute(name) or ""
