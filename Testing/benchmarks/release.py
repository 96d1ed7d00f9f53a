"""Makes the bundled model of a trained one, and its card from a measured evaluation.

    segmote evaluate --data PACK --split val --model MODEL --csv val.csv
    python Testing/benchmarks/release.py weights MODEL --size 256 --validation val.csv
    segmote evaluate --data PACK --limit 10 --json test.json
    python Testing/benchmarks/release.py card test.json
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import click
import torch

from SegMoTELib.evaluation import results
from SegMoTELib.evaluation.table import MASK_MODES
from SegMoTELib.network import SegMoTE, build_model, load_checkpoint, save_checkpoint
from SegMoTELib.network.checkpoints import PER_TARGET
from SegMoTELib.zoo.catalogue import MODELS_FOLDER
from SegMoTELib.zoo.store import file_hash

WEIGHTS, CARD = MODELS_FOLDER / "segmote-tiny.safetensors", MODELS_FOLDER / "segmote-tiny.md"
TEXT = Path(__file__).with_name("segmote-tiny-card.md")
LICENCE = "Apache-2.0; the licences of the images it learned from are in segmote-tiny.md"
LEAST_AUTO = 0.88  # validation Dice below which an auto target is not offered; a margin to 0.80 on other images
MISLABELLED = "lungvessel_ct"  # its labels do not follow its images: see the card
MODES = {mode: results.MODES[mode] for mode in MASK_MODES}


def released(model: SegMoTE, names: list[str], size: int) -> SegMoTE:
    """A copy that offers only the named auto targets and sees square inputs of another side.

    A convolutional model's weights do not depend on the side; everything but the targets left out stays the same.
    """
    kept = [index for index, target in enumerate(model.config.auto_targets) if target.name in names]
    targets = tuple(model.config.auto_targets[index] for index in kept)
    copy = build_model(replace(model.config, auto_targets=targets, image_size=size))
    copy.load_state_dict({name: value[kept] if name in PER_TARGET else value
                          for name, value in model.state_dict().items()})
    copy.adapters_trained, copy.auto_trained = model.adapters_trained, model.auto_trained
    copy.metadata = dict(model.metadata)
    return copy


def portable(metadata: dict[str, str], here: Path) -> dict[str, str]:
    """Metadata without places of this machine: paths in training configs relative to a folder, or their end."""
    clean = {}
    for key, value in metadata.items():
        try:
            config = json.loads(value)
        except ValueError:
            config = None
        if key.startswith("training_") and isinstance(config, dict) and "stage" in config:
            config["data"] = [_portable_path(path, here) for path in config["data"]]
            config["start"] = config["start"] and _portable_path(config["start"], here)
            value = json.dumps(config)
        clean[key] = value
    return clean


def _portable_path(path: str, here: Path) -> str:
    place = Path(path)
    if not place.is_absolute():
        return path
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else "/".join(place.parts[-2:])


def auto_dice(path: Path) -> dict[str, float]:
    """Target name -> mean Dice without prompts, from ``segmote evaluate --csv``."""
    found = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["mode"] == "auto" and line["method"] == "SegMoTE":
                found[line["target"]].append(float(line["dice"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def table(summary: list[dict], level: str, first: str) -> str:
    """Markdown: a line per data set or modality of one level, Dice with its 95 % interval."""
    rows: dict[tuple[str, str], dict[str, dict]] = defaultdict(dict)
    sizes = {}
    for row in summary:
        if row["level"] == level and row["mode"] in MODES and "dice" in row["metrics"]:
            rows[row["name"], row["method"]][row["mode"]] = row["metrics"]["dice"]
            sizes[row["name"], row["method"]] = max(row["targets"], sizes.get((row["name"], row["method"]), 0))
    lines = [f"| {first} | method | targets | {' | '.join(MODES.values())} |", f"|{'---|' * (3 + len(MODES))}"]
    for key, modes in rows.items():
        cells = [f"{modes[m]['mean']:.3f} ({modes[m]['low']:.2f}-{modes[m]['high']:.2f})" if m in modes else "-"
                 for m in MODES]
        lines.append(f"| {key[0]} | {key[1]} | {sizes[key]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def means_without(summary: list[dict], left_out: str) -> str:
    """"box 0.81, 1 click 0.70, ...": macro-mean Dice of the model with prompts over all data sets but one."""
    found = defaultdict(list)
    for row in summary:
        if (row["level"], row["method"]) == ("dataset", "SegMoTE") and row["name"] != left_out and row["mode"] in MODES:
            found[row["mode"]].append(row["metrics"]["dice"]["mean"])
    return ", ".join(f"{name} {fmean(found[mode]):.3f}" for mode, name in MODES.items() if mode != "auto")


@click.group()
def main() -> None:
    """Make the bundled weights and their card."""


@main.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--size", required=True, type=int, help="Side of the network's input, pixels.")
@click.option("--validation", required=True, type=click.Path(exists=True, path_type=Path),
              help="CSV of segmote evaluate --split val: which auto targets are good enough.")
def weights(model: Path, size: int, validation: Path) -> None:
    """Prune weak auto targets, set the input size and store half precision."""
    trained = load_checkpoint(model)
    scores = auto_dice(validation)
    good = [target.name for target in trained.config.auto_targets if scores.get(target.name, 0) >= LEAST_AUTO]
    for name, score in scores.items():
        click.echo(f"{name}: {score:.3f} {'kept' if name in good else 'not offered'}")
    with torch.no_grad():
        copy = released(trained, good, size)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(copy, WEIGHTS, {**portable(copy.metadata, Path.cwd()), "licence": LICENCE}, half=True)
    note_in_catalogue()
    click.echo(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.1f} MB")


def note_in_catalogue() -> None:
    """Size and hash of the bundled weights, so that a damaged installation is seen."""
    path = MODELS_FOLDER / "catalogue.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    entry = next(one for one in content["models"] if one["file"] == WEIGHTS.name)
    entry.update(size=WEIGHTS.stat().st_size, hash=f"sha256:{file_hash(WEIGHTS, 'sha256')}")
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@main.command()
@click.argument("evaluation", type=click.Path(exists=True, path_type=Path))
def card(evaluation: Path) -> None:
    """Write the card: what was measured, data and licences from the weights' own metadata."""
    found = json.loads(evaluation.read_text(encoding="utf-8"))
    model = load_checkpoint(WEIGHTS)
    licences = json.loads(model.metadata["training_data"])
    limit = found["settings"]["limit"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = TEXT.read_text(encoding="utf-8").format(
        megabytes=f"{WEIGHTS.stat().st_size / 1e6:.1f}", parameters=f"{parameters / 1e6:.1f}",
        size=model.config.image_size, versions=model.metadata["versions"],
        targets=", ".join(f"{t.name} ({t.modality})" for t in model.config.auto_targets),
        licences="\n".join(f"| {code} | {licence} |" for code, licence in licences.items()),
        images="all images" if limit is None else f"{limit} images per data set, drawn by seed",
        arguments="" if limit is None else f" --limit {limit}",
        boxes=next(f"{row['metrics'][results.BOX_METRIC]['mean']:.2f}" for row in found["summary"]
                   if (row["level"], row["mode"]) == ("overall", "boxes")),
        aligned=means_without(found["summary"], MISLABELLED),
        overall=table(found["summary"], "overall", ""), modalities=table(found["summary"], "modality", "modality"),
        datasets=table([row for row in found["summary"] if row["method"] == "SegMoTE"], "dataset", "data set"))
    CARD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
