"""Training images in memory, augmented and cut into targets; every item depends on (seed, step, item) alone.

Nothing here holds a position in the data: an item is drawn from a generator seeded by its place in the run, so a
resumed run, or one split over several processes, sees exactly the items that an uninterrupted one would have.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from SegMoTELib.data.pack import Pack, Sample, check_maps
from SegMoTELib.errors import DataError
from SegMoTELib.interaction.focus import FINEST, THIN, mask_thickness
from SegMoTELib.network import AutoTarget

SET_WEIGHT = 0.3  # a set is drawn by its number of images to this power: 1 = images count the same, 0 = sets do
MIN_TARGET_PIXELS = 12  # smaller targets, at training resolution, are not asked for
THICKNESS = (6.0, 20.0)  # pixels of the network's input: to this, thin structures are magnified
PADDING_VALUE = (124, 116, 104)  # SAM pads with the pixel mean, zero after normalisation


@dataclass
class Item:
    """One augmented image with M targets.

    Attributes:
        image: (S, S, 3) uint8. masks: (M, S, S) bool. targets: (M,) auto-target index, -1 where none fits.
        label: (S, S) uint8 label values of the whole image.
        key: the image it came from; equal keys mean equal images only without augmentation.
        found: False where no target was large enough to be seen: then the masks hold the whole image.
    """

    image: np.ndarray
    masks: np.ndarray
    targets: np.ndarray
    label: np.ndarray
    key: tuple[str, str] = ("", "")
    found: bool = True


class TrainingData:
    """All training samples of some packs, decoded once into memory.

    Args:
        packs: data sets. split: "train" or "val". auto_targets: what PPT learns. size: S, side of the square items.
        masks_per_image: M. longest: images are kept with at most this longest side. mask_fraction: use only this
            fraction of every set's images (annotation-cost experiments), chosen by ``seed``.
        emphasis: data set code -> factor on how often it is drawn.
        pseudo_share: how often one of the targets is a region of the image itself (ScribblePrompt, arXiv 2312.07381).
        targets_only: other labels than the auto targets' count as background, and views hold the whole image.

    Raises:
        DataError: an image that cannot be read, label values without a name, or an instance map of another size.
    """

    def __init__(self, packs: list[Pack], split: str, auto_targets: tuple[AutoTarget, ...], size: int,
                 masks_per_image: int, longest: int = 512, mask_fraction: float = 1.0, seed: int = 0,
                 pseudo_share: float = 0.0, emphasis: dict[str, float] | None = None,
                 targets_only: bool = False) -> None:
        self.pseudo_share, self.targets_only = pseudo_share, targets_only
        self.size, self.masks_per_image = size, masks_per_image
        self.targets = {source: index for index, target in enumerate(auto_targets) for source in target.sources}
        self.sets: list[list[tuple[Sample, np.ndarray, np.ndarray, np.ndarray | None]]] = []
        weights = []
        for pack in packs:
            samples = list(pack.samples(split))
            if mask_fraction < 1 and samples:
                keep = max(1, round(mask_fraction * len(samples)))
                samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))[:keep]]
            loaded = [self._load(sample, longest, pack.labels) for sample in samples]
            loaded = [entry for entry in loaded if entry[2].any()]
            if loaded:
                self.sets.append(loaded)
                weights.append(len(loaded) ** SET_WEIGHT * (emphasis or {}).get(pack.code, 1.0))
        self.weights = np.array(weights) / np.sum(weights) if weights else np.zeros(0)

    def __len__(self) -> int:
        """Number of images."""
        return sum(map(len, self.sets))

    def at_size(self, size: int) -> TrainingData:
        """The same images for items of another size."""
        other = copy(self)
        other.size = size
        return other

    def _load(self, sample: Sample, longest: int,
              names: dict[int, str]) -> tuple[Sample, np.ndarray, np.ndarray, np.ndarray | None]:
        image, label, instances = sample.load_image(), sample.load_label(), sample.load_instances()
        try:
            check_maps(label, instances, names)
        except DataError as error:
            raise DataError(f"{sample.dataset}/{sample.identifier}: {error}") from error
        if self.targets_only:
            offered = [value for value in np.unique(label) if f"{sample.dataset}:{value}" in self.targets]
            label, instances = np.where(np.isin(label, offered), label, 0).astype(label.dtype), None
        scale = min(1.0, longest / max(label.shape))
        if scale < 1:
            size = (max(1, round(label.shape[1] * scale)), max(1, round(label.shape[0] * scale)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
            if instances is not None:
                instances = cv2.resize(instances.astype(np.float32), size,
                                       interpolation=cv2.INTER_NEAREST).astype(np.int32)
        return sample, image, label, instances if instances is not None and (instances > 0).any() else None

    def item(self, rng: np.random.Generator, augment: bool = True) -> Item:
        """Draw one item; a few tries make sure that its targets survive the augmentation."""
        found = True
        for attempt in range(8):
            chosen = self.sets[rng.choice(len(self.sets), p=self.weights)]
            sample, image, label, instances = chosen[rng.integers(len(chosen))]
            matrix = self._square_matrix(label, instances, rng, augment and attempt < 6)
            image, label, instances = self._warp(image, label, instances, matrix)
            candidates = self._candidates(sample, label, instances, rng)
            if candidates:
                break
        else:
            candidates, found = [(np.ones(label.shape, bool), -1)], False
        if len(candidates) < self.masks_per_image and rng.random() < self.pseudo_share:
            region = _image_region(image, rng)
            candidates += [(region, -1)] if region is not None else []
        picks = [candidates[i] for i in _spread(len(candidates), self.masks_per_image, rng)]
        if augment:
            image = _augment_intensity(image, rng)
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        return Item(np.ascontiguousarray(image), np.stack([mask for mask, _ in picks]),
                    np.array([target for _, target in picks]), label, (sample.dataset, sample.identifier), found)

    def _square_matrix(self, label, instances, rng, augment) -> np.ndarray:
        """The (2, 3) affine map into the square: fitted, or with random zoom, shift, rotation and flip.

        Most augmented views are crops around one object: small objects are learned at a size at which they can be
        seen, and prediction zooms in on them. Structures that fill the image, and thin or scattered ones, are also
        seen in parts, at full detail.
        """
        height, width = label.shape
        scale = self.size / max(height, width)
        if not augment:
            return np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])  # pixel centres
        center = np.array([width, height]) / 2
        if self.targets_only:
            return self._affine(center, scale * np.exp(rng.normal(-0.05, 0.12)), rng.normal(0, 0.15), 0.05, rng)
        zoom = scale * np.exp(rng.uniform(-0.3, 0.45))
        if rng.random() < 0.6:
            middle, side, thickness, pixel = _some_object(label if instances is None else instances, rng)
            center, zoom = middle, np.clip(self.size * rng.uniform(0.25, 0.75) / side, scale * 0.75, 8 * scale)
            if thickness * zoom < THIN and rng.random() < 0.6:
                wanted = np.exp(rng.uniform(*np.log(THICKNESS))) / thickness
                center, zoom = pixel, max(zoom, min(wanted, FINEST))
            elif side * scale > 0.75 * self.size and rng.random() < 0.5:
                center, zoom = rng.uniform(0.25, 0.75, 2) * [width, height], scale * rng.uniform(1.0, 3.0)
        angle = rng.normal(0, 0.25) + (rng.integers(4) * np.pi / 2 if rng.random() < 0.2 else 0)
        return self._affine(center, zoom, angle, 0.09, rng)

    def _affine(self, center, zoom, angle, shift, rng) -> np.ndarray:
        """(2, 3): ``center`` goes to the middle, give or take; some are flipped, all stretched a little."""
        flip = -1 if rng.random() < 0.4 else 1
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = linear @ np.diag([flip * np.exp(rng.normal(0, 0.08)), 1.0])
        goal = self.size / 2 + rng.normal(0, shift, 2) * self.size
        return np.concatenate([linear, (goal - linear @ center)[:, None]], axis=1)

    def _warp(self, image, label, instances, matrix):
        size = (self.size, self.size)
        shrink = cv2.INTER_AREA if matrix[0, 0] < 0.7 else cv2.INTER_LINEAR
        image = cv2.warpAffine(image, matrix, size, flags=shrink, borderValue=PADDING_VALUE)
        label = cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST)
        if instances is not None:
            instances = cv2.warpAffine(instances.astype(np.float32), matrix, size,
                                       flags=cv2.INTER_NEAREST).astype(np.int32)
        return image, label, instances

    def _candidates(self, sample, label, instances, rng) -> list[tuple[np.ndarray, int]]:
        """Targets in an image: classes, sometimes one connected part of a class, single instances where known."""
        found = []
        for value in np.unique(label[label > 0]):
            mask = label == value
            if mask.sum() < MIN_TARGET_PIXELS:
                continue
            target = self.targets.get(f"{sample.dataset}:{value}", -1)
            if target < 0 and rng.random() < 0.3:
                mask = _largest_or_any_part(mask, rng)
            found.append((mask, target))
        if instances is not None:
            values, counts = np.unique(instances[instances > 0], return_counts=True)
            values = values[counts >= MIN_TARGET_PIXELS]
            if len(values):
                picked = rng.choice(values, min(3 * self.masks_per_image, len(values)), replace=False)
                found.extend((instances == value, -1) for value in picked)
        return found


def _some_object(label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float, np.ndarray]:
    """One labelled object: centre (x, y), longest side and mean thickness in pixels, and one of its pixels (x, y)."""
    mask = label == rng.choice(np.unique(label[label > 0]))
    rows, columns = np.nonzero(mask)
    low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()])
    pick = rng.integers(len(rows))
    return ((low + high) / 2, float((high - low).max() + 1), mask_thickness(mask),
            np.array([columns[pick], rows[pick]], float))


def _image_region(image: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A region that the image's own edges suggest: one segment of a graph-based over-segmentation, or None."""
    grey = image if image.ndim == 2 else image[:, :, rng.integers(3)]
    scale = float(np.exp(rng.uniform(np.log(30), np.log(400))))
    segments = felzenszwalb(grey, scale=scale, sigma=rng.uniform(0.5, 1.2), min_size=40)
    sizes = np.bincount(segments.ravel())
    usable = np.flatnonzero((sizes >= 40) & (sizes < 0.6 * segments.size))
    return segments == rng.choice(usable) if len(usable) else None


def _spread(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``wanted`` picks out of ``count``, without repeats as long as possible."""
    rounds = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(rounds)[:wanted]


def _largest_or_any_part(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    big = np.flatnonzero(sizes >= MIN_TARGET_PIXELS)
    return parts == 1 + (rng.choice(big) if len(big) else sizes.argmax())


def _augment_intensity(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Window/level jitter, gamma, inversion, noise and blur on uint8 images, as scanners and users vary them."""
    x: np.ndarray = image.astype(np.float32) / 255
    if rng.random() < 0.8:
        low, high = rng.normal(0, 0.08), 1 + rng.normal(0, 0.12)
        x = (x - low) / max(0.3, high - low)
    x = np.clip(x, 0, 1)
    if rng.random() < 0.5:
        x = x ** float(np.exp(rng.normal(0, 0.3)))
    if image.ndim == 3 and rng.random() < 0.5:
        x = x * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    if rng.random() < 0.08:
        x = 1 - x
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.25:
        x = x + rng.normal(0, rng.uniform(0.01, 0.06), x.shape).astype(np.float32)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
