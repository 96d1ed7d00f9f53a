"""Segments as STL and OBJ files by Slicer's own conversion."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

from SegMoTELib.errors import SegmentError  # noqa: E402
from SegMoTELib.imaging.planes import MaskPatch  # noqa: E402
from SegMoTELib.mrml.segments import Change, SegmentWriter, prepare_segmentation  # noqa: E402
from SegMoTELib.mrml.surfaces import export_surfaces  # noqa: E402
from SegMoTELib.mrml.volumes import world_to_volume  # noqa: E402

EXTENT = (6, 12, 5, 14, 3, 8)  # of the box of voxels, in a volume of 20 x 24 x 12


@pytest.fixture
def add_box(scene, volume, segmentation):
    """Function: name, extent -> segment id; a box of voxels of the volume, or none for an empty segment."""
    writer = SegmentWriter(scene)

    def add(name, extent=EXTENT):
        prepare_segmentation(segmentation, volume)
        segment_id = segmentation.GetSegmentation().AddEmptySegment("", name)
        if extent is not None:
            shape = (extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1)
            box = np.ones(shape, bool)
            writer.write(segmentation, segment_id, volume, [Change(MaskPatch(extent, box, box))])
        return segment_id
    return add


def points_of(path) -> np.ndarray:
    """(n, 3) of a surface file."""
    reader = vtk.vtkSTLReader() if path.suffix == ".stl" else vtk.vtkOBJReader()
    reader.SetFileName(str(path))
    reader.Update()
    return vtk.util.numpy_support.vtk_to_numpy(reader.GetOutput().GetPoints().GetData())


def corners_in_world(volume, extent=EXTENT) -> np.ndarray:
    """(8, 3) RAS of the outer corners of a box of voxels."""
    ijk = np.array(np.meshgrid(*[(extent[2 * a] - 0.5, extent[2 * a + 1] + 0.5) for a in range(3)])).reshape(3, -1)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    whole = np.linalg.inv(world_to_volume(volume)) @ slicer.util.arrayFromVTKMatrix(matrix)
    return (whole[:3, :3] @ ijk).T + whole[:3, 3]


def check_place(points, corners, volume):
    """The surface fills the box but for the rounding of its edges, less than a voxel."""
    voxel = np.max(volume.GetSpacing())
    for end in (np.min, np.max):
        np.testing.assert_allclose(end(points, axis=0), end(corners, axis=0), atol=1.5 * voxel)
    np.testing.assert_allclose((points.min(0) + points.max(0)) / 2, corners.mean(0), atol=0.3 * voxel)


@pytest.mark.parametrize("file_format", ["STL", "OBJ"])
@pytest.mark.parametrize("lps", [True, False])
def test_surfaces_lie_where_the_segment_stands_in_the_world(volume, segmentation, add_box, move, tmp_path, file_format,
                                                            lps):
    transform = move(volume, [[0, -1, 0, 100], [1, 0, 0, -50], [0, 0, 1, 20], [0, 0, 0, 1]])
    add_box("kidney")
    assert segmentation.GetTransformNodeID() == transform.GetID()
    files = export_surfaces(segmentation, tmp_path / "new" / "folder", file_format, lps)
    assert [path.name for path in files] == (["segmentation_kidney.stl"] if file_format == "STL"
                                             else ["segmentation.mtl", "segmentation.obj"])
    points = points_of(files[-1]) * ((-1, -1, 1) if lps else (1, 1, 1))
    check_place(points, corners_in_world(volume), volume)


def test_the_scene_is_left_as_it_was(scene, volume, segmentation, add_box, tmp_path):
    add_box("a")
    nodes, changed = scene.GetNumberOfNodes(), segmentation.GetMTime()
    segment = segmentation.GetSegmentation().GetNthSegment(0)
    export_surfaces(segmentation, tmp_path)
    assert scene.GetNumberOfNodes() == nodes
    assert segmentation.GetMTime() == changed
    assert segment.GetRepresentation("Closed surface") is None


def test_empty_segments_are_left_out(segmentation, add_box, tmp_path):
    add_box("empty", None)
    with pytest.raises(SegmentError, match="segmentation has no segment with voxels"):
        export_surfaces(segmentation, tmp_path)
    assert not list(tmp_path.iterdir())
    add_box("full")
    assert [path.name for path in export_surfaces(segmentation, tmp_path)] == ["segmentation_full.stl"]


def test_segments_of_odd_and_equal_names_get_files_of_their_own(segmentation, add_box, tmp_path):
    segmentation.SetName("CT: a/b")
    names = ("../evil", "x/y", "腫瘍 é", "same", "Same", "", "a" * 300, "..")
    for number, name in enumerate(names):
        add_box(name, (2 * number, 2 * number + 1, 2, 9, 2, 9))
    files = export_surfaces(segmentation, tmp_path)
    assert len(set(files)) == len(names)
    assert all(path.parent == tmp_path and path.stat().st_size > 84 for path in files)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert any("腫瘍 é" in path.name for path in files)
    centres = {tuple(np.round(points_of(path).mean(0), 2)) for path in files}
    assert len(centres) == len(names)


def test_what_cannot_be_written_is_said(scene, segmentation, add_box, tmp_path):
    with pytest.raises(SegmentError, match="Choose a segmentation"):
        export_surfaces(None, tmp_path)
    add_box("a")
    with pytest.raises(SegmentError, match="'PLY' is no surface format; choose one of STL, OBJ"):
        export_surfaces(segmentation, tmp_path, "PLY")
    (tmp_path / "file").touch()
    nodes = scene.GetNumberOfNodes()
    with pytest.raises(SegmentError, match="cannot be written"):
        export_surfaces(segmentation, tmp_path / "file")
    assert scene.GetNumberOfNodes() == nodes


@pytest.mark.parametrize("file_format", ["STL", "OBJ"])
def test_long_names_of_any_script_fit_into_a_file_name(segmentation, add_box, tmp_path, file_format):
    segmentation.SetName("脳" * 100)  # of which Slicer keeps nothing
    for number, name in enumerate(("腎臓" * 60, "腎臓" * 60, "🫀" * 90)):
        add_box(name, (2 * number, 2 * number + 1, 2, 9, 2, 9))
    files = export_surfaces(segmentation, tmp_path, file_format)
    assert len(files) == (3 if file_format == "STL" else 2)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(path.name.startswith("Segmentation") for path in files)  # and none is hidden
