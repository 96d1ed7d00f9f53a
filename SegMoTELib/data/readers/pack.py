"""The pack's own layout as a source; splits, groups and instance maps stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from SegMoTELib.data.grey_levels import as_grey_or_rgb, to_8_bit
from SegMoTELib.data.items import (
    BadFile,
    Item,
    Reference,
    SourceSet,
    index_map,
    modality_name,
    safe_name,
    volume_from_name,
)
from SegMoTELib.data.pack import IMAGE_SUFFIXES, Pack, licence_of, open_pack
from SegMoTELib.data.readers.common import DESCRIPTION, SPLITS, as_labels
from SegMoTELib.data.volumes import check_same_grid, read_raster
from SegMoTELib.errors import DataError

RECOMPUTED = ("splits", "groups", "spacing_mm", "n_images", "n_groups", "n_masks", "images_per_label", "review",
              "labels", "modality", "licence", "license")


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one data set folder.

    Where ``dataset.json`` names no groups, an image is a group of its own, but slices of a volume that are numbered as
    curation numbers them (``scan_z012``) are one.

    Raises:
        DataError: no usable ``dataset.json``.
    """
    pack = open_pack(folder)
    unknown = sorted(set(pack.info["splits"]) - set(SPLITS))
    if unknown:
        raise DataError(f"{folder / DESCRIPTION}: splits must be named train, val and test, not {', '.join(unknown)}.")
    groups = pack.info.get("groups") or {}
    if not isinstance(groups, dict):
        raise DataError(f"{folder / DESCRIPTION}: groups must map names of images to patients or volumes.")
    listed = [(identifier, name) for name, identifiers in pack.info["splits"].items() for identifier in identifiers]
    places: dict[str, str] = {}
    for identifier, name in sorted(listed, key=lambda pair: list(SPLITS).index(pair[1])):
        places.setdefault(identifier, name)
    references, bad_files, seen = [], [], set()
    for identifier, name in listed:
        if name != places[identifier] or identifier in seen:
            bad_files.append(BadFile(folder / "images" / identifier, f"listed again in {name!r} by dataset.json; "
                                     f"it counts once, in {places[identifier]!r}."))
            continue
        seen.add(identifier)
        group = groups.get(identifier)
        group = volume_from_name(identifier) if group in (None, "") else str(group)  # a patient may be number 0
        references.append(Reference(folder / "images" / identifier,
                                    partial(_read, pack, identifier, SPLITS[name], group, ct_window)))
    bad_files += [BadFile(path, "not listed in any split of dataset.json.")
                  for path in sorted((folder / "images").rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
                  and path.relative_to(folder / "images").with_suffix("").as_posix() not in places]
    info = {key: value for key, value in pack.info.items() if key not in RECOMPUTED}
    return [SourceSet(code=safe_name(folder.resolve().name), modality=modality_name(pack.modality), labels=pack.labels,
                      info={"name": pack.code, "licence": licence_of(pack.info)} | info, references=references,
                      bad_files=bad_files)]


def _read(pack: Pack, identifier: str, split: str, group: str, ct_window: tuple[float, float]) -> Iterator[Item]:
    sample = pack.sample(identifier)
    image, label = read_raster(sample.image_path), read_raster(sample.label_path, label=True)
    check_same_grid(image, label, sample.label_path)
    instances = sample.load_instances()
    if instances is not None and instances.shape != label.size:
        raise DataError(f"{sample.instances_path}: its size differs from the label's.")
    yield Item(identifier=safe_name(identifier), image=as_grey_or_rgb(to_8_bit(image.array, pack.modality, ct_window)),
               label=index_map(as_labels(label, sample.label_path), sample.label_path, pack.labels), group=group,
               source_file=sample.image_path, split=split, spacing_mm=sample.spacing_mm, instances=instances)
