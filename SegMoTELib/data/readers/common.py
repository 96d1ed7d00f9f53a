"""What the readers share: descriptions, and one image-label pair to items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from SegMoTELib.data.grey_levels import as_grey_or_rgb
from SegMoTELib.data.items import Item, Reference, index_map
from SegMoTELib.data.pack import licence_of
from SegMoTELib.data.volumes import Raster, check_same_grid, labelled_slices, read_raster
from SegMoTELib.errors import DataError

DESCRIPTION = "dataset.json"
SPLITS = {"test": "test", "testing": "test", "val": "val", "valid": "val", "validation": "val", "train": "train",
          "training": "train"}  # names -> ours, the strictest first
CARRIED = ("name", "source", "licence", "licence_verified", "licence_note", "caveat", "note_split", "reference",
           "description", "release")


def read_description(folder: Path) -> dict:
    """Return the parsed ``dataset.json`` of a folder, or an empty dict where there is none.

    Raises:
        DataError: not a JSON object.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(description, dict):
        raise DataError(f"{path}: expected a JSON object.")
    return description


def carried_info(description: dict, folder: Path) -> dict:
    """Return the parts of a description that go along with the data."""
    info = {key: description[key] for key in CARRIED if description.get(key) not in (None, "")}
    return {"name": folder.name, "source": folder.name} | info | {"licence": licence_of(description)}


def indexed_labels(description: dict, path: Path) -> dict[int, str]:
    """Return index -> name of a description whose labels read ``{"1": "liver"}`` or ``{"liver": 1}``.

    nnU-Net regions (``{"whole tumour": [1, 2], "core": 2}``) become names of single indices: 1 is "whole tumour without
    core".

    Raises:
        DataError: labels of another form.
    """
    labels: dict[int, str] = {}
    regions: dict[str, set[int]] = {}
    try:
        for key, value in (description.get("labels") or {}).items():
            if isinstance(value, str):
                labels[int(key)] = value
            else:
                regions[str(key)] = set(map(int, value if isinstance(value, list) else [value]))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: labels must map indices to names or names to indices ({error}).") from error
    for index in set().union(*regions.values()) - labels.keys():
        labels[index] = _region_name(index, regions)
    return {index: name for index, name in sorted(labels.items()) if index != 0}


def _region_name(index: int, regions: dict[str, set[int]]) -> str:
    """What an index shows: the smallest regions that hold it, without the largest parts of them that do not."""
    holding = {name: members for name, members in regions.items() if index in members}
    smallest = [name for name, members in holding.items() if not any(other < members for other in holding.values())]
    shared = set.intersection(*(holding[name] for name in smallest))
    others = {name: members for name, members in regions.items() if index not in members and members & shared}
    largest = [name for name, members in others.items() if not any(members < other for other in others.values())]
    return " and ".join(smallest) + (f" without {' and '.join(largest)}" if largest else "")


def pair_reference(image_paths: list[Path], label_path: Path, identifier: str, modality: str, labels: dict[int, str],
                   *, group: str, split: str | None, ct_window: tuple[float, float],
                   ignored: tuple[int, ...] = ()) -> Reference:
    """Return the reference of one image (one file, or three files for R, G and B) with its label file.

    A label that holds one of the ``ignored`` values is refused: what is neither inside nor outside has no place in a
    mask.
    """
    read = partial(_read_pair, image_paths, label_path, identifier, modality, labels, group, split, ct_window, ignored)
    return Reference(label_path, read)


def _read_pair(image_paths: list[Path], label_path: Path, identifier: str, modality: str, labels: dict[int, str],
               group: str, split: str | None, ct_window: tuple[float, float], ignored: tuple[int, ...],
               ) -> Iterator[Item]:
    rasters = [read_raster(path) for path in image_paths]
    image = rasters[0]
    if len(rasters) > 1:
        image = Raster(np.stack([raster.array for raster in rasters], axis=-1), image.dimension, image.spacing_mm,
                       image.image)
    label = read_raster(label_path, label=True)
    check_same_grid(image, label, label_path)
    values = as_labels(label, label_path)
    unjudged = int(np.isin(values, ignored).sum())
    if unjudged:
        raise DataError(f"{label_path}: {unjudged} pixels are marked to be ignored ({', '.join(map(str, ignored))}), "
                        "but a mask knows inside and outside only; label them, or set them to 0 (background).")
    array = index_map(values, label_path, labels)
    yield from labelled_slices(identifier, image, [array], modality, image_paths[0], group=group, split=split,
                               ct_window=ct_window)


def as_labels(label: Raster, path: Path) -> np.ndarray:
    """Return the label values, one a pixel, also of a label that was saved as a grey RGB picture.

    Raises:
        DataError: several channels that differ.
    """
    array = label.array
    if array.ndim > label.dimension:
        array = as_grey_or_rgb(array)
    if array.ndim > label.dimension:
        raise DataError(f"{path}: expected one channel of labels, found {array.shape[-1]}; export index maps, "
                        "not colours.")
    return array
