"""The methods that a model is compared with."""

import numpy as np
import pytest

from SegMoTELib.evaluation.baselines import Ellipse, GrabCut, PromptedModel, RandomWalker, choose_methods
from SegMoTELib.evaluation.clicks import Click, first_click, simulate_clicks, tight_box
from SegMoTELib.evaluation.metrics import dice


@pytest.mark.parametrize("method", [GrabCut(), Ellipse()], ids=lambda method: method.name)
@pytest.mark.parametrize("colour", [False, True])
def test_box_finds_a_bright_disk(method, colour, a_bright_disk):
    image, truth = a_bright_disk
    method.set_image(np.stack([image] * 3, axis=-1) if colour else image)
    assert dice(method.from_box(tight_box(truth)), truth) > 0.95


@pytest.mark.parametrize("colour", [False, True])
def test_random_walker_finds_a_bright_disk_by_clicks(colour, a_bright_disk):
    image, truth = a_bright_disk
    method = RandomWalker()
    method.set_image(np.stack([image] * 3, axis=-1) if colour else image)
    steps = simulate_clicks(method.from_clicks, truth, most=3, least=3, enough=1.0)
    assert steps[-1].dice > 0.9


def test_grabcut_repeats_itself(a_bright_disk):
    image, truth = a_bright_disk
    method = GrabCut()
    method.set_image(image)
    assert np.array_equal(method.from_box(tight_box(truth)), method.from_box(tight_box(truth)))


def test_grabcut_uses_the_image_and_not_only_the_box(a_bright_disk):
    image, truth = a_bright_disk
    method = GrabCut()
    method.set_image(image)
    half = truth.copy()
    half[:, 66:] = False
    x0, y0, _, y1 = tight_box(truth)
    found = method.from_box((x0, y0, 100, y1))
    assert dice(found, truth) > 0.9


@pytest.mark.parametrize("box", [(0, 0, 119, 95), (5, 5, 5, 5), (119, 95, 119, 95), (0, 40, 119, 41)])
def test_extreme_boxes_are_answered(box, a_bright_disk):
    image, _ = a_bright_disk
    for method in (GrabCut(), Ellipse()):
        method.set_image(image)
        mask = method.from_box(box)
        assert mask.shape == image.shape
        assert mask.dtype == bool
        assert mask[(box[1] + box[3]) // 2, (box[0] + box[2]) // 2]


@pytest.mark.parametrize("clicks", [
    (Click(0, 0, 1),), (Click(119, 95, 1),), (Click(60, 40, 1), Click(60, 40, 0)), (Click(5, 5, 0),)])
def test_extreme_clicks_are_answered(clicks, a_bright_disk):
    image, _ = a_bright_disk
    method = RandomWalker()
    method.set_image(image)
    mask, _ = method.from_clicks(clicks, None)
    assert mask.shape == image.shape
    assert mask.dtype == bool


@pytest.mark.parametrize("shape", [(3, 4), (1, 300), (7, 512)])
def test_tiny_and_thin_images_are_answered(shape):
    method = RandomWalker()
    method.set_image(np.zeros(shape, np.uint8))
    assert method.from_clicks((first_click(np.ones(shape, bool)),), None)[0].shape == shape


def test_model_prompts_follow_the_predictor_contract(predictor, a_bright_disk):
    image, truth = a_bright_disk
    model, frozen = PromptedModel(predictor), PromptedModel(predictor, frozen=True)
    for method in (model, frozen):
        method.set_image(image)
    assert predictor.encoded == 1
    assert dice(model.from_boxes([tight_box(truth)]), truth) > dice(frozen.from_boxes([tight_box(truth)]), truth)
    steps = simulate_clicks(model.from_clicks, truth, most=2, least=2, enough=1.0)
    assert predictor.fed_back[0] is None
    assert predictor.fed_back[1].shape == (1, 4, 4)
    assert steps[1].dice > steps[0].dice


def test_methods_are_chosen_by_what_there_is(predictor):
    assert [method.name for method in choose_methods(predictor, baselines=False)] == ["SegMoTE"]
    assert [method.name for method in choose_methods(predictor, baselines=True)] == [
        "SegMoTE", "frozen base", "ellipse in box", "GrabCut", "random walker"]
    assert [method.name for method in choose_methods(None, baselines=True)] == [
        "ellipse in box", "GrabCut", "random walker"]


def test_a_checkpoint_without_adapters_is_not_compared_with_itself(predictor):
    predictor.model.adapters_trained = False
    assert "frozen base" not in [method.name for method in choose_methods(predictor, baselines=True)]
