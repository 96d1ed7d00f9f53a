"""DICOM SEG: segments of a DICOM series as an object that a PACS keeps with it, by highdicom."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SegMoTELib import __version__
from SegMoTELib.errors import VolumeError, reason
from SegMoTELib.imaging.dicom import series_of
from SegMoTELib.imaging.dicom_pixels import open_dicom, quiet
from SegMoTELib.imaging.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

    from SegMoTELib.imaging.files import NamedMask

log = logging.getLogger(__name__)

TISSUE = ("85756007", "SCT", "Tissue")  # Slicer's own default: category and type
EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
         "StudyTime", "ReferringPhysicianName")  # present, but maybe empty, in every DICOM object
SEXES = ("", "M", "F", "O")
CODES = {"category": 1, "type": 2, "modifier": 3, "region": 5, "region modifier": 6}  # place in Slicer's string


@quiet
def dicom_seg(path: Path, volume: Volume, segments: list[NamedMask]) -> Dataset:
    """A DICOM SEG that references the series the volume was read from, in its frame of reference.

    Args:
        path: for messages. volume: with ``sources``, one DICOM file a slice or one multi-frame file.
        segments: with at least one voxel; may overlap. A ``terminology`` of Slicer's form gives the codes of category,
            type, its modifier and anatomic region, otherwise category and type are "Tissue". The colour is stored as
            CIELab, to the nearest step.

    Raises:
        VolumeError: a series that cannot carry a DICOM SEG.
    """
    import highdicom as hd

    pixels = np.stack([segment.mask for segment in segments], axis=-1).astype(np.uint8)
    if len(volume.sources) == 1:
        pixels = _in_file_order(pixels, volume.sources[0])
    try:
        sources = [_source(source, volume) for source in volume.sources]
        _empty_unfit(path, sources)
        found = hd.seg.Segmentation(
            source_images=sources, pixel_array=pixels, segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(number, segment) for number, segment in enumerate(segments, 1)],
            series_instance_uid=hd.UID(), series_number=int(sources[0].get("SeriesNumber") or 0) % 9000 + 1000,
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer="SegMoTE",
            manufacturer_model_name="SegMoTE", software_versions=__version__, device_serial_number="0",
            series_description="SegMoTE segmentation", content_label="SEGMENTATION")
    except Exception as error:  # pydicom's and highdicom's words for unfit sources, of many kinds
        raise VolumeError(f"{path}: this series cannot carry a DICOM SEG ({reason(error)}).") from error
    if int(found.NumberOfFrames) != int(pixels.any(axis=(1, 2)).sum()):  # several frames that the standard calls one
        raise VolumeError(f"{path}: this series cannot carry a DICOM SEG of all its frames.")
    return found


def coded(terminology: str) -> dict[str, tuple[str, str, str]]:
    """Part of ``CODES`` -> (value, scheme, meaning) in Slicer's ``context~category~type~modifier~...`` string."""
    parts = terminology.split("~")
    codes = {name: parts[place].split("^") for name, place in CODES.items() if place < len(parts)}
    found = {name: (code[1], code[0], code[2][:64]) for name, code in codes.items() if len(code) == 3 and all(code)}
    if "category" not in found or "type" not in found:
        return {"category": TISSUE, "type": TISSUE}
    return found


def _source(path: Path, volume: Volume) -> Dataset:
    """A source image without its pixels; what anonymising took out, but must be there, is there and empty."""
    source = open_dicom(path, stop_before_pixels=True)
    source.decode()
    source.SpecificCharacterSet = "ISO_IR 192"  # for names and labels of any script; highdicom takes it over
    if source.get("PixelSpacing") and not source.get("SliceThickness"):
        source.SliceThickness = f"{volume.spacing[2]:.6g}"  # of a projection; readers want one
    if source.get("SpacingBetweenSlices"):
        source.SpacingBetweenSlices = f"{volume.spacing[2]:.6g}"  # as the slices lie; the header's may be another
    for name in EMPTY:
        if name not in source:
            setattr(source, name, "")
    return source


def _empty_unfit(path: Path, sources: list[Dataset]) -> None:
    """Empty what describes patient and study in no form of the standard: highdicom would refuse the series for it."""
    from pydicom.valuerep import DA, TM

    unfit = set()
    for source in sources:
        for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM), ("PatientSex", _sex)):
            try:
                kind(str(source.get(name) or ""))
            except ValueError:
                unfit.add(name)
                setattr(source, name, "")
    if unfit:
        log.warning("%s: left empty, for the series does not have it in a form that the standard allows: %s", path,
                    ", ".join(sorted(unfit)))


def _sex(value: str) -> None:
    if value not in SEXES:
        raise ValueError(value)


def _in_file_order(pixels: np.ndarray, source: Path) -> np.ndarray:
    """Slices in the order in which a multi-frame file keeps its frames."""
    numbers = [number for _, number in series_of([source]).frames]
    return pixels[np.argsort(numbers)]


def _label(name: str) -> str:
    """A name as DICOM allows it in a long string: 64 characters, no backslash, nothing that controls a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in name.replace("\\", "/")).strip()[:64]


def _description(number: int, segment: NamedMask) -> Any:
    import highdicom as hd

    codes = {name: hd.sr.CodedConcept(*code) for name, code in coded(segment.terminology).items()}
    found = hd.seg.SegmentDescription(
        segment_number=number, segment_label=_label(segment.name) or f"Segment {number}",
        segmented_property_category=codes["category"], segmented_property_type=codes["type"],
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="SegMoTE", version=__version__,
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")),
        anatomic_regions=[codes["region"]] if "region" in codes else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.color))
    if "modifier" in codes:
        found.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [codes["modifier"]]
    if "region modifier" in codes and "region" in codes:
        found.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [codes["region modifier"]]
    return found
