"""The review of masks: a sound pair passes, each defect is turned away for its own reason."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from SegMoTELib.data.pack import open_pack
from SegMoTELib.data.review import ReviewThresholds, measure, reason_kind, review_labels

SEEDS = range(8)


def kinds(image: np.ndarray, mask: np.ndarray, thresholds: ReviewThresholds | None = None) -> set[str]:
    (verdict,) = review_labels(image, mask.astype(np.uint8), thresholds)
    assert verdict.accepted == (not verdict.reasons)
    return {reason_kind(reason) for reason in verdict.reasons}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_pair_is_accepted(a_picture, seed):
    assert kinds(*a_picture(seed)) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_colour_picture_is_judged_like_a_grey_one(a_picture, seed):
    image, mask = a_picture(seed)
    assert kinds(np.stack([image, image // 2, image // 3], axis=-1), mask) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_blurred_image_is_rejected(a_picture, seed):
    image, mask = a_picture(seed)
    assert "blurred" in kinds(ndimage.gaussian_filter(image, 5), mask)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7])
def test_nine_in_ten_shifted_labels_are_rejected_for_their_border(a_picture, share):
    caught = []
    for seed in SEEDS:
        image, mask = a_picture(seed)
        for angle in np.radians([20, 110, 200, 290]):
            shift = np.round(share * np.sqrt(mask.sum()) * np.array([np.sin(angle), np.cos(angle)])).astype(int)
            caught.append("implausible border" in kinds(image, np.roll(mask, shift, axis=(0, 1))))
    assert np.mean(caught) >= 0.9


def test_an_empty_mask_is_rejected(a_picture):
    image, mask = a_picture()
    assert kinds(image, np.zeros_like(mask)) == {"empty mask"}
    assert measure(image, np.zeros_like(mask)).pixels == 0


def test_a_full_mask_is_rejected(a_picture):
    image, mask = a_picture()
    assert kinds(image, np.ones_like(mask)) == {"full mask"}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_inverted_mask_is_rejected_and_one_at_the_edge_is_not_taken_for_it(a_picture, seed):
    image, mask = a_picture(seed)
    assert "inverted mask" in kinds(image, ~mask)
    rows = np.flatnonzero(mask.any(axis=1))
    cut = np.s_[rows[0] + 5:rows[-1] - 4]  # the object touches two sides
    assert "inverted mask" not in kinds(image[cut], mask[cut])


def test_a_dot_is_rejected(a_picture):
    image, mask = a_picture()
    dot = np.zeros_like(mask)
    dot[40:42, 40:42] = True
    assert "too small" in kinds(image, dot)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_speckled_mask_is_rejected(a_picture, seed):
    image, mask = a_picture(seed)
    rng = np.random.default_rng(seed)
    assert "fragmented" in kinds(image, (mask & (rng.random(mask.shape) < 0.5)) | (rng.random(mask.shape) < 0.03))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mask_full_of_holes_is_rejected(a_picture, seed):
    image, mask = a_picture(seed)
    assert "fragmented" in kinds(image, mask & (np.random.default_rng(seed).random(mask.shape) < 0.75))


def test_a_flat_image_is_rejected(a_picture):
    _, mask = a_picture()
    assert {"blurred", "low contrast", "low entropy"} <= kinds(np.full(mask.shape, 120, np.uint8), mask)


def test_a_label_on_noise_is_rejected(a_picture):
    _, mask = a_picture()
    noise = np.random.default_rng(0).integers(0, 255, mask.shape).astype(np.uint8)
    assert "implausible border" in kinds(noise, mask)


def test_each_label_of_a_map_gets_its_own_verdict(a_picture):
    image, mask = a_picture()
    label = mask.astype(np.uint8)
    label[2, 2] = 7
    blob, dot = review_labels(image, label)
    assert (blob.label, blob.accepted) == (1, True)
    assert (dot.label, dot.accepted) == (7, False)


def test_thresholds_can_be_set(a_picture):
    assert kinds(*a_picture(), ReviewThresholds(min_sharpness=1.1)) == {"blurred"}


def test_measuring_twice_gives_the_same_numbers_and_leaves_the_input_alone(a_picture):
    image, mask = a_picture()
    before = image.copy(), mask.copy()
    assert measure(image, mask) == measure(image, mask)
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


@pytest.mark.parametrize(("code", "at_least"), [("kvasir_polyp", 0.85), ("sts_pet", 0.7), ("hippo_mr", 0.85),
                                                ("totalseg_ct", 0.85), ("dsb18_nuclei", 0.85)])
def test_most_masks_of_real_data_are_accepted(real_pack, code, at_least):
    samples = list(open_pack(real_pack / code).samples("train"))[::17][:8]
    verdicts = [verdict for sample in samples for verdict in review_labels(sample.load_image(), sample.load_label())]
    assert np.mean([verdict.accepted for verdict in verdicts]) >= at_least
