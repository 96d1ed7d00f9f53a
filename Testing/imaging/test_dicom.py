"""DICOM in and DICOM SEG out, on pydicom's own CT slice made into series of every odd kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from SegMoTELib.errors import SegMoTEError, VolumeError
from SegMoTELib.imaging.dicom import find_series
from SegMoTELib.imaging.dicom_seg import TISSUE, coded
from SegMoTELib.imaging.files import NamedMask, read_volume, write_segmentation

highdicom = pytest.importorskip("highdicom")
SLICES, STEP = 6, 3.0
LESION = "Segmentation category~SCT^49755003^Morphologically Altered Structure~SCT^4147007^Mass~^^~~^^~^^"


def write_series(folder, change=lambda index, slice_: None, uid="", number=SLICES):
    """Slices of pydicom's CT, each 100 brighter than the one below, written from top to bottom."""
    folder.mkdir(exist_ok=True)
    uid = uid or pydicom.uid.generate_uid(entropy_srcs=["series"])
    for index in range(number):
        one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        pixels = np.full((128, 128), 100 * index, np.int16)
        pixels[:20] = 1000
        one.PixelData = pixels.tobytes()
        one.SeriesInstanceUID, one.InstanceNumber = uid, number - index
        one.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(folder), str(index), uid])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.ImagePositionPatient = [-158.1, -179.0, -75.7 + STEP * index]
        change(index, one)
        one.save_as(folder / f"{number - index:03d}_{uid[-4:]}.dcm")
    return uid


def test_a_series_comes_in_hounsfield_units_in_the_order_of_its_slices(tmp_path):
    write_series(tmp_path)
    volume = read_volume(tmp_path)
    first = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    np.testing.assert_allclose(volume.spacing, [*first.PixelSpacing, STEP])
    np.testing.assert_array_equal(volume.array[:, 100, 100], 100 * np.arange(SLICES) + first.RescaleIntercept)
    np.testing.assert_allclose(volume.to_ras([0, 0, 0]), [158.1, 179.0, -75.7])
    assert volume.modality == "CT"
    assert [Path(one).name[:3] for one in volume.sources] == [f"{SLICES - i:03d}" for i in range(SLICES)]


def moved(at, offset):
    def change(index, one):
        if index >= at:
            one.ImagePositionPatient[2] += offset
    return change


def tilted(index, one):
    one.ImagePositionPatient[1] += 0.3 * index


def repeated(index, one):
    one.ImagePositionPatient[2] = -75.7 + STEP * (index // 2)


def turned(index, one):
    if index == 2:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def larger(index, one):
    if index == 1:
        one.Rows = one.Columns = 64
        one.PixelData = bytes(2 * 64 * 64)


def nowhere(index, one):
    del one.ImagePositionPatient


def no_image(index, one):
    one.Modality = "SR"


@pytest.mark.parametrize(("change", "words"), [
    (moved(3, STEP), r"missing or unevenly spaced: 3\.00 mm, but 6\.00 mm after slice 3"),
    (moved(4, 0.5), "unevenly spaced"), (tilted, "tilted gantry"), (repeated, "same place"),
    (turned, "not parallel"), (larger, "differ in size"), (nowhere, "do not say where they lie"),
    (no_image, "not an image")])
def test_a_series_that_is_no_regular_volume_says_why(tmp_path, change, words):
    write_series(tmp_path, change)
    with pytest.raises(VolumeError, match=words):
        read_volume(tmp_path)


def test_of_a_mixed_folder_the_usable_series_is_taken(tmp_path):
    write_series(tmp_path, uid="1.2.3.1111")
    write_series(tmp_path, no_image, uid="1.2.3.2222", number=1)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"garbage")
    assert len(find_series(tmp_path)) == 2
    assert read_volume(tmp_path).shape == (128, 128, SLICES)


def test_of_several_series_one_is_chosen_by_its_uid(tmp_path):
    write_series(tmp_path, uid="1.2.3.1111")
    write_series(tmp_path, uid="1.2.3.2222", number=4)
    with pytest.raises(VolumeError, match=r"choose one by --series UID.*1\.2\.3\.2222"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, "1.2.3.2222").shape[2] == 4
    with pytest.raises(VolumeError, match="no series 9"):
        read_volume(tmp_path, "9")


def test_monochrome1_comes_with_its_bright_parts_bright(tmp_path):
    def inverted(index, one):
        one.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path, inverted)
    array = read_volume(tmp_path).array
    assert (array[:, 0, 0] < array[:, 100, 100]).all()


def test_a_series_in_any_direction_keeps_its_places(tmp_path):
    def sagittal(index, one):
        one.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        one.ImagePositionPatient = [10 - STEP * index, -50.0, 80.0]

    write_series(tmp_path, sagittal)
    volume = read_volume(tmp_path)
    for index, path in enumerate(volume.sources):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        np.testing.assert_allclose(volume.to_ras([0, 0, index]), [-x, -y, z], atol=1e-6)


FILES = [path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file()]


@pytest.mark.filterwarnings("ignore")
def test_every_odd_file_of_pydicom_is_read_or_refused_in_one_sentence():
    read, refusals = 0, {}
    for path in FILES:
        try:
            read += read_volume(path).array.size > 0
        except SegMoTEError as error:
            refusals[str(path)] = str(error)
    assert read > 40
    assert all(path in words and "\n" not in words for path, words in refusals.items())


def test_a_dicom_seg_refers_to_its_series_and_comes_back_the_same(tmp_path):
    uid = write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    rng = np.random.default_rng(1)
    masks = [rng.random((SLICES, 128, 128)) > 0.7, np.zeros((SLICES, 128, 128), bool)]
    masks[0][2] = False  # an empty slice between
    masks[1][1:3, 30:60, 30:50] = True  # overlaps the other
    path = tmp_path / "found.dcm"
    write_segmentation(path, volume, [NamedMask("speckle", (200, 10, 10), masks[0]),
                                      NamedMask("mass", (10, 200, 10), masks[1], LESION)])
    found = highdicom.seg.segread(path)
    assert {series for _, series, _ in found.get_source_image_uids()} == {uid}
    sources = [pydicom.dcmread(one).SOPInstanceUID for one in volume.sources]
    again = found.get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(again[..., number] > 0, mask)
    mass = found.get_segment_description(2)
    assert mass.segment_label == "mass"
    assert mass.segmented_property_type.meaning == "Mass"
    assert found.get_segment_description(1).segmented_property_type.value == TISSUE[0]
    assert found.PatientID == pydicom.dcmread(volume.sources[0]).PatientID


def test_terminology_falls_back_to_tissue():
    assert coded(LESION) == (("49755003", "SCT", "Morphologically Altered Structure"), ("4147007", "SCT", "Mass"))
    assert coded("") == coded("nonsense") == coded("a~b~c") == (TISSUE, TISSUE)


def test_a_dicom_seg_needs_dicom_and_a_voxel(tmp_path):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    with pytest.raises(VolumeError, match="no voxel"):
        write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), np.zeros(volume.array.shape, bool))])
    write_segmentation(tmp_path / "s.nii.gz", volume, [NamedMask("x", (1, 2, 3), volume.array > 0)])
    again = read_volume(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(again.array > 0, volume.array > 0)
    np.testing.assert_allclose(again.ijk_to_ras, volume.ijk_to_ras, atol=1e-3)
    with pytest.raises(VolumeError, match="not read from one"):
        write_segmentation(tmp_path / "s.dcm", again, [NamedMask("x", (1, 2, 3), again.array > 0)])
    assert not (tmp_path / "s.dcm").exists()


def test_segments_that_overlap_do_not_fit_into_a_label_map(tmp_path):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    whole = np.ones(volume.array.shape, bool)
    with pytest.raises(VolumeError, match="overlap"):
        write_segmentation(tmp_path / "s.nii.gz", volume, [NamedMask(n, (1, 2, 3), whole) for n in "ab"])
