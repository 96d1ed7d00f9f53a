"""What the compact model adds: local contrast before the encoder, experts that start as the base."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from SegMoTELib.network import load_checkpoint
from SegMoTELib.network.checkpoints import attach_adapters
from SegMoTELib.network.encoders import local_contrast
from SegMoTELib.zoo import resolve_model


def a_blob(brightness: float, contrast: float) -> torch.Tensor:
    """(1, 3, 96, 96) normalised pixels with a disk and some texture."""
    row, column = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    disk = ((row - 40) ** 2 + (column - 50) ** 2 < 100).float()
    noise = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    return (brightness + contrast * (disk + 0.2 * noise)).expand(1, 3, 96, 96)


def test_a_flat_image_has_no_local_contrast():
    assert local_contrast(torch.full((2, 3, 64, 64), 1.7)).abs().max() < 0.02


def test_a_faint_object_stands_out_as_a_bright_one_does():
    bright, faint = local_contrast(a_blob(0.0, 2.0)), local_contrast(a_blob(-1.0, 0.5))
    assert bright.shape == (1, 2, 96, 96)
    inside = (0, slice(None), slice(36, 45), slice(46, 55))
    ratio = faint[inside].mean() / bright[inside].mean()
    assert 0.7 < ratio < 1.0
    assert faint[inside].mean() > 1


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_local_contrast_is_finite_at_extremes(value):
    pixels = torch.full((1, 3, 32, 32), value)
    pixels[..., 5, 5] = 100.0
    assert torch.isfinite(local_contrast(pixels)).all()


def test_untrained_experts_answer_as_their_base_does():
    base = load_checkpoint(resolve_model("segmote-tiny")).eval()
    base.adapters_trained = False
    torch.manual_seed(0)
    adapted = attach_adapters(base, {}).eval()
    tokens = adapted.mask_decoder.expert_tokens.weight
    assert not torch.equal(tokens, base.mask_decoder.expert_tokens.weight)
    distances = torch.pdist(tokens.detach())
    assert distances.min() > tokens.norm(dim=1).mean() / 2  # equal tokens would all go to one expert
    with torch.no_grad():
        embedding = adapted.encode(F.interpolate(a_blob(0.0, 1.0), size=adapted.config.image_size))
        box = torch.tensor([[76.0, 56.0, 124.0, 104.0]])
        plain, expert = (adapted.decode(embedding, boxes=box, adapters=adapters).logits > 0
                         for adapters in (False, True))
    assert plain.sum() > 100
    assert (plain & expert).sum() / (plain | expert).sum() > 0.95
