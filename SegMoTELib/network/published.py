"""The published SegMoTE's checkpoint layout, translated tensor by tensor into ours.

Its 441 tensors (a CLIP text model left out) are each used, or named below as known to have no effect on a mask.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from SegMoTELib.errors import CheckpointError
from SegMoTELib.network.config import ModelConfig

# Names of earlier releases (HQ-SAM's) -> today's.
LEGACY_NAMES = {
    "mask_decoder.hq_token.": "mask_decoder.expert_tokens.",
    "mask_decoder.hq_mlp.": "mask_decoder.expert_mlp.",
    "mask_decoder.output_hypernetworks_mlps_hq.": "mask_decoder.expert_output_mlps.",
    "mask_decoder.embedding_encoder.": "mask_decoder.expert_embedding_encoder.",
    "mask_decoder.embedding_maskfeature.": "mask_decoder.expert_feature_fusion.",
}

# Tensors that never reach a mask in the released code, with the reason.
DEAD_KEYS = {
    r"image_encoder\.sam_encoder\.neck\.": "the encoder's own 256-channel neck, replaced by a 768-channel one",
    r"mask_decoder\.expert_mlp\.": "never called",
    r"mask_decoder\.(text_token|boxApoint_token)\.": "never put among the tokens",
    r"mask_decoder\.transformer\.layers\.\d\.(dte|dteall)\.": "never called (the *_token twins are)",
    r"mask_decoder\.transformer\.layers\.\d\.(mean|std)$": "constants 0 and 1",
    r"mask_decoder\.semantic_prediction_head\.": "class scores for the text branch",
}
TEXT_KEYS = r"(text_model\.|text_out_dim\.|mask_decoder\.text_output\.|tokenizer\.)"

RENAMES = (
    (r"^image_encoder\.sam_encoder\.", "image_encoder."),
    (r"^(image_encoder\.blocks\.\d+\.mlp)\.fc", r"\1.lin"),
    (r"\.w_gate_token$", ".experts.gate"),
    (r"\.w_noise_token$", ".experts.noise"),
    (r"\.dte_token\.", ".experts.mix1."),
    (r"\.dteall_token\.", ".experts.mix2."),
    (r"\.proj_token\.", ".experts.up."),
    (r"^mask_decoder\.img_prompt_pool\.query$", "prompt_tokenizer.queries"),
    (r"^mask_decoder\.img_prompt_pool\.attn\.", "prompt_tokenizer.attention."),
    (r"^mask_decoder\.img_prompt_pool\.ln_in\.", "prompt_tokenizer.norm_image."),
    (r"^mask_decoder\.img_prompt_pool\.ln_out\.", "prompt_tokenizer.norm_tokens."),
    (r"^mask_decoder\.img_prompt_pool\.pos_proj\.", "prompt_tokenizer.position."),
    (r"^mask_decoder\.img_prompt_pool\.mlp\.", "prompt_tokenizer.mlp."),
)


def is_published(state: dict[str, Tensor]) -> bool:
    """Tell the published layout from SAM's by its nested encoder."""
    return any(key.startswith("image_encoder.sam_encoder.") for key in state)


def from_published(state: dict[str, Tensor], config: ModelConfig, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Translate a published state dict.

    Returns:
        our state dict, and one sentence for every kind of tensor that was left out, with the reason.

    Raises:
        CheckpointError: the per-expert tensors are incomplete (other missing or unknown names are found on loading).
    """
    state = {_upgrade(key): value for key, value in state.items()}
    notes = []
    text = [key for key in state if re.match(TEXT_KEYS, key)]
    if text:
        notes.append(f"{len(text)} tensors of the text branch were left out: text prompts are not supported.")
    dead = {key: reason for key in state for pattern, reason in DEAD_KEYS.items() if re.match(pattern, key)}
    for reason in sorted(set(dead.values())):
        names = [key for key in dead if dead[key] == reason]
        notes.append(f"{len(names)} tensors without effect were left out ({names[0]}, ...: {reason}).")
    live = {key: value.float() for key, value in state.items() if key not in dead and key not in set(text)}
    try:
        converted = {**_stack_experts(live, config), **_stack_heads(live, config)}
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the published layout's expert tensors are incomplete ({error}).") from error
    for key, value in live.items():
        if re.search(r"\.experts_token\.\d+\.|\.expert_output_mlps\.\d+\.", key):
            continue
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        converted[key] = value
    if "prompt_tokenizer.queries" in converted and converted["prompt_tokenizer.queries"].ndim == 2:
        converted["prompt_tokenizer.queries"] = converted["prompt_tokenizer.queries"][None]
    return _resize_positions(converted, config), notes


def _upgrade(key: str) -> str:
    for old, new in LEGACY_NAMES.items():
        if key.startswith(old):
            return new + key[len(old):]
    return key


def _stack_experts(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Per-expert linears -> one (E, rank, dim) weight and (E, rank) bias per layer."""
    return {f"mask_decoder.transformer.layers.{layer}.experts.down_{kind}": torch.stack(
        [state[f"mask_decoder.transformer.layers.{layer}.experts_token.{e}.lin1.{kind}"]
         for e in range(config.experts)])
        for layer in config.expert_layers for kind in ("weight", "bias")}


def _stack_heads(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Per-token MLPs -> batched (E, in, out) weights and (E, 1, out) biases."""
    out = {}
    for index in range(3):
        heads = [f"mask_decoder.expert_output_mlps.{e}.layers.{index}" for e in range(config.experts)]
        out[f"mask_decoder.expert_heads.weights.{index}"] = torch.stack([state[f"{h}.weight"].t() for h in heads])
        out[f"mask_decoder.expert_heads.biases.{index}"] = torch.stack([state[f"{h}.bias"][None] for h in heads])
    return out


def _resize_positions(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Resize position embeddings from 1024 px to the model's size once, as timm does on every forward."""
    side = config.embedding_size
    position = state.get("image_encoder.pos_embed")
    if position is not None and position.ndim == 4 and position.shape[1] != side:
        state["image_encoder.pos_embed"] = F.interpolate(
            position.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    for block in config.global_attention:
        for axis in ("h", "w"):
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            table = state.get(name)
            if table is not None and table.ndim == 2 and table.shape[0] != 2 * side - 1:
                state[name] = F.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
    return state
