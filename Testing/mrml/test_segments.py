"""Masks into real segments, with the Segment Editor's rules."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.errors import SegmentError, VolumeError  # noqa: E402
from SegMoTELib.imaging.planes import MaskPatch  # noqa: E402
from SegMoTELib.mrml.segments import Change, SegmentWriter, prepare_segmentation, segment_mask  # noqa: E402

WHOLE = (0, 19, 0, 23, 0, 11)


@pytest.fixture
def writer(scene):
    """A writer that is closed again."""
    writer = SegmentWriter(scene)
    yield writer
    writer.close()


@pytest.fixture
def ready(segmentation, volume):
    """The segmentation with the volume's geometry and two empty segments, and their ids."""
    prepare_segmentation(segmentation, volume)
    return [segmentation.GetSegmentation().AddEmptySegment(name, name) for name in ("one", "two")]


def block(i0, i1, j0, j1, k0, k1):
    """A patch whose mask fills it."""
    array = np.ones((k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1), bool)
    return MaskPatch((i0, i1, j0, j1, k0, k1), array, array)


def cells(segmentation, segment, volume):
    """(12, 24, 20) bool."""
    return segment_mask(segmentation, segment, volume, WHOLE)


def editor(scene, **settings):
    """The user's own Segment Editor node."""
    node = slicer.vtkMRMLSegmentEditorNode()
    node.SetSingletonTag("SegmentEditor")
    node = scene.AddNode(node)
    for name, value in settings.items():
        getattr(node, f"Set{name}")(value)
    return node


def test_a_mask_lands_on_its_voxels_on_every_grid_and_under_transforms(writer, segmentation, volume, move):
    move(volume, [[0, -1, 0, 30], [1, 0, 0, -8], [0, 0, 1, 4], [0, 0, 0, 1]])
    prepare_segmentation(segmentation, volume)
    ready = [segmentation.GetSegmentation().AddEmptySegment(name) for name in ("one", "two")]
    patch = block(3, 6, 4, 9, 5, 5)
    patch.array[0, 0, 0] = False
    writer.write(segmentation, ready[0], volume, [Change(patch)])
    expected = np.zeros((12, 24, 20), bool)
    expected[patch.slices] = patch.array
    np.testing.assert_array_equal(cells(segmentation, ready[0], volume), expected)
    assert not cells(segmentation, ready[1], volume).any()


def test_a_segmentation_with_another_transform_gets_the_mask_in_the_same_place(writer, segmentation, volume, ready,
                                                                               move):
    move(volume, [[1, 0, 0, 5], [0, 1, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]])  # after the segmentation was made
    writer.write(segmentation, ready[0], volume, [Change(block(3, 6, 4, 9, 5, 6))])
    found = cells(segmentation, ready[0], volume)
    assert found[5:7, 4:10, 3:7].mean() > 0.6  # nearest voxels of another grid
    assert found.sum() <= 1.5 * 48


def test_the_next_answer_replaces_the_last_and_keeps_what_the_user_had(writer, segmentation, volume, ready):
    writer.write(segmentation, ready[0], volume, [Change(block(0, 4, 0, 4, 5, 5))])  # the user's, say
    (first,) = writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    writer.write(segmentation, ready[0], volume, [Change(block(8, 9, 8, 9, 5, 5), first)])
    expected = np.zeros((12, 24, 20), bool)
    expected[5, 0:5, 0:5] = True
    expected[5, 8:10, 8:10] = True
    np.testing.assert_array_equal(cells(segmentation, ready[0], volume), expected)


def test_an_answer_can_be_taken_back_without_another(writer, segmentation, volume, ready):
    (written,) = writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    assert writer.write(segmentation, ready[0], volume, [Change(None, written)]) == [None]
    assert not cells(segmentation, ready[0], volume).any()


def test_answers_can_be_exchanged_back_and_forth(writer, segmentation, volume, ready):
    changes = [Change(block(3, 9, 3, 9, k, k)) for k in (2, 3, 4)]
    written = writer.write(segmentation, ready[0], volume, changes)
    assert cells(segmentation, ready[0], volume).sum() == 3 * 49
    writer.exchange(segmentation, ready[0], volume, written, [])
    assert not cells(segmentation, ready[0], volume).any()
    writer.exchange(segmentation, ready[0], volume, [], written[:2])
    assert cells(segmentation, ready[0], volume).sum() == 2 * 49


def test_what_the_user_painted_since_survives_taking_an_answer_back(writer, segmentation, volume, ready):
    (written,) = writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    writer.write(segmentation, ready[0], volume, [Change(block(15, 16, 3, 9, 8, 8))])  # as a brush would
    writer.exchange(segmentation, ready[0], volume, [written], [])
    found = cells(segmentation, ready[0], volume)
    assert found.sum() == found[8].sum() == 14


def test_planes_that_cross_share_their_voxels_once(writer, segmentation, volume, ready):
    flat, upright = block(3, 9, 3, 9, 5, 5), block(6, 6, 3, 9, 2, 8)
    first, second = writer.write(segmentation, ready[0], volume, [Change(flat), Change(upright)])
    assert first.added.sum() == 49
    assert second.added.sum() == 49 - 7
    writer.exchange(segmentation, ready[0], volume, [second], [])
    assert cells(segmentation, ready[0], volume).sum() == 49


def test_a_neighbour_is_kept_by_default(writer, segmentation, volume, ready):
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    writer.write(segmentation, ready[1], volume, [Change(block(6, 12, 3, 9, 5, 5))])
    assert cells(segmentation, ready[0], volume).sum() == 49
    assert cells(segmentation, ready[1], volume).sum() == 49


def test_the_segment_editors_overwrite_mode_holds_and_a_correction_gives_the_neighbour_back(
        scene, writer, segmentation, volume, ready):
    node = editor(scene, OverwriteMode=slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    (leak,) = writer.write(segmentation, ready[1], volume, [Change(block(6, 12, 3, 9, 5, 5))])
    assert cells(segmentation, ready[0], volume).sum() == 49 - 28
    writer.write(segmentation, ready[1], volume, [Change(block(9, 12, 3, 9, 5, 5), leak)])
    assert cells(segmentation, ready[0], volume).sum() == 49 - 7
    assert cells(segmentation, ready[1], volume).sum() == 28
    writer.exchange(segmentation, ready[1], volume, [], [])
    assert node.GetOverwriteMode() == slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments


def test_the_segment_editors_masking_holds(scene, writer, segmentation, volume, ready):
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    editor(scene, OverwriteMode=slicer.vtkMRMLSegmentEditorNode.OverwriteNone,
           MaskMode=slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    writer.write(segmentation, ready[1], volume, [Change(block(6, 12, 3, 9, 5, 5))])
    assert cells(segmentation, ready[1], volume).sum() == 49 - 28


def test_the_segment_editors_intensity_range_holds(scene, writer, segmentation, volume, ready):
    node = editor(scene, SourceVolumeIntensityMask=True)
    node.SetSourceVolumeIntensityMaskRange(250, 1000)
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    bright = slicer.util.arrayFromVolume(volume)[5, 3:10, 3:10] >= 250
    np.testing.assert_array_equal(cells(segmentation, ready[0], volume)[5, 3:10, 3:10], bright)


def test_a_mask_segment_of_another_segmentation_means_nothing_here(scene, writer, segmentation, volume, ready):
    other = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "other")
    prepare_segmentation(other, volume)
    for name in (ready[1], "only there"):
        other.GetSegmentation().AddEmptySegment(name)
        users = editor(scene, MaskMode=slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
        users.SetMaskSegmentID(name)
        users.SetAndObserveSegmentationNode(other)
        writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
        assert not writer.masked
        assert cells(segmentation, ready[0], volume).sum() == 49


def test_what_is_taken_from_many_neighbours_comes_back(scene, writer, segmentation, volume, ready):
    editor(scene, OverwriteMode=slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    names = [segmentation.GetSegmentation().AddEmptySegment(f"n{number}") for number in range(8)]
    for number, name in enumerate(names):
        writer.write(segmentation, name, volume, [Change(block(2 * number, 2 * number + 1, 2, 9, 4, 5))])
    before = {name: cells(segmentation, name, volume) for name in (*names, *ready)}
    written = writer.write(segmentation, ready[0], volume, [Change(block(3, 8, 4, 6, 5, 5))])
    assert set(written[0].taken) == set(names[1:5])
    after = sum(cells(segmentation, name, volume).astype(int) for name in (*names, *ready))
    assert after.max() == 1
    writer.exchange(segmentation, ready[0], volume, written, [])
    for name, held in before.items():
        np.testing.assert_array_equal(cells(segmentation, name, volume), held)


def test_a_segmentation_of_surfaces_is_refused_with_what_to_do(writer, segmentation, volume):
    import vtk

    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(4)
    sphere.Update()
    segmentation.SetSourceRepresentationToClosedSurface()  # as loading an STL file does
    segmentation.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "implant", [1, 0, 0], "implant")
    prepare_segmentation(segmentation, volume)
    with pytest.raises(SegmentError, match="binary labelmap"):
        writer.write(segmentation, "implant", volume, [Change(block(3, 9, 3, 9, 5, 5))])


def test_a_grid_too_fine_for_the_memory_is_refused(writer, segmentation, volume, ready):
    import vtk

    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(0.02)
    sphere.Update()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(None)
    segmentation.GetSegmentation().SetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(), "")
    segmentation.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "speck", [1, 0, 0], "speck")
    with pytest.raises(SegmentError, match="far more finely"):
        writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 8))])


def test_undo_is_exact_whatever_intensity_range_is_set_by_then(scene, writer, segmentation, volume, ready):
    written = writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    editor(scene, SourceVolumeIntensityMask=True).SetSourceVolumeIntensityMaskRange(1e5, 2e5)
    writer.exchange(segmentation, ready[0], volume, written, [])
    assert not cells(segmentation, ready[0], volume).any()
    writer.exchange(segmentation, ready[0], volume, [], written)
    assert cells(segmentation, ready[0], volume).sum() == 49


def test_a_locked_segment_is_refused_with_its_name(writer, segmentation, volume, ready):
    segment = segmentation.GetSegmentation().GetSegment(ready[0])
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, logic.Completed)
    with pytest.raises(SegmentError, match="one is locked"):
        writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    assert not cells(segmentation, ready[0], volume).any()


def test_a_hidden_segment_is_written(writer, segmentation, volume, ready):
    segmentation.GetDisplayNode().SetSegmentVisibility(ready[0], False)
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 5))])
    assert cells(segmentation, ready[0], volume).sum() == 49
    assert not segmentation.GetDisplayNode().GetSegmentVisibility(ready[0])


@pytest.mark.parametrize("segment", ["missing", None])
def test_no_segment_is_refused(writer, segmentation, volume, ready, segment):
    with pytest.raises(SegmentError, match="Choose a segment"):
        writer.write(segmentation if segment else None, segment or "", volume, [Change(block(3, 4, 3, 4, 5, 5))])


def test_a_bent_volume_is_refused(writer, segmentation, volume, ready, bend):
    bend(volume)
    with pytest.raises(VolumeError, match="non-linear"):
        writer.write(segmentation, ready[0], volume, [Change(block(3, 4, 3, 4, 5, 5))])


def test_a_segmentation_on_a_finer_grid_is_written_without_holes(scene, writer, segmentation, volume, ready):
    fine = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    slicer.util.updateVolumeFromArray(fine, np.zeros((24, 48, 40), np.uint8))
    matrix = slicer.util.arrayFromVTKMatrix(_matrix(volume)) @ np.diag([0.5, 0.5, 0.5, 1.0])
    fine.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    writer.write(segmentation, ready[0], volume, [Change(block(3, 9, 3, 9, 5, 6))])
    found = cells(segmentation, ready[0], volume)
    assert found[5:7, 4:9, 4:9].all()
    assert 0.6 * 98 <= found.sum() <= 1.5 * 98


def test_the_writer_leaves_no_node_behind(scene, segmentation, volume):
    before = scene.GetNumberOfNodes()
    writer = SegmentWriter(scene)
    writer.close()
    assert scene.GetNumberOfNodes() == before


def _matrix(volume):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def test_masking_ends_with_the_users_segment_editor_node(scene, volume, segmentation):
    prepare_segmentation(segmentation, volume)
    segment_id = segmentation.GetSegmentation().AddEmptySegment("", "one")
    users = slicer.vtkMRMLSegmentEditorNode()
    users.SetSingletonTag("SegmentEditor")
    users = scene.AddNode(users)
    users.SetSourceVolumeIntensityMask(True)
    users.SetSourceVolumeIntensityMaskRange(1e5, 2e5)  # nothing may be edited
    everything = np.ones((12, 24, 20), bool)
    change = [Change(MaskPatch((0, 19, 0, 23, 0, 11), everything, everything))]
    writer = SegmentWriter(scene)
    writer.write(segmentation, segment_id, volume, change)
    assert not segment_mask(segmentation, segment_id, volume, (0, 19, 0, 23, 0, 11)).any()
    scene.RemoveNode(users)
    writer.write(segmentation, segment_id, volume, change)
    assert segment_mask(segmentation, segment_id, volume, (0, 19, 0, 23, 0, 11)).all()
