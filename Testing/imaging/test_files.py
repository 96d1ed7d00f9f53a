"""Volumes from files, segmentations into files."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.files import NamedMask, check_output, read_volume, write_segmentation
from SegMoTELib.imaging.volume import Volume
from Testing.imaging.conftest import save_volume


@pytest.mark.parametrize("name", ["v.nrrd", "v.nii.gz", "v.nii", "v.mha"])
@pytest.mark.parametrize("directions", ["RAS", "oblique", "sagittal acquisition"])
def test_values_and_geometry_survive_every_format(make_ball, tmp_path, name, directions):
    volume = make_ball(directions, "all different")
    save_volume(volume, tmp_path / name)
    found = read_volume(tmp_path / name)
    np.testing.assert_array_equal(found.array, volume.array)
    np.testing.assert_allclose(found.ijk_to_ras, volume.ijk_to_ras, atol=1e-3)


def test_a_left_handed_volume_stays_left_handed(make_ball, tmp_path):
    volume = make_ball("left-handed", "anisotropic")
    save_volume(volume, tmp_path / "v.nrrd")
    assert np.linalg.det(read_volume(tmp_path / "v.nrrd").ijk_to_ras[:3, :3]) < 0


def test_a_picture_is_one_colour_slice(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "p.png"))
    volume = read_volume(tmp_path / "p.png")
    assert volume.is_rgb
    np.testing.assert_array_equal(volume.array[0], array)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_of_another_encoding_is_refused_and_does_not_end_the_program(make_ball, tmp_path):
    """SimpleITK would, with all other volumes of a batch."""
    save_volume(make_ball("RAS", "isotropic"), tmp_path / "v.nrrd")
    odd = tmp_path / os.fsdecode(b"caf\xe9.nrrd")
    (tmp_path / "v.nrrd").rename(odd)
    with pytest.raises(VolumeError, match="rename it"):
        read_volume(odd)
    with pytest.raises(VolumeError, match="rename it"):
        check_output(odd.with_name(odd.name.replace(".nrrd", ".seg.nrrd")))


@pytest.mark.parametrize("rows", [[[1, 0.5, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7]], np.zeros((3, 4))])
def test_a_header_without_right_angles_is_explained(make_ball, tmp_path, rows):
    save_volume(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # no quaternion, but these rows
    content[280:328] = np.array(rows, "<f4").tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(VolumeError, match="not at right angles, or are damaged; resample it"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("missing.nrrd", None, "no such file"), ("text.nrrd", b"hello", "not an image"), ("empty.nii", b"", "not an image"),
])
def test_what_cannot_be_read_is_said(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=message):
        read_volume(tmp_path / name)


def test_a_series_is_not_chosen_in_a_single_file(make_ball, tmp_path):
    save_volume(make_ball("RAS", "anisotropic"), tmp_path / "v.nrrd")
    with pytest.raises(VolumeError, match="give its DICOM folder"):
        read_volume(tmp_path / "v.nrrd", series="1.2.3")


def test_a_folder_without_dicom_is_said(tmp_path):
    with pytest.raises(VolumeError, match="no DICOM series"):
        read_volume(tmp_path)


def test_four_dimensions_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False), str(tmp_path / "v.nii"))
    with pytest.raises(VolumeError, match="one frame"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("name", ["v.nii", "v.nrrd", "v.mha"])
def test_a_series_of_one_volume_is_that_volume(make_ball, tmp_path, name):
    volume = make_ball("oblique", "all different")
    save_volume(volume, tmp_path / "one.nrrd")
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(tmp_path / "one.nrrd"))]), str(tmp_path / name))
    found = read_volume(tmp_path / name)
    np.testing.assert_array_equal(found.array, volume.array)
    np.testing.assert_allclose(found.ijk_to_ras, volume.ijk_to_ras, atol=1e-3)


def test_segments_are_written_as_slicer_stores_them(make_ball, tmp_path):
    volume = make_ball("oblique", "anisotropic")
    inside = volume.array > 125
    apart = np.zeros_like(inside)
    apart[0, :3, :3] = True
    path = tmp_path / "out.seg.nrrd"
    write_segmentation(path, volume, [NamedMask("ball", (255, 0, 0), inside), NamedMask("corner", (0, 255, 0), apart),
                                      NamedMask("all", (0, 0, 255), np.ones_like(inside))])
    image = sitk.ReadImage(str(path))
    layers = sitk.GetArrayFromImage(image)
    assert layers.shape == (*inside.shape, 2)  # "all" overlaps the others
    place = {image.GetMetaData(f"Segment{n}_Name"): (int(image.GetMetaData(f"Segment{n}_Layer")),
                                                     int(image.GetMetaData(f"Segment{n}_LabelValue")))
             for n in range(3)}
    np.testing.assert_array_equal(layers[..., place["ball"][0]] == place["ball"][1], inside)
    np.testing.assert_array_equal(layers[..., place["corner"][0]] == place["corner"][1], apart)
    assert (layers[..., place["all"][0]] == place["all"][1]).all()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(np.diag([-1.0, -1, 1, 1]) @ lps, volume.ijk_to_ras, atol=1e-3)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("name", "segments", "message"), [
    ("out.png", 1, "ends in .seg.nrrd"), ("out.seg.nrrd", 0, "no segment"), ("out.seg.nrrd", -1, "another geometry"),
])
def test_what_cannot_be_written_is_said(make_ball, tmp_path, name, segments, message):
    volume = make_ball("RAS", "anisotropic")
    mask = np.ones(volume.array.shape if segments > 0 else (1, 1, 1), bool)
    with pytest.raises(VolumeError, match=message):
        write_segmentation(tmp_path / name, volume, [NamedMask("x", (1, 2, 3), mask)] if segments else [])
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_writing_leaves_no_half_file(make_ball, tmp_path, monkeypatch):
    def interrupt(image, part, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sitk, "WriteImage", interrupt)
    volume = make_ball("RAS", "anisotropic")
    with pytest.raises(KeyboardInterrupt):
        write_segmentation(tmp_path / "x.seg.nrrd", volume, [NamedMask("x", (1, 2, 3), volume.array > 125)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.seg.nrrd", "out.nii.gz", "out.nii"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_full_disk_is_said_and_what_was_there_stays(make_ball, tmp_path, monkeypatch, name, share):
    """SimpleITK writes half a NIfTI file on it, or an empty one, without a word."""
    volume = make_ball("RAS", "isotropic")
    segments = [NamedMask("a", (1, 2, 3), volume.array > 100)]
    write_segmentation(tmp_path / name, volume, segments)
    before, write = (tmp_path / name).read_bytes(), sitk.WriteImage

    def write_half(image, path, **options):
        write(image, path, **options)
        os.truncate(path, int(share * os.path.getsize(path)))

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    with pytest.raises(VolumeError, match="is the disk full"):
        write_segmentation(tmp_path / name, volume, segments)
    assert (tmp_path / name).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_skewed_axes_go_into_a_seg_nrrd_and_are_refused_for_nifti(tmp_path):
    """NIfTI would hold them bent to right angles, and the mask beside the object."""
    matrix = np.array([[1, 0.3, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    volume = Volume(np.zeros((4, 30, 20), np.int16), matrix)
    segments = [NamedMask("a", (1, 2, 3), np.ones((4, 30, 20), bool))]
    write_segmentation(tmp_path / "out.seg.nrrd", volume, segments)
    np.testing.assert_allclose(read_volume(tmp_path / "out.seg.nrrd").ijk_to_ras, matrix, atol=1e-9)
    with pytest.raises(VolumeError, match=r"not at right angles.*\.seg\.nrrd"):
        write_segmentation(tmp_path / "out.nii.gz", volume, segments)
    matrix[0, 1] = 1e-4  # rounding in a header moves the last voxel by less than anyone can see
    write_segmentation(tmp_path / "out.nii.gz", Volume(volume.array, matrix), segments)
    np.testing.assert_allclose(read_volume(tmp_path / "out.nii.gz").ijk_to_ras, matrix, atol=1e-3)


def link(path, target) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system lets the user make no links")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["out.seg.nrrd", "out.nii.gz"])
def test_a_result_is_written_where_a_link_leads(make_ball, tmp_path, name, there):
    volume, target = make_ball("RAS", "anisotropic"), tmp_path / "disk" / "kept.bin"
    if there:
        target.parent.mkdir()
        target.write_bytes(b"old")
    link(tmp_path / name, "disk/kept.bin")
    write_segmentation(tmp_path / name, volume, [NamedMask("a", (1, 2, 3), volume.array > 100)])
    assert (tmp_path / name).is_symlink()
    assert target.stat().st_size > 100
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_leads_back_to_itself_is_refused_before_the_work(tmp_path):
    link(tmp_path / "out.seg.nrrd", "out.seg.nrrd")
    with pytest.raises(VolumeError, match="no ordinary file"):
        check_output(tmp_path / "out.seg.nrrd")


@pytest.mark.parametrize("name", [f"{'x' * 300}.seg.nrrd", f"new/{'x' * 300}.seg.nrrd", f"new/{'x' * 300}/a.seg.nrrd"])
def test_too_long_a_name_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(VolumeError, match="cannot be written"):
        check_output(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "out.nii.gz")
    with pytest.raises(VolumeError, match="no ordinary file"):
        check_output(tmp_path / "out.nii.gz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_no_volume_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "in.nii.gz")
    with pytest.raises(VolumeError, match="no ordinary file"):
        read_volume(tmp_path / "in.nii.gz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write everywhere")
def test_a_write_protected_file_is_not_replaced(tmp_path):
    (tmp_path / "out.nii.gz").touch(0o444)
    with pytest.raises(VolumeError, match="write-protected"):
        check_output(tmp_path / "out.nii.gz")
