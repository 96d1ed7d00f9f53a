"""The losses say what the paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import dice, jaccard

from SegMoTELib.training.losses import iou_head_loss, mask_iou, mask_loss


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(3, 16, 16, generator=generator) > 0.6).float()
    return torch.randn(3, 16, 16, generator=generator), truth


def test_a_perfect_confident_mask_costs_nothing(masks):
    _, truth = masks
    assert mask_loss((truth * 2 - 1) * 40, truth).max() < 1e-3


def test_a_wrong_mask_costs_more_than_an_unsure_one(masks):
    _, truth = masks
    assert (mask_loss((1 - truth * 2) * 10, truth) > mask_loss(torch.zeros_like(truth), truth)).all()


def test_the_dice_part_equals_the_library_for_hard_masks(masks):
    logits, truth = masks
    hard = (logits > 0).float() * 80 - 40
    for row in range(3):
        focal_free = mask_loss(hard[row:row + 1], truth[row:row + 1]).item()
        predicted = (logits[row] > 0).numpy().ravel()
        wrong = predicted != (truth[row].numpy().ravel() > 0.5)
        focal = 4 * np.mean(wrong * 0.5 * 40)
        assert focal_free - focal == pytest.approx(dice(predicted, truth[row].numpy().ravel() > 0.5), abs=0.01)


def test_an_uncertain_border_is_drawn_in_the_middle():
    """Where a pixel is inside half of the time, no side is preferred: the best logit is 0."""
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    truth = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    half = torch.cat([torch.zeros(2, 8, 4), torch.ones(2, 8, 4)], dim=2)
    focal_pull = torch.autograd.grad(mask_loss(logits, truth * (1 - half) + half * 0.5).sum(), logits)[0]
    assert focal_pull[0, 0, 0] == pytest.approx(-focal_pull[1, 0, 0].item(), rel=0.5)


def test_iou_equals_the_library(masks):
    logits, truth = masks
    for row in range(3):
        expected = 1 - jaccard((logits[row] > 0).numpy().ravel(), truth[row].numpy().ravel() > 0.5)
        assert mask_iou(logits, truth)[row].item() == pytest.approx(expected, abs=1e-6)


def test_iou_of_two_empty_masks_is_one():
    assert mask_iou(torch.full((1, 4, 4), -1.0), torch.zeros(1, 4, 4)).item() == 1


def test_the_iou_head_is_pulled_to_the_actual_iou(masks):
    logits, truth = masks
    actual = mask_iou(logits, truth)[:, None]
    assert iou_head_loss(actual, logits[:, None], truth).max() < 1e-12
    assert (iou_head_loss(actual + 0.5, logits[:, None], truth) > 0.2).all()


def test_the_loss_has_gradients_where_truth_is_fractional():
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    mask_loss(logits, torch.full((1, 4, 4), 0.7)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad < 0).all()
