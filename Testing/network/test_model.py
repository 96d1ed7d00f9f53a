"""encode and decode: batches, embeddings, learned prompts, repeatability and sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from SegMoTELib.network import AutoTarget, ImageEmbedding, ModelConfig, SegMoTE, build_model
from SegMoTELib.network.model import is_adapter
from SegMoTELib.network.prompt_encoders import draw_prompts


def same(one, other, tolerance: float = 2e-5) -> None:
    """Two predictions agree in everything a user sees."""
    assert torch.equal(one.selected, other.selected)
    for name in ("logits", "iou", "expert_logits", "expert_iou"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.shape == right.shape
        assert (left - right).abs().max() < tolerance, name
    assert all(torch.equal(left, right) for left, right in zip(one.routing, other.routing, strict=True))


def row(prompts: dict, index: int) -> dict:
    """The prompts of one object."""
    some = slice(index, index + 1)
    return {"points": tuple(part[some] for part in prompts["points"]), "boxes": prompts["boxes"][some],
            "masks": prompts["masks"][some]}


def pick(prediction, index: int):
    """One object's part of a prediction."""
    some = slice(index, index + 1)
    return replace(prediction, **{name: getattr(prediction, name)[some] for name in
                                  ("logits", "iou", "expert_logits", "expert_iou", "selected")},
                   routing=tuple(layer[some] for layer in prediction.routing))


@torch.no_grad()
def test_images_encoded_together_equal_images_encoded_alone(model, pixels, embedding):
    alone = ImageEmbedding.cat([model.encode(image[None]) for image in pixels])
    assert len(alone) == len(embedding) == 3
    assert (alone.features - embedding.features).abs().max() < 2e-5
    for one, other in zip(alone.early, embedding.early, strict=True):
        assert (one - other).abs().max() < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("points",), ("boxes",), ("masks",), ("points", "boxes"),
                                   ("points", "boxes", "masks")], ids="+".join)
def test_many_prompts_on_one_image_equal_one_by_one(model, embedding, prompts, kinds):
    image = embedding[[1]]
    together = model.decode(image, **{kind: prompts[kind] for kind in kinds})
    assert together.logits.shape == (3, 1, model.config.mask_size, model.config.mask_size)
    for index in range(3):
        one = row(prompts, index)
        same(model.decode(image, **{kind: one[kind] for kind in kinds}), pick(together, index))


@torch.no_grad()
@pytest.mark.parametrize("auto", [None, "brain"])
def test_many_images_with_a_prompt_each_equal_one_by_one(model, embedding, prompts, auto):
    together = model.decode(embedding, **prompts, auto=auto)
    for index in range(3):
        same(model.decode(embedding[[index]], **row(prompts, index), auto=auto), pick(together, index))


@torch.no_grad()
def test_many_images_without_prompts_equal_one_by_one(model, embedding):
    together = model.decode(embedding, auto="lung")
    assert len(together.logits) == 3
    for index in range(3):
        same(model.decode(embedding[[index]], auto="lung"), pick(together, index))


@torch.no_grad()
def test_every_image_can_have_another_target(model, embedding):
    together = model.decode(embedding, auto=torch.tensor([2, 0, 1]))
    for index, name in enumerate(("skin lesion", "lung", "brain")):
        same(model.decode(embedding[[index]], auto=name), pick(together, index))


@torch.no_grad()
def test_the_base_alone_is_consistent_in_batches_too(model, embedding, prompts):
    together = model.decode(embedding, **prompts, adapters=False)
    assert together.expert_logits is None
    assert together.selected is None
    for index in range(3):
        alone = model.decode(embedding[[index]], **row(prompts, index), adapters=False)
        assert (alone.logits[0] - together.logits[index]).abs().max() < 2e-5
        assert (alone.iou[0] - together.iou[index]).abs().max() < 2e-5


@torch.no_grad()
def test_the_logits_are_the_selected_experts_mask(model, embedding, prompts):
    prediction = model.decode(embedding, **prompts, attention=True)
    for index, chosen in enumerate(prediction.selected):
        assert torch.equal(prediction.logits[index, 0], prediction.expert_logits[index, chosen])
        assert torch.equal(prediction.iou[index, 0], prediction.expert_iou[index, chosen])
    side = model.config.embedding_size
    assert prediction.attention.shape == (3, 4, side, side)
    assert torch.allclose(prediction.attention.flatten(2).sum(-1), torch.ones(3, 4), atol=1e-5)
    for indices, gates in zip(prediction.routing, prediction.gate_probabilities, strict=True):
        assert indices.shape == (3, 4)
        assert torch.equal(gates.argmax(-1), indices)


@torch.no_grad()
def test_the_same_input_gives_the_same_output(model, pixels, prompts):
    one, other = (model.decode(model.encode(pixels), **prompts, auto=True) for _ in range(2))
    same(one, other, tolerance=1e-12)
    assert torch.equal(build_again(model).encode(pixels).features, model.encode(pixels).features)


def build_again(model: SegMoTE) -> SegMoTE:
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    return again


@torch.no_grad()
def test_indexing_an_embedding_selects_and_repeats_images(model, embedding):
    picked = embedding[[2, 0, 0]]
    assert len(picked) == 3
    assert torch.equal(picked.features, embedding.features[[2, 0, 0]])
    assert all(torch.equal(p, e[[2, 0, 0]]) for p, e in zip(picked.early, embedding.early, strict=True))
    assert picked.nbytes == embedding.nbytes
    assert torch.equal(embedding[1:].features, embedding.features[1:])
    assert embedding.to(torch.float64).features.dtype == torch.float64


def test_what_is_kept_with_an_embedding_follows_the_weights(fresh_model, pixels, prompts):
    with torch.no_grad():
        embedding = fresh_model.encode(pixels)
        for experts in (False, True):
            first = fresh_model.decode(embedding, points=prompts["points"], adapters=experts).logits
            for name, parameter in fresh_model.named_parameters():
                if name.startswith("mask_decoder."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
            changed = fresh_model.decode(embedding, points=prompts["points"], adapters=experts).logits
            fresh = fresh_model.decode(embedding[:], points=prompts["points"], adapters=experts).logits
            assert not torch.allclose(changed, first)
            assert torch.equal(changed, fresh)


def test_the_embedding_of_no_mask_may_change_alone(small_sam_config):
    model = build_model(small_sam_config)
    points = (torch.tensor([[[9.0, 20.0]]]), torch.ones(1, 1))
    with torch.no_grad():
        embedding = model.encode(torch.randn(1, 3, 64, 64))
        model.decode(embedding, points=points)
        model.prompt_encoder.no_mask_embed.weight.mul_(-3)
        changed = model.decode(embedding, points=points).logits
        assert torch.equal(changed, model.decode(embedding[:], points=points).logits)


def test_gradients_and_kept_products_do_not_mix(fresh_model, pixels, prompts):
    with torch.no_grad():
        embedding = fresh_model.encode(pixels)
        expected = fresh_model.decode(embedding, points=prompts["points"]).logits
    actual = fresh_model.decode(embedding, points=prompts["points"]).logits
    assert torch.allclose(actual, expected, atol=2e-5)
    actual.sum().backward()
    assert fresh_model.mask_decoder.expert_tokens.weight.grad.any()


@torch.no_grad()
def test_two_models_do_not_share_what_is_kept_with_an_embedding(model, pixels, prompts):
    one, other = build_again(model), build_again(model)
    for parameter in other.mask_decoder.parameters():
        parameter.data = 1.5 * parameter.data
    embedding = model.encode(pixels)
    for decoder in (one, other, one):
        shared = decoder.decode(embedding, points=prompts["points"]).logits
        assert torch.equal(shared, decoder.decode(embedding[:], points=prompts["points"]).logits)


@torch.no_grad()
def test_learned_prompts_differ_between_targets_and_work_beside_user_prompts(model, embedding, prompts):
    by_target = {target.name: model.decode(embedding, auto=target.name).logits for target in model.config.auto_targets}
    lung, brain, skin = by_target.values()
    assert not torch.allclose(lung, brain)
    assert not torch.allclose(brain, skin)
    assert torch.equal(model.decode(embedding, auto=True).logits, lung)

    alone = model.decode(embedding, **prompts).logits
    both = model.decode(embedding, **prompts, auto="brain").logits
    assert not torch.allclose(both, alone)
    assert not torch.allclose(both, brain)
    refined = model.decode(embedding, masks=prompts["masks"], auto="brain").logits
    assert not torch.allclose(refined, brain)


def test_an_unknown_target_is_answered_with_those_on_offer(model, embedding):
    with pytest.raises(ValueError, match=r"'liver'; it offers: 'lung', 'brain', 'skin lesion'"):
        model.decode(embedding, auto="liver")


def test_a_model_without_learned_prompts_says_so(small_tiny_config):
    model = build_model(replace(small_tiny_config, auto_targets=()))
    with pytest.raises(ValueError, match="offers: none"):
        model.decode(model.encode(torch.zeros(1, 3, 64, 64)), auto=True)


def test_contradictory_requests_are_refused_in_words(model, embedding, prompts):
    with pytest.raises(ValueError, match="decode needs a prompt"):
        model.decode(embedding)
    with pytest.raises(ValueError, match="prompts disagree on their number"):
        model.decode(embedding, boxes=prompts["boxes"][:2], masks=prompts["masks"])
    with pytest.raises(ValueError, match="prompts disagree on their number"):
        model.decode(embedding, points=(prompts["points"][0], prompts["points"][1][:1]))
    with pytest.raises(ValueError, match="2 prompts do not fit 3 images"):
        model.decode(embedding, boxes=prompts["boxes"][:2])
    with pytest.raises(ValueError, match="encode expects"):
        model.encode(torch.zeros(1, 3, 65, 64))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_stays_close_to_full(fresh_model, pixels, prompts, dtype):
    exact = [fresh_model.decode(fresh_model.encode(pixels), **prompts, auto=auto, adapters=adapters).logits
             for auto in (None, "brain") for adapters in (True, False)]
    fresh_model.to(dtype)
    embedding = fresh_model.encode(pixels)
    rough = [fresh_model.decode(embedding, **prompts, auto=auto, adapters=adapters)
             for auto in (None, "brain") for adapters in (True, False)]
    for one, other in zip(exact[1::2], rough[1::2], strict=True):  # the base: nothing is routed elsewhere by rounding
        assert other.logits.dtype == dtype
        assert (other.logits.float() - one).norm() < 0.08 * one.norm()
    assert all(torch.isfinite(prediction.logits).all() for prediction in rough)


def test_clicks_and_boxes_are_drawn_where_they_are_at_reduced_precision():
    points, boxes = (torch.tensor([[[201.0, 250.0]]]), torch.ones(1, 1)), torch.tensor([[129.0, 131.0, 251.0, 253.0]])
    exact, rough = (draw_prompts(128, 256, 1, points, boxes, None, torch.zeros(1, dtype=dtype))
                    for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert torch.equal(rough, exact.to(torch.bfloat16))


@pytest.mark.parametrize(("change", "field"), [
    ({"encoder": "resnet"}, "encoder"), ({"gating": "soft"}, "gating"), ({"resize": "crop"}, "resize"),
    ({"top_k": 5}, "top_k"), ({"top_k": 0}, "top_k"), ({"expert_layers": ()}, "expert_layers"),
    ({"expert_layers": (2,)}, "expert_layers"), ({"image_size": 100}, "image_size"),
    ({"auto_targets": (AutoTarget("a"), AutoTarget("a"))}, "auto_targets"),
], ids=str)
def test_a_contradictory_configuration_is_refused_by_the_fields_name(change, field):
    with pytest.raises(ValueError, match=field):
        replace(ModelConfig.tiny(), **change)


@pytest.mark.parametrize("config", [ModelConfig.tiny(), ModelConfig.published(),
                                    *map(ModelConfig.sam, ("vit_b", "vit_l", "vit_h"))],
                         ids=lambda config: config.name)
def test_a_configuration_survives_its_plain_form(config):
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_sam_has_three_encoders_only():
    with pytest.raises(ValueError, match="vit_b, vit_l, vit_h"):
        ModelConfig.sam("vit_t")


def test_tiny_stays_below_8_million_parameters():
    assert sum(p.numel() for p in build_model(ModelConfig.tiny()).parameters()) <= 8_000_000


def test_adapters_are_what_sam_does_not_have():
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        model = SegMoTE(ModelConfig.sam("vit_b"))
        sam = set(sam_model_registry["vit_b"]().state_dict())
    assert {name for name in model.state_dict() if not is_adapter(name)} == sam
    assert set(model.adapter_parameters()) == {name for name, _ in model.named_parameters()} - sam
