"""The compact model's decoder: prompts are also drawn as maps and mixed with the image by convolutions.

Learning from a filled box or a Gaussian click is an order of magnitude faster for a small network trained from scratch
than learning from sparse tokens alone. The token path (SAM's transformer, the experts, the hypernetworks) stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.decoder import ExpertDecoder, MaskPrediction
from SegMoTELib.network.domains import DomainExperts
from SegMoTELib.network.encoders import ImageEmbedding, ResidualBlock, initialise_convolutions
from SegMoTELib.network.prompt_encoders import PROMPT_CHANNELS
from SegMoTELib.network.transformer import ImageSide

FINE_WIDTH, FINEST_WIDTH = 48, 16  # channels at strides 4 and 2


class CompactDecoder(ExpertDecoder):
    """Token decoder over a small convolutional decoder at strides 8, 4 and 2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        del self.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList([MLP(dim, dim, self._mask_width(), 3)])
        stride4, stride2 = config.compact_widths[1], config.compact_widths[0]
        self.prompt_stem = nn.Sequential(nn.Conv2d(PROMPT_CHANNELS, 32, 3, padding=1), nn.ReLU())
        self.prompt_down = nn.Conv2d(32, dim, 3, stride=2, padding=1)
        self.mixer = nn.Sequential(ResidualBlock(dim), ResidualBlock(dim))
        self.context = _Context(dim)
        self.to_fine = nn.Conv2d(dim, FINE_WIDTH, 1)
        self.skip_fine = nn.Conv2d(stride4, FINE_WIDTH, 1)
        self.prompt_fine = nn.Conv2d(32, FINE_WIDTH, 1)
        self.refine = ResidualBlock(FINE_WIDTH)
        self.to_finest = nn.Conv2d(FINE_WIDTH, self._mask_width(), 1)
        self.skip_finest = nn.Conv2d(stride2, self._mask_width(), 1)
        self.finish = _finish(self._mask_width())
        self.target_dense = nn.Embedding(max(1, len(config.auto_targets)), dim)
        nn.init.zeros_(self.target_dense.weight)
        self.expert_domains = DomainExperts(
            (dim, stride4, stride2), len(config.domains), (dim, dim, dim, dim, FINE_WIDTH)) if config.domains else None
        initialise_convolutions(self)
        self.context.start_as_identity()

    def _mask_width(self) -> int:
        return FINEST_WIDTH

    def _build_expert_features(self) -> None:
        """The experts' own finishing convolution on the finest features."""
        self.expert_finish = _finish(self._mask_width())

    @torch.no_grad()
    def start_experts_from_base(self) -> None:
        """Give untrained experts the base's mask token and heads, so that adapting starts near the base's masks.

        What is left to learn is what the experts add to the base's token MLP. The tokens differ as much as they are
        alike: attention replaces most of what a token was, and equal ones would all be sent to the same expert.
        """
        tokens = self.expert_tokens.weight
        tokens.copy_(self.mask_tokens.weight[:1] + self.mask_tokens.weight[:1].std() * torch.randn_like(tokens))
        base_head: Any = self.output_hypernetworks_mlps[0]
        for index, layer in enumerate(base_head.layers):
            self.expert_heads.weights[index].copy_(layer.weight.t().expand_as(self.expert_heads.weights[index]))
            self.expert_heads.biases[index].copy_(layer.bias.expand_as(self.expert_heads.biases[index]))
        last: Any = self.expert_finish[2]
        last.weight.mul_(0.02)  # what the experts add to the base's features
        for layer in self.transformer.layers:
            if layer.experts is not None and layer.experts.residual:
                layer.experts.norm.load_state_dict(layer.norm3.state_dict())
                nn.init.zeros_(layer.experts.up.weight)
                nn.init.zeros_(layer.experts.up.bias)

    def forward(self, embedding: ImageEmbedding, image_pe: Tensor, prompt_maps: Tensor,  # type: ignore[override]
                sparse: Tensor, targets: Tensor | None, experts: bool, attention: bool = False,
                domains: Tensor | None = None) -> MaskPrediction:
        """Decode N prompts on 1 or N images.

        Args:
            prompt_maps: (N, 5, 2h, 2w) of :func:`draw_prompts`. sparse: (N, P, C). targets: (N,) auto targets or None.
            experts: use the adapters. attention: also return attention maps. domains: (1 or N, D), None: as
                ``embedding`` looks.
        """
        drawn = self.prompt_stem(prompt_maps.contiguous(memory_format=torch.channels_last))
        mixed = embedding.features + self.prompt_down(drawn)
        if targets is not None:
            mixed = mixed + self.target_dense(targets)[:, :, None, None]
        modulations: list[Tensor | None] = [None] * 5
        if experts and self.expert_domains is not None:
            domains = self.expert_domains.route(embedding) if domains is None else domains
            modulations = self.expert_domains(domains)
        for block, modulation in zip(self.mixer, modulations[:2], strict=True):
            mixed = block(mixed, modulation)
        mixed = self.context(mixed, *modulations[2:4])
        keys = mixed.flatten(2).transpose(1, 2)
        image = ImageSide(keys, keys + image_pe)
        tokens, expert_slice = self._output_tokens(sparse, experts)
        tokens, keys, routings = self.transformer(tokens, image, image_pe, expert_slice)
        mixed = mixed + keys.transpose(1, 2).unflatten(2, mixed.shape[2:])
        finest = self._finest(mixed, drawn, embedding, modulations[4])
        features = (self.finish(finest) + self.expert_finish(finest)) if experts else self.finish(finest)

        def masks_of(hyper: Tensor) -> Tensor:
            return (hyper @ features.flatten(2)).unflatten(2, features.shape[2:])

        if expert_slice is None:
            return self._base_masks(tokens, masks_of, multimask=False)
        prediction = self._expert_masks(tokens, expert_slice, routings, masks_of)
        prediction.domain_probabilities = domains
        if attention:
            prediction.attention = self._attention_maps(tokens, expert_slice, keys, image_pe)
        return prediction

    def _finest(self, coarse: Tensor, drawn: Tensor, embedding: ImageEmbedding, modulation: Tensor | None) -> Tensor:
        """Bring mixed features from stride 8 to stride 2 with the encoder's own detail, (N, 16, 4h, 4w)."""
        fine = F.interpolate(self.to_fine(coarse), scale_factor=2, mode="bilinear", align_corners=False)
        fine = self.refine(fine + self.skip_fine(embedding.early[0]) + self.prompt_fine(drawn), modulation)
        finest = F.interpolate(self.to_finest(fine), scale_factor=2, mode="bilinear", align_corners=False)
        return finest + self.skip_finest(embedding.early[1])


class _Context(nn.Module):
    """What a prompt means at a distance: residual blocks at strides 16 and 32, added back; keeps shape (N, C, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wide, self.widest = ResidualBlock(dim), ResidualBlock(dim)
        self.join = nn.Conv2d(dim, dim, 1)

    def start_as_identity(self) -> None:
        nn.init.zeros_(self.join.weight)

    def forward(self, x: Tensor, wide_modulation: Tensor | None, widest_modulation: Tensor | None) -> Tensor:
        """Return x plus its context."""
        wide = self.wide(F.avg_pool2d(x, 2), wide_modulation)
        widest = self.widest(F.avg_pool2d(wide, 2), widest_modulation)
        wide = wide + F.interpolate(widest, size=wide.shape[-2:], mode="bilinear", align_corners=False)
        return x + F.interpolate(self.join(wide), size=x.shape[-2:], mode="bilinear", align_corners=False)


def _finish(width: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
