"""Domain experts: a router tells kinds of images apart and adapts the decoder to them; the base stays what it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from SegMoTELib.network import ModelConfig, build_model, load_checkpoint, save_checkpoint
from SegMoTELib.network.checkpoints import attach_adapters
from SegMoTELib.network.domains import image_statistics

BOX = torch.tensor([[10.0, 10, 40, 40]])
KINDS = ("stripes", "noise")


def images(config: ModelConfig, kind: str, count: int, seed: int) -> torch.Tensor:
    """(count, 3, S, S) normalised pixels of one kind, each with its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    pattern = torch.randn(count, 1, size, size, generator=generator)
    if kind == "stripes":
        pattern = torch.sin(torch.arange(size) / 3.0 + 6 * torch.rand(count, 1, 1, 1, generator=generator))
        pattern = pattern.expand(count, 1, size, size)
    return (pattern + 0.3 * torch.randn(count, 1, 1, 1, generator=generator)).expand(-1, 3, -1, -1)


@pytest.fixture
def a_model(small_tiny_config):
    torch.manual_seed(5)
    return build_model(replace(small_tiny_config, domains=KINDS))


def logits(model, adapters=True):
    with torch.no_grad():
        embedding = model.encode(images(model.config, "noise", 1, 0))
        return model.decode(embedding, boxes=BOX, adapters=adapters).logits


def test_fresh_domain_experts_change_nothing(a_model):
    plain = build_model(replace(a_model.config, domains=()))
    plain.load_state_dict({name: value for name, value in a_model.state_dict().items() if "expert_domains" not in name})
    assert torch.equal(logits(a_model), logits(plain))


def test_trained_ones_change_the_experts_masks_and_never_the_bases(a_model):
    base, experts = logits(a_model, adapters=False), logits(a_model)
    for layer in a_model.mask_decoder.expert_domains.modulations:
        torch.nn.init.normal_(layer.weight, std=0.2)
    assert torch.equal(logits(a_model, adapters=False), base)
    assert not torch.allclose(logits(a_model), experts)
    adapters = a_model.adapter_parameters()
    assert all(name in adapters for name, _ in a_model.named_parameters() if "expert_domains" in name)


def test_the_router_learns_to_tell_images_apart(a_model):
    with torch.no_grad():
        seen, new = (a_model.encode(torch.cat([images(a_model.config, kind, 12, seed) for kind in KINDS]))
                     for seed in (1, 2))
    truth = torch.arange(2).repeat_interleave(12)
    a_model.mask_decoder.expert_domains.fit(image_statistics(seen), truth)
    assert torch.equal(a_model.domains(new).argmax(dim=1), truth)
    with torch.no_grad():
        told = a_model.decode(new[[0]], boxes=BOX).domain_probabilities
    assert told.shape == (1, 2)
    assert told[0, 0] > 0.5
    assert told.sum() == pytest.approx(1, abs=1e-5)


def test_a_rare_kind_counts_as_much_as_a_common_one(a_model):
    with torch.no_grad():
        common, rare = images(a_model.config, "stripes", 24, 1), images(a_model.config, "noise", 2, 1)
        seen = a_model.encode(torch.cat([common, rare]))
        new = a_model.encode(images(a_model.config, "noise", 6, 2))
    a_model.mask_decoder.expert_domains.fit(image_statistics(seen), torch.tensor([0] * 24 + [1] * 2))
    assert (a_model.domains(new).argmax(dim=1) == 1).all()


def test_a_known_kind_goes_before_what_the_image_looks_like(a_model):
    torch.nn.init.normal_(a_model.mask_decoder.expert_domains.modulations[0].weight, std=0.2)
    with torch.no_grad():
        embedding = a_model.encode(images(a_model.config, "noise", 1, 0))
        first, second = (a_model.decode(embedding, boxes=BOX, domains=torch.eye(2)[[kind]]) for kind in (0, 1))
    assert torch.equal(first.domain_probabilities, torch.tensor([[1.0, 0.0]]))
    assert not torch.allclose(first.logits, second.logits)


def test_one_image_with_many_prompts_is_routed_once_for_all(a_model):
    torch.nn.init.normal_(a_model.mask_decoder.expert_domains.modulations[0].weight, std=0.2)
    boxes = torch.cat([BOX, BOX + 5, BOX + 9])
    with torch.no_grad():
        embedding = a_model.encode(images(a_model.config, "noise", 1, 0))
        together = a_model.decode(embedding, boxes=boxes)
        alone = a_model.decode(embedding, boxes=boxes[1:2])
    assert together.domain_probabilities.shape == (1, 2)
    assert torch.allclose(together.logits[1], alone.logits[0], atol=1e-4)


def test_they_travel_with_the_weights_and_start_fresh_for_other_data(a_model, tmp_path):
    domains = a_model.mask_decoder.expert_domains
    torch.nn.init.normal_(domains.modulations[0].weight)
    domains.center.fill_(0.25)
    save_checkpoint(a_model, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config.domains == KINDS
    assert torch.equal(logits(loaded), logits(a_model))
    kept = attach_adapters(loaded, {"domains": KINDS}).mask_decoder.expert_domains
    assert torch.equal(kept.modulations[0].weight, domains.modulations[0].weight)
    other = attach_adapters(loaded, {"domains": ("mine", "yours")}).mask_decoder.expert_domains
    assert not other.modulations[0].weight.any()
    assert not other.center.any()


def test_only_the_compact_decoder_has_them(small_sam_config, small_tiny_config):
    for config in (small_sam_config, small_tiny_config):
        model = build_model(config)
        size = config.image_size
        with torch.no_grad():
            assert model.domains(model.encode(torch.zeros(1, 3, size, size))) is None
    with pytest.raises(ValueError, match="compact encoder"):
        replace(ModelConfig.sam("vit_b"), domains=KINDS)
