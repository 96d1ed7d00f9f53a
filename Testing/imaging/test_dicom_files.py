"""Odd and hostile DICOM files: each read or refused in one sentence that names it, whatever is wrong with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from SegMoTELib.errors import SegMoTEError, VolumeError
from SegMoTELib.imaging.files import read_volume

CT = Path(get_testdata_file("CT_small.dcm"))
BUNDLED = sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file())
FOUND = importlib.util.find_spec("data_store")
DOWNLOADED = sorted((Path(FOUND.origin).parent / "data").glob("*.dcm")) if FOUND else []


def try_all(paths) -> tuple[int, dict[str, str]]:
    """Files read, and path -> sentence of those refused; any other error is raised."""
    read, refused = 0, {}
    for path in paths:
        try:
            read += read_volume(path).array.size > 0
        except SegMoTEError as error:
            refused[str(path)] = str(error)
    return read, refused


@pytest.mark.parametrize(("paths", "least"), [
    (BUNDLED, 85), pytest.param(DOWNLOADED, 60, marks=pytest.mark.skipif(not FOUND, reason="needs pydicom-data"))],
    ids=["bundled", "pydicom-data"])
def test_every_odd_file_of_pydicom_is_read_or_refused_in_one_sentence(paths, least, recwarn):
    read, refused = try_all(paths)
    assert read >= least
    assert all(path in words and "\n" not in words for path, words in refused.items())
    assert not [one for one in recwarn if "pydicom" in str(one.filename)]


@pytest.mark.parametrize("folder", sorted({path.parent for path in BUNDLED}), ids=lambda folder: folder.name)
def test_every_folder_of_odd_files_is_read_or_refused(folder):
    read, refused = try_all([folder])
    assert read == 1 or str(folder) in refused[str(folder)]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
                                  "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm",
                                  "SC_rgb_jpeg_gdcm.dcm", "image_dfl.dcm"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_half_a_file_is_never_taken_for_a_whole_one(tmp_path, name, share):
    content = Path(get_testdata_file(name)).read_bytes()
    (tmp_path / "half.dcm").write_bytes(content[:int(share * len(content))])
    with pytest.raises(VolumeError, match=r"half\.dcm: "):
        read_volume(tmp_path / "half.dcm")


def test_a_cut_off_slice_is_named(write_series, tmp_path):
    write_series(tmp_path)
    path = tmp_path / "002_1111.dcm"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(VolumeError, match=r"002_1111\.dcm: its pixels cannot be read"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "not an image"), (b"only text, whatever its name says\n" * 20, "not an image"),
    (b"\0" * 128 + b"DICM", "damaged"), (b"\0" * 128 + b"DICM" + b"\xff" * 500, "cannot|damaged"),
    (CT.read_bytes().replace(b"DICM", b"XXXX", 1), "not an image"), (b"\x08\0\x05\0" + b"\0" * 300, "cannot|damaged"),
])
def test_what_is_no_dicom_is_said(tmp_path, content, words):
    path = tmp_path / "odd.dcm"
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=words) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    with pytest.raises(VolumeError):
        read_volume(tmp_path)


def test_a_file_without_preamble_is_read(tmp_path):
    for start in (132, CT.read_bytes().index(b"\x08\0\x05\0")):  # without preamble; without any of the file's meta data
        (tmp_path / "bare").write_bytes(CT.read_bytes()[start:])
        np.testing.assert_array_equal(read_volume(tmp_path / "bare").array, read_volume(CT).array)


def test_random_damage_never_ends_in_a_traceback(tmp_path):
    """Bytes of the header changed at random, 150 times each."""
    rng = np.random.default_rng(0)
    for name in ("CT_small.dcm", "MR_small_RLE.dcm"):
        content = Path(get_testdata_file(name)).read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for place in rng.integers(132, min(len(content), 4000), 12):
                damaged[place] = rng.integers(0, 256)
            (tmp_path / "damaged.dcm").write_bytes(damaged)
            try_all([tmp_path / "damaged.dcm"])


def test_private_tags_and_odd_names_are_no_trouble(write_series, tmp_path):
    def private(index, one):
        block = one.private_block(0x0029, "NOBODY KNOWS", create=True)
        block.add_new(1, "OB", b"\x01\x02\x03\x04")
        block.add_new(2, "SQ", [pydicom.Dataset()])

    write_series(tmp_path / "Größe #1 (腫瘍)", private)
    assert read_volume(tmp_path).shape == (128, 128, 6)
