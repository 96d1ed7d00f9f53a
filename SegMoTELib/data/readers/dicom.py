"""DICOM series with DICOM SEG objects, in any folder structure.

Patient identifiers never reach the output: patients are numbered in the order of their sorted identifiers. A frame that
cannot be read is reported by name, and so are a file that comes twice and segmented frames whose image is missing; the
others of their series are kept. FRACTIONAL segments are cut at 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from SegMoTELib.data.grey_levels import as_grey_or_rgb, to_8_bit
from SegMoTELib.data.items import BadFile, Item, Reference, SourceSet, layered_index_maps, modality_name, safe_name
from SegMoTELib.data.readers.common import DESCRIPTION, carried_info, indexed_labels, read_description
from SegMoTELib.errors import DataError, VolumeError
from SegMoTELib.imaging.dicom_pixels import frames_of

HEADER_TAGS = ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "PixelSpacing",
               "ImagerPixelSpacing", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"]


@dataclass
class Series:
    """The image files of one series: (position along the normal, SOP instance UID, path), and where it comes from.

    A patient without an identifier is the study.
    """

    modality: str
    patient: str
    spacing_mm: tuple[float, float] | None
    files: list[tuple[float, str, Path]] = field(default_factory=list)


def has_dicom(folder: Path) -> bool:
    """Tell whether a folder holds at least one DICOM file."""
    return any(path.is_file() and (path.suffix.lower() == ".dcm" or pydicom.misc.is_dicom(path))
               for path in sorted(folder.rglob("*")))


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List the segmentations below a folder; one data set a modality.

    Raises:
        DataError: a ``dataset.json`` that cannot be read.
    """
    series, segmentations, bad_files = _scan(folder)
    by_instance = {uid: one for one in series.values() for _, uid, _ in one.files}
    patients = sorted({one.patient for one in series.values()})
    description = read_description(folder)
    labels = indexed_labels(description, folder / DESCRIPTION)
    found: dict[str, list[tuple[Path, Series]]] = {}
    for path in segmentations:
        try:
            segmentation = hd.seg.segread(path)
            segments = {_segment_name(segmentation, number) for number in segmentation.segment_numbers}
            sources = [uid for *_, uid in segmentation.get_source_image_uids()]
        except Exception as error:  # pydicom and highdicom raise many kinds on a damaged object
            bad_files.append(BadFile(path, f"not a readable DICOM SEG ({error})."))
            continue
        owner = next((by_instance[uid] for uid in sources if uid in by_instance), None)
        if owner is None:
            bad_files.append(BadFile(path, "the images it segments are not in this folder."))
            continue
        for name in sorted(segments - set(labels.values())):
            labels[max(labels, default=0) + 1] = name
        found.setdefault(owner.modality, []).append((path, owner))
    names = {patient: f"patient {number:03d}" for number, patient in enumerate(patients, start=1)}
    resolved = folder.resolve()
    sets: list[SourceSet] = []
    for modality, pairs in sorted(found.items()):
        references = [
            Reference(path, partial(_read, path, owner, f"p{names[owner.patient].split()[1]}_seg{number:03d}",
                                    names[owner.patient], labels, ct_window))
            for number, (path, owner) in enumerate(pairs, start=1)]
        code = safe_name(resolved.name if len(found) == 1 else f"{resolved.name}_{modality}")
        sets.append(SourceSet(code=code, modality=modality_name(modality), labels=labels, references=references,
                              info=carried_info(description, resolved), bad_files=[] if sets else bad_files,
                              group_space=resolved.name, people={name: patient for patient, name in names.items()}))
    if not sets:
        sets.append(SourceSet(safe_name(resolved.name), "unknown", labels, carried_info(description, resolved), [],
                              bad_files))
    return sets


def _scan(folder: Path) -> tuple[dict[str, Series], list[Path], list[BadFile]]:
    """Sort files into image series, segmentations and unreadable ones; what is not DICOM is left alone."""
    series: dict[str, Series] = {}
    segmentations: list[Path] = []
    bad_files: list[BadFile] = []
    seen: dict[tuple[str, str], Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            modality, uid = str(header.Modality), str(header.SOPInstanceUID)
        except (InvalidDicomError, AttributeError, EOFError, OSError, ValueError) as error:
            if path.suffix.lower() == ".dcm":
                bad_files.append(BadFile(path, f"not a readable DICOM file ({error})."))
            continue
        series_uid = str(header.get("SeriesInstanceUID", uid))
        first = seen.setdefault((series_uid, uid), path)
        if first != path:  # one UID twice in a series would be taken for frames
            bad_files.append(BadFile(path, f"the same {'segmentation' if modality == 'SEG' else 'image'} as "
                                           f"{first.relative_to(folder)} by its UID; it counts once."))
            continue
        if modality == "SEG":
            segmentations.append(path)
            continue
        try:
            spacing, position = _spacing(header), _position(header)
        except (TypeError, ValueError) as error:
            bad_files.append(BadFile(path, f"its position or pixel spacing is damaged ({error})."))
            continue
        one = series.setdefault(series_uid, Series(
            modality, str(header.get("PatientID") or header.get("StudyInstanceUID") or uid), spacing))
        one.files.append((position, uid, path))
    for one in series.values():
        one.files.sort(key=lambda entry: entry[:2])
    return series, segmentations, bad_files


def _spacing(header: pydicom.Dataset) -> tuple[float, float] | None:
    """(row, column) millimetres, or None where the header has none."""
    values = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not values:
        return None
    row, column = map(float, values)
    return row, column


def _position(header: pydicom.Dataset) -> float:
    """Return the place along the slice normal, or the instance number where there is no geometry."""
    origin, axes = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if origin and axes:
        normal = np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
        return float(normal @ np.array(origin, float))
    return float(header.get("InstanceNumber") or 0)


def _read(path: Path, series: Series, identifier: str, group: str, labels: dict[int, str],
          ct_window: tuple[float, float]) -> Iterator[Item | BadFile]:
    frames: list[np.ndarray] = []
    instances: list[tuple[str, Path]] = []
    for _, uid, file in series.files:
        try:
            found = frames_of(file)
            frames += list(found)
            instances += [(uid, file)] * len(found)
        except VolumeError as error:
            yield BadFile(file, str(error).removeprefix(f"{file}: "))
    if len({frame.shape for frame in frames}) != 1:
        raise DataError(f"{path}: the images of its series are missing or differ in size.")
    if len(set(instances)) not in (1, len(instances)):
        raise DataError(f"{path}: its series has several multi-frame files; give each a folder of its own.")
    pixels = to_8_bit(np.stack(frames), modality_name(series.modality), ct_window)
    segmentation = hd.seg.segread(path)
    masks, indices = _masks(segmentation, [uid for uid, _ in instances], labels)
    if masks.shape[1:3] != pixels.shape[1:3]:
        raise DataError(f"{path}: {masks.shape[1]}x{masks.shape[2]} pixels, but its images have "
                        f"{pixels.shape[1]}x{pixels.shape[2]}.")
    lost = _frames_elsewhere(segmentation, {uid for uid, _ in instances})
    if lost:
        yield BadFile(path, f"{lost} of its {segmentation.NumberOfFrames} frames are left out: they segment images "
                            "that are not in this folder, cannot be read, or are of another series.")
    elif not masks.any():
        yield BadFile(path, "it labels no pixel of its images.")
    for number in np.flatnonzero(masks.any(axis=(1, 2, 3))):
        here: dict[int, np.ndarray] = {}
        for index, mask in zip(indices, np.moveaxis(masks[number], -1, 0), strict=True):
            if mask.any():
                here[index] = here.get(index, False) | mask
        for layer, label in enumerate(layered_index_maps(here), start=1):
            name = f"{identifier}_z{number:03d}" + (f"_layer{layer}" if layer > 1 else "")
            yield Item(name, as_grey_or_rgb(pixels[number]), label, group, instances[number][1],
                       spacing_mm=series.spacing_mm)


def _masks(segmentation: hd.seg.Segmentation, uids: list[str], labels: dict[int, str]) -> tuple[np.ndarray, list[int]]:
    """Return bool masks (images, H, W, segments), and the label index of each segment; one UID repeated is frames."""
    options: dict[str, Any] = {"assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    if len(uids) > len(set(uids)):
        values = segmentation.get_pixels_by_source_frame(uids[0], range(1, len(uids) + 1), **options)
    else:
        values = segmentation.get_pixels_by_source_instance(uids, **options)
    by_name = {name: index for index, name in labels.items()}
    return values >= 0.5, [by_name[_segment_name(segmentation, number)] for number in segmentation.segment_numbers]


def _frames_elsewhere(segmentation: hd.seg.Segmentation, uids: set[str]) -> int:
    """Count the frames with a label that segment none of some images; highdicom passes over them without a word."""
    elsewhere = []
    for number, frame in enumerate(segmentation.get("PerFrameFunctionalGroupsSequence") or []):
        sources = {str(source.ReferencedSOPInstanceUID) for derivation in frame.get("DerivationImageSequence") or []
                   for source in derivation.get("SourceImageSequence") or []}
        if sources and not sources & uids:
            elsewhere.append(number)
    if not elsewhere:
        return 0
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    return int(frames[elsewhere].any(axis=(1, 2)).sum())


def _segment_name(segmentation: hd.seg.Segmentation, number: int) -> str:
    return str(segmentation.get_segment_description(number).segment_label)
