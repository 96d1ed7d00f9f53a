"""Small models behind a predictor, and an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import AutoTarget, ModelConfig, SegMoTE, build_model

TARGETS = (AutoTarget("lung"), AutoTarget("brain"))


def small_model(kind: str) -> SegMoTE:
    """A seeded model of a few thousand parameters: "sam" (aspect ratio kept), "squash" (not kept) or "tiny"."""
    torch.manual_seed(0)
    config = replace(ModelConfig.tiny(TARGETS), image_size=64) if kind == "tiny" else replace(
        ModelConfig.sam("vit_b"), image_size=64, embed_dim=32, encoder_width=32, encoder_depth=2, encoder_heads=2,
        global_attention=(1,), decoder_mlp=32, expert_rank=8, auto_targets=TARGETS,
        resize="squash" if kind == "squash" else "pad")
    return build_model(config)


@pytest.fixture(scope="module", params=["sam", "squash", "tiny"])
def any_predictor(request: pytest.FixtureRequest) -> Predictor:
    """A predictor over each family of models."""
    return Predictor(small_model(request.param), device="cpu", precision="fp32")


@pytest.fixture
def predictor() -> Predictor:
    """A predictor of its own for the test."""
    return Predictor(small_model("sam"), device="cpu", precision="fp32")


@pytest.fixture
def image() -> np.ndarray:
    """A grey image, 37 rows and 53 columns."""
    return np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
