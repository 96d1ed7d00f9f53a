"""Folders of image-label pairs: NIfTI, NRRD, MetaImage, TIFF, PNG, JPEG.

Two files belong together when their paths are equal once the words that tell images from labels are taken out:
``images/a.nii.gz`` and ``labels/a.nii.gz``, ``a.nrrd`` and ``a_mask.nrrd`` or ``a.seg.nrrd``, ``case/image.nii.gz`` and
``case/label.nii.gz``. An optional ``dataset.json`` gives name, modality, labels and licence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

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
from SegMoTELib.data.readers.common import (
    DESCRIPTION,
    carried_info,
    indexed_labels,
    pair_reference,
    read_description,
)
from SegMoTELib.data.readers.seg_nrrd import read_segment_names, read_segments
from SegMoTELib.data.volumes import PICTURE_SUFFIXES, is_image_file, labelled_slices, read_raster, stem

LABEL_WORDS = r"labels?|masks?|seg|segmentations?|annotations?|gt|ground_?truth"
IMAGE_WORDS = r"images?|imgs?|img"


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one folder of pairs, its subfolders included."""
    description = read_description(folder)
    images: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and is_image_file(path)):
        key, is_label = pair_key(path.relative_to(folder))
        (labels if is_label else images).setdefault(key, []).append(path)
    names = indexed_labels(description, folder / DESCRIPTION)
    bad_files: list[BadFile] = []
    segment_paths = [path for paths in labels.values() for path in paths if _is_segmentation(path)]
    for segment_name in read_segment_names(segment_paths):
        if segment_name not in names.values():
            names[max(names, default=0) + 1] = segment_name
    modality = modality_name(description.get("modality", "unknown"))
    references = []
    for key in sorted(images.keys() | labels.keys()):
        image_paths, label_paths = images.get(key, []), labels.get(key, [])
        if len(image_paths) != 1 or len(label_paths) != 1:
            bad_files += [BadFile(path, _why_unpaired(image_paths, label_paths)) for path in image_paths + label_paths]
            continue
        references.append(_reference(key, image_paths[0], label_paths[0], modality, names, ct_window))
    return [SourceSet(code=safe_name(folder.resolve().name), modality=modality, labels=names,
                      info=carried_info(description, folder.resolve()), references=references, bad_files=bad_files)]


def pair_key(path: Path) -> tuple[str, bool]:
    """Return what an image and its label have in common, and whether this path is the label.

    Args:
        path: relative to the source folder.
    """
    folders = [part for part in path.parts[:-1] if not re.fullmatch(rf"(?:{LABEL_WORDS}|{IMAGE_WORDS})", part, re.I)]
    is_label = any(re.fullmatch(LABEL_WORDS, part, re.I) for part in path.parts[:-1]) or _is_segmentation(path)
    name = stem(path)
    if re.search(rf"(?:^|[-_.])(?:{LABEL_WORDS})$", name, re.I):
        is_label = True
    name = re.sub(rf"(?:^|[-_.])(?:{LABEL_WORDS}|{IMAGE_WORDS})$", "", name, flags=re.I)
    # One letter with an accent may be one sign or two, as some systems store names.
    return unicodedata.normalize("NFC", "/".join([*folders, name] if name else folders)), is_label


def _reference(key: str, image_path: Path, label_path: Path, modality: str, names: dict[int, str],
               ct_window: tuple[float, float]) -> Reference:
    identifier = safe_name(key.replace("/", "_") or stem(image_path))
    is_picture = image_path.name.lower().endswith(PICTURE_SUFFIXES)
    group = group_from_name(key) if is_picture else key or identifier
    if _is_segmentation(label_path):
        return Reference(label_path, partial(_read_segmentation, image_path, label_path, identifier, modality, names,
                                             group, ct_window))
    return pair_reference([image_path], label_path, identifier, modality, names, group=group, split=None,
                          ct_window=ct_window)


def _read_segmentation(image_path: Path, label_path: Path, identifier: str, modality: str, names: dict[int, str],
                       group: str, ct_window: tuple[float, float]) -> Iterator[Item]:
    image = read_raster(image_path)
    indices = {name: index for index, name in names.items()}
    masks = {indices[name]: mask for name, mask in read_segments(label_path, image).items()}
    yield from labelled_slices(identifier, image, layered_index_maps(masks), modality, image_path, group=group,
                               ct_window=ct_window)


def _is_segmentation(path: Path) -> bool:
    return path.name.lower().endswith(".seg.nrrd")


def _why_unpaired(images: list[Path], labels: list[Path]) -> str:
    if not labels:
        return "image without a label."
    if not images:
        return "label without an image."
    files = ", ".join(path.name for path in images + labels)
    return f"cannot tell which image and which label belong together: {files}."
