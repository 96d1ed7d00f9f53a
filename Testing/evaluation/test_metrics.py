"""Scores against libraries and by hand, and bootstrap intervals."""

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from SegMoTELib.evaluation.metrics import dice, draw_resamples, interval, iou, resampled_means, scores, surface_dice


def random_masks(seed):
    rng = np.random.default_rng(seed)
    return tuple(ndimage.gaussian_filter(rng.standard_normal((60, 50)), 4) > 0.02 for _ in range(2))


@pytest.mark.parametrize("seed", range(5))
def test_overlap_agrees_with_simpleitk(seed):
    prediction, truth = random_masks(seed)
    measure = SimpleITK.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, prediction)))
    assert dice(prediction, truth) == pytest.approx(measure.GetDiceCoefficient())
    assert iou(prediction, truth) == pytest.approx(measure.GetJaccardCoefficient())


def test_empty_masks_follow_the_stated_convention():
    empty, full = np.zeros((9, 9), bool), np.ones((9, 9), bool)
    assert set(scores(empty, empty).values()) == {1.0}
    assert set(scores(empty, full).values()) == set(scores(full, empty).values()) == {0.0}
    assert set(scores(full, full).values()) == {1.0}


def test_surface_dice_forgives_what_lies_within_the_tolerance():
    truth, prediction = np.zeros((2, 60, 60), bool)
    truth[20:40, 20:40] = True
    prediction[22:42, 20:40] = True
    assert surface_dice(prediction, truth) == 1.0
    assert surface_dice(prediction, truth, tolerance=1.0) < 1.0
    assert surface_dice(prediction, truth, spacing=(2.0, 2.0)) == surface_dice(prediction, truth, tolerance=1.0)
    assert surface_dice(truth, prediction, spacing=(3.0, 0.5)) == surface_dice(prediction, truth, spacing=(3.0, 0.5))


def test_surface_dice_counts_the_share_of_the_contour():
    truth, prediction = np.zeros((2, 80, 80), bool)
    truth[10:30, 10:30] = True
    prediction[10:30, 10:30] = prediction[50:70, 50:70] = True
    # Three squares' contours in all, two of them matched.
    assert surface_dice(prediction, truth) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0,), (1.0, float("nan"))])
def test_impossible_spacing_is_refused(spacing):
    mask = np.ones((5, 5), bool)
    with pytest.raises(ValueError, match="pixel spacing"):
        surface_dice(mask, mask, spacing=spacing)


@pytest.mark.parametrize("score", [dice, iou, surface_dice])
def test_masks_of_different_size_are_refused(score):
    with pytest.raises(ValueError, match="different shapes"):
        score(np.ones((4, 5), bool), np.ones((5, 4), bool))


def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).uniform(0.4, 1.0, 80)
    low, high = interval(resampled_means(values, np.ones(80, int), draw_resamples(80, seed=3, resamples=5000)))
    reference = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.005)


def test_bootstrap_draws_an_image_with_all_its_targets():
    # Two images, one with three targets of score 1: no resample can mix within it.
    means = resampled_means(np.array([3.0, 0.0]), np.array([3, 1]), draw_resamples(2, seed=0))
    assert set(np.round(means, 6)) == {0.0, 0.75, 1.0}


def test_a_resample_without_any_target_has_no_mean():
    means = resampled_means(np.array([1.0, 0.0]), np.array([1, 0]), np.array([[2, 0], [0, 2]]))
    assert means[0] == 1.0
    assert np.isnan(means[1])
