"""The expert view tells which expert answered, how sure, and where it looked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SegMoTELib.interaction.expert_view import draw_expert_view
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import ModelConfig, build_model


@pytest.fixture
def a_predictor():
    torch.manual_seed(0)
    predictor = Predictor(build_model(ModelConfig.tiny()), "cpu", "fp32")
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8))
    return predictor


def test_the_view_agrees_with_the_prediction(a_predictor):
    a_predictor.predict(np.array([[30, 20]]), np.array([1]))
    view = a_predictor.expert_view()
    assert view.selected == int(a_predictor.last.selected[0])
    assert view.selected == view.token_probabilities.argmax()
    assert view.token_probabilities.sum() == pytest.approx(1, abs=1e-5)
    for routing, gates in zip(view.routing, view.gate_probabilities, strict=True):
        assert np.array_equal(routing, gates.argmax(axis=1))
        assert np.allclose(gates.sum(axis=1), 1, atol=1e-5)
    assert view.attention.shape == (4, 70, 90)
    assert (view.attention >= 0).all()
    assert view.attention.std() > 0


def test_the_picture_is_written(a_predictor, tmp_path):
    masks, _, _ = a_predictor.predict(box=np.array([10, 10, 60, 50]))
    image = np.zeros((70, 90), np.uint8)
    draw_expert_view(a_predictor.expert_view(), image, masks[0], tmp_path / "new" / "view.png")
    assert (tmp_path / "new" / "view.png").read_bytes().startswith(b"\x89PNG")


def test_a_closer_look_goes_by_what_kind_of_image_the_whole_is(tmp_path):
    torch.manual_seed(0)
    predictor = Predictor(build_model(replace(ModelConfig.tiny(), domains=("a", "b", "c"))), "cpu", "fp32")
    image = np.zeros((400, 400, 3), np.uint8)
    image[150:170, 150:170] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    predictor.set_image(image)
    domains = predictor.model.mask_decoder.expert_domains
    with torch.no_grad():
        whole = domains.route(predictor.encoded.embedding.to(torch.float32))[0]
    masks, _, _ = predictor.predict(box=np.array([150, 150, 169, 169]))
    assert predictor.encoded.views  # it was looked at closer
    view = predictor.expert_view()
    assert list(view.domains.values()) == sorted(whole.tolist(), reverse=True)
    assert view.domains["b"] == whole[1]
    draw_expert_view(view, image, masks[0], tmp_path / "view.png")
    assert (tmp_path / "view.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_prediction_or_adapters_there_is_no_view(a_predictor):
    with pytest.raises(RuntimeError, match="needs a prediction"):
        a_predictor.expert_view()
    a_predictor.predict(box=np.array([10, 10, 60, 50]), adapters=False)
    with pytest.raises(RuntimeError, match="needs a prediction"):
        a_predictor.expert_view()
