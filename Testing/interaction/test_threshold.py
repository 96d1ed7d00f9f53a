"""The threshold with the highest expected Dice."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.interaction.threshold import LOWEST, STEEPNESS, best_threshold


def expected_dice(logits, threshold):
    probability = 1 / (1 + np.exp(-STEEPNESS * logits))
    kept = logits > threshold
    return 2 * probability[kept].sum() / (kept.sum() + probability[logits > 3 * LOWEST].sum())


def test_a_clear_mask_keeps_its_outline():
    logits = np.full((40, 40), -9.0, np.float32)
    logits[10:30, 10:30] = 9.0
    np.testing.assert_array_equal(logits > best_threshold(logits), logits > 0)


def test_two_readings_that_are_equally_likely_are_both_kept():
    logits = np.full((40, 40), -8.0, np.float32)
    logits[5:15] = 0.1  # axon or myelin: the box does not say
    logits[20:30] = -0.1
    kept = logits > best_threshold(logits)
    assert kept[5:15].all()
    assert kept[20:30].all()
    assert kept.sum() == 800


@pytest.mark.parametrize("seed", range(6))
def test_no_other_allowed_threshold_promises_more(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(rng.uniform(-3, 0.5), rng.uniform(0.5, 3), (30, 30)).astype(np.float32)
    best = expected_dice(logits, best_threshold(logits))
    assert best >= max(expected_dice(logits, threshold) for threshold in np.linspace(LOWEST, 0, 200)) - 1e-9


def test_what_is_too_unlikely_is_in_no_mask_even_if_nothing_else_is():
    logits = np.full((20, 20), -5.0, np.float32)
    assert best_threshold(logits) == LOWEST
    logits[5:9, 5:9] = -1.5
    np.testing.assert_array_equal(logits > best_threshold(logits), logits > -2)


@pytest.mark.parametrize("logits", [np.full((5, 5), -20.0), np.zeros((0, 4))])
def test_where_nothing_is_likely_the_threshold_stays(logits):
    assert best_threshold(logits.astype(np.float32)) == 0.0
