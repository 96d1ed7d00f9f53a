"""Losses of interactive training: Dice + 4 x focal + IoU-head error (+ 0.01 x balance), after arXiv 2602.19213."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT = 4.0  # at SAM's 20, uncertain thin structures stay below the threshold; Dice is what is measured
FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.5  # SAM's 0.25 moves the border of an uncertain mask inwards: logit -1 instead of 0


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice + 4 x focal of every mask.

    Args:
        logits: (N, h, w). truth: (N, h, w), fraction of each pixel inside the target, 0 to 1.

    Returns:
        (N,) losses.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    miss = probability + truth - 2 * probability * truth  # 1 - p of the true class, for soft truth too
    focal = FOCAL_ALPHA * (miss ** FOCAL_GAMMA * cross_entropy).mean(dim=(1, 2))
    return dice + FOCAL_WEIGHT * focal


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of thresholded masks, any leading dimensions; 1 where both are empty. No gradient."""
    with torch.no_grad():
        predicted, inside = logits > 0, truth > 0.5
        union = (predicted | inside).sum(dim=(-2, -1))
        overlap = (predicted & inside).sum(dim=(-2, -1))
        return torch.where(union > 0, overlap / union.clamp(min=1), torch.ones_like(union, dtype=torch.float32))


def iou_head_loss(predicted: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
    """Squared error of predicted IoUs (N, K) for masks (N, K, h, w) against truth (N, h, w); (N,) losses."""
    actual = mask_iou(logits, truth[:, None].expand_as(logits))
    return ((predicted.float() - actual) ** 2).mean(dim=1)
