"""What is segmented in an image: one target per label value, or single objects where the data set tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from SegMoTELib.data.pack import Pack, check_maps

# Smaller masks are mostly noise of the annotation, and one pixel decides their Dice: they are skipped and counted.
MIN_PIXELS = 16
MAX_INSTANCES = 5


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to segment.

    Attributes:
        name: of its label; single objects carry their number in the instance map, "nucleus #12".
        mask: boolean (H, W).
    """

    name: str
    mask: np.ndarray


def find_targets(label: np.ndarray, names: dict[int, str], instances: np.ndarray | None,
                 seed: tuple[int, ...]) -> tuple[list[Target], int]:
    """Return the targets of an image, and how many were skipped for having fewer than ``MIN_PIXELS``.

    Args:
        label: index map, uint8 (H, W), 0 = background.
        names: index -> label name.
        instances: int (H, W) map of single objects, or None, which an empty one is as good as. With it, at most
            ``MAX_INSTANCES`` objects are drawn and the label as a whole is no target.
        seed: decides which objects are drawn.

    Raises:
        DataError: the label map holds a value without a name, or the instance map is of another size.
    """
    check_maps(label, instances, names)
    if instances is None or not instances.any():
        found = [(names[int(value)], label == value) for value in np.unique(label) if value]
        kept = [Target(name, mask) for name, mask in found if np.count_nonzero(mask) >= MIN_PIXELS]
        return kept, len(found) - len(kept)
    numbers, sizes = np.unique(instances[instances != 0], return_counts=True)
    large = numbers[sizes >= MIN_PIXELS]
    drawn = np.sort(np.random.default_rng(seed).permutation(large)[:MAX_INSTANCES])
    return [_instance(int(number), instances, label, names) for number in drawn], len(numbers) - len(large)


def find_auto_targets(label: np.ndarray, pack: Pack, offered: tuple[Any, ...]) -> list[Target]:
    """Return what a model that needs no prompt offers to find in an image, each with its truth; absent ones left out.

    An auto target belongs to a data set when one of its ``sources`` ("code:label index") names it; the truth is the
    union of those labels. A data set that no source names is matched by modality and label name instead, so that
    other data of the same kind is evaluated too.

    Args:
        label: index map, uint8 (H, W).
        pack: the data set of the image.
        offered: ``Predictor.auto_targets`` (name, modality, sources).
    """
    found = []
    for target in offered:
        mask = np.isin(label, sorted(_labels_of(target, pack)))
        if np.count_nonzero(mask) >= MIN_PIXELS:
            found.append(Target(target.name, mask))
    return found


def _labels_of(target: Any, pack: Pack) -> set[int]:
    sources = [source.rpartition(":") for source in target.sources]
    named = {int(index) for code, _, index in sources if code == pack.code and index.isdecimal()}
    if named:
        return named
    if _plain(target.modality) != _plain(pack.modality):
        return set()
    return {index for index, name in pack.labels.items() if _plain(name) == _plain(target.name)}


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def _instance(number: int, instances: np.ndarray, label: np.ndarray, names: dict[int, str]) -> Target:
    mask = instances == number
    return Target(f"{names.get(int(np.bincount(label[mask]).argmax()), 'object')} #{number}", mask)
