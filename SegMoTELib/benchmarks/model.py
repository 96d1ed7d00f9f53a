"""``segmote bench model``: our formulation against segment-anything's and the naive one, same weights, same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from SegMoTELib.benchmarks.measure import gemm_peak, machine, medians, peak_memory
from SegMoTELib.benchmarks.naive import naive_decode
from SegMoTELib.interaction.predictor import EncodedImage, Predictor
from SegMoTELib.interaction.transforms import SquareTransform
from SegMoTELib.network import ImageEmbedding, ModelConfig, SegMoTE, build_model

SEED = 0


def bench_model(repeats: int, checkpoint: str | None = None) -> dict[str, object]:
    """Run everything; returns a JSON-ready dict, one entry per table of :func:`format_report`.

    Args:
        repeats: turns per comparison. checkpoint: SAM ViT-B weights; None for seeded random ones.
    """
    sam, ours = _same_weights(checkpoint)
    images = real_images()
    with torch.no_grad():
        report: dict[str, object] = {"machine": machine(), "weights": checkpoint or f"random, seed {SEED}"}
        report["encoder"] = _bench_encoder(sam, ours, repeats, images)
        report["memory_mib"] = {"segment_anything": peak_memory(_encode_once, "segment_anything", "fp32"),
                                "fp32": peak_memory(_encode_once, "segmote", "fp32"),
                                "bf16": peak_memory(_encode_once, "segmote", "bf16")}
        report["click"] = _bench_click(sam, ours, repeats)
        del sam, ours
        report["published_decode"] = _bench_published(repeats)
        report["tiny"] = _bench_tiny(repeats, images)
    return report


def real_images() -> dict[str, np.ndarray]:
    """Real photographs and scans that installed packages carry, uint8."""
    import pydicom
    import skimage.data
    from pydicom.data import get_testdata_file

    images = {"camera": skimage.data.camera(), "astronaut": skimage.data.astronaut(), "coins": skimage.data.coins()}
    for name in ("CT_small.dcm", "MR_small.dcm"):
        pixels = pydicom.dcmread(str(get_testdata_file(name))).pixel_array.astype(np.float64)
        low, high = np.percentile(pixels, (0.5, 99.5))
        images[name] = (np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return images


def _same_weights(checkpoint: str | None) -> tuple[torch.nn.Module, SegMoTE]:
    torch.manual_seed(SEED)
    sam = sam_model_registry["vit_b"](checkpoint).eval()
    if checkpoint is None:
        with torch.no_grad():  # segment-anything starts these at zero, which would hide errors
            for name, parameter in sam.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    parameter.normal_(0, 0.1)
    ours = build_model(ModelConfig.sam("vit_b"))
    ours.load_state_dict(sam.state_dict(), strict=False)
    return sam, ours


def _bench_encoder(sam, ours: SegMoTE, repeats: int, images: dict[str, np.ndarray]) -> dict[str, object]:
    pixels = SquareTransform(ours.config, 1024, 1024).apply_image(
        np.ascontiguousarray(np.kron(images["astronaut"], np.ones((2, 2, 1), np.uint8))))
    exact = sam.image_encoder(pixels)
    with FlopCounterMode(display=False) as counter:
        sam.image_encoder(pixels)
    calls = {"segment_anything": lambda: sam.image_encoder(pixels), "fp32": lambda: ours.encode(pixels)}
    outputs = {"fp32": ours.encode(pixels).features}
    low = build_model(ours.config)
    low.load_state_dict(ours.state_dict())
    low.image_encoder.to(torch.bfloat16)
    calls["bf16"] = lambda: low.encode(pixels)
    outputs["bf16"] = low.encode(pixels).features.float()
    seconds = medians(calls, repeats)
    flops = counter.get_total_flops()
    peaks = {"fp32": gemm_peak(torch.float32), "bf16": gemm_peak(torch.bfloat16)}
    rows = {}
    for name, value in outputs.items():
        rate = flops / seconds[name] / 1e9
        rows[name] = {
            "seconds": seconds[name], "ratio": seconds["segment_anything"] / seconds[name],
            "max_difference": float((value - exact).abs().max()),
            "relative_error": float((value - exact).norm() / exact.norm()),
            "gflops": rate, "gemm_peak_gflops": peaks[name], "share_of_peak": rate / peaks[name]}
    rows["bf16"]["mask_dice_change"] = _mask_change(ours, low, images)
    return {"gflop": flops / 1e9, "segment_anything_seconds": seconds["segment_anything"], **rows}


def _mask_change(exact: SegMoTE, low: SegMoTE, images: dict[str, np.ndarray]) -> float:
    """Mean of 1 - Dice between masks of two precisions, base decoder, one centre click and one box per image."""
    changes = []
    for image in images.values():
        masks = []
        for model, precision in ((exact, "fp32"), (low, "bf16")):
            predictor = Predictor(model, "cpu", precision)
            predictor.set_image(image)
            height, width = image.shape[:2]
            prompts: tuple[dict[str, Any], ...] = (
                {"point_coords": np.array([[width / 2, height / 2]]), "point_labels": np.array([1])},
                {"box": np.array([width / 4, height / 4, 3 * width / 4, 3 * height / 4])})
            masks.append([predictor.predict(**prompt, multimask_output=False, adapters=False)[0] for prompt in prompts])
        for a, b in zip(*masks, strict=True):
            changes.append(1 - 2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return float(np.mean(changes))


def _encode_once(mark, kind: str, precision: str) -> None:
    """Body of the memory measurement: one 1024 px ViT-B encoding in a process of its own."""
    pixels = torch.zeros(1, 3, 1024, 1024)
    if kind == "segment_anything":
        encode = sam_model_registry["vit_b"]().eval().image_encoder
    else:
        model = build_model(ModelConfig.sam("vit_b"))
        model.image_encoder.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        encode = model.encode
    mark()
    with torch.no_grad():
        encode(pixels)


def _bench_click(sam, ours: SegMoTE, repeats: int) -> dict[str, dict[str, float]]:
    """``predict`` on a cached embedding of a 512 x 512 image, SAM geometry."""
    features, early = torch.randn(1, 256, 64, 64), torch.randn(1, 64, 64, 768)
    theirs = SamPredictor(sam)
    theirs.features, theirs.is_image_set = features, True
    theirs.original_size, theirs.input_size = (512, 512), (1024, 1024)
    mine = Predictor(ours, "cpu", "fp32")
    mine.set_encoded(EncodedImage(np.zeros((512, 512, 3), np.uint8), SquareTransform(ours.config, 512, 512),
                                  ImageEmbedding(features, (early,))))
    prompt: dict[str, Any] = {"point_coords": np.array([[200.0, 240.0]]), "point_labels": np.array([1])}
    out = {}
    for multimask in (True, False):
        seconds = medians({
            "segment_anything": partial(theirs.predict, **prompt, multimask_output=multimask),
            "segmote": partial(mine.predict, **prompt, multimask_output=multimask, adapters=False),
            "segmote_adapters": partial(mine.predict, **prompt),
        }, 5 * repeats, warmup=3)
        a = theirs.predict(**prompt, multimask_output=multimask, return_logits=True)[0]
        b = mine.predict(**prompt, multimask_output=multimask, return_logits=True, adapters=False)[0]
        out["three masks" if multimask else "one mask"] = {
            **seconds, "ratio": seconds["segment_anything"] / seconds["segmote"],
            "max_difference": float(np.abs(a - b).max())}
    return out


def _bench_published(repeats: int) -> dict[str, float]:
    """One click in the published geometry: naive formulation and ours, on an embedding in use."""
    torch.manual_seed(SEED)
    model = build_model(ModelConfig.published())
    embedding = ImageEmbedding(torch.randn(1, 768, 32, 32), (torch.randn(1, 32, 32, 768),))
    points = (torch.tensor([[[250.0, 260.0]]]), torch.tensor([[1]]))
    seconds = medians({"naive": lambda: naive_decode(model, embedding, points=points),
                       "segmote": lambda: model.decode(embedding, points=points)}, 3 * repeats, warmup=2)
    difference = (naive_decode(model, embedding, points=points) - model.decode(embedding, points=points).logits)
    return {**seconds, "share_of_naive": seconds["segmote"] / seconds["naive"],
            "max_difference": float(difference.abs().max())}


def _bench_tiny(repeats: int, images: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    torch.manual_seed(SEED)
    predictor = Predictor(build_model(ModelConfig.tiny()), "cpu")
    image = images["camera"]
    calls: dict[str, Callable[[], object]] = {}
    point: dict[str, Any] = {"point_coords": np.array([[40.0, 50.0]]), "point_labels": np.array([1])}
    for size in (256, 512, 1024):
        scaled = np.kron(image, np.ones((size // 512 or 1,) * 2, np.uint8))[::512 // min(size, 512),
                                                                           ::512 // min(size, 512)]
        calls[f"set_image {size} px"] = partial(predictor.set_image, scaled)
    out = medians(calls, 3 * repeats, warmup=2)
    for size in (256, 512, 1024):
        predictor.set_image(np.zeros((size, size), np.uint8))
        out.update(medians({f"predict {size} px": partial(predictor.predict, **point)}, 5 * repeats, warmup=2))
    embedding = predictor.encoded.embedding
    out.update(medians({
        f"decode {count} prompts": partial(predictor.model.decode, embedding, points=_points(count))
        for count in (1, 4, 16)}, 3 * repeats, warmup=2))
    return {"seconds": out}


def _points(count: int) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1, 2), 40.0), torch.ones(count, 1, dtype=torch.int64)


def format_report(report: dict) -> str:
    """The report as text, ratios first."""
    m, encoder, click = report["machine"], report["encoder"], report["click"]
    lines = [f"{m['cpu']}, {m['threads']} threads, {' '.join(m['cpu_features'])}; torch {m['torch']}, "
             f"python {m['python']}, CUDA: {m['cuda'] or 'none'}; weights: {report['weights']}", "",
             f"SAM ViT-B encoder, 1024 px ({encoder['gflop']:.0f} GFLOP); segment_anything fp32 "
             f"{encoder['segment_anything_seconds']:.2f} s, {report['memory_mib']['segment_anything']:.0f} MiB on top"]
    for name in ("fp32", "bf16"):
        row = encoder[name]
        lines.append(f"  {name}: {row['ratio']:.2f}x  ({row['seconds']:.2f} s, {report['memory_mib'][name]:.0f} MiB), "
                     f"max difference {row['max_difference']:.1e}, relative error {row['relative_error']:.2%}, "
                     f"{row['share_of_peak']:.0%} of the {row['gemm_peak_gflops']:.0f} GFLOP/s GEMM peak")
    lines.append(f"  bf16: mean change of mask Dice {encoder['bf16']['mask_dice_change']:.2%} (real images)")
    lines.append("one click on a cached embedding, 512 x 512 image, SAM geometry")
    for name, row in click.items():
        lines.append(f"  {name}: {row['ratio']:.2f}x  (SamPredictor {row['segment_anything'] * 1e3:.0f} ms, ours "
                     f"{row['segmote'] * 1e3:.0f} ms, with adapters {row['segmote_adapters'] * 1e3:.0f} ms), "
                     f"max difference {row['max_difference']:.1e}")
    row = report["published_decode"]
    lines.append(f"published geometry, one decode: {row['share_of_naive']:.2f} of the naive formulation "
                 f"({row['segmote'] * 1e3:.0f} of {row['naive'] * 1e3:.0f} ms), max difference "
                 f"{row['max_difference']:.1e}")
    lines.append("tiny (256 px network)")
    lines += [f"  {name}: {seconds * 1e3:.0f} ms" for name, seconds in report["tiny"]["seconds"].items()]
    return "\n".join(lines)
