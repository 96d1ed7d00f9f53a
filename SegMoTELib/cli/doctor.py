"""``segmote doctor``: whether SegMoTE can work here, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import click

from SegMoTELib import __version__
from SegMoTELib.cli.packages import BESIDES, PACKAGES, PURPOSES, installed
from SegMoTELib.errors import SegMoTEError

LEAST_DICE = 0.8  # of the test image
SHOWN = ("torch", "numpy", "SimpleITK", "pydicom", "vtk", "slicer-core")


@click.command(short_help="Check device, packages, weights and cache; say what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check what SegMoTE needs on this machine: packages, device, memory, weights, cache; then segment a test image.

    Ends with status 1 if SegMoTE cannot be used. Nothing is downloaded.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for title, line in _lines(report):
            click.echo(f"{title:<10}{line}")
        click.echo("\nSegMoTE can be used." if report["usable"] else "\nSegMoTE cannot be used:")
        for problem in report["problems"]:
            click.echo(f"  {problem}")
    ctx.exit(0 if report["usable"] else 1)


def examine() -> dict:
    """Everything the command tells, as one JSON-ready dict; ``problems`` are what keeps SegMoTE from working."""
    problems: list[str] = []
    missing = {extra: [name for name in names if not installed(name)] for extra, names in PACKAGES.items()}
    if missing[""]:
        problems.append(f"packages are missing: pip install {' '.join(missing[''])}")
    report: dict[str, Any] = {
        "version": __version__, "python": platform.python_version(), "system": f"{platform.system()} "
        f"{platform.machine()}", "packages": {name: installed(name) for names in (*PACKAGES.values(), BESIDES)
                                              for name in names},
        "missing": {extra: {"packages": names, "for": PURPOSES.get(extra, "everything"),
                            "get": f"pip install 'segmote[{extra}]'" if extra else f"pip install {' '.join(names)}"}
                    for extra, names in missing.items() if names}}
    for part, look in (("device", _device), ("memory", _memory), ("models", _models), ("weights", _weights),
                       ("cache", _cache), ("test", _test)):
        try:
            report[part] = look()
        except Exception as error:  # whatever is broken here is what the user wants to know
            report[part] = None
            words = error if isinstance(error, SegMoTEError) else f"{type(error).__name__}: {error}"
            if part != "cache" and not (missing[""] and isinstance(error, ImportError)):
                problems.append(f"{part}: {' '.join(str(words).split())}")
    return {"usable": not problems, "problems": problems, **report}


def _device() -> dict:
    import torch

    from SegMoTELib.interaction.devices import choose_device, choose_precision, describe

    device = choose_device()
    if device.type == "cuda":
        why = "CUDA is available"
    elif device.type == "mps":
        why = "Apple's MPS is available"
    elif torch.version.cuda:
        why = "this PyTorch can use CUDA, but no NVIDIA GPU with its driver was found"
    else:
        why = "this PyTorch is built without CUDA; with an NVIDIA GPU, see pytorch.org/get-started for another"
    return {"name": str(device), "in_words": describe(device, choose_precision(device)), "why": why,
            "threads": torch.get_num_threads()}


def _memory() -> dict:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "free_bytes": memory.available}


def _models() -> list[dict]:
    from SegMoTELib.zoo.catalogue import catalogue
    from SegMoTELib.zoo.store import held, verify

    rows = []
    for model in held():
        entry = catalogue().get(model.name)
        if model.state == "bundled":
            verify(model.name)
        rows.append({"name": model.name, "state": model.state, "bytes": model.size, "path": str(model.path),
                     "download_bytes": entry.size if entry else None})
    return rows


def _weights() -> dict:
    from SegMoTELib.zoo.store import held, models_folder

    folder = models_folder()
    return {**_folder(folder), "bytes": sum(one.size for one in held() if one.state != "bundled"),
            "chosen_by": "SEGMOTE_MODEL_DIR" if os.environ.get("SEGMOTE_MODEL_DIR") else "default"}


def _cache() -> dict:
    from SegMoTELib.interaction.embeddings import EmbeddingFolder, default_folder

    kept = EmbeddingFolder(default_folder())
    files = kept.files()
    return {**_folder(kept.path), "bytes": sum(size for _, size, _ in files), "embeddings": len(files),
            "limit_bytes": kept.limit}


def _folder(path: Path) -> dict:
    """Where a folder is or would be made, the room there, and whether we may write."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    return {"folder": str(path), "exists": path.is_dir(), "free_bytes": shutil.disk_usage(there).free,
            "writable": there.is_dir() and os.access(there, os.W_OK)}


def _test() -> dict:
    """Segment a bright ellipse by its box with the bundled weights; its outline is known."""
    import numpy as np

    from SegMoTELib.interaction.predictor import Predictor
    from SegMoTELib.network import load_checkpoint
    from SegMoTELib.zoo import resolve_model

    started = time.perf_counter()
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")))
    loaded = time.perf_counter()
    rows, columns = np.mgrid[:256, :256]
    truth = ((rows - 120) / 50) ** 2 + ((columns - 140) / 70) ** 2 <= 1
    image = np.clip(90 + 80 * truth + np.random.default_rng(0).normal(0, 8, truth.shape), 0, 255).astype(np.uint8)
    predictor.set_image(image)
    masks, iou, _ = predictor.predict(box=np.array([70, 70, 210, 170]), multimask_output=False)
    answered = time.perf_counter()
    dice = 2 * np.count_nonzero(masks[0] & truth) / (np.count_nonzero(masks[0]) + np.count_nonzero(truth))
    if not dice >= LEAST_DICE:
        raise SegMoTEError(f"the bundled weights found a known ellipse with Dice {dice:.2f} only (at least "
                           f"{LEAST_DICE} is expected); install SegMoTE and PyTorch again.")
    return {"model": "segmote-tiny", "dice": round(float(dice), 4), "predicted_iou": round(float(iou[0]), 4),
            "seconds_to_load": round(loaded - started, 3), "seconds_to_answer": round(answered - loaded, 3)}


def _lines(report: dict) -> list[tuple[str, str]]:
    """(title, text) of every line."""
    lines = [("segmote", f"{report['version']}, Python {report['python']}, {report['system']}")]
    if report["device"]:
        lines.append(("device", f"{report['device']['in_words']}; {report['device']['why']}"))
    if report["memory"]:
        lines.append(("memory", f"{report['memory']['free_bytes'] / 1e9:.1f} of "
                                f"{report['memory']['total_bytes'] / 1e9:.1f} GB free"))
    lines.append(("packages", ", ".join(f"{name} {report['packages'][name] or 'not installed'}" for name in SHOWN)))
    for gap in report["missing"].values():
        lines.append(("missing", f"{', '.join(gap['packages'])} (for {gap['for']}): {gap['get']}"))
    if not report["packages"]["slicer-core"]:
        lines.append(("missing", f"slicer-core (only for {BESIDES['slicer-core']}): pip install slicer-core"))
    for model in report["models"] or ():
        size = model["bytes"] or model["download_bytes"]
        get = f"; segmote models fetch {model['name']}" if model["state"].endswith("downloaded") else ""
        lines.append(("model", f"{model['name']}: {model['state']}{f', {size / 1e6:.0f} MB' if size else ''}{get}"))
    for part, kept in (("weights", "downloads and models of your own"),
                       ("cache", "embeddings, only where --keep-embeddings or the panel asks for it")):
        if report[part]:
            lines.append((part, f"{report[part]['folder']}: {report[part]['bytes'] / 1e6:.1f} MB ({kept}), "
                                f"{report[part]['free_bytes'] / 1e9:.1f} GB free"
                                + ("" if report[part]["writable"] else "; CANNOT BE WRITTEN")))
    if report["test"]:
        lines.append(("test", f"{report['test']['model']} found a known ellipse (Dice {report['test']['dice']:.2f}): "
                              f"loaded in {report['test']['seconds_to_load']:.2f} s, answered in "
                              f"{report['test']['seconds_to_answer']:.2f} s"))
    return lines
