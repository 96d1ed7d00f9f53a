"""DICOM SEG out: read back by highdicom and by the library's own reader; label maps beside it."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.dicom_seg import TISSUE, coded
from SegMoTELib.imaging.files import NamedMask, read_volume, write_segmentation

highdicom = pytest.importorskip("highdicom")
LESION = "Segmentation category~SCT^49755003^Morphologically Altered Structure~SCT^4147007^Mass~^^~~^^~^^"
KIDNEY = ("Segmentation category~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left~"
          "Anatomic codes~SCT^818983003^Abdomen~SCT^51440002^Right and left")


def speckle(volume, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).random(volume.array.shape[:3]) > 0.7


def read_back(path, volume) -> np.ndarray:
    """(K, J, I, segments) bool from a DICOM SEG, by the instances of the volume's files."""
    found = highdicom.seg.segread(path)
    uids = [pydicom.dcmread(one, stop_before_pixels=True).SOPInstanceUID for one in volume.sources]
    return found.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True) > 0


def test_a_dicom_seg_refers_to_its_series_and_comes_back_the_same(write_series, tmp_path):
    uid = write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    masks = [speckle(volume), np.zeros(volume.array.shape, bool)]
    masks[0][2] = False  # an empty slice between
    masks[1][1:3, 30:60, 30:50] = True  # overlaps the other
    path = tmp_path / "found.dcm"
    write_segmentation(path, volume, [NamedMask("speckle", (200, 10, 10), masks[0]),
                                      NamedMask("mass", (10, 200, 10), masks[1], LESION)])
    np.testing.assert_array_equal(read_back(path, volume), np.stack(masks, axis=-1))
    found = highdicom.seg.segread(path)
    assert {series for _, series, _ in found.get_source_image_uids()} == {uid}
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert all(frame.DerivationImageSequence[0].SourceImageSequence for frame in found.PerFrameFunctionalGroupsSequence)
    source = pydicom.dcmread(volume.sources[0])
    for name in ("FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "PatientName"):
        assert found.get(name) == source.get(name)
    mass = found.get_segment_description(2)
    assert (mass.segment_label, mass.segmented_property_type.meaning) == ("mass", "Mass")
    assert mass.segmented_property_category.value == "49755003"
    assert found.get_segment_description(1).segmented_property_type.value == TISSUE[0]
    assert not list(tmp_path.glob(".*"))


def test_the_distance_between_slices_is_the_real_one_whatever_the_header_says(write_series, tmp_path):
    def stale(index, one):
        one.SpacingBetweenSlices = 5

    write_series(tmp_path / "ct", stale)
    volume = read_volume(tmp_path / "ct")
    mask = speckle(volume)
    write_segmentation(tmp_path / "found.dcm", volume, [NamedMask("speckle", (200, 10, 10), mask)])
    found = highdicom.seg.segread(tmp_path / "found.dcm").get_volume(combine_segments=True)
    np.testing.assert_allclose(found.spacing, [3, *volume.spacing[1::-1]])


def test_our_own_reader_takes_it_back(write_series, tmp_path):
    from SegMoTELib.data.readers import dicom as reader

    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    mask = speckle(volume)
    write_segmentation(tmp_path / "found.dcm", volume, [NamedMask("tumour", (200, 10, 10), mask)])
    assert read_volume(tmp_path).shape == volume.shape  # the object lies beside its series and is no second one
    sets = reader.read(tmp_path, (-160, 240))
    assert sets[0].labels == {1: "tumour"}
    items = list(sets[0].references[0].read())
    assert len(items) == 6
    for item, expected in zip(items, mask, strict=True):
        np.testing.assert_array_equal(item.label == 1, expected)


@pytest.mark.parametrize("color", [(255, 0, 0), (128, 174, 128), (12, 250, 99), (0, 0, 0), (255, 255, 255)])
def test_colours_and_codes_come_back(write_series, tmp_path, color):
    write_series(tmp_path / "ct", count=1)
    volume = read_volume(tmp_path / "ct")
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("left kidney", color, speckle(volume), KIDNEY)])
    found = highdicom.seg.segread(tmp_path / "s.dcm").get_segment_description(1)
    lab = highdicom.color.CIELabColor.from_dicom_value(found.RecommendedDisplayCIELabValue)
    np.testing.assert_allclose(lab.to_rgb(clip=True), color, atol=1)
    kind = found.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("64033007", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert found.AnatomicRegionSequence[0].CodeMeaning == "Abdomen"
    assert found.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeMeaning == "Right and left"


def test_the_frames_of_an_enhanced_image_are_segmented_where_they_are(write_enhanced, tmp_path):
    source = write_enhanced(tmp_path / "enhanced.dcm", order=(2, 0, 3, 1))
    volume = read_volume(source)
    mask = speckle(volume)
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), mask)])
    found = highdicom.seg.segread(tmp_path / "s.dcm")
    uid = pydicom.dcmread(source).SOPInstanceUID
    frames = found.get_pixels_by_source_frame(uid, [1, 2, 3, 4])[..., 0] > 0
    np.testing.assert_array_equal(frames[np.argsort((2, 0, 3, 1))], mask)
    placed = found.get_volume(combine_segments=True)
    again = placed.match_geometry(highdicom.Volume(
        volume.array, np.diag([-1.0, -1, 1, 1]) @ volume.ijk_to_ras[:, [2, 1, 0, 3]], coordinate_system="PATIENT"))
    np.testing.assert_array_equal(again.array > 0, mask)


def oblique(index, one):
    one.ImageOrientationPatient = [0.8, 0.6, 0, -0.48, 0.64, 0.6]
    one.ImagePositionPatient = [5 + 3 * 0.36 * index, 7 - 3 * 0.48 * index, 3 * 0.8 * index]


def one_slice(index, one):
    pass


def anonymous(index, one):
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                 "StudyDate", "StudyTime", "SeriesNumber"):
        if name in one:
            delattr(one, name)


def japanese(index, one):
    one.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    one.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def inverted(index, one):
    one.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize("change", [oblique, one_slice, anonymous, japanese, inverted])
def test_odd_series_carry_a_dicom_seg_too(write_series, tmp_path, change):
    write_series(tmp_path / "ct", change, count=1 if change is one_slice else 5)
    volume = read_volume(tmp_path / "ct")
    mask = speckle(volume)
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("Läsion 腫瘍", (1, 2, 3), mask)])
    np.testing.assert_array_equal(read_back(tmp_path / "s.dcm", volume)[..., 0], mask)
    found = pydicom.dcmread(tmp_path / "s.dcm")
    assert found.SegmentSequence[0].SegmentLabel == "Läsion 腫瘍"
    if change is japanese:
        assert str(found.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    else:
        assert str(found.PatientName) == str(pydicom.dcmread(volume.sources[0]).get("PatientName", ""))


@pytest.mark.parametrize(("name", "value"), [
    ("PatientBirthDate", "00000000"), ("PatientBirthDate", "unknown"), ("StudyDate", "20191399"),
    ("StudyTime", "12:30:00"), ("PatientSex", "female"), ("PatientSex", "U")])
def test_odd_words_on_the_patient_do_not_keep_a_series_from_its_dicom_seg(write_series, tmp_path, caplog, name, value):
    """They come from anonymising and from old scanners."""
    def change(_, one):
        tag = Tag(name)
        one._dict[tag] = RawDataElement(tag, one[name].VR, len(value), value.encode(), 0, False, True)

    write_series(tmp_path / "ct", change)
    volume = read_volume(tmp_path / "ct")
    mask = speckle(volume)
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), mask)])
    np.testing.assert_array_equal(read_back(tmp_path / "s.dcm", volume)[..., 0], mask)
    found = pydicom.dcmread(tmp_path / "s.dcm")
    assert found[name].value in ("", None)
    assert found.PatientID == pydicom.dcmread(volume.sources[0]).PatientID
    assert name in caplog.text
    assert value not in caplog.text.split()


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "examples_palette.dcm", "JPGExtended.dcm"])
def test_photos_and_projections_carry_a_dicom_seg(tmp_path, name):
    volume = read_volume(get_testdata_file(name))
    mask = speckle(volume)
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), mask)])
    found = highdicom.seg.segread(tmp_path / "s.dcm")
    np.testing.assert_array_equal(found.pixel_array.reshape(mask.shape) > 0, mask)
    assert found.get_source_image_uids()[0][2] == pydicom.dcmread(volume.sources[0]).SOPInstanceUID


def test_where_a_clip_cannot_carry_one_its_segments_are_kept(tmp_path):
    clips = [get_testdata_file("examples_ybr_color.dcm"), tmp_path / "called single.dcm"]
    one = pydicom.dcmread(clips[0])
    one.SOPClassUID = pydicom.uid.UltrasoundImageStorage
    one.save_as(clips[1])
    for clip, rescue in zip(clips, ("s.seg.nrrd", "s_2.seg.nrrd"), strict=True):
        volume = read_volume(clip)
        mask = speckle(volume)
        with pytest.raises(VolumeError, match=f"cannot carry a DICOM SEG .*The segments are in .*/{rescue} instead"):
            write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), mask)])
        assert not (tmp_path / "s.dcm").exists()
        again = read_volume(tmp_path / rescue)
        np.testing.assert_array_equal(again.array, mask)
        np.testing.assert_allclose(again.ijk_to_ras, volume.ijk_to_ras, atol=1e-3)


@pytest.mark.parametrize("name", ["", " ", "a\\b", "x" * 200, "a\n\x1bb"])
def test_any_name_of_a_segment_can_be_written(write_series, tmp_path, name):
    write_series(tmp_path / "ct", count=1)
    volume = read_volume(tmp_path / "ct")
    write_segmentation(tmp_path / "s.dcm", volume, [NamedMask(name, (1, 2, 3), speckle(volume))])
    label = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence[0].SegmentLabel
    assert label == {"a\\b": "a/b", "x" * 200: "x" * 64, "a\n\x1bb": "a  b"}.get(name, "Segment 1")


def test_terminology_falls_back_to_tissue():
    assert coded(LESION) == {"category": ("49755003", "SCT", "Morphologically Altered Structure"),
                             "type": ("4147007", "SCT", "Mass")}
    for text in ("", "nonsense", "a~b~c", "a~SCT^1^x~^^", "~~~~~~~~"):
        assert coded(text) == {"category": TISSUE, "type": TISSUE}


def test_a_dicom_seg_needs_dicom_and_a_voxel(write_series, tmp_path):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    with pytest.raises(VolumeError, match="no voxel"):
        write_segmentation(tmp_path / "s.dcm", volume, [NamedMask("x", (1, 2, 3), np.zeros(volume.array.shape, bool))])
    write_segmentation(tmp_path / "s.nii.gz", volume, [NamedMask("x", (1, 2, 3), volume.array > 0)])
    with pytest.raises(VolumeError, match="not read from one"):
        write_segmentation(tmp_path / "s.dcm", read_volume(tmp_path / "s.nii.gz"),
                           [NamedMask("x", (1, 2, 3), volume.array > 0)])
    assert not (tmp_path / "s.dcm").exists()


def test_a_file_that_is_there_stays_whole_when_writing_fails(write_series, tmp_path, monkeypatch):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    path = tmp_path / "s.dcm"
    path.write_text("precious")

    def full(self, filename, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", full)
    with pytest.raises(VolumeError, match="cannot be written"):
        write_segmentation(path, volume, [NamedMask("x", (1, 2, 3), speckle(volume))])
    assert path.read_text() == "precious"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ct", "s.dcm"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_label_map_lies_where_the_series_lies(write_series, tmp_path, ending):
    write_series(tmp_path / "ct", oblique)
    volume = read_volume(tmp_path / "ct")
    first = speckle(volume)
    second = speckle(volume, 2) & ~first
    write_segmentation(tmp_path / f"s{ending}", volume, [NamedMask("a", (1, 2, 3), first),
                                                         NamedMask("b", (3, 2, 1), second)])
    again = read_volume(tmp_path / f"s{ending}")
    np.testing.assert_array_equal(again.array, first + 2 * second.astype(np.uint8))
    np.testing.assert_allclose(again.ijk_to_ras, volume.ijk_to_ras, atol=1e-4)


def test_segments_that_overlap_do_not_fit_into_a_label_map(write_series, tmp_path):
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    whole = np.ones(volume.array.shape, bool)
    with pytest.raises(VolumeError, match="overlap"):
        write_segmentation(tmp_path / "s.nii.gz", volume, [NamedMask(n, (1, 2, 3), whole) for n in "ab"])
