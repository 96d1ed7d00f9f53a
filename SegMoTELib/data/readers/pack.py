"""The pack's own layout as a source; splits, groups and instance maps stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from SegMoTELib.data.grey_levels import as_grey_or_rgb
from SegMoTELib.data.items import Item, Reference, SourceSet, index_map, modality_name, safe_name
from SegMoTELib.data.pack import Pack, open_pack

RECOMPUTED = ("splits", "groups", "spacing_mm", "n_images", "n_groups", "n_masks", "images_per_label", "review",
              "labels", "modality")


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one data set folder; its images are 8 bit already, so the window has no effect.

    Raises:
        DataError: no usable ``dataset.json``.
    """
    pack = open_pack(folder)
    groups = pack.info.get("groups") or {}
    references = [Reference(folder / "images" / identifier,
                            partial(_read, pack, identifier, split, str(groups.get(identifier, identifier))))
                  for split, identifiers in pack.info["splits"].items() for identifier in identifiers]
    info = {key: value for key, value in pack.info.items() if key not in RECOMPUTED}
    return [SourceSet(code=safe_name(folder.resolve().name), modality=modality_name(pack.modality), labels=pack.labels,
                      info={"name": pack.code, "licence": "not stated"} | info, references=references)]


def _read(pack: Pack, identifier: str, split: str, group: str) -> Iterator[Item]:
    sample = pack.sample(identifier)
    image, label = sample.load_image(), sample.load_label()
    yield Item(identifier=identifier, image=as_grey_or_rgb(image), group=group, source_file=sample.image_path,
               label=index_map(label, sample.label_path, pack.labels), split=split, spacing_mm=sample.spacing_mm,
               instances=sample.load_instances())
