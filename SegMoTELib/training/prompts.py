"""Simulated prompts for training: jittered boxes, clicks inside the target, corrective clicks from the error region."""

from __future__ import annotations

import cv2
import numpy as np

EXTRA_CLICKS = 4  # most further clicks of a first prompt
DIAMOND = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def jittered_box(mask: np.ndarray, rng: np.random.Generator, jitter: float = 0.08) -> np.ndarray:
    """Bounding box of a mask with every side moved at random.

    Args:
        mask: (H, W) bool, not empty. jitter: standard deviation of the move as a fraction of the box's side.

    Returns:
        (4,) float32 x0, y0, x1, y1 of the extreme pixels; half of the boxes are exact.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    if rng.random() < 0.5:
        return box
    side = np.maximum(box[2:] - box[:2] + 1, 4)
    box += np.clip(rng.normal(0, jitter, 4), -0.2, 0.2) * np.tile(side, 2)
    box = np.clip(box, 0, np.array([mask.shape[1], mask.shape[0]] * 2) - 1)
    return np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]).astype(np.float32)


def first_click(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A click in the target, (2,) float32 x, y: its deepest point or a random one away from the border."""
    depth = _depth(mask)
    if rng.random() < 0.4:
        return _pick(depth == depth.max(), rng)
    return _pick(depth >= min(depth.max(), 1 + depth.max() // 3), rng)


def extra_clicks(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Further clicks drawn without a prediction: inside anywhere, or outside near the border.

    Returns:
        (EXTRA_CLICKS, 2) float32 x, y and (EXTRA_CLICKS,) int64 labels; unused places have label -1.
    """
    coords, labels = np.zeros((EXTRA_CLICKS, 2), np.float32), np.full(EXTRA_CLICKS, -1, np.int64)
    reach = max(2, len(mask) // 12)
    near = cv2.dilate(mask.view(np.uint8), DIAMOND, iterations=reach).view(bool) & ~mask
    for index in range(rng.integers(1, EXTRA_CLICKS + 1)):
        outside = rng.random() < 0.5 and near.any()
        coords[index], labels[index] = _pick(near if outside else mask, rng), int(not outside)
    return coords, labels


def corrective_click(predicted: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A click in the largest error region.

    Args:
        predicted, truth: (H, W) bool.

    Returns:
        (2,) float32 x, y and its label, 1 where the target was missed, 0 where it leaked; label -1 (no click) if
        there is no error.
    """
    error = predicted != truth
    if not error.any():
        return np.zeros(2, np.float32), -1
    count, regions, parts, _ = cv2.connectedComponentsWithStats(error.view(np.uint8), connectivity=4)
    if count > 2:  # with what is no error, region 0
        largest = parts[1:, cv2.CC_STAT_AREA].argmax()
        error = regions == 1 + (largest if rng.random() < 0.8 else rng.integers(count - 1))
    depth = _depth(error)
    click = _pick(depth >= max(1, depth.max() - 1) if rng.random() < 0.7 else error, rng)
    return click, int(truth[int(click[1]), int(click[0])])


def _depth(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32 chessboard distance to the nearest pixel outside the mask, or outside the image."""
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]


def _pick(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    index = np.flatnonzero(region)
    row, column = np.divmod(index[rng.integers(len(index))], region.shape[1])
    return np.array([column, row], np.float32)
