"""The commands on DICOM: a series in, a DICOM SEG out; folders of series in a batch."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from SegMoTELib.cli import group
from SegMoTELib.cli.batch import find_cases
from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.files import read_volume

highdicom = pytest.importorskip("highdicom")
TARGET = "fetal head"
SHAPE = (5, 128, 128)  # k, j, i


@pytest.fixture
def write_ball():
    """Function: folder, uid -> a CT series with a bright ball in its middle, 0.66 x 0.66 x 4 mm."""
    def write(folder, uid="1.2.3.1"):
        folder.mkdir(parents=True, exist_ok=True)
        k, j, i = np.indices(SHAPE)
        ball = ((k - 2) / 2.5) ** 2 + ((j - 64) / 30) ** 2 + ((i - 60) / 30) ** 2 <= 1
        noise = np.random.default_rng(0).normal(0, 6, SHAPE)
        for index, pixels in enumerate((1000 + 200 * ball + noise).astype(np.int16)):
            one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            one.PixelData, one.SeriesInstanceUID = pixels.tobytes(), uid
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
            one.ImagePositionPatient = [-42, -42, 4 * index]
            one.save_as(folder / f"{uid}_{index}")
        return ball
    return write


def run(*arguments):
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=True)


def test_a_dicom_folder_in_a_dicom_seg_out(write_ball, tmp_path):
    ball = write_ball(tmp_path / "ct")
    corners = read_volume(tmp_path / "ct").to_ras([[28, 32, 2], [92, 96, 2]])
    result = run("segment", tmp_path / "ct", "--box=" + ",".join(f"{value:.2f}" for value in corners.ravel()),
                 "--name", "ball", "-o", tmp_path / "ball.dcm")
    assert result.exit_code == 0, (result.output, result.exception)
    found = highdicom.seg.segread(tmp_path / "ball.dcm")
    mask = found.get_pixels_by_source_instance([f"1.2.3.1.{k + 1}" for k in range(5)],
                                               assert_missing_frames_are_empty=True)[..., 0] > 0
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == {2}
    assert 2 * (mask[2] & ball[2]).sum() / (mask[2].sum() + ball[2].sum()) > 0.9
    assert found.get_segment_description(1).segment_label == "ball"


def test_a_file_of_the_series_is_never_overwritten(write_ball, tmp_path):
    write_ball(tmp_path / "ct")
    source = tmp_path / "ct" / "1.2.3.1_2.dcm"
    (tmp_path / "ct" / "1.2.3.1_2").rename(source)
    before = source.read_bytes()
    result = run("segment", tmp_path / "ct", "--box=2,-22,8,22,-2,8", "-o", source)
    assert isinstance(result.exception, VolumeError)
    assert "is a file of the volume itself" in str(result.exception)
    assert source.read_bytes() == before


def test_a_dicom_seg_of_another_file_is_refused_before_any_work(write_ball, tmp_path):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 40, 40), np.int16)), str(tmp_path / "v.nii"))
    for arguments in (("propagate", "--point=-20,-20,2"), ("segment", "--point=-20,-20,2"),
                      ("auto", "--target", TARGET)):
        result = run(arguments[0], tmp_path / "v.nii", *arguments[1:], "-o", tmp_path / "s.dcm")
        assert isinstance(result.exception, VolumeError)
        assert "not read from one" in str(result.exception)


def test_batch_finds_every_series_of_an_export(write_ball, tmp_path):
    write_ball(tmp_path / "in" / "patient 1" / "study" / "a")
    write_ball(tmp_path / "in" / "patient 2", "1.2.3.2")
    write_ball(tmp_path / "in" / "patient 2", "1.2.3.3")
    (tmp_path / "in" / "documents").mkdir()
    (tmp_path / "in" / "documents" / "letter.txt").write_text("no image")
    cases = find_cases(tmp_path / "in", tmp_path / "in" / "segmentations")
    assert cases == {"patient 1_study_a": (tmp_path / "in" / "patient 1" / "study" / "a", ""),
                     "patient 2_1.2.3.2": (tmp_path / "in" / "patient 2", "1.2.3.2"),
                     "patient 2_1.2.3.3": (tmp_path / "in" / "patient 2", "1.2.3.3")}


def test_batch_segments_every_series_and_names_those_that_cannot_be_used(write_ball, tmp_path):
    write_ball(tmp_path / "in" / "two")
    write_ball(tmp_path / "in" / "two", "1.2.3.2")
    write_ball(tmp_path / "in" / "gap", "1.2.3.3")
    (tmp_path / "in" / "gap" / "1.2.3.3_2").unlink()
    result = run("batch", tmp_path / "in", "--auto", TARGET)
    assert "2 segmented, 1 failed" in result.output
    assert {path.name for path in (tmp_path / "in" / "segmentations").iterdir()} == {"two_1.2.3.1.seg.nrrd",
                                                                                     "two_1.2.3.2.seg.nrrd"}
    assert "slices are missing or unevenly spaced: 4.00 mm, but 8.00 mm after slice 2" in result.output


def test_a_folder_that_is_itself_a_series_is_a_batch_of_one(write_ball, tmp_path):
    write_ball(tmp_path / "ct")
    assert find_cases(tmp_path / "ct", tmp_path / "out") == {"ct": (tmp_path / "ct", "")}


def test_a_series_in_deep_folders_of_long_names_gets_a_name_that_a_file_can_have(write_ball, tmp_path):
    """Exports are often filed by patient, study and series, in words and UIDs."""
    for last in ("c", "d"):
        folder = tmp_path / "in" / ("a" * 100) / ("b" * 100) / (last * 100)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_ball(folder)
    names = list(find_cases(tmp_path / "in", tmp_path / "out"))
    assert len(names) == 2
    for name in names:
        assert name.startswith("aaaa")
        (tmp_path / f"{name}.seg.nrrd").touch()
