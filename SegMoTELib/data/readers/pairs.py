"""Folders of image-label pairs: NIfTI, NRRD, MetaImage, TIFF, PNG, JPEG.

Two files belong together when their paths are equal once the words that tell images from labels are taken out:
``images/a.nii.gz`` and ``labels/a.nii.gz``, ``a.nrrd`` and ``a_mask.nrrd`` or ``a.seg.nrrd``, ``case/image.nii.gz`` and
``case/label.nii.gz``. What is left alone is looked at again: numbered words (``volume-7.nii`` and
``segmentation-7.nii``), and the only image beside a label without a name of its own (``case/ct.nii.gz`` and
``case/seg.nii.gz``). Folders called train, val and test are the splits, if there are two of them at least. An optional
``dataset.json`` gives name, modality, labels and licence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
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
    SPLITS,
    carried_info,
    indexed_labels,
    pair_reference,
    read_description,
)
from SegMoTELib.data.readers.seg_nrrd import read_segment_names, read_segments
from SegMoTELib.data.volumes import PICTURE_SUFFIXES, is_image_file, labelled_slices, read_raster, stem

LABEL_WORDS = r"labels?|masks?|seg|segmentations?|annotations?|gt|ground_?truth"
IMAGE_WORDS = r"images?|imgs?"
NUMBERED_WORD = rf"(?:{LABEL_WORDS}|{IMAGE_WORDS}|volumes?)[-_. ]?(?=\d)"


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one folder of pairs, its subfolders included."""
    description = read_description(folder)
    images: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and is_image_file(path)):
        key, is_label = pair_key(path.relative_to(folder))
        (labels if is_label else images).setdefault(key, []).append(path)
    _pair_what_is_left(images, labels)
    names = indexed_labels(description, folder / DESCRIPTION)
    bad_files: list[BadFile] = []
    segment_paths = [path for paths in labels.values() for path in paths if _is_segmentation(path)]
    for segment_name in read_segment_names(segment_paths):
        if segment_name not in names.values():
            names[max(names, default=0) + 1] = segment_name
    modality = modality_name(description.get("modality", "unknown"))
    splits = {key: _split(paths[0].relative_to(folder)) for key, paths in images.items()}
    if len({split for split in splits.values() if split}) < 2:  # all of them in "train" leave nothing to test with
        splits = {}
    references = []
    for key in sorted(images.keys() | labels.keys()):
        image_paths, label_paths = images.get(key, []), labels.get(key, [])
        if len(image_paths) != 1 or len(label_paths) != 1:
            bad_files += [BadFile(path, _why_unpaired(image_paths, label_paths)) for path in image_paths + label_paths]
            continue
        references.append(_reference(key, image_paths[0], label_paths[0], modality, names, splits.get(key), ct_window))
    return [SourceSet(code=safe_name(folder.resolve().name), modality=modality, labels=names,
                      info=carried_info(description, folder.resolve()), references=references, bad_files=bad_files)]


def pair_key(path: Path) -> tuple[str, bool]:
    """Return what an image and its label have in common, and whether this path is the label.

    Args:
        path: relative to the source folder.
    """
    folders = [part for part in path.parts[:-1] if not re.fullmatch(rf"(?:{LABEL_WORDS}|{IMAGE_WORDS})", part, re.I)]
    is_label = any(re.fullmatch(LABEL_WORDS, part, re.I) for part in path.parts[:-1]) or _is_segmentation(path)
    is_image = any(re.fullmatch(IMAGE_WORDS, part, re.I) for part in path.parts[:-1])
    name = stem(path)
    if re.search(rf"(?:^|[-_.])(?:{LABEL_WORDS})$", name, re.I) \
            or (not is_image and re.fullmatch(rf"(?:{LABEL_WORDS})[-_. ]?\d+", name, re.I)):
        is_label = True
    name = re.sub(rf"(?:^|[-_.])(?:{LABEL_WORDS}|{IMAGE_WORDS})$", "", name, flags=re.I)
    # One letter with an accent may be one sign or two, as some systems store names.
    return unicodedata.normalize("NFC", "/".join([*folders, name] if name else folders)), is_label


def _pair_what_is_left(images: dict[str, list[Path]], labels: dict[str, list[Path]]) -> None:
    """Give labels without an image the key of an image without a label, where only one of each can be meant."""
    for of_image, of_label in ((_without_word, _without_word), (_folder, str)):  # a nameless label's key is its folder
        lonely = [_grouped(images.keys() - labels.keys(), of_image), _grouped(labels.keys() - images.keys(), of_label)]
        for shared in lonely[0].keys() & lonely[1].keys():
            image_keys, label_keys = (one[shared] for one in lonely)
            if len(image_keys) == len(label_keys) == 1:
                labels[image_keys[0]] = labels.pop(label_keys[0])


def _grouped(keys: set[str], by: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(by(key), []).append(key)
    return groups


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _without_word(key: str) -> str:
    return re.sub(rf"(^|/){NUMBERED_WORD}(?=[^/]*$)", r"\1", key, flags=re.I)


def _split(path: Path) -> str | None:
    """The split that one of a file's folders names, or None."""
    return next((SPLITS[part.lower()] for part in path.parts[:-1] if part.lower() in SPLITS), None)


def _reference(key: str, image_path: Path, label_path: Path, modality: str, names: dict[int, str], split: str | None,
               ct_window: tuple[float, float]) -> Reference:
    identifier = safe_name(key.replace("/", "_") or stem(image_path))
    is_picture = image_path.name.lower().endswith(PICTURE_SUFFIXES)
    group = group_from_name(key, is_volume=not is_picture) or identifier
    if _is_segmentation(label_path):
        return Reference(label_path, partial(_read_segmentation, image_path, label_path, identifier, modality, names,
                                             group, split, ct_window))
    return pair_reference([image_path], label_path, identifier, modality, names, group=group, split=split,
                          ct_window=ct_window)


def _read_segmentation(image_path: Path, label_path: Path, identifier: str, modality: str, names: dict[int, str],
                       group: str, split: str | None, ct_window: tuple[float, float]) -> Iterator[Item]:
    image = read_raster(image_path)
    indices = {name: index for index, name in names.items()}
    masks = {indices[name]: mask for name, mask in read_segments(label_path, image).items()}
    yield from labelled_slices(identifier, image, layered_index_maps(masks), modality, image_path, group=group,
                               split=split, ct_window=ct_window)


def _is_segmentation(path: Path) -> bool:
    return path.name.lower().endswith(".seg.nrrd")


def _why_unpaired(images: list[Path], labels: list[Path]) -> str:
    if not labels:
        return "image without a label."
    if not images:
        return "label without an image."
    files = ", ".join(path.name for path in images + labels)
    return f"cannot tell which image and which label belong together: {files}."
