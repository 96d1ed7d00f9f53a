"""Volumes from files, segmentations into files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.files import NamedMask, read_volume, write_segmentation
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
