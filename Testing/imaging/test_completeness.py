"""A file that is cut off or damaged is refused, where SimpleITK would make up the rest."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.files import read_volume
from Testing.imaging.conftest import save_volume


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_cut_off_file_is_refused(make_ball, tmp_path, name, share):
    save_volume(make_ball("RAS", "isotropic"), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:int(share * len(content))])
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["v.hdr", "v.img", "v.img.gz", "v.vtk", "v.gipl", "v.mrc", "v.mha", "v.mhd", "v.nrrd",
                                  "v.nhdr"])
def test_no_format_passes_half_a_volume_for_a_whole_one(make_ball, tmp_path, name):
    volume = make_ball("RAS", "isotropic")
    save_volume(volume, tmp_path / name)
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
    save_volume(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    (tmp_path / "v.nii").rename(tmp_path / "w.nii.gz")
    assert read_volume(tmp_path / "w.nii.gz").array.max() == 200


def test_voxels_that_look_like_gzip_are_voxels(tmp_path):
    array = np.full((3, 4, 5), int.from_bytes(b"\x1f\x8b", "little"), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.hdr"))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.hdr").array, array)


def test_a_scaled_nifti_file_is_not_mistaken_for_a_cut_off_one(make_ball, tmp_path):
    """Stored as int16 with a slope, read as a wider type."""
    save_volume(make_ball("RAS", "isotropic"), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[112:116] = np.float32(0.5).tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    assert read_volume(tmp_path / "v.nii").array.max() == 100


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.gipl", "v.mrc"])
def test_the_last_voxels_may_not_be_missing_either(make_ball, tmp_path, name):
    """What comes before the voxels does not stand for them."""
    save_volume(make_ball("RAS", "isotropic"), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    packed = name.endswith(".gz")
    cut = (gzip.decompress(content) if packed else content)[:-100]
    (tmp_path / name).write_bytes(gzip.compress(cut) if packed else cut)
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["v.mha", "v.mhd"])
@pytest.mark.parametrize("harm", ["bits", "too few"])
def test_damaged_voxels_of_a_packed_metaimage_are_not_what_lay_in_memory(tmp_path, name, harm):
    array = np.random.default_rng(0).integers(0, 99, (20, 30, 40)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name), useCompression=True)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, array)
    if harm == "bits":
        data = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(data.read_bytes())
        middle = len(content) // 2
        content[middle:middle + 40] = bytes(40)
        data.write_bytes(content)
    else:
        header = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(header.replace(b"DimSize = 40 30 20", b"DimSize = 40 30 29"))
    with pytest.raises(VolumeError, match="cut off"):
        read_volume(tmp_path / name)
