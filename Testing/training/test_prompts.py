"""Simulated prompts lie where a user would put them."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.training.prompts import corrective_click, extra_clicks, first_click, jittered_box


@pytest.fixture
def a_mask():
    mask = np.zeros((40, 50), bool)
    mask[10:25, 20:41] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_the_first_click_is_inside_the_target(a_mask, seed):
    x, y = first_click(a_mask, np.random.default_rng(seed)).astype(int)
    assert a_mask[y, x]


@pytest.mark.parametrize("seed", range(8))
def test_a_click_in_a_single_pixel_target_is_that_pixel(seed):
    mask = np.zeros((9, 9), bool)
    mask[3, 7] = True
    assert first_click(mask, np.random.default_rng(seed)).tolist() == [7, 3]


def test_boxes_are_exact_or_near_and_stay_in_the_image(a_mask):
    boxes = np.stack([jittered_box(a_mask, np.random.default_rng(seed)) for seed in range(200)])
    exact = (boxes == [20, 10, 40, 24]).all(axis=1).mean()
    assert 0.35 < exact < 0.65
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 49).all()
    assert (boxes[:, [1, 3]] <= 39).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert np.abs(boxes - [20, 10, 40, 24]).max() <= 0.2 * 21 + 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_a_corrective_click_is_positive_where_missed_and_negative_where_leaked(a_mask, seed):
    rng = np.random.default_rng(seed)
    missed = a_mask.copy()
    missed[10:25, 20:30] = False
    click, label = corrective_click(missed, a_mask, rng)
    assert label == 1
    assert a_mask[int(click[1]), int(click[0])]
    assert not missed[int(click[1]), int(click[0])]
    leaked = a_mask.copy()
    leaked[25:38] = True
    click, label = corrective_click(leaked, a_mask, rng)
    assert label == 0
    assert not a_mask[int(click[1]), int(click[0])]


def test_without_an_error_there_is_no_click(a_mask):
    assert corrective_click(a_mask, a_mask, np.random.default_rng(0))[1] == -1


@pytest.mark.parametrize("seed", range(8))
def test_extra_clicks_agree_with_the_mask(a_mask, seed):
    coords, labels = extra_clicks(a_mask, np.random.default_rng(seed))
    assert (labels >= 0).any()
    for (x, y), label in zip(coords.astype(int), labels, strict=True):
        assert label == -1 or bool(label) == a_mask[y, x]


def test_prompts_are_the_same_for_the_same_seed(a_mask):
    pairs = [(first_click(a_mask, np.random.default_rng(5)), jittered_box(a_mask, np.random.default_rng(6)))
             for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*pairs, strict=True))
