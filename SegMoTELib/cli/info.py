"""``segmote info``: what a model is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from SegMoTELib.cli import completion, plain


@click.command(short_help="Show a model's parts, parameters, targets and licence.")
@click.argument("models", nargs=-1, shell_complete=completion.models(bool, files=True))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(models: tuple[str, ...], as_json: bool) -> None:
    """Show the parameters of MODELS, part by part.

    MODELS are names of the zoo, checkpoint files, or architectures: tiny, published, sam_vit_b, sam_vit_l, sam_vit_h
    (default: tiny, published and sam_vit_b).
    """
    from SegMoTELib.network import ModelConfig, SegMoTE, load_checkpoint
    from SegMoTELib.network.parts import count_parameters
    from SegMoTELib.zoo import resolve_model

    architectures: dict[str, Callable[[], ModelConfig]] = {
        "tiny": ModelConfig.tiny, "published": ModelConfig.published,
        **{f"sam_{name}": partial(ModelConfig.sam, name) for name in ("vit_b", "vit_l", "vit_h")}}
    reports: list[dict[str, Any]] = []
    for name in models or ("tiny", "published", "sam_vit_b"):
        if name in architectures and not Path(name).exists():
            import torch

            with torch.device("meta"):  # shapes only: SAM-H would take 2.6 GB
                model = SegMoTE(architectures[name]())
        else:
            model = load_checkpoint(resolve_model(name))
        reports.append({"model": name, "architecture": model.config.name, "parts": count_parameters(model),
                        "auto_targets": [target.name for target in model.config.auto_targets],
                        "metadata": model.metadata})
    if as_json:
        click.echo(json.dumps(reports, indent=2))
        return
    for report in reports:
        click.echo(f"{report['model']} ({plain(report['architecture'])})")
        for part, count in report["parts"].items():
            click.echo(f"  {part:<44}{count / 1e6:>9.3f} M")
        click.echo(f"  auto targets: {plain(', '.join(report['auto_targets']))}")
        for key, value in report["metadata"].items():
            click.echo(f"  {plain(key)}: {plain(value if len(value) < 300 else value[:300] + '...')}")
