"""Training reaches every parameter it should, and none that is frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from SegMoTELib.network import ModelConfig, SegMoTE, build_model
from SegMoTELib.network.model import is_adapter


def train_once(model: SegMoTE, pixels: torch.Tensor, prompts: dict, adapters: bool = True) -> None:
    """One backward pass through every kind of prompt."""
    model.train()
    torch.manual_seed(5)
    embedding = model.encode(pixels)
    loss = 0
    for given in ({"points": prompts["points"]}, {"boxes": prompts["boxes"]}, {"masks": prompts["masks"]}, prompts,
                  {"auto": torch.arange(3)}, {"auto": True} | prompts):
        prediction = model.decode(embedding, **given, adapters=adapters)
        loss = loss + prediction.logits.square().mean() + prediction.iou.square().mean()
        if adapters:
            loss = loss + prediction.expert_iou.square().mean() + prediction.balance_loss
    loss.backward()


def untouched(model: SegMoTE) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}


def test_every_adapter_parameter_learns_and_no_frozen_one(fresh_model, pixels, prompts):
    adapters = fresh_model.adapter_parameters()
    for name, parameter in fresh_model.named_parameters():
        parameter.requires_grad_(name in adapters)
    before = {name: value.clone() for name, value in fresh_model.state_dict().items() if name not in adapters}

    train_once(fresh_model, pixels, prompts)
    torch.optim.Adam([p for p in fresh_model.parameters() if p.requires_grad]).step()

    assert not untouched(fresh_model) & set(adapters)
    assert all(p.grad is None for name, p in fresh_model.named_parameters() if name not in adapters)
    assert all(torch.equal(fresh_model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("model", ["small_tiny_config"], indirect=True)
def test_every_base_parameter_of_the_compact_model_learns_without_experts(fresh_model, pixels, prompts):
    train_once(fresh_model, pixels, prompts, adapters=False)
    idle = {name for name in untouched(fresh_model) if not is_adapter(name)}
    # A softmax over keys does not see the key bias.
    assert {name for name in idle if not name.endswith("k_proj.bias")} == set()


def test_gradients_reach_the_pixels(model, pixels, prompts):
    pixels = pixels.clone().requires_grad_()
    model.decode(model.encode(pixels), points=prompts["points"]).logits.sum().backward()
    assert all(image.any() for image in pixels.grad)


@pytest.mark.parametrize("change", [{"expert_layers": (0,)}, {"expert_layers": (1,)}, {"top_k": 2}, {"experts": 6},
                                    {"experts": 1}], ids=str)
def test_other_numbers_of_experts_and_layers_train_too(small_tiny_config: ModelConfig, change):
    torch.manual_seed(0)
    model = build_model(replace(small_tiny_config, **change)).train()
    prediction = model.decode(model.encode(torch.randn(2, 3, 64, 64)), auto=True)
    (prediction.logits.square().mean() + prediction.balance_loss).backward()

    assert len(prediction.routing) == len(model.config.expert_layers)
    assert prediction.expert_logits.shape[1] == model.config.experts
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    routers = [layer.experts.gate for layer in model.mask_decoder.transformer.layers if layer.experts is not None]
    assert all(gate.grad is not None and (gate.grad.any() or model.config.experts == 1) for gate in routers)
