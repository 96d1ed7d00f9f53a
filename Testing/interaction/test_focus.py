"""Looking closer: where a view lies, its geometry, and what it changes in a prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SegMoTELib.interaction.focus import (
    View,
    ViewTransform,
    find_parts,
    find_view,
    mask_extent,
    mask_thickness,
    part_weights,
)
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.interaction.prompts import Prompts
from SegMoTELib.network import ModelConfig, build_model


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(build_model(replace(ModelConfig.tiny(), image_size=128)), "cpu", "fp32")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)


def test_a_small_object_gets_a_view_twice_its_size_around_it():
    view = find_view(np.array([180, 100, 219, 119]), 300, 400)
    assert view == View(160, 70, 240, 150)


@pytest.mark.parametrize("extent", [(0, 0, 39, 39), (380, 280, 399, 299), (-50, -50, 10, 10), (390, 290, 900, 900)])
def test_a_view_never_leaves_the_image(extent):
    view = find_view(np.array(extent), 300, 400)
    assert 0 <= view.x0 < view.x1 <= 400
    assert 0 <= view.y0 < view.y1 <= 300


def test_a_large_object_needs_no_view():
    assert find_view(np.array([50, 50, 250, 250]), 300, 400) is None


def test_a_view_is_at_most_the_image_where_that_is_narrow():
    view = find_view(np.array([100, 2, 119, 5]), 8, 400)
    assert (view.y0, view.y1) == (0, 8)


def test_prompts_and_masks_of_a_view_meet_on_the_image():
    """A logit at the place of a click must come back to the pixel that was clicked."""
    view = View(160, 70, 240, 150)
    transform = ViewTransform(replace(ModelConfig.tiny(), image_size=128), view, 300, 400)
    click = np.array([[203.0, 118.0]])
    low = torch.full((1, 32, 32), -10.0)
    column, row = ((transform.apply_points(click)[0] + 0.5) / 4).astype(int)
    low[0, row, column] = 10
    logits = transform.inverse_masks(low)[0].numpy()
    assert logits.shape == (300, 400)
    peak = np.unravel_index(logits.argmax(), logits.shape)
    assert np.abs(np.array(peak) - (118, 203)).max() <= 2
    assert (logits[:70] < -15).all()
    assert (logits[:, 240:] < -15).all()


def test_a_mask_survives_the_way_into_a_view_and_back():
    transform = ViewTransform(replace(ModelConfig.tiny(), image_size=128), View(160, 70, 240, 150), 300, 400)
    logits = torch.full((1, 300, 400), -10.0)
    logits[0, 95:125, 180:220] = 10
    back = transform.inverse_masks(transform.apply_logits(logits)) > 0
    truth = logits > 0
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.95


def test_the_extent_of_a_mask_is_its_extreme_pixels():
    mask = np.zeros((10, 20), bool)
    assert mask_extent(mask) is None
    mask[3:5, 7:12] = True
    assert mask_extent(mask).tolist() == [7, 3, 11, 4]


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_thickness_of_a_strip_is_its_width(width):
    mask = np.zeros((50, 400), bool)
    mask[20:20 + width, 2:398] = True
    assert mask_thickness(mask) == pytest.approx(width, rel=0.05)
    assert mask_thickness(np.zeros((4, 4), bool)) == 0


def test_parts_cover_the_region_of_a_thin_structure_and_overlap():
    mask = np.zeros((300, 400), bool)
    mask[140:144, 10:390] = True
    parts = find_parts(mask, np.array([10, 100, 389, 199]), 128 / 400, 128)
    assert parts
    seen = np.zeros(mask.shape, int)
    for part in parts:
        seen[part.cut] += 1
    assert seen[100:200, 10:390].min() >= 1
    assert seen.max() >= 2


def test_a_thick_structure_is_not_cut_into_parts():
    mask = np.zeros((300, 400), bool)
    mask[100:200, 100:300] = True
    assert find_parts(mask, mask_extent(mask), 128 / 400, 128) == []


def test_parts_count_most_in_their_middle():
    weights = part_weights(View(10, 20, 50, 60))
    assert weights.shape == (40, 40)
    assert weights[20, 20] == weights.max()
    assert 0 < weights[0, 0] < 0.1


def test_a_small_box_is_answered_on_a_closer_look_that_is_kept(predictor, image):
    predictor.set_image(image)
    box = np.array([180, 100, 219, 119])
    before = predictor.predict(box=box, multimask_output=False, return_logits=True)[0]
    assert View(160, 70, 240, 150) in predictor.encoded.views
    encode, calls = predictor.model.encode, []
    predictor.model.encode = lambda pixels: calls.append(1) or encode(pixels)
    try:
        again = predictor.predict(box=box, multimask_output=False, return_logits=True)[0]
    finally:
        predictor.model.encode = encode
    assert not calls
    np.testing.assert_array_equal(before, again)


def test_a_large_box_is_answered_on_the_whole_image_when_its_mask_is_thick(predictor, image, monkeypatch):
    monkeypatch.setattr("SegMoTELib.interaction.predictor.find_parts", lambda *_: [])
    predictor.set_image(image)
    predictor.predict(box=np.array([20, 20, 380, 280]), multimask_output=False)
    assert not predictor.encoded.views


def test_parts_under_a_box_are_told_what_the_whole_view_found(predictor, image, monkeypatch):
    monkeypatch.setattr("SegMoTELib.interaction.predictor.find_parts",
                        lambda *_: [View(0, 0, 200, 200), View(180, 0, 380, 200)])
    predictor.set_image(image)
    decode, given = predictor.model.decode, []
    monkeypatch.setattr(predictor.model, "decode",
                        lambda embedding, **prompts: given.append(prompts["masks"]) or decode(embedding, **prompts))
    predictor.predict(box=np.array([20, 20, 380, 180]), multimask_output=False)
    assert given[0] is None
    assert len(given) == 3
    whole, right = given[1], given[2]
    assert whole.shape == right.shape == (1, 1, predictor.model.config.mask_size, predictor.model.config.mask_size)
    assert not torch.equal(whole, right)


def test_only_a_box_alone_lets_unsure_masks_grow(predictor, image, monkeypatch):
    predictor.set_image(image)
    box = np.array([180, 100, 219, 119])
    click = {"point_coords": np.array([[200, 110]]), "point_labels": np.array([1])}
    low = predictor.predict(box=box, multimask_output=False)[2]
    asked = [{"box": box}, {"box": box, **click}, click, {"box": box, "mask_input": low}, {"mask_input": low}]
    before = [predictor.predict(**prompts, multimask_output=False, return_logits=True)[0] for prompts in asked]
    monkeypatch.setattr("SegMoTELib.interaction.predictor.best_threshold", lambda mask: -1000.0)
    after = [predictor.predict(**prompts, multimask_output=False, return_logits=True)[0] for prompts in asked]
    assert after[0].min() > 900
    for one, other in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_encoded_ahead_answer_as_if_set(predictor, image):
    other = image[::-1].copy()
    first, second = predictor.encode_image(image), predictor.encode_image(other)
    click = {"point_coords": np.array([[200, 150]]), "point_labels": np.array([1]), "multimask_output": False,
             "return_logits": True}
    answers = []
    for encoded in (first, second):
        predictor.set_encoded(encoded)
        answers.append(predictor.predict(**click)[0])
    for pixels, answer in zip((image, other), answers, strict=True):
        predictor.set_image(pixels)
        np.testing.assert_array_equal(predictor.predict(**click)[0], answer)


@pytest.mark.parametrize(("click", "parts"), [((-0.5, 20), [True, False]), ((99.4, 99.5), [False, True]),
                                              ((59.4, 20), [True, True]), ((59.6, 20), [False, True])])
def test_a_click_in_the_outer_half_of_a_border_pixel_counts_in_its_part(click, parts):
    prompts = Prompts(np.array([click, (50.0, 50.0)]), np.array([0, 1]), np.array([0.0, 0, 99, 99]))
    for view, expected in zip((View(0, 0, 60, 100), View(40, 0, 100, 100)), parts, strict=True):
        cut = prompts.inside(view, np.full((100, 100), -1.0))
        assert (0 in cut.labels) is expected
