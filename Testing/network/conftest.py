"""Small models with seeded random weights, and the geometry of the full ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from SegMoTELib.network import AutoTarget, ImageEmbedding, ModelConfig, SegMoTE, build_model

TARGETS = (AutoTarget("lung"), AutoTarget("brain"), AutoTarget("skin lesion"))


def seeded_model(config: ModelConfig, seed: int = 0) -> SegMoTE:
    """Build a model whose zero-initialised parameters (biases, relative positions, ...) are random, too."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def small_sam_config() -> ModelConfig:
    """SAM's architecture, two blocks deep (one windowed with padding, one global), 64 px."""
    return replace(ModelConfig.sam("vit_b"), name="small_sam", image_size=64, embed_dim=32, encoder_width=32,
                   encoder_depth=2, encoder_heads=2, global_attention=(1,), decoder_mlp=32, expert_rank=8,
                   auto_targets=TARGETS)


@pytest.fixture(scope="session")
def small_tiny_config() -> ModelConfig:
    """The compact architecture at 64 px."""
    return replace(ModelConfig.tiny(TARGETS), name="small_tiny", image_size=64)


@pytest.fixture(scope="module", params=["small_sam_config", "small_tiny_config"])
def model(request: pytest.FixtureRequest) -> SegMoTE:
    """A small model of either family, in eval mode; tests leave it as they found it."""
    return seeded_model(request.getfixturevalue(request.param))


@pytest.fixture
def fresh_model(model: SegMoTE) -> SegMoTE:
    """A model of either family that the test may change."""
    return seeded_model(model.config, seed=1)


@pytest.fixture
def pixels(model: SegMoTE) -> Tensor:
    """Three normalised images."""
    size = model.config.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def embedding(model: SegMoTE, pixels: Tensor) -> ImageEmbedding:
    """The three images, encoded."""
    with torch.no_grad():
        return model.encode(pixels)


@pytest.fixture
def prompts(model: SegMoTE) -> dict:
    """Three objects, each with two clicks (the last one padded), a box and a mask."""
    generator = torch.Generator().manual_seed(3)
    size, low = model.config.image_size, model.config.mask_size
    corner = torch.rand(3, 2, generator=generator) * size / 2
    return {
        "points": (torch.rand(3, 2, 2, generator=generator) * size, torch.tensor([[1, 0], [1, 1], [0, -1]])),
        "boxes": torch.cat([corner, corner + size / 3], dim=1),
        "masks": 3 * torch.randn(3, 1, low, low, generator=generator),
    }
