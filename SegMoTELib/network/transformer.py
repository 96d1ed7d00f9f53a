"""SAM's two-way transformer with token experts, computed with fused attention and without repeated image-side work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.experts import Routing, TokenExperts


@dataclass
class ImageSide:
    """Products of image tokens alone: computed once per image, reused by every click.

    Attributes:
        keys: (B, L, C) image tokens. key, value: projections that tokens attend to; query: the image's own query.
    """

    keys: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


class ExpertLayer(TwoWayAttentionBlock):
    """segment-anything's two-way block; its expert tokens pass through :class:`TokenExperts` instead of the MLP."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config.embed_dim, num_heads=8, mlp_dim=config.decoder_mlp, activation=nn.ReLU,
                         skip_first_layer_pe=index == 0)
        self.experts = None
        if index in config.expert_layers:
            self.experts = TokenExperts(config.embed_dim, config.experts, config.expert_rank, config.top_k,
                                        config.gating, config.expert_residual)

    def project_image(self, keys: Tensor, image_pe: Tensor) -> ImageSide:
        """Project image tokens (B, L, C) with positional encoding (1, L, C) for both cross attentions."""
        placed = keys + image_pe
        return ImageSide(keys, self.cross_attn_token_to_image.k_proj(placed),
                         self.cross_attn_token_to_image.v_proj(keys), self.cross_attn_image_to_token.q_proj(placed))

    def forward(self, tokens: Tensor, token_pe: Tensor, image: ImageSide,
                expert_slice: slice | None) -> tuple[Tensor, Tensor, Routing | None]:
        """Update tokens (N, T, C) and image tokens (N, L, C); ``expert_slice`` says which tokens are experts'."""
        tokens = self._attend_tokens(tokens, token_pe)
        attention = self.cross_attn_token_to_image
        tokens = self.norm2(tokens + attend(attention, attention.q_proj(tokens + token_pe), image.key, image.value))
        tokens, routing = self._feed_forward(tokens, expert_slice)
        attention = self.cross_attn_image_to_token
        update = attend(attention, image.query, attention.k_proj(tokens + token_pe), attention.v_proj(tokens))
        return tokens, self.norm4(image.keys + update), routing

    def _attend_tokens(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        attention = self.self_attn
        placed = tokens if self.skip_first_layer_pe else tokens + token_pe
        out = attend(attention, attention.q_proj(placed), attention.k_proj(placed), attention.v_proj(tokens))
        return self.norm1(out if self.skip_first_layer_pe else tokens + out)

    def _feed_forward(self, tokens: Tensor, expert_slice: slice | None) -> tuple[Tensor, Routing | None]:
        if expert_slice is None or self.experts is None:
            return self.norm3(tokens + self.mlp(tokens)), None
        before, expert, after = (tokens[:, :expert_slice.start], tokens[:, expert_slice], tokens[:, expert_slice.stop:])
        others = torch.cat([before, after], dim=1)
        others = self.norm3(others + self.mlp(others))
        expert, routing = self.experts(expert)
        count = before.shape[1]
        return torch.cat([others[:, :count], expert, others[:, count:]], dim=1), routing


class ExpertTransformer(TwoWayTransformer):
    """Two :class:`ExpertLayer` and SAM's final attention; parameters named as in segment-anything."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(depth=2, embedding_dim=config.embed_dim, num_heads=8, mlp_dim=config.decoder_mlp)
        self.layers = nn.ModuleList(ExpertLayer(config, index) for index in range(2))

    def forward(self, tokens: Tensor, image: ImageSide, image_pe: Tensor,
                expert_slice: slice | None) -> tuple[Tensor, Tensor, list[Routing]]:
        """Run N prompts' tokens (N, T, C) against the first layer's image side (batch 1 or N).

        Returns:
            tokens (N, T, C), image tokens (N, L, C), and the routing of every layer that has experts.
        """
        token_pe, routings = tokens, []
        for index, layer in enumerate(self.layers):
            if index:
                image = layer.project_image(keys, image_pe)
            tokens, keys, routing = layer(tokens, token_pe, image, expert_slice)
            if routing is not None:
                routings.append(routing)
        final = self.final_attn_token_to_image
        out = attend(final, final.q_proj(tokens + token_pe), final.k_proj(keys + image_pe), final.v_proj(keys))
        return self.norm_final_attn(tokens + out), keys, routings


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """segment-anything's attention on projected (N, L, inner) inputs; a batch of 1 serves all N.

    One side is always a handful of tokens, so the weights are small: explicit products are as fast here as a fused
    kernel, and round as the released models' own code does.
    """
    query, key, value = (_split_heads(x, attention.num_heads) for x in (query, key, value))
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return attention.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


def attention_map(attention: Attention, query: Tensor, key: Tensor) -> Tensor:
    """Softmax weights (N, T, L), mean over heads, of projected queries (N, T, inner) on keys (1 or N, L, inner)."""
    query, key = (_split_heads(x, attention.num_heads) for x in (query, key))
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, inner) -> (N, heads, L, inner / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
