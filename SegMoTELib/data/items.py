"""What every reader yields: labelled 2D images with their origin, and files that could not be used, by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from SegMoTELib.errors import DataError

MODALITY_NAMES = {"ct": "CT", "mr": "MR", "mri": "MR", "pt": "PET", "pet": "PET", "us": "ultrasound",
                  "ultrasound": "ultrasound"}
PATIENT = r"(?:.*?[/_ .-])??(?:sub-[a-z0-9]+|(?:sub|subject|pat|patient)[-_ ]?\d+)"  # sub-: of BIDS
SLICE_WORDS = "slice|frame|image|img|im"
SHADES, ALONE = 5, 0.15  # values beside 0 and the largest, and the share of their pixels without an equal neighbour
ROUNDING = 1e-4  # how far a label stored as a scaled float may lie from its whole number


@dataclass(frozen=True)
class Item:
    """One labelled image, as read from a source.

    Attributes:
        identifier: name without suffix, safe as a file name.
        image: uint8, (H, W) grey or (H, W, 3) RGB.
        label: uint8 index map (H, W), 0 = background.
        group: what must not be split: a patient, a volume, or the image itself where the source does not tell.
        source_file: the file or folder it came from, for the report.
        split: "train", "val" or "test" where the source fixes it, else None.
        spacing_mm: (row, column) pixel spacing, or None where the source does not tell.
        instances: int32 (H, W) map of single objects, or None.
    """

    identifier: str
    image: np.ndarray
    label: np.ndarray
    group: str
    source_file: Path
    split: str | None = None
    spacing_mm: tuple[float, float] | None = None
    instances: np.ndarray | None = None


@dataclass(frozen=True)
class BadFile:
    """A file that was skipped, and why in one sentence."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Reference:
    """One image-label pair (or volume) of a source, not read yet.

    Attributes:
        path: the file to name when it cannot be read.
        read: yields the items in it, and the files in it that cannot be used; may raise anything.
    """

    path: Path
    read: Callable[[], Iterable[Item | BadFile]]

    def items(self) -> Iterator[Item | BadFile]:
        """Yield what ``read`` yields; an exception becomes a ``BadFile``."""
        try:
            yield from self.read()
        except Exception as error:  # five libraries read these files, each with exceptions of its own
            reason = str(error).strip() if isinstance(error, DataError) else f"{type(error).__name__}: {error}".strip()
            yield BadFile(self.path, " ".join(reason.split())[:500])


@dataclass(frozen=True)
class SourceSet:
    """One data set of a source, which becomes one folder in the pack's layout.

    Attributes:
        code: folder name.
        modality: as it will be written in ``dataset.json``.
        labels: index -> name, background left out; empty when only reading the files tells.
        info: description carried along (name, source, licence, caveat, ...).
        references: what to read.
        bad_files: files found unusable while listing.
        group_space: sets of the same space share their groups (the channels of one study).
        people: group -> who it is in any source, where the source tells; never written.
    """

    code: str
    modality: str
    labels: dict[int, str]
    info: dict
    references: list[Reference]
    bad_files: list[BadFile] = field(default_factory=list)
    group_space: str = ""
    people: dict[str, str] = field(default_factory=dict)


def safe_name(text: str) -> str:
    """Return a text as a portable file name: letters of any script, digits, dot, dash and underscore."""
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._") or "unnamed"


def modality_name(text: object) -> str:
    """Return a modality as the pack writes it ("CT", "MR", "ultrasound", ...)."""
    name = str(text or "").strip()
    return MODALITY_NAMES.get(name.lower(), name) or "unknown"


def group_from_name(name: str, is_volume: bool = False) -> str:
    """Return the volume or patient part of a name, or the name itself where none shows.

    ``patient001_frame01`` and ``sub-01/ses-2/t1`` name the patient. Of slices, ``ABD_001_100`` is slice 100 of
    ``ABD_001``; ``ISIC_0012092`` has one number only, so it stands for itself. Where the last part of a path only
    numbers a slice (``p1/003``, ``p1/t2/IM-0001-0003``), all in the first folder with a number is one; a folder without
    a number (``benign/003``) may be a class, so its images stand for themselves.

    Args:
        name: relative path without suffix.
        is_volume: it is no slice, so that its last number (``FLARE22_0001``) is its own.
    """
    match = (re.match(PATIENT, name, re.I)
             or re.fullmatch(rf"(.*?\d.*?)(?:[_/-](?:{SLICE_WORDS})[_-]?\d+)+", name, re.I))
    if match:
        return match.group(match.lastindex or 0)
    if is_volume:
        return name
    folder, _, own = name.rpartition("/")
    if re.fullmatch(rf"(?:{SLICE_WORDS}|[a-z])?(?:[_ -]?\d{{1,5}})+", own, re.I):
        parts = folder.split("/")
        numbered = next((count for count, part in enumerate(parts, start=1) if re.search(r"\d", part)), None)
        if numbered:
            return "/".join(parts[:numbered])
    match = re.fullmatch(r"(.*\d.*?)[_-][a-z]?\d+", name)
    return match.group(1) if match else volume_from_name(name)


def volume_from_name(name: str) -> str:
    """Return the volume of a slice whose name ends in its axis and index (``scan_z012``), or the name itself."""
    match = re.fullmatch(r"(.+)_[xyz]\d+(?:_layer\d+)?", name)
    return match.group(1) if match else name


def index_map(values: np.ndarray, path: Path, labels: dict[int, str]) -> np.ndarray:
    """Return a label array as uint8, checked.

    Args:
        values: integers, or floats that are whole numbers but for the rounding of a stored scale.
        path: named in errors.
        labels: the values allowed beside 0; empty = any.

    Raises:
        DataError: non-integer, negative or too large values, values without a name, or shades of grey.
    """
    if values.dtype.kind not in "uib":
        whole = np.round(values)
        wrong = ~(np.abs(values - whole) <= ROUNDING)  # NaN and infinities are wrong, too
        if wrong.any():
            raise DataError(f"{path}: labels must be integers, found values such as {values[wrong].flat[0]:.6g}.")
        values = whole
    found = np.unique(values)
    if found[0] < 0 or found[-1] > 255:
        raise DataError(f"{path}: label values {found[0]:g} to {found[-1]:g}; the layout holds 0 to 255.")
    if np.count_nonzero(found) > SHADES and _share_alone(values) > ALONE:
        raise DataError(f"{path}: its {len(found)} values are shades of grey, as in a mask that was compressed with "
                        "losses or resized smoothly; export it as a PNG of whole labels.")
    unknown = sorted({int(value) for value in found} - {0} - set(labels)) if labels else []
    if unknown:
        names = ", ".join(f"{index} = {name}" for index, name in sorted(labels.items()))
        raise DataError(f"{path}: label values {unknown} have no name in the data set's description ({names}); name "
                        "them under labels in dataset.json, or write the number of the label instead.")
    return values.astype(np.uint8)


def _share_alone(values: np.ndarray) -> float:
    """Of the pixels that are neither 0 nor the largest value, those that no neighbour in their row or column equals."""
    between = (values != 0) & (values != values.max())
    accompanied = np.zeros(values.shape, bool)
    for turned, goal in ((values, accompanied), (values.swapaxes(-1, -2), accompanied.swapaxes(-1, -2))):
        equal = turned[..., 1:] == turned[..., :-1]
        goal[..., 1:] |= equal
        goal[..., :-1] |= equal
    return float(np.mean(~accompanied[between]))


def layered_index_maps(masks: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Put binary masks, which may overlap, into as few index maps as a greedy pass needs; no pixel is lost.

    Args:
        masks: label index -> bool array, all of one shape.

    Returns:
        uint8 index maps of that shape; one unless masks overlap.
    """
    layers: list[np.ndarray] = []
    for index, mask in sorted(masks.items()):
        free = next((layer for layer in layers if not layer[mask].any()), None)
        if free is None:
            free = np.zeros(mask.shape, np.uint8)
            layers.append(free)
        free[mask] = index
    return layers
