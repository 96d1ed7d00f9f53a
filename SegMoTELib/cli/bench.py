"""``segmote bench``: side-by-side measurements on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from SegMoTELib.cli import completion


@click.group(short_help="Measure speed against segment-anything, side by side.")
def command() -> None:
    """Measure on this machine; every figure is a ratio from one run."""


@command.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Turns per comparison.")
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False),
              help="SAM ViT-B weights; default: seeded random ones.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def model(repeats: int, checkpoint: str | None, json_path: Path | None) -> None:
    """Encoder, click and decoder against segment-anything and a naive formulation."""
    from SegMoTELib.benchmarks.model import bench_model, format_report

    report = bench_model(repeats, checkpoint)
    click.echo(format_report(report))
    if json_path:
        json_path.write_text(json.dumps(report, indent=2), encoding="utf-8")


@command.command("click")
@click.argument("volume", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--model", "name", default="segmote-tiny", show_default=True, metavar="NAME|PATH",
              shell_complete=completion.models(bool, files=True), help="Model to use.")
@click.option("--clicks", default=8, show_default=True, type=click.IntRange(min=2), help="Clicks per slice.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def click_to_segment(volume: Path | None, name: str, clicks: int, json_path: Path | None) -> None:
    """From a click to the segment in a Slicer scene, stage by stage, on VOLUME or a synthetic one.

    Needs the slicer-core package.
    """
    from SegMoTELib.benchmarks.click import bench_click, format_click

    report = bench_click(name, volume, clicks)
    click.echo(format_click(report))
    if json_path:
        json_path.write_text(json.dumps(report, indent=2), encoding="utf-8")
