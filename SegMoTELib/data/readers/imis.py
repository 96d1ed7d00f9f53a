"""The published SegMoTE / IMIS-Bench layout.

``dataset.json`` lists ``training`` (and ``test``) pairs of an image and a label such as
``label/x___ABD_001_100.(13, 512, 512, 1).npz``: a scipy sparse matrix with one row of H*W pixels a label, in the order
of ``labels`` without the background. The shape stands in the file name. Masks of an image may overlap.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from SegMoTELib.data.items import (
    BadFile,
    Item,
    Reference,
    SourceSet,
    group_from_name,
    layered_index_maps,
    modality_name,
    safe_name,
)
from SegMoTELib.data.readers.common import DESCRIPTION, carried_info, indexed_labels, read_description
from SegMoTELib.data.volumes import labelled_slices, read_raster, stem
from SegMoTELib.errors import DataError

SPLITS = {"training": None, "validation": "val", "test": "test"}  # the strictest last


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one data set folder.

    Raises:
        DataError: labels or pairs that are not described as expected.
    """
    description = read_description(folder)
    labels = indexed_labels(description, folder / DESCRIPTION)
    modality = description.get("modality")
    modality = modality_name(next(iter(modality.values()), "unknown") if isinstance(modality, dict) else modality)
    listed: list[tuple[str, Path, Path]] = []
    for key in SPLITS:
        for pair in description.get(key) or []:
            if not isinstance(pair, dict) or not all(isinstance(pair.get(part), str) for part in ("image", "label")):
                raise DataError(f"{folder / DESCRIPTION}: each entry of {key!r} needs 'image' and 'label'.")
            listed.append((key, _inside(folder, pair["image"]), _inside(folder, pair["label"])))
    places = {label_path: key for key, _, label_path in listed}
    references: dict[Path, Reference] = {}
    bad_files = []
    for key, image_path, label_path in listed:
        if key != places[label_path] or label_path in references:
            bad_files.append(BadFile(label_path, f"listed again in {key!r} by dataset.json; it counts once, in "
                                                 f"{places[label_path]!r}."))
            continue
        references[label_path] = Reference(label_path, partial(_read, image_path, label_path, labels, modality,
                                                               SPLITS[key], ct_window))
    return [SourceSet(code=safe_name(folder.name), modality=modality, labels=labels,
                      info=carried_info(description, folder), references=list(references.values()),
                      bad_files=bad_files)]


def _inside(folder: Path, name: object) -> Path:
    """A file that a description names, which must lie in the data set's folder."""
    path = Path(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{folder / DESCRIPTION}: {name!r} does not lie in the data set's folder.")
    return folder / path


def _read(image_path: Path, label_path: Path, labels: dict[int, str], modality: str, split: str | None,
          ct_window: tuple[float, float]) -> Iterator[Item]:
    image = read_raster(image_path)
    masks = read_sparse_masks(label_path)
    if len(masks) != len(labels):
        raise DataError(f"{label_path}: {len(masks)} masks, but dataset.json names {len(labels)} labels.")
    if masks.shape[1:] != image.size:
        raise DataError(f"{label_path}: {masks.shape[1]}x{masks.shape[2]} pixels, but its image has "
                        f"{image.size[0]}x{image.size[1]}.")
    present = {index: mask for index, mask in zip(labels, masks, strict=True) if mask.any()}
    maps = layered_index_maps(present) or [np.zeros(image.size, np.uint8)]
    name = stem(image_path)
    yield from labelled_slices(safe_name(name), image, maps, modality, image_path, group=group_from_name(name),
                               split=split, ct_window=ct_window)


def read_sparse_masks(path: Path) -> np.ndarray:
    """Return the masks of a label file as bool (labels, H, W).

    Raises:
        DataError: missing, damaged, without a shape in its name, or not binary.
    """
    try:
        shape = ast.literal_eval(path.name.split(".")[-2])
        count, height, width = (int(value) for value in shape[:3])
        if tuple(shape[3:]) not in ((), (1,)):
            raise ValueError(f"shape {shape}")
    except (ValueError, SyntaxError, TypeError, IndexError) as error:
        raise DataError(f"{path}: its name should end in '.(labels, height, width, 1).npz'.") from error
    if not path.exists():
        raise DataError(f"{path}: file not found.")
    try:
        stored = sparse.load_npz(path)  # numpy reads no objects here, so runs no pickle
        if np.prod(stored.shape, dtype=object) != count * height * width:  # before it takes the memory it asks for
            raise ValueError(f"it holds {stored.shape}")
        values = stored.toarray().reshape(count, height, width)
    except Exception as error:  # zip, numpy and scipy each raise their own on a damaged file
        raise DataError(f"{path}: not a sparse label matrix of shape {shape} ({error}).") from error
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"{path}: masks must hold 0 and 1 only.")
    return values.astype(bool)
