"""What the adapters do to images of a kind that they did not learn from: box Dice with and without them.

    python Testing/benchmarks/unseen.py VOLUMES/ch2_aal VOLUMES/totalseg_ct_aorta

Axial slices of labelled volumes (image.nii.gz, label.nii.gz, info.json) that share nothing with the training data.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click
import numpy as np

from SegMoTELib.cli.volumes import load_predictor
from SegMoTELib.evaluation.clicks import tight_box
from SegMoTELib.evaluation.metrics import dice
from SegMoTELib.imaging.files import read_volume
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.stacks import PlaneStack

SLICES, STRUCTURES, LEAST = 12, 6, 60  # per volume; per slice; pixels of a structure


def targets_of(folder: Path, seed: int = 0) -> list[tuple[np.ndarray, list[np.ndarray], tuple[float, float]]]:
    """Slice, masks and intensity range, slices evenly spread over those that hold a label, structures drawn by seed."""
    volume, labels = read_volume(folder / "image.nii.gz"), read_volume(folder / "label.nii.gz")
    modality = json.loads((folder / "info.json").read_text(encoding="utf-8"))["modality"]
    values = range_of(volume, "ct_soft_tissue" if modality == "CT" else "percentiles")
    rng, found = np.random.default_rng(seed), []
    for plane in PlaneStack.along(volume, "axial").planes:
        label = np.rint(plane.extract(labels))
        kept = [value for value in np.unique(label) if value and (label == value).sum() >= LEAST]
        if kept:
            drawn = rng.permutation(kept)[:STRUCTURES]
            found.append((plane.extract(volume), [label == value for value in drawn], values))
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, SLICES).astype(int))] if found else []


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="segmote-tiny", show_default=True)
def main(folders: tuple[Path, ...], model: str) -> None:
    """Print the table."""
    predictor = load_predictor(model, "cpu", False)
    print("| volume | boxes | base | with adapters | taken for |\n|---|---|---|---|---|")
    for folder in folders:
        scores: dict[bool, list[float]] = {False: [], True: []}
        kinds: Counter[str] = Counter()
        for image, masks, values in targets_of(folder):
            predictor.set_image(image, values)
            for mask in masks:
                for adapters, kept in scores.items():
                    found, _, _ = predictor.predict(box=np.array(tight_box(mask)), multimask_output=False,
                                                    adapters=adapters)
                    kept.append(dice(found[0], mask))
            kinds[next(iter(predictor.expert_view().domains), "-")] += 1
        taken = ", ".join(f"{name} {count}" for name, count in kinds.most_common())
        print(f"| {folder.name} | {len(scores[True])} | {np.mean(scores[False]):.3f} | {np.mean(scores[True]):.3f} "
              f"| {taken} |")


if __name__ == "__main__":
    main()
