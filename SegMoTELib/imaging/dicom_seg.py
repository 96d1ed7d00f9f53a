"""DICOM SEG: segments of a DICOM series as an object that a PACS keeps with it, by highdicom."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from SegMoTELib import __version__
from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.volume import Volume

TISSUE = ("85756007", "SCT", "Tissue")  # Slicer's own default: category and type


def write_dicom_seg(path: Path, volume: Volume, segments: list, description: str = "SegMoTE") -> None:
    """Write a DICOM SEG that references the series the volume was read from, atomically.

    Args:
        volume: with ``sources``, one DICOM file a slice or one multi-frame file. segments: ``NamedMask``; a
        ``terminology`` of Slicer's form gives its coded category and type, otherwise both are "Tissue".

    Raises:
        VolumeError: a volume that is not from DICOM, nothing to write, or a file that cannot be written.
    """
    try:
        import highdicom as hd
        import pydicom
    except ImportError as error:
        raise VolumeError("DICOM SEG needs highdicom: pip install highdicom; or write a .seg.nrrd.") from error
    if not volume.sources:
        raise VolumeError(f"{path}: a DICOM SEG refers to a DICOM series, but the volume was not read from one; "
                          "write a .seg.nrrd.")
    pixels = np.stack([segment.mask for segment in segments], axis=-1).astype(np.uint8)
    if not pixels.any():
        raise VolumeError(f"{path}: there is no voxel to write; a DICOM SEG cannot be empty.")
    part = path.with_name(f".{path.name}.part")
    try:
        sources = [pydicom.dcmread(source) for source in volume.sources]
        found = hd.seg.Segmentation(
            source_images=sources, pixel_array=pixels, segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(hd, number, segment) for number, segment in enumerate(segments, 1)],
            series_instance_uid=hd.UID(), series_number=int(sources[0].get("SeriesNumber") or 0) % 9000 + 1000,
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer="SegMoTE",
            manufacturer_model_name="SegMoTE", software_versions=__version__, device_serial_number="0",
            series_description=description)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save_as(part)
        os.replace(part, path)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written ({error.strerror or error}).") from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:  # highdicom's words for unfit sources
        raise VolumeError(f"{path}: this series cannot carry a DICOM SEG ({error}).") from error
    finally:
        part.unlink(missing_ok=True)


def coded(terminology: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """(code value, scheme, meaning) of category and type in Slicer's ``context~category~type~...`` string."""
    parts = terminology.split("~")
    codes = []
    for part in parts[1:3]:
        scheme, _, rest = part.partition("^")
        value, _, meaning = rest.partition("^")
        codes.append((value, scheme, meaning) if scheme and value and meaning else TISSUE)
    return (codes[0], codes[1]) if len(codes) == 2 else (TISSUE, TISSUE)


def _description(hd, number: int, segment):
    category, kind = (hd.sr.CodedConcept(*code) for code in coded(segment.terminology))
    return hd.seg.SegmentDescription(
        segment_number=number, segment_label=segment.name[:64], segmented_property_category=category,
        segmented_property_type=kind, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="SegMoTE", version=__version__,
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")),
        display_color=hd.color.CIELabColor.from_rgb(*segment.color) if hasattr(hd.color.CIELabColor, "from_rgb")
        else None)
