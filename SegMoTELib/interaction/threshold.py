"""Which pixels an unsure answer keeps: those whose mask promises the highest Dice.

Half a chance is the best threshold for a single pixel, not for the mask: what is best for Dice is half the Dice that
can be reached (Lipton et al. 2014, arXiv 1402.1892). Clear masks keep their outline; faint or ambiguous ones grow.
"""

from __future__ import annotations

import numpy as np

STEEPNESS = 1.5  # factor on logits: the focal loss leaves them nearer to zero than the model is sure
LOWEST = -2.0  # logit: what is less likely is in no mask, or an answer without any idea would fill the image
ENOUGH = 1 << 16  # pixels, evenly drawn, tell the threshold of a large mask


def best_threshold(logits: np.ndarray) -> float:
    """The logit above which a mask has the highest expected Dice, taking pixels as independent.

    Args:
        logits: (H, W) or any other shape, float32.

    Returns:
        A logit from ``LOWEST`` to 0; masks that would be smaller with a positive threshold keep theirs at 0.
    """
    likely = logits[logits > 3 * LOWEST]  # what is less likely than this does not count
    if not len(likely):
        return 0.0
    likely = np.sort(likely[::-(-len(likely) // ENOUGH)])[::-1]
    probability = 1 / (1 + np.exp(-STEEPNESS * likely.astype(np.float64)))
    inside = np.cumsum(probability)
    expected = 2 * inside / (np.arange(1, len(likely) + 1) + inside[-1])
    last = np.nextafter(np.float32(likely[expected.argmax()]), np.float32(-np.inf))
    return float(np.clip(last, LOWEST, 0.0))
