"""Parameter counts by part, as the paper states them."""

from __future__ import annotations

from SegMoTELib.network.model import SegMoTE, is_adapter

# The released checkpoint also holds parameters that its code never uses (published.DEAD_KEYS); 1.27 M of them belong to
# what SegMoTE adds to SAM, and the paper's 17 M count them in.
RELEASED_UNUSED = 1_273_184


def count_parameters(model: SegMoTE) -> dict[str, int]:
    """Number of parameters of every part, and the sums "new in SegMoTE", "base" and "all"."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part_of(name)
        parts[part] = parts.get(part, 0) + parameter.numel()
    new = sum(p.numel() for name, p in model.named_parameters() if is_adapter(name))
    total = sum(p.numel() for p in model.parameters())
    sums = {"new in SegMoTE": new, "base": total - new, "all": total}
    if model.config.gating == "reference" and model.config.semantic_tokens:
        sums["new in SegMoTE, with the released file's unused"] = new + RELEASED_UNUSED
    return {**dict(sorted(parts.items())), **sums}


def _part_of(name: str) -> str:
    if ".experts." in name:
        return "experts and router (MoTE)"
    if name.startswith("prompt_tokenizer.") or "target_dense" in name:
        return "learned prompts (PPT)"
    if name.startswith(("mask_decoder.expert_heads.", "mask_decoder.expert_iou_head.")):
        return "expert heads"
    if is_adapter(name):
        return "expert tokens and features"
    return {"image_encoder": "image encoder", "prompt_encoder": "prompt encoder",
            "mask_decoder": "mask decoder (base)"}[name.split(".")[0]]
