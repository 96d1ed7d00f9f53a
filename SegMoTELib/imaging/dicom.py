"""DICOM series from files: which there are in a folder, whether each can be a volume, and the volume itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from SegMoTELib.errors import VolumeError, reason
from SegMoTELib.imaging.dicom_geometry import TAGS as GEOMETRY_TAGS
from SegMoTELib.imaging.dicom_geometry import NotRegularError, Place, order_and_matrix, places_of
from SegMoTELib.imaging.dicom_pixels import frames_of, open_dicom, quiet
from SegMoTELib.imaging.volume import LPS_TO_RAS, Volume

log = logging.getLogger(__name__)

OTHERS = {"SEG": "a segmentation", "RTSTRUCT": "a set of contours", "RTPLAN": "a treatment plan",
          "RTDOSE": "a dose distribution", "SR": "a report", "PR": "a presentation state", "KO": "a list of images",
          "DOC": "a document", "ECG": "a recording", "REG": "a registration"}
# What tells apart images at the same place, most telling first.
MARKS = ("EchoTime", "DiffusionBValue", "TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime",
         "ImageType", "AcquisitionNumber", "ContentTime")
TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "FrameOfReferenceUID", "SeriesDescription",
        "Modality", "InstanceNumber", "SamplesPerPixel", "TotalPixelMatrixColumns", *MARKS, *GEOMETRY_TAGS]
IDENTITY = ("SOPInstanceUID", "InstanceNumber", *MARKS)
NAMED = 8  # series or files that one message names


@dataclass
class Series:
    """The images of one series, in the order of their slices along the normal.

    Attributes:
        uid: Series Instance UID. modality, description: as the header says.
        frames: (file, frame in it) of every slice. matrix: (4, 4) voxel index to LPS millimetres.
        problem: why it cannot be a volume, "" if it can. localizer: a scout image, for planning.
    """

    uid: str
    modality: str
    description: str
    frames: list[tuple[Path, int]] = field(default_factory=list)
    matrix: np.ndarray = field(default_factory=lambda: np.eye(4), repr=False)
    problem: str = ""
    localizer: bool = False

    @property
    def files(self) -> list[Path]:
        """Each file once, in the order of the slices."""
        return list(dict.fromkeys(path for path, _ in self.frames))

    def __str__(self) -> str:
        count = "1 image" if len(self.frames) == 1 else f"{len(self.frames)} images"
        about = ", ".join(filter(None, (self.modality, self.description, count)))
        words = f"{self.uid or 'no UID'} ({about})"
        return f"{words}: {self.problem}" if self.problem else words


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its preamble, or without one by a first tag of group 0002 or 0008."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or (start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\0")


@quiet
def find_series(folder: Path) -> list[Series]:
    """Return the series in a folder and below it, each with its verdict; scout images count as a series of their own.

    Only headers are read. Files that are not DICOM are left alone; damaged ones are logged by name.
    """
    found: dict[tuple[str, bool], list[tuple[Path, object]]] = {}
    damaged = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try:
            header = _header(path)
        except VolumeError:
            damaged.append(path)
            continue
        if header is not None:
            scout = "LOCALIZER" in (header.get("ImageType") or ())
            uid = str(header.get("SeriesInstanceUID") or path.parent.name)
            found.setdefault((uid, scout), []).append((path, header))
    if damaged:
        log.warning("%s: left out, for they are damaged or no DICOM: %s", folder,
                    _listed([path.name for path in damaged]))
    return [_judged(uid, pairs, scout) for (uid, scout), pairs in found.items()]


def read_series(path: Path, uid: str = "") -> Volume:
    """Read the series of a folder as ``read_dicom`` reads a file.

    Args:
        path: a folder, searched with what lies below it, or its DICOMDIR. uid: of the series, where there are
            several. Scout images are taken only where there is nothing else.

    Raises:
        VolumeError: no series or several that could be meant, or one that cannot be a volume; says why.
    """
    folder = path if path.is_dir() else path.parent
    found = find_series(folder)
    if not found:
        raise VolumeError(f"{path}: holds no DICOM series.")
    if uid:
        found = [one for one in found if one.uid == uid]
        if not found:
            raise VolumeError(f"{path}: holds no series {uid}.")
    usable = [one for one in found if not one.problem]
    if not usable:
        raise VolumeError(f"{path}: no series can be used as a volume: {_listed(found, '; ')}.")
    usable = [one for one in usable if not one.localizer] or usable
    if len(usable) > 1:
        raise VolumeError(f"{path}: holds {len(usable)} DICOM series; choose one by --series UID: "
                          f"{_listed(usable, '; ')}.")
    return _read(usable[0], folder.name)


@quiet
def read_dicom(path: Path) -> Volume:
    """Read one DICOM file: a slice, a photo, the slices of a multi-frame image, or the frames of a clip.

    Values are rescaled to their units (HU for CT), MONOCHROME1 comes bright where the patient is bright, colours come
    as RGB. A clip has no third direction in space: its frames lie 1 mm apart.

    Raises:
        VolumeError: not an image, damaged, or slices that are no regular volume.
    """
    series = series_of([path])
    if series.problem:
        raise VolumeError(f"{path}: cannot be used as a volume: {series.problem}.")
    return _read(series, path.name)


@quiet
def series_of(paths: list[Path] | tuple[Path, ...]) -> Series:
    """The series that files make up, with its verdict.

    Raises:
        VolumeError: one is not DICOM.
    """
    pairs = [(path, _header(path)) for path in paths]
    for path, header in pairs:
        if header is None:
            raise VolumeError(f"{path}: holds no image.")
    return _judged(str(pairs[0][1].get("SeriesInstanceUID", "")), pairs, False)


def _header(path: Path):
    """The tags that matter; None for what is no DICOM or an index (DICOMDIR).

    Raises:
        VolumeError: it should be DICOM and is not, or is damaged.
    """
    try:
        if not is_dicom(path):
            if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
                raise VolumeError(f"{path}: is not a DICOM file.")
            return None
        header = open_dicom(path, stop_before_pixels=True, specific_tags=TAGS)
        if header.file_meta.get("MediaStorageSOPClassUID", "").endswith("1.3.10"):
            return None
        if "SOPClassUID" not in header and "Modality" not in header and "Rows" not in header:
            raise ValueError("no header")
        for name in ("SeriesInstanceUID", "Modality", "SeriesDescription", "ImageType"):
            header.get(name)  # pydicom finds damage in a value when it is first looked at
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except VolumeError:
        raise
    except Exception as error:  # pydicom raises many kinds on what is no or damaged DICOM
        raise VolumeError(f"{path}: is a damaged DICOM file, or holds no image.") from error
    return header


def _judged(uid: str, pairs: list, localizer: bool) -> Series:
    """A series with its images in order, or the reason why it cannot be a volume."""
    first = pairs[0][1]
    series = Series(uid, str(first.get("Modality") or ""), str(first.get("SeriesDescription") or ""),
                    [(path, 0) for path, _ in pairs], localizer=localizer)
    try:
        _refuse_no_image([header for _, header in pairs])
        images: dict[tuple, tuple[tuple[Path, int], Place, object]] = {}
        for path, header in pairs:
            for number, place in enumerate(places_of(header)):
                # A file that lies there twice is one image.
                instance = (number, str(place.position), *(str(header.get(name, "")) for name in IDENTITY),
                            "" if "SOPInstanceUID" in header else str(path))
                images.setdefault(instance, ((path, number), place, header))
        frames, places, headers = zip(*images.values(), strict=True)
        series.frames = list(frames)
        try:
            order, series.matrix = order_and_matrix(list(places))
        except NotRegularError as error:
            raise NotRegularError(f"{error}{_difference(headers) if error.same_place else ''}") from error
        series.frames = [frames[index] for index in order]
    except NotRegularError as error:
        series.problem = str(error)
    except Exception as error:  # pydicom parses values late, and raises many kinds on damaged ones
        series.problem = f"its header is damaged ({reason(error)})"
    return series


def _refuse_no_image(headers: list) -> None:
    first = headers[0]
    modality = str(first.get("Modality") or "")
    if modality in OTHERS:
        raise NotRegularError(f"it is {OTHERS[modality]}, not an image")
    if any("Rows" not in header or "Columns" not in header for header in headers):
        name = getattr(first.get("SOPClassUID"), "name", "unknown kind")
        raise NotRegularError(f"it holds no image ({name})")
    if "TotalPixelMatrixColumns" in first:
        raise NotRegularError("it is a microscopy slide in tiles")
    syntax = first.file_meta.TransferSyntaxUID
    if syntax.name.startswith(("MPEG", "HEVC", "Fragmentable MPEG", "SMPTE")):
        raise NotRegularError(f"it is a video ({syntax.name}); export its frames as images")
    for name, words in (("PatientID", "patients"), ("FrameOfReferenceUID", "frames of reference")):
        count = len({str(header.get(name) or "") for header in headers} - {""})
        if count > 1:
            raise NotRegularError(f"its images are of {count} {words}; put those of each into a folder of its own")
    samples = {int(header.get("SamplesPerPixel") or 1) for header in headers}
    if len({(header.Rows, header.Columns) for header in headers}) > 1 or len(samples) > 1:
        raise NotRegularError("its images differ in size or kind")
    if not samples <= {1, 3}:
        raise NotRegularError(f"it has {samples.pop()} values per pixel, not one (grey) or three (RGB)")


def _difference(headers: tuple) -> str:
    """What tells the images apart, in words."""
    marks = [mark for mark in MARKS if len({str(header.get(mark)) for header in headers}) > 1]
    return f" (they differ in {marks[0]})" if marks else ""


def _read(series: Series, name: str) -> Volume:
    """Read the pixels of a series that has no problem."""
    files = {path: frames_of(path) for path in series.files}
    for path, number in series.frames:
        if number >= len(files[path]):
            raise VolumeError(f"{path}: is cut off: it holds {len(files[path])} frames; copy it again.")
    slices = [files[path][number] for path, number in series.frames]
    if len({one.shape for one in slices}) > 1:
        raise VolumeError(f"{name}: the images of the series {series.uid} differ in size.")
    return Volume(np.stack(slices), LPS_TO_RAS @ series.matrix, series.modality, name, tuple(series.files))


def _listed(things: list, between: str = ", ") -> str:
    words = between.join(map(str, things[:NAMED]))
    return f"{words}{between}and {len(things) - NAMED} more" if len(things) > NAMED else words
