"""Writing data sets in the pack's layout."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from SegMoTELib.data.items import Item, SourceSet
from SegMoTELib.data.pack import check_identifier

NAME_BYTES = 200  # file systems take 255, and some more is added


class PackWriter:
    """Writes the images and labels of one data set, then its ``dataset.json``.

    Args:
        folder: the data set's folder, made at the first image.
        source: where the images come from.
    """

    def __init__(self, folder: Path, source: SourceSet) -> None:
        self.folder = folder
        self.source = source
        self._taken: set[str] = set()
        self._labels: dict[str, list[int]] = {}
        self._spacings: dict[str, list[float]] = {}

    def free_name(self, identifier: str) -> str:
        """Take the identifier, numbered when this data set already has it (file systems may ignore case).

        One that is too long for a file name keeps its beginning, and ends in a hash of all of it.
        """
        encoded = check_identifier(identifier).encode()
        if len(encoded) > NAME_BYTES:
            beginning = encoded[:NAME_BYTES - 9].decode(errors="ignore")
            identifier = f"{beginning}_{hashlib.sha256(encoded).hexdigest()[:8]}"
        name, count = identifier, 1
        while name.lower() in self._taken:
            count += 1
            name = f"{identifier}_{count}"
        self._taken.add(name.lower())
        return name

    def add(self, item: Item, name: str, kept: list[int]) -> None:
        """Write an image with the labels that were kept; the others become background in the written map only.

        Args:
            item: the image and its label map.
            name: a free identifier.
            kept: label indices to keep.
        """
        label = np.where(np.isin(item.label, kept), item.label, 0).astype(np.uint8)
        self._write("images", name, item.image)
        self._write("labels", name, label)
        if item.instances is not None:
            self._write("instances", name, np.where(label > 0, item.instances, 0).astype(np.uint16))
        self._labels[name] = sorted(kept)
        if item.spacing_mm:
            self._spacings[name] = [round(float(value), 4) for value in item.spacing_mm]

    def remove(self, name: str) -> None:
        """Take back an image that was added."""
        del self._labels[name]
        self._spacings.pop(name, None)
        for folder in ("images", "labels", "instances"):
            (self.folder / folder / f"{name}.png").unlink(missing_ok=True)

    def image_path(self, name: str) -> Path:
        """Return where an added image lies."""
        return self.folder / "images" / f"{name}.png"

    def finish(self, splits: dict[str, list[str]], groups: dict[str, str], labels: dict[int, str],
               review: dict) -> None:
        """Write ``dataset.json``.

        Args:
            splits: split -> identifiers.
            groups: identifier -> patient or volume.
            labels: index -> name, background left out.
            review: summary of what was rejected and why.
        """
        counts = Counter(index for kept in self._labels.values() for index in kept)
        description = self.source.info | {
            "modality": self.source.modality,
            "task_type": "binary" if len(labels) == 1 else "multiclass",
            "labels": {"0": "background"} | {str(index): name for index, name in sorted(labels.items())},
            "n_images": len(self._labels),
            "n_groups": len(set(groups.values())),
            "n_masks": sum(counts.values()),
            "images_per_label": {str(index): counts[index] for index in sorted(counts)},
            **({"spacing_mm": dict(sorted(self._spacings.items()))} if self._spacings else {}),
            "groups": groups,
            "splits": splits,
            "review": review,
        }
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (self.folder / "dataset.json").write_text(text + "\n", encoding="utf-8")

    def _write(self, folder: str, name: str, pixels: np.ndarray) -> None:
        path = self.folder / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
