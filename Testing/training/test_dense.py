"""Dense class supervision: numbering of classes, its loss, and that it teaches the encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from SegMoTELib.data.pack import open_packs
from SegMoTELib.network import ModelConfig, build_model
from SegMoTELib.training.dense import ClassList, DenseHead

SIZE = 64


@pytest.fixture
def classes(a_pack):
    return ClassList(open_packs([str(a_pack)]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(replace(ModelConfig.tiny(), image_size=SIZE, compact_widths=(8, 16, 32, 32, 32),
                               compact_depths=(0, 1, 1, 1, 1), embed_dim=64, decoder_mlp=64, expert_rank=16))


def test_classes_are_numbered_after_the_shared_background(classes):
    assert len(classes) == 3
    own, places = classes.of_set("shapes")
    assert own == [0, 1, 2]
    assert places[:3].tolist() == [0, 1, 2]
    assert places[3:].sum() == 0
    own, places = classes.of_set("unknown")
    assert own == [0]
    assert places.sum() == 0


def test_the_loss_falls_and_reaches_the_encoder(classes, model):
    head = DenseHead(model.config, classes)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    pixels[:, :, 16:48, 16:48], labels[:, 16:48, 16:48] = 2.0, 1
    optimizer = torch.optim.Adam([*head.parameters(), *model.image_encoder.parameters()], lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = head(model.encode(pixels), labels, ["shapes"])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0
               for parameter in model.image_encoder.parameters())


def test_an_image_without_labels_teaches_background_only(classes, model):
    head = DenseHead(model.config, classes)
    loss = head(model.encode(torch.zeros(1, 3, SIZE, SIZE)), torch.zeros(1, SIZE, SIZE, dtype=torch.uint8), ["shapes"])
    assert torch.isfinite(loss)
