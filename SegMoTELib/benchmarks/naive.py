"""The straightforward formulation of the decoder, as a yardstick: same weights, same result, nothing rearranged.

Every image-side projection is computed per prompt, experts and token heads run in Python loops, upscaling runs as
transposed convolutions, and the base's masks are computed although the experts' are returned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from SegMoTELib.network import ImageEmbedding, SegMoTE


def naive_decode(model: SegMoTE, embedding: ImageEmbedding, points=None, boxes=None) -> Tensor:
    """Return the selected expert's (N, 1, h, w) logits; equals ``model.decode(...).logits`` up to rounding."""
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=None)
    decoder, count = model.mask_decoder, len(sparse)
    own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
    own += [decoder.semantic_tokens.weight] if decoder.semantic_tokens is not None else []
    start = sum(map(len, own))
    expert = slice(start, start + model.config.experts)
    tokens = torch.cat([*own, decoder.expert_tokens.weight]).expand(count, -1, -1)
    tokens = torch.cat([tokens, sparse], dim=1)
    source = embedding.features.repeat(count, 1, 1, 1) + dense
    pe = model.prompt_encoder.get_dense_pe().repeat(count, 1, 1, 1).flatten(2).permute(0, 2, 1)
    states, keys, scores = _transform(decoder.transformer, tokens, source.flatten(2).permute(0, 2, 1), pe, expert)

    upscaled = decoder.output_upscaling(keys.transpose(1, 2).view_as(source))
    early = embedding.early[0].permute(0, 3, 1, 2)
    features = decoder.expert_embedding_encoder(embedding.features) + decoder.compress_vit_feat(early)
    fused = decoder.expert_feature_fusion(upscaled) + features
    for index, head in enumerate(decoder.output_hypernetworks_mlps):  # never returned
        _ = head(states[:, 1 + index])[:, None] @ upscaled.flatten(2)
    decoder.iou_prediction_head(states[:, 0])
    hyper = torch.stack([_head(decoder.expert_heads, index, states[:, expert.start + index])
                         for index in range(model.config.experts)], dim=1)
    masks = (hyper @ fused.flatten(2)).unflatten(2, fused.shape[2:])
    return masks[torch.arange(count), scores.argmax(dim=1)][:, None]


def _transform(transformer, tokens: Tensor, keys: Tensor, pe: Tensor, expert: slice) -> tuple[Tensor, Tensor, Tensor]:
    states = tokens
    for layer in transformer.layers:
        placed = states if layer.skip_first_layer_pe else states + tokens
        attended = layer.self_attn(q=placed, k=placed, v=states)
        states = layer.norm1(attended if layer.skip_first_layer_pe else states + attended)
        states = layer.norm2(states + layer.cross_attn_token_to_image(q=states + tokens, k=keys + pe, v=keys))
        others = torch.cat([states[:, :expert.start], states[:, expert.stop:]], dim=1)
        others = layer.norm3(others + layer.mlp(others))
        routed, scores = _experts(layer.experts, states[:, expert])
        states = torch.cat([others[:, :expert.start], routed, others[:, expert.start:]], dim=1)
        keys = layer.norm4(keys + layer.cross_attn_image_to_token(q=keys + pe, k=states + tokens, v=states))
    final = transformer.final_attn_token_to_image(q=states + tokens, k=keys + pe, v=keys)
    return transformer.norm_final_attn(states + final), keys, scores


def _experts(experts, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, expert by expert."""
    scores = tokens @ experts.gate
    rows = []
    for image, image_scores in zip(tokens, scores, strict=True):
        for token, token_scores in zip(image, image_scores, strict=True):
            kept = token_scores.topk(experts.top_k).indices
            gates = token_scores.softmax(0)[kept] if experts.gating == "learned" else token_scores[kept].softmax(0)
            total = 0.0
            for gate, index in zip(gates, kept, strict=True):
                hidden = F.linear(token, experts.down_weight[index], experts.down_bias[index])
                total = total + gate * (F.gelu(hidden) if experts.residual else hidden)
            out = experts.up(experts.mix2(experts.mix1(total)))
            rows.append(experts.norm(token + out) if experts.residual else out)
    return torch.stack(rows).view_as(tokens), scores.amax(dim=-1)


def _head(heads, index: int, x: Tensor) -> Tensor:
    for layer, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
        x = x @ weight[index] + bias[index]
        x = F.relu(x) if layer < 2 else x
    return x
