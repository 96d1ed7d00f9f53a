"""What prediction from a box adds to the network alone, step by step: closer looks, parts, the threshold.

    python Testing/benchmarks/looks.py --data PACK [--split val] [--limit 8]

Prints the macro mean over data sets of box Dice as Markdown; every row has the steps of the rows above it, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import click
import numpy as np
from tqdm import tqdm

from SegMoTELib.data.pack import Pack, Sample, open_packs
from SegMoTELib.evaluation.clicks import tight_box
from SegMoTELib.evaluation.evaluate import choose_images, sample_targets
from SegMoTELib.evaluation.metrics import dice
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import load_checkpoint
from SegMoTELib.zoo import resolve_model

STEPS = ("network alone, whole image", "+ closer look at small objects", "+ parts of thin and scattered ones",
         "+ threshold of the highest expected Dice")


@contextmanager
def only(steps: int) -> Iterator[None]:
    """Leave out all but the first ``steps`` of ``STEPS``."""
    without = (("find_view", lambda *_: None), ("find_parts", lambda *_: []), ("best_threshold", lambda _: 0.0))
    with ExitStack() as stack:
        for name, nothing in without[steps - 1:]:
            stack.enter_context(mock.patch(f"SegMoTELib.interaction.predictor.{name}", nothing))
        yield


def box_dice(predictor: Predictor, pack: Pack, sample: Sample) -> list[list[float]]:
    """Dice of every target of an image, one list per step."""
    found: list[list[float]] = [[] for _ in STEPS]
    targets, _ = sample_targets(pack, sample, sample.load_label(), 0)
    predictor.set_image(sample.load_image())
    for target in targets:
        box = np.array(tight_box(target.mask))
        for count in range(1, len(STEPS) + 1):
            with only(count):
                found[count - 1].append(dice(predictor.predict(box=box, multimask_output=False)[0][0], target.mask))
    return found


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--data", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="segmote-tiny", show_default=True)
@click.option("--split", default="val", show_default=True)
@click.option("--limit", default=8, show_default=True, help="Images per data set, drawn by seed.")
def main(data: tuple[Path, ...], model: str, split: str, limit: int) -> None:
    """Print the table."""
    predictor = Predictor(load_checkpoint(resolve_model(model)), "cpu")
    scores: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in STEPS])
    for pack in tqdm(open_packs(list(data))):
        for identifier in choose_images(pack, split, limit, 0):
            found = box_dice(predictor, pack, pack.sample(identifier))
            for kept, new in zip(scores[pack.code], found, strict=True):
                kept.extend(new)
    print(f"| {split}, {sum(len(one[0]) for one in scores.values())} boxes | Dice |\n|---|---|")
    for step, name in enumerate(STEPS):
        print(f"| {name} | {np.mean([np.mean(one[step]) for one in scores.values() if one[step]]):.3f} |")


if __name__ == "__main__":
    main()
