"""SAM's two-way transformer with token experts, rearranged so that a click costs little on the image side.

Attention between T tokens (about ten) and L image cells (thousands) is bound by the projections of the image side. Two
rearrangements, equal up to rounding, cut them:

* what depends on the image alone (first layer, no mask prompt) is projected once per image (:class:`ImageSide`);
* elsewhere the projection matrix is applied to the tokens: ``q . (W k) = (W^T q) . k`` and
  ``A (keys W) = (A keys) W``, which for heads x T below the inner width is the smaller product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.experts import Routing, TokenExperts


@dataclass
class ImageSide:
    """Image tokens and, if computed ahead, their projections.

    Attributes:
        keys: (B, L, C) image tokens. placed: the same plus positional encoding.
        key, value: (B, L, inner) of tokens-to-image attention. query: (B, L, inner) of image-to-tokens attention.
    """

    keys: Tensor
    placed: Tensor
    key: Tensor | None = None
    value: Tensor | None = None
    query: Tensor | None = None


class ExpertLayer(TwoWayAttentionBlock):
    """segment-anything's two-way block; expert tokens pass through :class:`TokenExperts` beside the MLP, or instead."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config.embed_dim, num_heads=8, mlp_dim=config.decoder_mlp, activation=nn.ReLU,
                         skip_first_layer_pe=index == 0)
        self.experts = None
        if index in config.expert_layers:
            self.experts = TokenExperts(config.embed_dim, config.experts, config.expert_rank, config.top_k,
                                        config.gating, config.expert_residual)

    def project(self, image: ImageSide) -> ImageSide:
        """Compute the image's projections ahead, to be shared by many prompts."""
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        return ImageSide(image.keys, image.placed, to_image.k_proj(image.placed), to_image.v_proj(image.keys),
                         to_tokens.q_proj(image.placed))

    def forward(self, tokens: Tensor, token_pe: Tensor, image: ImageSide,
                expert_slice: slice | None) -> tuple[Tensor, Tensor, Routing | None]:
        """Update tokens (N, T, C) and image tokens (N, L, C); ``expert_slice`` says which tokens are experts'."""
        tokens = self._attend_tokens(tokens, token_pe)
        tokens = self.norm2(tokens + tokens_to_image(self.cross_attn_token_to_image, tokens + token_pe, image))
        tokens, routing = self._feed_forward(tokens, expert_slice)
        update = image_to_tokens(self.cross_attn_image_to_token, image, tokens + token_pe, tokens)
        return tokens, self.norm4(update.add_(image.keys)), routing

    def _attend_tokens(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        placed = tokens if self.skip_first_layer_pe else tokens + token_pe
        out = self.self_attn(q=placed, k=placed, v=tokens)
        return self.norm1(out if self.skip_first_layer_pe else tokens + out)

    def _feed_forward(self, tokens: Tensor, expert_slice: slice | None) -> tuple[Tensor, Routing | None]:
        if expert_slice is None or self.experts is None:
            return self.norm3(tokens + self.mlp(tokens)), None
        before, expert, after = (tokens[:, :expert_slice.start], tokens[:, expert_slice], tokens[:, expert_slice.stop:])
        others = torch.cat([before, after], dim=1)
        others = self.norm3(others + self.mlp(others))
        expert, routing = self.experts(expert, self.mlp(expert) if self.experts.residual else None)
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
        for layer in self.layers:
            tokens, keys, routing = layer(tokens, token_pe, image, expert_slice)
            image = ImageSide(keys, keys + image_pe)
            if routing is not None:
                routings.append(routing)
        out = tokens_to_image(self.final_attn_token_to_image, tokens + token_pe, image)
        return self.norm_final_attn(tokens + out), image.keys, routings


def tokens_to_image(attention: Attention, tokens: Tensor, image: ImageSide) -> Tensor:
    """Tokens (N, T, C) attend to image tokens (1 or N, L, C); returns (N, T, C)."""
    query = _split_heads(attention.q_proj(tokens), attention.num_heads)  # (N, h, T, d)
    if image.key is not None:
        scores = query @ _split_heads(image.key, attention.num_heads).transpose(-2, -1)
    else:  # the key bias adds the same to every score of a token, so the softmax does not see it
        scores = _fold(query, attention.k_proj.weight) @ _shared(image.placed).transpose(-2, -1)
        scores = scores.unflatten(1, (attention.num_heads, -1))
    weights = scores.mul_(query.shape[-1] ** -0.5).softmax(dim=-1)  # (N, h, T, L)
    if image.value is not None:
        out = (weights @ _split_heads(image.value, attention.num_heads)).transpose(1, 2).flatten(2)
    else:
        context = (weights.flatten(1, 2) @ _shared(image.keys)).unflatten(1, (attention.num_heads, -1))
        heads = attention.v_proj.weight.unflatten(0, (attention.num_heads, -1))
        out = torch.einsum("nhtc,hdc->nthd", context, heads).flatten(2) + attention.v_proj.bias
    return attention.out_proj(out)


def image_to_tokens(attention: Attention, image: ImageSide, placed_tokens: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens (1 or N, L, C) attend to tokens (N, T, C); returns (N, L, C)."""
    heads = attention.num_heads
    key = _split_heads(attention.k_proj(placed_tokens), heads)
    value = _split_heads(attention.v_proj(tokens), heads)
    if image.query is not None:
        scores = key @ _split_heads(image.query, heads).transpose(-2, -1)  # (N, h, T, L)
    else:
        scores = _fold(key, attention.q_proj.weight) @ _shared(image.placed).transpose(-2, -1)
        offset = (key * attention.q_proj.bias.unflatten(0, (heads, 1, -1))).sum(dim=-1, keepdim=True)
        scores = scores.unflatten(1, (heads, -1)) + offset
    weights = scores.mul_(key.shape[-1] ** -0.5).softmax(dim=2).flatten(1, 2)  # (N, h T, L)
    projected = torch.einsum("nhtd,chd->nhtc", value, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return torch.baddbmm(attention.out_proj.bias, weights.transpose(1, 2), projected.flatten(1, 2))


def attention_map(attention: Attention, tokens: Tensor, placed: Tensor) -> Tensor:
    """Softmax weights (N, T, L), mean over heads, of tokens (N, T, C) on image tokens (1 or N, L, C)."""
    query = _split_heads(attention.q_proj(tokens), attention.num_heads)
    key = _split_heads(attention.k_proj(placed), attention.num_heads)
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, inner) -> (N, heads, L, inner / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _fold(x: Tensor, weight: Tensor) -> Tensor:
    """Apply the transposed projection (heads d, C) to per-head tokens: (N, heads, T, d) -> (N, heads T, C)."""
    return torch.einsum("nhtd,hdc->nhtc", x, weight.unflatten(0, (x.shape[1], -1))).flatten(1, 2)


def _shared(x: Tensor) -> Tensor:
    """Drop a batch of one, so that N prompts on one image become one large product."""
    return x[0] if x.shape[0] == 1 else x
