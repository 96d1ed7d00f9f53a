"""Volume nodes as volumes, views as planes."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.errors import VolumeError  # noqa: E402
from SegMoTELib.mrml.volumes import plane_of, stack_along, view_along, volume_of, window_of  # noqa: E402


def test_the_array_is_the_nodes_own_memory(volume):
    found = volume_of(volume)
    found.array[0, 0, 0] = 77
    assert slicer.util.arrayFromVolume(volume)[0, 0, 0] == 77
    assert found.shape == (20, 24, 12)


def test_what_is_no_image_is_refused_with_its_name(scene):
    with pytest.raises(VolumeError, match="Choose a volume"):
        volume_of(None)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing in it")
    with pytest.raises(VolumeError, match="nothing in it has no voxels"):
        volume_of(empty)


def test_the_modality_is_found_where_slicers_dicom_import_leaves_it(scene, volume):
    assert volume_of(volume).modality == ""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), volume)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "CT")
    assert volume_of(volume).modality == "CT"


@pytest.mark.parametrize("components", [2, 7])
def test_several_values_per_voxel_that_are_no_colours_are_refused(scene, components):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "many")
    slicer.util.updateVolumeFromArray(node, np.zeros((3, 4, 5, components), np.float32))
    with pytest.raises(VolumeError):
        volume_of(node)


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal"])
def test_parallel_slices_cover_every_voxel_once(volume, orientation, move):
    move(volume, [[0, -1, 0, 30], [1, 0, 0, -8], [0, 0, 1, 4], [0, 0, 0, 1]])
    planes = stack_along(view_along(volume, orientation), volume).planes
    own = volume_of(volume)
    count = np.zeros(own.array.shape, int)
    for plane in planes:
        patch = plane.insert(np.ones(plane.shape, bool), own)
        count[patch.slices] += patch.array
    np.testing.assert_array_equal(count, 1)


def test_the_plane_of_a_slice_view_passes_through_its_centre(scene, volume, move):
    move(volume, [[1, 0, 0, 15], [0, 1, 0, -20], [0, 0, 1, 3], [0, 0, 0, 1]])
    matrix = view_along(volume, "sagittal")
    own = matrix[:3, 3] - (15, -20, 3)
    np.testing.assert_allclose(plane_of(matrix, volume).distance(own), 0, atol=1.01)
    away = matrix.copy()
    away[:3, 3] += 1000
    with pytest.raises(VolumeError):
        plane_of(away, volume)


def test_window_and_level_are_those_of_the_display(volume):
    assert window_of(volume) is None
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(400, 40)
    assert window_of(volume) == (400, 40)


@pytest.mark.parametrize(("window", "level"), [(np.inf, 0), (np.nan, 0), (400, np.nan), (0, 40), (-3, 40),
                                               (1e-13, 1000)])
def test_a_window_that_tells_no_black_from_white_is_none(volume, window, level):
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindow(window)
    volume.GetDisplayNode().SetLevel(level)
    assert window_of(volume) is None


def test_the_window_that_slicer_makes_of_infinite_voxels_is_none(volume):
    array = slicer.util.arrayFromVolume(volume).astype(np.float32)
    array[0] = np.inf
    slicer.util.updateVolumeFromArray(volume, array)
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAutoWindowLevel(True)
    assert window_of(volume) is None
