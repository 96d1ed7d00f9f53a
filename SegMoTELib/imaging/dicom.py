"""DICOM series from files: which there are in a folder, whether one can be a volume, and the volume itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError

HEADER = ("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "NumberOfFrames", "InstanceNumber",
          "ImagePositionPatient", "ImageOrientationPatient", "PhotometricInterpretation", "Rows", "Columns")
NOT_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "ECG", "REG", "DOC")
UNEVEN = 0.02  # of the spacing: how much a gap between slices may differ from the others
TILT = 2e-3  # of a millimetre sideways per millimetre along the normal: about 0.1 degree of gantry tilt


@dataclass
class Series:
    """Files of one series, in the order of their slices.

    Attributes:
        uid: Series Instance UID. modality, description: as the header says. files: paths along the slice normal.
        problem: why it cannot be a volume, "" if it can. monochrome1: low values are bright.
    """

    uid: str
    modality: str
    description: str
    files: list[Path] = field(default_factory=list)
    problem: str = ""
    monochrome1: bool = False

    def __str__(self) -> str:
        words = f"{self.modality or 'unknown modality'}, {len(self.files)} files, {self.uid}"
        return f"{words}: {self.problem}" if self.problem else words


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_series(folder: Path) -> list[Series]:
    """Return the series in a folder and below it, each with its verdict; other files are left alone."""
    headers: dict[str, list] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        header = _header(path)
        if header is not None:
            headers.setdefault(str(header.get("SeriesInstanceUID", path.name)), []).append((path, header))
    return [_verdict(uid, pairs) for uid, pairs in headers.items()]


def read_series(folder: Path, uid: str = "") -> tuple[sitk.Image, Series]:
    """Read the series of a folder, rescaled to its units (HU for CT), bright where the patient is bright.

    Args:
        folder: searched with what lies below it. uid: of the series, where there are several.

    Raises:
        VolumeError: no series or several that could be meant, or one that cannot be a volume; says why.
    """
    found = find_series(folder)
    if not found:
        raise VolumeError(f"{folder}: holds no DICOM series.")
    if uid:
        found = [one for one in found if one.uid == uid]
        if not found:
            raise VolumeError(f"{folder}: holds no series {uid}.")
    usable = [one for one in found if not one.problem]
    if not usable:
        raise VolumeError(f"{folder}: no series can be used as a volume: {'; '.join(map(str, found))}.")
    if len(usable) > 1:
        raise VolumeError(f"{folder}: holds {len(usable)} DICOM series; choose one by --series UID: "
                          f"{'; '.join(map(str, usable))}.")
    return _read(usable[0]), usable[0]


def read_file(path: Path) -> tuple[sitk.Image, Series]:
    """Read one DICOM file: a slice, or the frames of a multi-frame image.

    Raises:
        VolumeError: not an image, or frames that are not evenly spaced.
    """
    header = _header(path)
    if header is None:
        raise VolumeError(f"{path}: is not a DICOM file that can be read.")
    series = _verdict(str(header.get("SeriesInstanceUID", "")), [(path, header)])
    if series.problem:
        raise VolumeError(f"{path}: cannot be used as a volume: {series.problem}.")
    return _read(series), series


def _header(path: Path):
    import pydicom

    tags = [*HEADER, "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return header if ("SOPClassUID" in header and "Rows" in header) or "Modality" in header else None
    except Exception:  # pydicom raises many kinds on what is no or damaged DICOM
        return None


def _verdict(uid: str, pairs: list) -> Series:
    try:
        return _judged(uid, pairs)
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        return Series(uid, "", "", [path for path, _ in pairs], f"its header is damaged ({error})")


def _judged(uid: str, pairs: list) -> Series:
    """A series with its files sorted, and the reason if it cannot be a volume."""
    first = pairs[0][1]
    series = Series(uid, str(first.get("Modality", "")), str(first.get("SeriesDescription", "")),
                    [path for path, _ in pairs],
                    monochrome1=str(first.get("PhotometricInterpretation", "")) == "MONOCHROME1")
    frames = [int(header.get("NumberOfFrames") or 1) for _, header in pairs]
    if series.modality in NOT_IMAGES or any("Rows" not in header for _, header in pairs):
        series.problem = f"{series.modality} is not an image"
    elif len({(header.Rows, header.Columns) for _, header in pairs}) > 1:
        series.problem = "its images differ in size"
    elif max(frames) > 1 and len(pairs) > 1:
        series.problem = "it has several multi-frame files; choose one of the files"
    elif max(frames) > 1:
        series.problem = _uneven(_frame_geometry(first)) if "PerFrameFunctionalGroupsSequence" in first else ""
    elif len(pairs) > 1:
        places = [(header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")) for _, header in pairs]
        if any(not position or not axes for position, axes in places):
            series.problem = "its images do not say where they lie"
        else:
            order = np.argsort([_along(place) for place in places], kind="stable")
            series.files = [series.files[i] for i in order]
            series.problem = _uneven([places[i] for i in order])
    return series


def _along(place: tuple) -> float:
    axes = np.array(place[1], float)
    return float(np.cross(axes[:3], axes[3:]) @ np.array(place[0], float))


def _frame_geometry(header) -> list[tuple]:
    """(position, orientation) of the frames of an enhanced image, along the normal; [] where it says neither."""
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    places = []
    for frame in header.PerFrameFunctionalGroupsSequence:
        position = frame.get("PlanePositionSequence")
        axes = frame.get("PlaneOrientationSequence") or shared[0].get("PlaneOrientationSequence")
        if not position or not axes:
            return []
        places.append((position[0].get("ImagePositionPatient"), axes[0].get("ImageOrientationPatient")))
    return sorted(places, key=_along)


def _uneven(places: list[tuple]) -> str:
    """Why slices at these places are no regular volume; "" if they are one."""
    if len(places) < 2:
        return ""
    axes = np.array([axes for _, axes in places], float)
    if np.abs(axes - axes[0]).max() > 1e-3:
        return "its slices are not parallel (a localizer, or rotating views)"
    steps = np.diff(np.array([position for position, _ in places], float), axis=0)
    normal = np.cross(axes[0, :3], axes[0, 3:])
    gaps = steps @ normal
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3 * max(usual, 1):
        return "several of its slices lie at the same place (time points, echoes or phases); split it by those"
    wrong = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    if len(wrong):
        at = ", ".join(f"{wrong_gap:.2f} mm after slice {index + 1}"
                       for index, wrong_gap in zip(wrong[:3], gaps[wrong[:3]], strict=True))
        return f"slices are missing or unevenly spaced: {usual:.2f} mm, but {at}"
    if np.abs(steps - np.outer(gaps, normal)).max() > TILT * usual:
        return "its slices are sheared by a tilted gantry; resample it first (Slicer does when it loads it)"
    return ""


def _read(series: Series) -> sitk.Image:
    paths = [str(path) for path in series.files]
    image = sitk.ReadImage(paths[0]) if len(paths) == 1 else sitk.ReadImage(paths)
    if series.monochrome1 and image.GetNumberOfComponentsPerPixel() == 1:
        extremes = sitk.MinimumMaximumImageFilter()
        extremes.Execute(image)
        image = (extremes.GetMaximum() + extremes.GetMinimum()) - image
    return image
