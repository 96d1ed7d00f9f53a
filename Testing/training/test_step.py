"""One training step's simulated interaction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SegMoTELib.network import ModelConfig, build_model
from SegMoTELib.training.batches import Batch
from SegMoTELib.training.config import Phase, TrainingConfig
from SegMoTELib.training.dataset import Item
from SegMoTELib.training.step import InteractiveStep


@pytest.fixture
def given(monkeypatch):
    """What the decoder is given in every round of two, for 24 boxes of one step: a function of train or eval mode."""
    torch.manual_seed(0)
    model = build_model(replace(ModelConfig.tiny(), image_size=64))
    config = TrainingConfig("base", ("unused",), (Phase(64, 1, 1),), box_share=1.0)
    mask = np.zeros((64, 64), bool)
    mask[20:44, 16:40] = True
    item = Item(np.zeros((64, 64, 3), np.uint8), np.stack([mask] * 24), np.full(24, -1), mask.astype(np.uint8),
                ("set", "image"))
    batch = Batch.of([item], [0], config)

    def run(training: bool) -> list[dict]:
        rounds, decode = [], model.decode
        monkeypatch.setattr(model, "decode", lambda embedding, **prompts: rounds.append(prompts) or decode(
            embedding, **prompts))
        InteractiveStep(model.train(training), config)(batch, rounds=2)
        monkeypatch.setattr(model, "decode", decode)
        return rounds
    return run


def test_some_boxes_are_answered_twice_without_a_click_in_between(given):
    first, second = given(training=True)
    assert first["masks"] is None
    assert second["masks"] is not None
    labels = second["points"][1]
    assert 4 <= int((labels == -1).sum()) <= 20
    assert set(labels.unique().tolist()) <= {-1, 0, 1}


def test_validation_corrects_every_box(given):
    _, second = given(training=False)
    assert int((second["points"][1] == -1).sum()) == 0
