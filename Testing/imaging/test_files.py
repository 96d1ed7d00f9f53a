"""Volumes from files, segmentations into files."""

from __future__ import annotations

import gzip
import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.files import NamedMask, check_output, read_volume, write_segmentation
from SegMoTELib.imaging.volume import Volume


def save(volume: Volume, path) -> None:
    """Write a volume by SimpleITK's own conventions (LPS)."""
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.ijk_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("name", ["v.nrrd", "v.nii.gz", "v.nii", "v.mha"])
@pytest.mark.parametrize("directions", ["RAS", "oblique", "sagittal acquisition"])
def test_values_and_geometry_survive_every_format(make_ball, tmp_path, name, directions):
    volume = make_ball(directions, "all different")
    save(volume, tmp_path / name)
    found = read_volume(tmp_path / name)
    np.testing.assert_array_equal(found.array, volume.array)
    np.testing.assert_allclose(found.ijk_to_ras, volume.ijk_to_ras, atol=1e-3)


def test_a_left_handed_volume_stays_left_handed(make_ball, tmp_path):
    volume = make_ball("left-handed", "anisotropic")
    save(volume, tmp_path / "v.nrrd")
    assert np.linalg.det(read_volume(tmp_path / "v.nrrd").ijk_to_ras[:3, :3]) < 0


def test_a_picture_is_one_colour_slice(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "p.png"))
    volume = read_volume(tmp_path / "p.png")
    assert volume.is_rgb
    np.testing.assert_array_equal(volume.array[0], array)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_cut_off_file_is_refused(make_ball, tmp_path, name, share):
    save(make_ball("RAS", "isotropic"), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:int(share * len(content))])
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["v.hdr", "v.img", "v.img.gz", "v.vtk", "v.gipl", "v.mrc", "v.mha", "v.mhd", "v.nrrd",
                                  "v.nhdr"])
def test_no_format_passes_half_a_volume_for_a_whole_one(make_ball, tmp_path, name):
    volume = make_ball("RAS", "isotropic")
    save(volume, tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, volume.array)
    data = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)  # of two files, that of the voxels
    content = data.read_bytes()
    data.write_bytes(content[:int(0.97 * len(content))])
    with pytest.raises(VolumeError, match=r"cut off|got only") as told:
        read_volume(tmp_path / name)
    assert "No such file" not in str(told.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_a_tiff_file_with_pages_beyond_its_end_is_refused(tmp_path, share):
    array = np.random.default_rng(0).integers(0, 1000, (20, 30, 40)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.tif"))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.tif").array, array)
    content = (tmp_path / "v.tif").read_bytes()
    (tmp_path / "v.tif").write_bytes(content[:int(share * len(content))])
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / "v.tif")


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", b"MM\0+" + bytes(12),
                                     b"II+\0\x08\0\0\0\x10" + bytes(7) + b"\xff" * 8, b"text"])
def test_what_only_begins_like_tiff_is_refused(tmp_path, content):
    (tmp_path / "v.tiff").write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "v.tiff")


def test_a_text_file_of_vtk_is_not_measured_by_its_bytes(tmp_path):
    (tmp_path / "v.vtk").write_text("# vtk DataFile Version 3.0\nzeros\nASCII\nDATASET STRUCTURED_POINTS\n"
                                    "DIMENSIONS 4 3 2\nSPACING 1 1 1\nORIGIN 0 0 0\nPOINT_DATA 24\n"
                                    f"SCALARS v double 1\nLOOKUP_TABLE default\n{'0 ' * 24}\n")
    assert read_volume(tmp_path / "v.vtk").shape == (4, 3, 2)


def test_a_compressed_name_on_a_plain_file_is_no_damage(make_ball, tmp_path):
    save(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    (tmp_path / "v.nii").rename(tmp_path / "w.nii.gz")
    assert read_volume(tmp_path / "w.nii.gz").array.max() == 200


def test_voxels_that_look_like_gzip_are_voxels(tmp_path):
    array = np.full((3, 4, 5), int.from_bytes(b"\x1f\x8b", "little"), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.hdr"))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.hdr").array, array)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_of_another_encoding_is_refused_and_does_not_end_the_program(make_ball, tmp_path):
    """SimpleITK would, with all other volumes of a batch."""
    save(make_ball("RAS", "isotropic"), tmp_path / "v.nrrd")
    odd = tmp_path / os.fsdecode(b"caf\xe9.nrrd")
    (tmp_path / "v.nrrd").rename(odd)
    with pytest.raises(VolumeError, match="rename it"):
        read_volume(odd)
    with pytest.raises(VolumeError, match="rename it"):
        check_output(odd.with_name(odd.name.replace(".nrrd", ".seg.nrrd")))


@pytest.mark.parametrize("rows", [[[1, 0.5, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7]], np.zeros((3, 4))])
def test_a_header_without_right_angles_is_explained(make_ball, tmp_path, rows):
    save(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # no quaternion, but these rows
    content[280:328] = np.array(rows, "<f4").tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(VolumeError, match="not at right angles, or are damaged; resample it"):
        read_volume(tmp_path / "v.nii")


def test_a_cut_off_file_compressed_again_is_refused(make_ball, tmp_path):
    save(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    content = (tmp_path / "v.nii").read_bytes()
    (tmp_path / "w.nii.gz").write_bytes(gzip.compress(content[:len(content) // 2]))
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / "w.nii.gz")


def test_a_scaled_nifti_file_is_not_mistaken_for_a_cut_off_one(make_ball, tmp_path):
    """Stored as int16 with a slope, read as a wider type."""
    save(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[112:116] = np.float32(0.5).tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    assert read_volume(tmp_path / "v.nii").array.max() == 100


@pytest.mark.parametrize(("name", "content", "message"), [
    ("missing.nrrd", None, "no such file"), ("text.nrrd", b"hello", "not an image"), ("empty.nii", b"", "not an image"),
])
def test_what_cannot_be_read_is_said(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=message):
        read_volume(tmp_path / name)


def test_a_series_is_not_chosen_in_a_single_file(make_ball, tmp_path):
    save(make_ball("RAS", "anisotropic"), tmp_path / "v.nrrd")
    with pytest.raises(VolumeError, match="give its DICOM folder"):
        read_volume(tmp_path / "v.nrrd", series="1.2.3")


def test_a_folder_without_dicom_is_said(tmp_path):
    with pytest.raises(VolumeError, match="no DICOM series"):
        read_volume(tmp_path)


def test_four_dimensions_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False), str(tmp_path / "v.nii"))
    with pytest.raises(VolumeError, match="one frame"):
        read_volume(tmp_path / "v.nii")


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
