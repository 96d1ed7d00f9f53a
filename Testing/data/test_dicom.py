"""DICOM series with DICOM SEG: what comes out, without patients' names, and what is reported by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from SegMoTELib.data.curate import curate
from SegMoTELib.data.grey_levels import to_8_bit
from SegMoTELib.data.items import BadFile, Item
from SegMoTELib.data.sources import open_sources


def read(folder: Path) -> tuple[dict[str, list[Item]], list[BadFile]]:
    """Return the items of each data set and all bad files."""
    items, bad = {}, []
    for source in open_sources([folder]):
        found = [one for reference in source.references for one in reference.items()]
        items[source.code] = [one for one in found if isinstance(one, Item)]
        bad += source.bad_files + [one for one in found if isinstance(one, BadFile)]
    return items, bad


@pytest.fixture
def a_dicom_folder(tmp_path, a_volume):
    """A CT series of four slices with a SEG of two overlapping segments."""
    folder = tmp_path / "sources" / "study"
    folder.mkdir(parents=True)
    image, label = a_volume()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for number, pixels in enumerate(image):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "SECRET-4711", "Doe^Jane", "", ""
        one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber = "1", "20200101", "120000", ""
        one.ReferringPhysicianName, one.Manufacturer, one.Modality = "", "", "CT"
        one.SeriesNumber, one.InstanceNumber = 1, number + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 5.0 * number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [0.7, 0.8], 5.0
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleIntercept, one.RescaleSlope = -24, 1
        one.PixelData = (pixels + 24).astype(np.int16).tobytes()
        # Written in reverse, so that file names do not give the order away.
        one.save_as(folder / f"slice{9 - number}.dcm", enforce_file_format=True)
        slices.append(one)
    algorithm = hd.AlgorithmIdentificationSequence("manual", codes.DCM.ArtificialIntelligence, "1")
    segments = [hd.seg.SegmentDescription(
        number, name, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm) for number, name in ((1, "core"), (2, "whole"))]
    masks = np.stack([label, np.maximum(label, np.roll(label, 5, axis=2))], axis=-1)
    segmentation = hd.seg.Segmentation(
        slices, masks, hd.seg.SegmentationTypeValues.BINARY, segments, generate_uid(), 2, generate_uid(), 1, "maker",
        "model", "1", "0001")
    segmentation.save_as(folder / "seg.dcm")
    return folder, image, masks


def test_dicom_series_and_seg_are_read_with_overlaps_in_hu_and_without_patient_names(a_dicom_folder):
    folder, image, masks = a_dicom_folder
    (source,) = open_sources([folder])
    items, bad = read(folder)
    assert bad == []
    assert (source.modality, source.labels) == ("CT", {1: "core", 2: "whole"})
    found = {item.identifier: item for item in items["study"]}
    assert len(found) == 6
    first, second = found["p001_seg001_z001"], found["p001_seg001_z001_layer2"]
    assert np.array_equal(first.label == 1, masks[1, ..., 0])
    assert np.array_equal(second.label == 2, masks[1, ..., 1])
    assert np.array_equal(first.image, np.round(np.clip((image[1] + 160.0) / 400, 0, 1) * 255))
    assert first.spacing_mm == (0.7, 0.8)
    assert not any("SECRET" in item.group + item.identifier for item in found.values())


def test_a_damaged_dicom_slice_is_named_and_the_others_are_kept(a_dicom_folder, truncate):
    folder, *_ = a_dicom_folder
    truncate(folder / "slice7.dcm")
    (folder / "broken.dcm").write_bytes(b"not DICOM")
    items, bad = read(folder)
    assert {"broken.dcm", "slice7.dcm", "seg.dcm"} == {one.path.name for one in bad}
    assert len(items["study"]) == 4


def test_a_dicom_file_that_is_there_twice_is_named_and_counts_once(a_dicom_folder):
    folder, *_ = a_dicom_folder
    once, _ = read(folder)
    for name in ("slice7", "seg"):
        shutil.copy(folder / f"{name}.dcm", folder / f"{name}_copy.dcm")
    twice, bad = read(folder)
    assert [(one.path.name, one.reason) for one in bad] == [
        ("seg_copy.dcm", "the same segmentation as seg.dcm by its UID; it counts once."),
        ("slice7_copy.dcm", "the same image as slice7.dcm by its UID; it counts once.")]
    assert [item.identifier for item in twice["study"]] == [item.identifier for item in once["study"]]
    assert all(np.array_equal(one.label, other.label) and np.array_equal(one.image, other.image)
               for one, other in zip(once["study"], twice["study"], strict=True))


def test_segmented_frames_without_their_image_are_counted_and_the_others_are_kept(a_dicom_folder):
    folder, _, masks = a_dicom_folder
    (folder / "slice7.dcm").unlink()
    items, (bad,) = read(folder)
    assert bad.path.name == "seg.dcm"
    assert "2 of its 6 frames are left out: they segment images that are not in this folder" in bad.reason
    first = {item.identifier: item for item in items["study"]}["p001_seg001_z002"]
    assert np.array_equal(first.label == 1, masks[3, ..., 0])
    assert len(items["study"]) == 4


def test_a_seg_without_a_labelled_pixel_is_named(a_dicom_folder):
    folder, *_ = a_dicom_folder
    segmentation = pydicom.dcmread(folder / "seg.dcm")
    segmentation.PixelData = bytes(len(segmentation.PixelData))
    segmentation.save_as(folder / "seg.dcm")
    items, (bad,) = read(folder)
    assert items["study"] == []
    assert (bad.path.name, bad.reason) == ("seg.dcm", "it labels no pixel of its images.")


@pytest.mark.parametrize(("tag", "value"), [("PixelSpacing", 0.7), ("PixelSpacing", [0.7, 0.8, 0.9]),
                                            ("ImagePositionPatient", [0, 0]), ("ImageOrientationPatient", 1)])
def test_a_dicom_slice_with_a_damaged_geometry_is_named_and_the_others_are_kept(a_dicom_folder, tag, value):
    folder, *_ = a_dicom_folder
    one = pydicom.dcmread(folder / "slice7.dcm")
    setattr(one, tag, value)
    one.save_as(folder / "slice7.dcm")
    items, bad = read(folder)
    assert [one.path.name for one in bad] == ["slice7.dcm", "seg.dcm"]
    assert len(items["study"]) == 4


def rewrite(folder: Path, change) -> None:
    """Change the header of every slice of a series."""
    for path in folder.glob("slice*"):
        one = pydicom.dcmread(path)
        change(one)
        one.save_as(path)


def test_dark_and_bright_are_turned_round_where_the_header_says_so(a_dicom_folder):
    folder, image, _ = a_dicom_folder
    rewrite(folder, lambda one: one.update({"PhotometricInterpretation": "MONOCHROME1", "Modality": "DX"}))
    items, _ = read(folder)
    assert np.abs(items["study"][0].image - to_8_bit(-image, "DX")[1].astype(int)).max() <= 1


def test_a_patient_without_an_identifier_is_known_by_the_study(a_dicom_folder):
    folder, *_ = a_dicom_folder
    rewrite(folder, lambda one: setattr(one, "PatientID", ""))
    (source,) = open_sources([folder])
    assert list(source.people) == ["patient 001"]
    assert source.people["patient 001"].startswith("1.2.")


def test_a_patient_in_two_dicom_folders_is_split_as_one_and_not_named(a_dicom_folder, tmp_path):
    folder, *_ = a_dicom_folder
    shutil.copytree(folder, tmp_path / "again")
    found = curate(open_sources([folder, tmp_path / "again"]), tmp_path / "out")
    assert len({record.person for record in found.records}) == 1
    assert {record.dataset for record in found.records} == {"study", "again"}
    assert not any("SECRET" in path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*")
                   if path.suffix in (".json", ".csv", ".html"))


def test_a_multi_frame_image_gives_its_frames(a_dicom_folder, tmp_path):
    folder, _, masks = a_dicom_folder
    slices = sorted((pydicom.dcmread(path) for path in folder.glob("slice*")), key=lambda one: one.InstanceNumber)
    enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(slices, generate_uid(), 3, generate_uid(), 1)
    first = hd.seg.segread(folder / "seg.dcm")
    segments = [first.get_segment_description(number) for number in first.segment_numbers]
    segmentation = hd.seg.Segmentation([enhanced], masks, hd.seg.SegmentationTypeValues.BINARY, segments,
                                       generate_uid(), 2, generate_uid(), 1, "maker", "model", "1", "0001")
    other = tmp_path / "enhanced"
    other.mkdir()
    enhanced.save_as(other / "image.dcm")
    segmentation.save_as(other / "seg.dcm")
    items, bad = read(other)
    assert bad == []
    found = {item.identifier: item for item in items["enhanced"]}
    assert len(found) == 6
    image = enhanced.pixel_array - 24  # its frames are in an order of their own
    for number in (1, 2, 3):
        item = found[f"p001_seg001_z{number:03d}"]
        assert np.array_equal(item.label == 1, masks[number, ..., 0])
        assert np.array_equal(item.image, np.round(np.clip((image[number] + 160.0) / 400, 0, 1) * 255))


def test_a_seg_without_its_series_is_named(a_dicom_folder):
    folder, *_ = a_dicom_folder
    for path in folder.glob("slice*"):
        path.unlink()
    _, (bad,) = read(folder)
    assert bad.path.name == "seg.dcm"
