"""SAM's mask decoder with expert tokens: the base's masks with ``experts=False``, the selected expert's otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.encoders import ImageEmbedding
from SegMoTELib.network.experts import Routing
from SegMoTELib.network.transformer import ExpertTransformer, ImageSide, attention_map
from SegMoTELib.network.upscaling import (
    layer_norm_channels,
    product_after_conv,
    product_masks,
    to_map,
    upscale,
)


@dataclass
class MaskPrediction:
    """Result of ``SegMoTE.decode`` for N prompts.

    Attributes:
        logits: (N, 1, h, w) mask logits (base with multimask: (N, 3, h, w)); 0 is the border.
        iou: predicted IoU of those masks, same first two dimensions.
        expert_logits: (N, E, h, w) every expert token's mask, or None without adapters.
        selected: (N,) index of the expert token that gave ``logits``, or None.
        routing: per expert layer, (N, T) expert index of every expert token.
        gate_probabilities: per expert layer, (N, T, E).
        balance_loss: scalar; sum over layers (learned) or the last layer's (reference).
        expert_iou: (N, E) predicted IoU of every expert's mask, or None.
        token_probabilities: (N, E) how the choice of the expert token was distributed, or None.
        domain_probabilities: (N, D) or (1, D) what kind of image the router saw, or None without domains.
        attention: (N, T, side, side) last-layer attention of every expert token on the image, only if asked for.
    """

    logits: Tensor
    iou: Tensor
    expert_logits: Tensor | None = None
    selected: Tensor | None = None
    routing: tuple[Tensor, ...] = ()
    gate_probabilities: tuple[Tensor, ...] = ()
    balance_loss: Tensor | None = None
    expert_iou: Tensor | None = None
    token_probabilities: Tensor | None = None
    domain_probabilities: Tensor | None = None
    attention: Tensor | None = None


class TokenHeads(nn.Module):
    """One three-layer MLP per expert token, all in three batched products: (N, E, C) -> (N, E, out)."""

    def __init__(self, count: int, dim: int, out: int) -> None:
        super().__init__()
        sizes = ((dim, dim), (dim, dim), (dim, out))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(count, i, o).uniform_(-i ** -0.5, i ** -0.5)) for i, o in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count, 1, o)) for _, o in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply head e to token e."""
        x = tokens.transpose(0, 1)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = F.relu(x) if index < 2 else x
        return x.transpose(0, 1)


class ExpertDecoder(MaskDecoder):
    """segment-anything's ``MaskDecoder`` plus expert tokens, their heads and their finer features (SegMoTE).

    Token order: IoU, mask, semantic (released layout), expert, prompts. The expert branch adds the image embedding and
    an early encoder feature, both upscaled, to a fused copy of SAM's upscaled embedding (as HQ-SAM does).
    """

    def __init__(self, config: ModelConfig) -> None:
        dim = config.embed_dim
        masks = 1 if config.encoder == "compact" else 4
        super().__init__(transformer_dim=dim, transformer=ExpertTransformer(config), num_multimask_outputs=masks - 1)
        self.config = config
        self.side = config.embedding_size
        self.expert_tokens = nn.Embedding(config.experts, dim)
        self.semantic_tokens = nn.Embedding(config.semantic_tokens, dim) if config.semantic_tokens else None
        self.expert_heads = TokenHeads(config.experts, dim, self._mask_width())
        self.expert_iou_head = None if config.gating == "reference" and not config.expert_residual else MLP(
            dim, 256, config.experts, 3)
        self._build_expert_features()

    def _mask_width(self) -> int:
        """Channels that a mask's hypernetwork output is multiplied with."""
        return self.transformer_dim // 8

    def _build_expert_features(self) -> None:
        dim, width = self.transformer_dim, self.config.encoder_width
        self.expert_embedding_encoder = _two_ups(dim, dim // 4, dim // 8)
        self.compress_vit_feat = _two_ups(width, dim, dim // 8)
        self.expert_feature_fusion = nn.Sequential(
            nn.Conv2d(dim // 8, dim // 4, 3, padding=1), LayerNorm2d(dim // 4), nn.GELU(),
            nn.Conv2d(dim // 4, dim // 8, 3, padding=1))

    def prepare(self, embedding: ImageEmbedding, image_pe: Tensor, no_mask: Tensor, experts: bool) -> dict:
        """Compute what depends on the image alone; without gradients it is kept with the embedding.

        Args:
            image_pe: (1, L, C) positional encoding. no_mask: (1, 1, C) dense embedding of "no mask prompt".
        """
        keep = not torch.is_grad_enabled()
        # Weights may have changed (training, loading) since the products were kept.
        version = (id(self), no_mask.dtype, no_mask._version, id(image_pe),
                   sum(parameter._version for parameter in self.parameters()))
        prepared = (embedding.prepared or {}) if keep else {}
        if prepared.get("version") != version:
            prepared = {"version": version}
        if "image" not in prepared:
            keys = embedding.features.flatten(2).transpose(1, 2) + no_mask
            prepared["image"] = self.transformer.layers[0].project(ImageSide(keys, keys + image_pe))
        if experts and "features" not in prepared:
            tokens = embedding.features.flatten(2).transpose(1, 2)
            early = embedding.early[0].flatten(1, 2)
            prepared["features"] = upscale(tokens, self.expert_embedding_encoder) + upscale(
                early, self.compress_vit_feat)
        if keep:
            embedding.prepared = prepared
        return prepared

    def forward(self, embedding: ImageEmbedding, image_pe: Tensor, no_mask: Tensor, sparse: Tensor,
                dense: Tensor | None, experts: bool, multimask: bool = False,
                attention: bool = False) -> MaskPrediction:
        """Decode N prompts on 1 or N images.

        Args:
            sparse: (N, P, C) prompt tokens. dense: (N, C, h, w) mask-prompt embedding, or None for "no mask".
            experts: use the adapters. multimask: SAM's three masks (base only). attention: also return attention maps.
        """
        prepared = self.prepare(embedding, image_pe, no_mask, experts)
        image = prepared["image"]
        if dense is not None:
            keys = (embedding.features + dense).flatten(2).transpose(1, 2)
            image = ImageSide(keys, keys + image_pe)
        tokens, expert_slice = self._output_tokens(sparse, experts)
        tokens, keys, routings = self.transformer(tokens, image, image_pe, expert_slice)
        upscaled = upscale(keys, self.output_upscaling)
        if expert_slice is None:
            return self._base_masks(tokens, lambda hyper: product_masks(upscaled, hyper, self.side), multimask)
        fused = self._fuse(upscaled)

        def expert_masks(hyper: Tensor) -> Tensor:
            return (product_after_conv(fused, self.expert_feature_fusion[3], hyper)
                    + product_masks(prepared["features"], hyper, self.side))

        prediction = self._expert_masks(tokens, expert_slice, routings, expert_masks)
        if attention:
            prediction.attention = self._attention_maps(tokens, expert_slice, keys, image_pe)
        return prediction

    def _output_tokens(self, sparse: Tensor, experts: bool) -> tuple[Tensor, slice | None]:
        parts = [self.iou_token.weight, self.mask_tokens.weight]
        if self.semantic_tokens is not None:
            parts.append(self.semantic_tokens.weight)
        start = sum(len(part) for part in parts)
        if experts:
            parts.append(self.expert_tokens.weight)
        own = torch.cat(parts).to(sparse.dtype).expand(sparse.shape[0], -1, -1)
        expert_slice = slice(start, start + self.config.experts) if experts else None
        return torch.cat([own, sparse], dim=1), expert_slice

    def _base_masks(self, tokens: Tensor, masks_of, multimask: bool) -> MaskPrediction:
        """SAM's masks; only those asked for are computed."""
        wanted = range(1, self.num_mask_tokens) if multimask and self.num_mask_tokens > 1 else range(1)
        hyper = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in wanted], dim=1)
        iou = self.iou_prediction_head(tokens[:, 0])[:, wanted.start:wanted.stop]
        return MaskPrediction(logits=masks_of(hyper), iou=iou)

    def _expert_masks(self, tokens: Tensor, expert_slice: slice, routings: list[Routing],
                      masks_of) -> MaskPrediction:
        """All experts' masks and the selected one: the token whose router is most confident in the last layer."""
        logits = masks_of(self.expert_heads(tokens[:, expert_slice]))
        confidence = routings[-1].confidence
        selected = confidence.argmax(dim=1)
        rows = torch.arange(len(selected), device=selected.device)
        chosen = logits[rows, selected]
        if self.training and self.config.gating == "learned":
            # Straight-through: the value is the selected mask, the gradient also reaches the router's confidence.
            soft = confidence.softmax(dim=1)
            weights = F.one_hot(selected, logits.shape[1]).to(soft.dtype) + soft - soft.detach()
            chosen = torch.einsum("ne,nehw->nhw", weights, logits)
        expert_iou = None
        if self.expert_iou_head is not None:
            expert_iou = self.expert_iou_head(tokens[:, 0])
            iou = expert_iou[rows, selected, None]
        else:  # released layout: the best of SAM's three multimask scores
            iou = self.iou_prediction_head(tokens[:, 0])[:, 1:].amax(dim=1, keepdim=True)
        losses = [routing.balance_loss for routing in routings]
        return MaskPrediction(
            logits=chosen[:, None], iou=iou, expert_logits=logits, selected=selected,
            routing=tuple(routing.indices for routing in routings),
            gate_probabilities=tuple(routing.probabilities for routing in routings),
            balance_loss=torch.stack(losses).sum() if self.config.gating == "learned" else losses[-1],
            expert_iou=expert_iou, token_probabilities=confidence.softmax(dim=1))

    def _fuse(self, upscaled: Tensor) -> Tensor:
        """First half of the fusion: (N, L, 2, 2, 2, 2, C/8) -> channels-last (N, H, W, C/4)."""
        conv: Any = self.expert_feature_fusion[0]
        norm = self.expert_feature_fusion[1]
        spatial = to_map(upscaled, self.side).permute(0, 3, 1, 2)  # NCHW view of channels-last memory
        x = F.conv2d(spatial, conv.weight.contiguous(memory_format=torch.channels_last), conv.bias, padding=1)
        return F.gelu(layer_norm_channels(x.permute(0, 2, 3, 1).contiguous(), norm))

    def _attention_maps(self, tokens: Tensor, expert_slice: slice, keys: Tensor, image_pe: Tensor) -> Tensor:
        maps = attention_map(self.transformer.final_attn_token_to_image, tokens[:, expert_slice], keys + image_pe)
        return maps.unflatten(-1, (self.side, self.side))


def _two_ups(channels: int, hidden: int, out: int) -> nn.Sequential:
    """[2x up, norm, GELU, 2x up], the shape of every upscaling branch in SAM and HQ-SAM."""
    return nn.Sequential(nn.ConvTranspose2d(channels, hidden, 2, stride=2), LayerNorm2d(hidden), nn.GELU(),
                         nn.ConvTranspose2d(hidden, out, 2, stride=2))
