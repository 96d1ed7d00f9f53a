"""Everything mode: what stands out on an image, found by a grid of clicks as SAM's automatic mask generator does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from SegMoTELib.interaction.predictor import EncodedImage, Predictor

GRID = 16  # clicks along a side
AT_ONCE = 16  # clicks decoded together; between them others may use the model, or end it
LEAST_IOU = 0.5  # as the model estimates it
OFFSET, LEAST_STABILITY = 0.5, 0.7  # IoU of the masks at logits +OFFSET and -OFFSET; less than SAM's, which is sharper
SAME = 0.7  # IoU from which two masks are one
LARGEST = 0.6  # of the image; larger masks are background
SMALLEST = 6  # pixels of the low-resolution mask
MOST = 60  # candidates


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing found.

    Attributes:
        mask: (H, W) bool. iou: the model's estimate. stability: see ``LEAST_STABILITY``.
    """

    mask: np.ndarray
    iou: float
    stability: float


def find_everything(predictor: Predictor, encoded: EncodedImage,
                    go_on: Callable[[float], bool] = lambda done: True) -> list[Candidate]:
    """Candidates on an image, best first, without doubles.

    Args:
        go_on: called with the share that is done before each of a few dozen steps; False ends it without candidates.
    """
    height, width = encoded.pixels.shape[:2]
    side = max(height, width) / GRID
    columns, rows = (np.arange(min(side, length) / 2, length, side) for length in (width, height))
    grid = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    found = []
    for first in range(0, len(grid), AT_ONCE):
        if not go_on(first / len(grid)):
            return []
        with predictor.turn:
            found += _answers(predictor, encoded, grid[first:first + AT_ONCE])
    found.sort(key=lambda one: -one[1] * one[2])
    kept: list[tuple] = []
    for low, iou, stability in found:
        mask = low > 0
        if len(kept) < MOST and all(_iou(mask, other > 0) < SAME for other, _, _ in kept):
            kept.append((low, iou, stability))
    masks = [encoded.transform.inverse_masks(torch.from_numpy(low[None]))[0].numpy() > 0 for low, _, _ in kept]
    return [Candidate(mask, iou, stability) for mask, (_, iou, stability) in zip(masks, kept, strict=True)
            if mask.any()]


def _answers(predictor: Predictor, encoded: EncodedImage, clicks: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
    """Low-resolution logits, estimated IoU and stability of the clicks whose answer is worth showing."""
    logits, iou = predictor.predict_clicks(encoded, clicks)
    low, high = (logits > -OFFSET).sum(axis=(1, 2)), (logits > OFFSET).sum(axis=(1, 2))
    stability = high / np.maximum(low, 1)
    area = (logits > 0).sum(axis=(1, 2))
    good = ((iou >= LEAST_IOU) & (stability >= LEAST_STABILITY) & (area >= SMALLEST)
            & (area <= LARGEST * logits[0].size))
    return [(logits[i], float(iou[i]), float(stability[i])) for i in np.flatnonzero(good)]


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return int(np.count_nonzero(one & other)) / max(1, int(np.count_nonzero(one | other)))
