"""How well a mask matches its truth, and how sure a mean over images is.

Masks are boolean (H, W) arrays. Conventions for empty masks, the same for every score: both empty is a perfect match
(1.0), one empty is a complete miss (0.0).
"""

from __future__ import annotations

import warnings

import numpy as np

# A contour within this distance of the true one counts as right: millimetres where the pixel spacing is known, pixels
# where it is not.
SURFACE_TOLERANCE = 2.0


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice coefficient, twice the intersection over the sum of both sizes, in [0, 1].

    Raises:
        ValueError: the masks differ in shape.
    """
    prediction, truth = _masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return intersection over union (the Jaccard index), in [0, 1].

    Raises:
        ValueError: the masks differ in shape.
    """
    prediction, truth = _masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None = None,
                 tolerance: float = SURFACE_TOLERANCE) -> float:
    """Return the surface Dice (normalized surface distance): the share of both contours that lie close to each other.

    Computed by MONAI after Nikolov et al. (2018, arXiv:1809.04430), contours measured between pixels.

    Args:
        prediction, truth: boolean (H, W).
        spacing: (row, column) pixel spacing in millimetres; None measures in pixels.
        tolerance: largest distance that counts as close, in millimetres with a spacing, else in pixels.

    Raises:
        ValueError: the masks differ in shape, or the spacing is not two positive numbers.
    """
    prediction, truth = _masks(prediction, truth)
    if spacing is not None and (len(spacing) != 2 or not all(np.isfinite(spacing)) or min(spacing) <= 0):
        raise ValueError(f"pixel spacing must be two positive numbers, not {spacing}.")
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    import torch
    from monai.metrics import compute_surface_dice

    inside = bounds(prediction | truth, margin=2)  # distances cost by the pixel, and contours end here
    one, other = (torch.from_numpy(np.ascontiguousarray(mask[inside]))[None, None] for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls its own deprecated option
        score = compute_surface_dice(one, other, class_thresholds=[tolerance], include_background=True,
                                     spacing=spacing or (1.0, 1.0), use_subvoxels=True)
    return float(score.item())


def bounds(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns that hold a mask, boolean (H, W), with a margin; all of them if it is empty."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    lines = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(max(0, int(line[0]) - margin), int(line[-1]) + 1 + margin) for line in lines)
    return rows, columns


def scores(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None = None) -> dict[str, float]:
    """Return ``dice``, ``iou`` and ``surface_dice`` of one mask, as the functions above define them."""
    return {"dice": dice(prediction, truth), "iou": iou(prediction, truth),
            "surface_dice": surface_dice(prediction, truth, spacing)}


def draw_resamples(images: int, seed: int | tuple[int, ...], resamples: int = 1000) -> np.ndarray:
    """Draw bootstrap resamples of a data set: how often each image occurs in each, int64 (resamples, images)."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def resampled_means(sums: np.ndarray, counts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return the mean over targets in every resample, float (resamples,); NaN where a resample holds no target.

    An image is drawn with all its targets, which are not independent of each other.

    Args:
        sums: float (images,), the score summed over an image's targets.
        counts: int (images,), how many targets that sum has.
        draws: from ``draw_resamples``.
    """
    totals = draws @ counts
    return np.divide(draws @ sums, totals, out=np.full(len(draws), np.nan), where=totals > 0)


def interval(means: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrapped means, NaN left out."""
    low, high = np.nanpercentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of different shapes: {prediction.shape} and {truth.shape}.")
    return prediction.astype(bool), truth.astype(bool)
