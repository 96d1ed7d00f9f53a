"""DICOM series in: which can be a volume, in which order and at which place; on pydicom's CT slice."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.dicom import find_series
from SegMoTELib.imaging.files import read_volume

SLICES, STEP = 6, 3.0
FIRST = pydicom.dcmread(get_testdata_file("CT_small.dcm"))


def test_a_series_comes_in_hounsfield_units_in_the_order_of_its_slices(write_series, tmp_path):
    write_series(tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.spacing, [*FIRST.PixelSpacing, STEP])
    np.testing.assert_array_equal(volume.array[:, 100, 100], 100 * np.arange(SLICES) + FIRST.RescaleIntercept)
    assert volume.array.dtype == np.int16
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
    one.EchoTime = index % 2


def turned(index, one):
    if index == 2:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def larger(index, one):
    if index == 1:
        one.Rows = one.Columns = 64
        one.PixelData = bytes(2 * 64 * 64)


def finer(index, one):
    if index == 1:
        one.PixelSpacing = [0.5, 0.5]


def nowhere(index, one):
    del one.ImagePositionPatient


def unmeasured(index, one):
    del one.PixelSpacing


def skewed(index, one):
    one.ImageOrientationPatient = [1, 0, 0, 0.5, 0.5, 0]


def endless(index, one):
    one.ImagePositionPatient = ["1e400", "0", "0"]


def of_two_patients(index, one):
    one.PatientID = f"patient {index // 3}"


def of_two_frames(index, one):
    one.FrameOfReferenceUID = f"1.2.{index // 3}"


def anonymised_alike(index, one):
    one.SOPInstanceUID, one.InstanceNumber, one.EchoTime = "1.2", 1, index % 2
    one.ImagePositionPatient[2] = -75.7 + STEP * (index // 2)


def no_image(index, one):
    one.Modality = "SR"


def four_channels(index, one):
    one.SamplesPerPixel = 4


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(("change", "words"), [
    (moved(3, STEP), r"missing or unevenly spaced: 3\.00 mm, but 6\.00 mm after slice 3"),
    (moved(4, 0.5), r"unevenly spaced: 3\.00 mm, but 3\.50 mm after slice 4"),
    (tilted, r"sheared by 5\.7 degrees \(a tilted gantry\)"),
    (repeated, r"3 of its 6 images lie at the same place .*EchoTime"),
    (turned, "not parallel"), (larger, "differ in size"), (finer, "differ in pixel size"),
    (nowhere, "do not say where they lie"), (unmeasured, "how large its pixels are"),
    (of_two_patients, "are of 2 patients"), (of_two_frames, "are of 2 frames of reference"),
    (anonymised_alike, r"same place .*EchoTime"),
    (skewed, "orientation"), (endless, "ImagePositionPatient is damaged"), (no_image, "a report, not an image"),
    (four_channels, "4 values per pixel")])
def test_a_series_that_is_no_regular_volume_says_why(write_series, tmp_path, change, words):
    write_series(tmp_path, change)
    with pytest.raises(VolumeError, match=words) as caught:
        read_volume(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rounded_places_are_no_uneven_spacing(write_series, tmp_path):
    def rounded(index, one):
        one.ImagePositionPatient = [-158.1, -179.0, round(0.625 * index, 1)]

    write_series(tmp_path, rounded, count=20)
    np.testing.assert_allclose(read_volume(tmp_path).spacing[2], 0.625, atol=0.01)


def test_a_copied_slice_counts_once(write_series, tmp_path):
    write_series(tmp_path)
    shutil.copy(tmp_path / "003_1111.dcm", tmp_path / "copy of 003.dcm")
    assert read_volume(tmp_path).shape == (128, 128, SLICES)


def test_slices_without_a_series_uid_are_the_series_of_their_folder(write_series, tmp_path):
    write_series(tmp_path / "a", lambda index, one: one.__delattr__("SeriesInstanceUID"))
    assert read_volume(tmp_path).shape == (128, 128, SLICES)


def test_two_time_points_are_told_apart_from_missing_slices(write_series, tmp_path):
    for phase in range(2):
        def timed(index, one, phase=phase):
            one.TemporalPositionIdentifier = phase + 1
            one.SOPInstanceUID = f"1.2.3.{phase}.{index}"

        write_series(tmp_path / str(phase), timed)
    with pytest.raises(VolumeError, match=r"6 of its 12 images lie at the same place .*TemporalPositionIdentifier"):
        read_volume(tmp_path)
    assert read_volume(tmp_path / "1").shape[2] == SLICES


def test_of_a_mixed_folder_the_usable_series_is_taken(write_series, tmp_path, caplog):
    def scout(index, one):
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    def structures(index, one):
        one.Modality = "RTSTRUCT"
        for name in ("Rows", "Columns", "PixelData"):
            delattr(one, name)

    def document(index, one):
        structures(index, one)
        one.Modality, one.SOPClassUID = "OT", pydicom.uid.EncapsulatedPDFStorage

    write_series(tmp_path / "CT")
    for number, change in enumerate((no_image, scout, structures, document)):
        write_series(tmp_path / "others", change, uid=f"1.2.3.222{number}", count=1)
    write_series(tmp_path / "CT", scout, count=1)  # as some scanners do: a scout with the series' own UID
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"garbage")
    (tmp_path / "empty.dcm").touch()
    volume = read_volume(tmp_path)
    assert volume.shape == (128, 128, SLICES - 1)  # one of the six was overwritten by the scout
    assert "left out, for they are damaged or no DICOM: broken.dcm, empty.dcm" in caplog.text
    words = " ".join(one.problem for one in find_series(tmp_path))
    assert "a report" in words
    assert "contours" in words
    assert "holds no image (Encapsulated PDF Storage)" in words


def test_of_several_series_one_is_chosen_by_its_uid(write_series, tmp_path):
    write_series(tmp_path, uid="1.2.3.1111")
    write_series(tmp_path, uid="1.2.3.2222", count=4)
    with pytest.raises(VolumeError, match=r"choose one by --series UID.*1\.2\.3\.2222"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, "1.2.3.2222").shape[2] == 4
    with pytest.raises(VolumeError, match="no series 9"):
        read_volume(tmp_path, "9")


def test_many_series_are_not_all_listed(write_series, tmp_path):
    for number in range(12):
        write_series(tmp_path, uid=f"1.2.3.10{number:02d}", count=1)
    with pytest.raises(VolumeError, match=r"holds 12 DICOM series.* and 4 more"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("axes", "position"), [
    ([0, 1, 0, 0, 0, -1], lambda k: [10 - STEP * k, -50.0, 80.0]),
    ([1, 0, 0, 0, 0, -1], lambda k: [10.0, -50.0 + STEP * k, 80.0]),
    ([0.8, 0.6, 0, -0.48, 0.64, 0.6], lambda k: [5 + STEP * 0.36 * k, 7 - STEP * 0.48 * k, STEP * 0.8 * k])])
def test_a_series_in_any_direction_keeps_its_places_and_pixel_sizes(write_series, tmp_path, axes, position):
    def change(index, one):
        one.ImageOrientationPatient, one.ImagePositionPatient = axes, position(index)
        one.PixelSpacing = [0.5, 0.9]

    write_series(tmp_path, change)
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.spacing, [0.9, 0.5, STEP])
    for index, path in enumerate(volume.sources):
        one = pydicom.dcmread(path)
        row, column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        lps = np.array(one.ImagePositionPatient, float) + 7 * 0.9 * row + 4 * 0.5 * column
        np.testing.assert_allclose(volume.to_ras([7, 4, index]), lps * (-1, -1, 1), atol=1e-5)
        assert volume.array[index, 100, 100] == 100 * (one.InstanceNumber * -1 + SLICES) - 1024


def test_one_slice_is_as_thick_as_it_says(write_series, tmp_path):
    write_series(tmp_path, count=1)
    for path in (tmp_path, next(tmp_path.iterdir())):
        np.testing.assert_allclose(read_volume(path).spacing[2], FIRST.SliceThickness)


def test_files_without_ending_and_a_dicomdir_are_read(write_series, tmp_path):
    write_series(tmp_path / "IMAGES")
    for number, path in enumerate(sorted((tmp_path / "IMAGES").iterdir())):
        path.rename(path.with_name(f"IM{number}"))
    index = Dataset()
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = "1.2.3.9"
    index.FileSetID = "DISK"
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for path in (tmp_path, tmp_path / "DICOMDIR"):
        assert read_volume(path).shape[2] == SLICES


def test_an_enhanced_image_is_put_in_order_frame_by_frame(write_enhanced, tmp_path):
    volume = read_volume(write_enhanced(tmp_path / "enhanced.dcm", order=(2, 0, 3, 1)))
    np.testing.assert_array_equal(volume.array[:, 5, 5], [100 * k - 1000 - k for k in range(4)])
    np.testing.assert_allclose(volume.spacing, [0.7, 0.5, 3.0])
    np.testing.assert_allclose(volume.to_ras([0, 0, 2]), [10, 20, 36])


def test_an_enhanced_image_may_have_gaps_or_damage(write_enhanced, tmp_path):
    def cut(one):
        one.PerFrameFunctionalGroupsSequence.pop()

    def countless(one):
        one.NumberOfFrames = 2_000_000_000
        del one.PerFrameFunctionalGroupsSequence

    for order, change, words in (((0, 1, 3, 4), lambda one: None, "missing"),
                                 ((0, 1, 0, 1), lambda one: None, "same place"),
                                 ((0, 1, 2, 3), cut, "describes 3 of 4 frames"),
                                 ((0, 1, 2, 3), countless, "claims 2000000000 frames")):
        path = write_enhanced(tmp_path / "odd.dcm", order, change)
        with pytest.raises(VolumeError, match=words):
            read_volume(path)


def test_frames_of_a_clip_lie_a_millimetre_apart(tmp_path):
    volume = read_volume(get_testdata_file("examples_ybr_color.dcm"))
    assert volume.array.shape == (30, 240, 320, 3)
    np.testing.assert_allclose(volume.spacing, [0.5105, 0.5105, 1.0], atol=1e-3)  # calibrated ultrasound regions
    np.testing.assert_allclose(volume.directions, np.diag([-1, -1, 1]))


def test_of_a_folder_only_headers_are_looked_at(write_series, tmp_path):
    """Files that claim four gigabytes of pixels each cost next to no memory."""
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        place = content.index(b"\xe0\x7f\x10\x00OW")
        path.write_bytes(content[:place + 8] + (2 ** 32 - 16).to_bytes(4, "little"))
        os.truncate(path, 2 ** 32)
    tracemalloc.start()
    found = find_series(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert len(found[0].files) == SLICES
