"""The rearranged transformer and upscaling equal the formulations they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import nn

from SegMoTELib.network import ModelConfig
from SegMoTELib.network.transformer import ExpertTransformer, ImageSide, attention_map
from SegMoTELib.network.upscaling import (
    expand_tokens,
    layer_norm_channels,
    product_after_conv,
    product_masks,
    to_map,
    upscale,
)

SIDE, DIM, PROMPTS = 6, 64, 3


@pytest.fixture(scope="module")
def transformers():
    """segment-anything's transformer and ours with the same weights, none of them trivial."""
    torch.manual_seed(0)
    config = ModelConfig(name="", encoder="sam_vit", image_size=96, embed_dim=DIM, decoder_mlp=48, expert_layers=(1,))
    ours = ExpertTransformer(config).eval()
    theirs = TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=8, mlp_dim=48).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "experts" not in name:
                parameter.copy_(2 * parameter if parameter.ndim == 2 else parameter + 0.3 * torch.randn_like(parameter))
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if ".experts." not in name})
    return ours, theirs


@pytest.fixture(params=[1, PROMPTS], ids=["one image", "an image per prompt"])
def scene(request):
    torch.manual_seed(1)
    return torch.randn(request.param, DIM, SIDE, SIDE), torch.randn(1, DIM, SIDE, SIDE), torch.randn(PROMPTS, 7, DIM)


@pytest.mark.parametrize("projected", [False, True], ids=["folded", "projected ahead"])
def test_the_transformer_is_segment_anythings(transformers, scene, projected):
    ours, theirs = transformers
    image, pe, tokens = scene
    placed = pe.flatten(2).transpose(1, 2)
    keys = image.flatten(2).transpose(1, 2)
    side = ImageSide(keys, keys + placed)
    with torch.no_grad():
        side = ours.layers[0].project(side) if projected else side
        out, image_out, routings = ours(tokens, side, placed, None)
        expected, image_expected = theirs(image.expand(PROMPTS, -1, -1, -1), pe.expand(PROMPTS, -1, -1, -1), tokens)
    assert routings == []
    assert (out - expected).abs().max() < 2e-5
    assert (image_out - image_expected).abs().max() < 2e-5


def test_experts_in_one_layer_leave_the_other_layer_to_the_usual_mlp(transformers, scene):
    ours, _ = transformers
    image, pe, tokens = scene
    placed, keys = pe.flatten(2).transpose(1, 2), image.flatten(2).transpose(1, 2)
    with torch.no_grad():
        out, _, routings = ours(tokens, ImageSide(keys, keys + placed), placed, slice(2, 5))
    assert out.shape == tokens.shape
    assert len(routings) == 1
    assert routings[0].indices.shape == (PROMPTS, 3)


def test_projecting_ahead_does_not_change_the_experts_path(transformers, scene):
    ours, _ = transformers
    image, pe, tokens = scene
    placed, keys = pe.flatten(2).transpose(1, 2), image.flatten(2).transpose(1, 2)
    side = ImageSide(keys, keys + placed)
    with torch.no_grad():
        folded = ours(tokens, side, placed, slice(2, 5))
        ahead = ours(tokens, ours.layers[0].project(side), placed, slice(2, 5))
    assert (folded[0] - ahead[0]).abs().max() < 2e-5
    assert (folded[1] - ahead[1]).abs().max() < 2e-5


def test_gradients_are_segment_anythings(transformers, scene):
    ours, theirs = transformers
    image, pe, tokens = scene
    placed, keys = pe.flatten(2).transpose(1, 2), image.flatten(2).transpose(1, 2)
    weight = torch.randn(PROMPTS, 7, DIM)
    for model in transformers:
        model.zero_grad()
    (ours(tokens, ImageSide(keys, keys + placed), placed, None)[0] * weight).sum().backward()
    expected = theirs(image.expand(PROMPTS, -1, -1, -1), pe.expand(PROMPTS, -1, -1, -1), tokens)[0]
    (expected * weight).sum().backward()
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None or name.endswith("k_proj.bias"):  # a softmax does not see the key bias
            continue
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        assert (own[name].grad - parameter.grad).abs().max() / scale < 1e-3, name


def test_the_attention_map_is_a_distribution_over_the_image(transformers, scene):
    ours, _ = transformers
    image, _, tokens = scene
    weights = attention_map(ours.final_attn_token_to_image, tokens, image.flatten(2).transpose(1, 2))
    assert weights.shape == (PROMPTS, 7, SIDE * SIDE)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(PROMPTS, 7), atol=1e-5)


def branch(channels: int, hidden: int, out: int, end: bool) -> nn.Sequential:
    """[2x up, norm, GELU, 2x up, (GELU)] with weights that are not trivial."""
    torch.manual_seed(2)
    layers = [nn.ConvTranspose2d(channels, hidden, 2, stride=2), LayerNorm2d(hidden), nn.GELU(),
              nn.ConvTranspose2d(hidden, out, 2, stride=2), *([nn.GELU()] if end else [])]
    nn.init.normal_(layers[1].weight)
    nn.init.normal_(layers[1].bias)
    return nn.Sequential(*layers).requires_grad_(False)


def as_tokens(image: torch.Tensor) -> torch.Tensor:
    return image.flatten(2).transpose(1, 2)


def test_expanded_tokens_are_a_transposed_convolution():
    up = branch(10, 6, 4, False)[0]
    image = torch.randn(2, 10, SIDE, SIDE)
    expanded = expand_tokens(as_tokens(image), up).unflatten(1, (SIDE, SIDE))
    spatial = expanded.permute(0, 5, 1, 3, 2, 4).reshape(2, 6, 2 * SIDE, 2 * SIDE)
    assert torch.allclose(spatial, up(image), atol=1e-5)


def test_channel_norm_is_layer_norm_2d():
    norm = branch(10, 6, 4, False)[1]
    image = torch.randn(2, 6, SIDE, SIDE)
    normed = layer_norm_channels(image.permute(0, 2, 3, 1), norm)
    assert torch.allclose(normed.permute(0, 3, 1, 2), norm(image), atol=1e-5)


@pytest.mark.parametrize("end", [True, False], ids=["with GELU at the end", "without"])
def test_upscaled_tokens_and_masks_are_convolutions_and_dot_products(end):
    layers = branch(10, 6, 4, end)
    image, hyper = torch.randn(3, 10, SIDE, SIDE), torch.randn(3, 5, 4)
    expected = layers(image)
    upscaled = upscale(as_tokens(image), layers)
    assert torch.allclose(to_map(upscaled, SIDE).permute(0, 3, 1, 2), expected, atol=1e-5)
    masks = torch.einsum("nkc,nchw->nkhw", hyper, expected)
    assert torch.allclose(product_masks(upscaled, hyper, SIDE), masks, atol=1e-5)


def test_one_images_features_serve_many_prompts():
    layers = branch(10, 6, 4, True)
    image, hyper = torch.randn(1, 10, SIDE, SIDE), torch.randn(3, 5, 4)
    expected = torch.einsum("nkc,nchw->nkhw", hyper, layers(image).expand(3, -1, -1, -1))
    assert torch.allclose(product_masks(upscale(as_tokens(image), layers), hyper, SIDE), expected, atol=1e-5)


def test_a_mask_after_a_convolution_is_the_convolution_then_the_dot_product():
    torch.manual_seed(3)
    conv = nn.Conv2d(7, 5, 3, padding=1).requires_grad_(False)
    image, hyper = torch.randn(2, 7, 9, 12), torch.randn(2, 4, 5)
    expected = torch.einsum("nko,nohw->nkhw", hyper, F.conv2d(image, conv.weight, conv.bias, padding=1))
    channels_last = image.permute(0, 2, 3, 1).contiguous()
    assert torch.allclose(product_after_conv(channels_last, conv, hyper), expected, atol=1e-5)
