"""Splits that keep patients and volumes together, and pictures that occur twice under different names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
SHARES = {"val": 0.15, "test": 0.15}  # of the groups; the rest is for training
HASH_DISTANCE = 6  # differing bits of 64
THUMBNAIL = 32  # pixels a side
CORRELATION = 0.95  # of the thumbnails; hashes alone also match pictures that are only alike
BLOCK = 2048  # rows of the distance table at a time


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a picture to recognise it.

    Attributes:
        exact: SHA-256 of its shape and pixels.
        perceptual: bool (8, 64), the DCT hash (pHash) of the picture turned and flipped in every way.
        thumbnail: float32 (32, 32) grey levels, zero mean and unit norm.
    """

    exact: str
    perceptual: np.ndarray
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Duplicate:
    """Two pictures of different groups that show the same: positions in the list, and "identical" or "near"."""

    first: int
    second: int
    kind: str


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Take the fingerprint of a picture, uint8 (H, W) or (H, W, 3)."""
    picture = Image.fromarray(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    perceptual = np.stack([imagehash.phash(Image.fromarray(one)).hash.ravel() for one in _turned(np.asarray(picture))])
    small = np.asarray(picture, np.float32)
    small = small - small.mean()
    digest = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    return Fingerprint(digest, perceptual, small / (np.linalg.norm(small) + 1e-6))


def find_duplicates(fingerprints: Sequence[Fingerprint], groups: Sequence[str]) -> list[Duplicate]:
    """Find pictures that occur in two groups, also rescaled, turned, flipped, compressed or windowed anew.

    Within a group (slices of a volume) likeness is expected.

    Args:
        fingerprints: of all pictures.
        groups: of the same pictures.
    """
    if len(fingerprints) < 2:
        return []
    bits = np.stack([one.perceptual for one in fingerprints]).astype(np.float32) * 2 - 1
    found: dict[tuple[int, int], str] = {}
    for start in range(0, len(bits), BLOCK):
        for turn in range(bits.shape[1]):
            distance = (bits.shape[2] - bits[start:start + BLOCK, 0] @ bits[:, turn].T) / 2
            for row, column in np.argwhere(distance <= HASH_DISTANCE):
                first, second = int(row) + start, int(column)
                if first >= second or groups[first] == groups[second]:
                    continue
                one, other = fingerprints[first], fingerprints[second]
                if one.exact == other.exact:
                    found[first, second] = "identical"
                elif (one.thumbnail * _turned(other.thumbnail)[turn]).sum() >= CORRELATION:
                    found.setdefault((first, second), "near")
    return [Duplicate(*pair, kind) for pair, kind in sorted(found.items())]


def _turned(picture: np.ndarray) -> list[np.ndarray]:
    """A square picture as it is, turned by quarters, and the same flipped."""
    return [np.rot90(side, quarters) for side in (picture, picture[:, ::-1]) for quarters in range(4)]


def assign_splits(groups: Sequence[str], fixed: Sequence[str | None], spaces: Sequence[str],
                  duplicates: Sequence[Duplicate], seed: int) -> list[str]:
    """Give every picture a split, whole groups at a time.

    A split fixed by the source stays, for the whole group; where a source puts one group into several splits, each
    picture keeps its own. Free groups with duplicates in other groups are moved together with them. The other free
    groups of a space are drawn by the seed: 15 % val, 15 % test, from three groups on at least one each; two groups
    make train and test. The draw goes by the groups' names, so most stay where they are when others are added.

    Args:
        groups: unique over all spaces.
        fixed: the split a source fixes, or None.
        spaces: what is split together: a data set, or the data sets of one study.
        duplicates: from ``find_duplicates``.
        seed: of the draw.
    """
    clusters = _Clusters(groups)
    free = set(groups) - {group for group, split in zip(groups, fixed, strict=True) if split}
    for one in duplicates:
        pair = groups[one.first], groups[one.second]
        # Tying two free groups, or a free one to a fixed one, moves it; two fixed ones stay where they are.
        if free & set(pair):
            clusters.join(*pair)
    chosen: dict[str, str] = {}
    for group, split in zip(groups, fixed, strict=True):
        root = clusters.root(group)
        if split and SPLITS.index(split) >= SPLITS.index(chosen.get(root, SPLITS[0])):
            chosen[root] = split
    by_space: dict[str, set[str]] = {}
    placed: set[str] = set(chosen)
    for space, group in zip(spaces, groups, strict=True):
        root = clusters.root(group)
        if root not in placed:
            placed.add(root)
            by_space.setdefault(space, set()).add(root)
    for space, roots in sorted(by_space.items()):
        chosen.update(_draw(roots, f"{seed}/{space}"))
    return [split or chosen[clusters.root(group)] for group, split in zip(groups, fixed, strict=True)]


def leaks(splits: Sequence[str], groups: Sequence[str], duplicates: Sequence[Duplicate],
          names: Sequence[str]) -> dict[int, str]:
    """Return the pictures to refuse, with the reason: what is in test stays there, and goes from val and train.

    Args:
        splits: of all pictures, from ``assign_splits``.
        groups: of the same pictures.
        duplicates: from ``find_duplicates``.
        names: of the same pictures, for the reasons.
    """
    refused: dict[int, str] = {}
    strictest: dict[str, str] = {}
    for split, group in zip(splits, groups, strict=True):
        strictest[group] = max(split, strictest.get(group, SPLITS[0]), key=SPLITS.index)
    for index, (split, group) in enumerate(zip(splits, groups, strict=True)):
        if split != strictest[group]:
            refused[index] = f"group across splits: the source has other images of it in {strictest[group]}"
    for one in duplicates:
        drop, keep = sorted((one.first, one.second), key=lambda index: SPLITS.index(splits[index]))
        if splits[drop] != splits[keep] and not {drop, keep} & refused.keys():
            likeness = "the same pixels as" if one.kind == "identical" else "nearly the same picture as"
            refused[drop] = f"duplicate across splits: {likeness} {names[keep]} in {splits[keep]}"
    return refused


def _draw(names: set[str], seed: str) -> dict[str, str]:
    groups = sorted(names, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    count = len(groups)
    sizes = {split: max(round(share * count), 1) if count >= 3 else 0 for split, share in SHARES.items()}
    if count == 2:
        sizes["test"] = 1
    chosen = dict.fromkeys(groups, "train")
    chosen.update(dict.fromkeys(groups[:sizes["test"]], "test"))
    chosen.update(dict.fromkeys(groups[sizes["test"]:sizes["test"] + sizes["val"]], "val"))
    return chosen


class _Clusters:
    """Union-find over group names; the root is the smallest name, so the order of joining does not matter."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._parent = {group: group for group in groups}

    def root(self, group: str) -> str:
        while self._parent[group] != group:
            self._parent[group] = self._parent[self._parent[group]]
            group = self._parent[group]
        return group

    def join(self, first: str, second: str) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low
