"""The on-disk layout of a labelled 2D data set, shared by curation, training and evaluation.

``<folder>/dataset.json`` names the set, its modality, labels, licence and splits; ``images/<id>.png|jpg`` are 8-bit
grey or RGB; ``labels/<id>.png`` are 8-bit index maps with 0 = background; ``instances/<id>.png`` (optional) are 16-bit
maps with one number per object, for images with many objects of one class.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from SegMoTELib.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Sample:
    """One labelled image of a data set.

    Attributes:
        dataset: the folder name of its data set.
        identifier: the image's name without suffix, unique within its data set.
        modality: as written in ``dataset.json`` ("CT", "MR", "ultrasound", ...).
        image_path, label_path: files of the same width and height.
        instances_path: 16-bit map of single objects, or None.
        spacing_mm: (row, column) pixel spacing, or None where the source does not tell.
    """

    dataset: str
    identifier: str
    modality: str
    image_path: Path
    label_path: Path
    instances_path: Path | None
    spacing_mm: tuple[float, float] | None

    def load_image(self) -> np.ndarray:
        """Return the image, uint8, (H, W) for grey or (H, W, 3) for RGB.

        Raises:
            DataError: the file is missing, not a readable image, or not of 8 bits.
        """
        return read_image(self.image_path)

    def load_label(self) -> np.ndarray:
        """Return the index map, uint8 (H, W), 0 = background.

        Raises:
            DataError: the file is missing, unreadable, not a single-channel map, or of another size than the image.
        """
        label = _load_map(self.label_path)
        if label.max(initial=0) > 255:
            raise DataError(f"{self.label_path}: label values above 255; the layout holds 8-bit index maps.")
        with _open(self.image_path) as image:
            size = image.size
        if label.shape != size[::-1]:
            raise DataError(f"{self.label_path}: {label.shape[1]}x{label.shape[0]} pixels, but its image has "
                            f"{size[0]}x{size[1]}.")
        return label.astype(np.uint8)

    def load_instances(self) -> np.ndarray | None:
        """Return the instance map, int32 (H, W), 0 = background, or None where the set has none."""
        return None if self.instances_path is None else _load_map(self.instances_path).astype(np.int32)


@dataclass(frozen=True)
class Pack:
    """A data set in this layout.

    Attributes:
        folder: where it lies.
        info: the parsed ``dataset.json``.
        labels: index -> name, background left out.
    """

    folder: Path
    info: dict
    labels: dict[int, str]

    @property
    def code(self) -> str:
        """The folder name, which tables use as the data set's short name."""
        return self.folder.name

    @property
    def modality(self) -> str:
        """Modality as written in ``dataset.json``."""
        return str(self.info.get("modality", "unknown"))

    def samples(self, split: str) -> Iterator[Sample]:
        """Yield the samples of one split ("train", "val" or "test"), in the order written in ``dataset.json``.

        Raises:
            DataError: an image named there does not exist.
        """
        for identifier in self.info["splits"].get(split, []):
            yield self.sample(identifier)

    def sample(self, identifier: str) -> Sample:
        """Return one sample by its name.

        Raises:
            DataError: no image of this name, a name that leads out of the data set, or a spacing that is none.
        """
        if Path(identifier).is_absolute() or ".." in Path(identifier).parts:
            raise DataError(f"{self.folder / 'dataset.json'}: {identifier!r} is not the name of an image in it.")
        instances_path = self.folder / "instances" / f"{identifier}.png"
        spacing = self.info.get("spacing_mm")
        spacing = spacing.get(identifier) if isinstance(spacing, dict) else spacing
        if spacing is not None and not _is_spacing(spacing):
            raise DataError(f"{self.folder / 'dataset.json'}: spacing_mm of {identifier!r} must be [row, column], both "
                            "in millimetres and greater than 0.")
        return Sample(
            dataset=self.code, identifier=identifier, modality=self.modality,
            image_path=self._image_path(identifier), label_path=self.folder / "labels" / f"{identifier}.png",
            instances_path=instances_path if instances_path.exists() else None,
            spacing_mm=tuple(spacing) if spacing else None,
        )

    def _image_path(self, identifier: str) -> Path:
        for suffix in IMAGE_SUFFIXES:
            path = self.folder / "images" / f"{identifier}{suffix}"
            if path.exists():
                return path
        raise DataError(f"{self.folder / 'images'}: no image named {identifier!r} ({', '.join(IMAGE_SUFFIXES)}), "
                        "though dataset.json lists it.")


def check_identifier(identifier: object) -> str:
    """Return an image's name, which may be a number, if it is one; a path could lead out of the data set's folder.

    Raises:
        ValueError: not a plain file name.
    """
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return str(identifier)
    if not isinstance(identifier, str) or not identifier or identifier[0] == "." or re.search(r'[/\\:\0]', identifier):
        raise ValueError(f"{identifier!r} is not the name of an image")
    return identifier


def open_pack(folder: str | Path) -> Pack:
    """Open one data set folder.

    Raises:
        DataError: no readable ``dataset.json``, or one without labels and splits.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        labels = {int(index): str(name) for index, name in info["labels"].items() if int(index) != 0}
        info["splits"] = {split: [check_identifier(identifier) for identifier in _listed(identifiers, split)]
                          for split, identifiers in info["splits"].items()}
    except FileNotFoundError:
        raise DataError(f"{folder}: no dataset.json; is this a data set in the pack's layout?") from None
    except KeyError as error:
        raise DataError(f"{path}: not a data set description: {error} is missing.") from None
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not a data set description ({error}).") from error
    return Pack(folder=folder, info=info, labels=labels)


def licence_of(description: dict) -> str:
    """Return the licence that a ``dataset.json`` states under either spelling, or "not stated"."""
    return str(description.get("licence") or description.get("license") or "not stated")


def _is_spacing(values: object) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(
        isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in values)


def _listed(identifiers: object, split: str) -> list:
    if not isinstance(identifiers, list | None):
        raise TypeError(f"split {split!r} is not a list of image names")
    return identifiers or []


def open_packs(folders: list[str | Path]) -> list[Pack]:
    """Open data sets given as set folders or as folders of set folders, sorted by name, each once.

    Raises:
        DataError: a folder that is neither.
    """
    packs: dict[Path, Pack] = {}
    for folder in map(Path, folders):
        found = [folder] if (folder / "dataset.json").exists() else sorted(
            path.parent for path in folder.glob("*/dataset.json"))
        if not found:
            raise DataError(f"{folder}: no dataset.json here or one level below.")
        packs.update((path.resolve(), open_pack(path)) for path in found)
    return sorted(packs.values(), key=lambda pack: pack.code)


def check_names(packs: list[Pack]) -> None:
    """Refuse data sets that could not be told apart by their codes.

    Raises:
        DataError: two of one name.
    """
    codes = [pack.code for pack in packs]
    twice = next((code for code in codes if codes.count(code) > 1), None)
    if twice is not None:
        raise DataError(f"two data sets are named {twice!r}; rename one of the folders.")


def check_maps(label: np.ndarray, instances: np.ndarray | None, names: dict[int, str]) -> None:
    """Refuse maps of an image that say something else than they seem to.

    Args:
        label: (H, W) label values. instances: map of single objects, or None. names: label value -> name.

    Raises:
        DataError: label values without a name, or an instance map of another size; the image is for the caller to name.
    """
    unknown = [int(value) for value in np.unique(label) if value and int(value) not in names]
    if unknown:
        raise DataError(f"label values {unknown} are not named in dataset.json; name them, or set them to 0.")
    if instances is not None and instances.shape != label.shape:
        raise DataError(f"the instance map is {instances.shape[1]}x{instances.shape[0]} pixels, the label map "
                        f"{label.shape[1]}x{label.shape[0]}.")


def read_image(path: Path) -> np.ndarray:
    """Return a picture, uint8, (H, W) for grey or (H, W, 3) for RGB, upright.

    Raises:
        DataError: the file is missing, not a readable image, or not of 8 bits.
    """
    with _open(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            raise DataError(f"{path}: more than 8 bits a pixel, but the layout holds 8-bit images; convert the data "
                            "set with segmote curate.")
        return _decode(image, path, None if image.mode == "L" else "RGB")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        if image.format == "JPEG":  # of cameras, which note how they were held; upright, as curation reads it
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except FileNotFoundError:
        raise DataError(f"{path}: file not found.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}).") from error


def _decode(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Return the pixels; PIL reads them only now, so a truncated file shows here and not at opening."""
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged image ({error}).") from error


def _load_map(path: Path) -> np.ndarray:
    with _open(path) as image:
        values = _decode(image, path)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise DataError(f"{path}: expected one channel of integer labels, found {values.dtype} of shape "
                        f"{values.shape}.")
    return values
