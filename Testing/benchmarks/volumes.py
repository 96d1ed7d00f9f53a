"""Whole volumes, measured: accuracy against Slicer's own tools, interactions, speed, memory, prefetch, cancelling.

    python Testing/benchmarks/volumes.py accuracy VOLUMES -o volumes.csv
    python Testing/benchmarks/volumes.py table volumes.csv
    python Testing/benchmarks/volumes.py pieces VOLUMES
    python Testing/benchmarks/volumes.py directions VOLUMES --only totalseg_mr_3mm
    python Testing/benchmarks/volumes.py speed VOLUMES/totalseg_ct_512

VOLUMES is a folder of labelled volumes, each a folder with image.nii.gz, label.nii.gz and info.json (modality, labels).
Prompts are simulated from the truth: a box around each piece of the object on the prompted slices. ``fill`` is
Slicer's morphological contour interpolation between the same three slices, ``grow cut`` Slicer's grow-from-seeds with
these slices as seeds; both start from the masks that SegMoTE gave on the three slices.
"""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import psutil
import SimpleITK as sitk
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

from SegMoTELib.cli.volumes import load_predictor, voxels_of
from SegMoTELib.evaluation.clicks import Box, piece_boxes, tight_box
from SegMoTELib.evaluation.metrics import dice
from SegMoTELib.imaging.files import read_volume
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.planes import NORMALS
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.jobs import Jobs
from SegMoTELib.interaction.propagation import propagate
from SegMoTELib.interaction.session import Session

THREE = (0.15, 0.5, 0.85)  # places of the prompted slices within the object
WANTED, MOST_ROUNDS = 0.85, 5
METHODS = ("1 slice, propagated", "3 slices, propagated", "3 slices, fill", "3 slices, grow cut",
           "boxes on every slice")


@dataclass
class Case:
    """One structure of one volume."""

    volume: str
    label: str
    session: Session
    stack: PlaneStack
    truth: np.ndarray  # (K, J, I) bool
    slices: list[np.ndarray]  # the truth on the stack's slices

    @property
    def present(self) -> np.ndarray:
        """Indices of the slices that hold the object."""
        return np.flatnonzero([one.sum() >= 8 for one in self.slices])

    @property
    def largest(self) -> int:
        """Index of the slice that shows most of the object."""
        return int(np.argmax([one.sum() for one in self.slices]))

    @property
    def middle(self) -> int:
        """Index of the slice in the middle of the object."""
        return int(self.present[len(self.present) // 2])

    def ask(self, index: int, draw: Callable[[np.ndarray], list[Box]] = piece_boxes) -> np.ndarray:
        """The model's mask for the boxes that are drawn on a slice: around each piece of the object; the truth where it
        finds nothing, for there a user would draw.
        """
        plane = self.stack.planes[index]
        boxes = np.reshape(draw(self.slices[index]), (-1, 2, 2)) + [[-0.6, -0.6], [0.6, 0.6]]
        mask = self.session.predict(plane, box=plane.to_ras(boxes)).mask
        return mask if mask.any() else self.slices[index]

    def on_every_slice(self) -> np.ndarray:
        """(K, J, I) bool: boxes on each slice that holds the object."""
        return voxels_of({int(index): Crop.of(self.ask(index)) for index in self.present}, self.stack)

    def along(self, orientation: str) -> Case:
        """The same structure on slices of another direction."""
        stack, own = PlaneStack.along(self.session.volume, orientation), self._truth_volume()
        return replace(self, stack=stack, slices=[plane.extract(own) > 0 for plane in stack.planes])

    def _truth_volume(self) -> Volume:
        return Volume(self.truth.astype(np.uint8), self.session.volume.ijk_to_ras)


def open_cases(root: Path, per_volume: int, seed: int, model: str, only: tuple[str, ...] = (),
               fits: Callable[[Case], bool] = lambda case: True) -> Iterator[Case]:
    """Seeded draw of structures with at least eight slices, from folders with image, label and info.json."""
    predictor, rng = load_predictor(model, "auto", False), np.random.default_rng(seed)
    for folder in sorted(path for path in root.iterdir() if (path / "info.json").exists()):
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        labels = read_volume(folder / "label.nii.gz").array
        order = rng.permutation([value for value in np.unique(labels) if value])
        if only and folder.name not in only:
            continue
        volume = read_volume(folder / "image.nii.gz")
        session = Session(predictor, volume,
                          range_of(volume, "ct_soft_tissue" if info["modality"] == "CT" else "percentiles"))
        taken = 0
        for value in order:
            if taken == per_volume:
                break
            case = Case(folder.name, info["labels"][str(value)], session, None, labels == value, []).along("axial")
            if len(case.present) >= 8 and fits(case):
                taken += 1
                yield case


def three_slices(case: Case) -> set[int]:
    """Indices of the slices to prompt."""
    return {int(case.present[round(place * (len(case.present) - 1))]) for place in THREE}


def run_methods(case: Case) -> dict[str, np.ndarray]:
    """Method -> (K, J, I) bool."""
    last, largest, three = len(case.stack) - 1, case.largest, three_slices(case)
    masks = {index: case.ask(index) for index in three | {largest}}
    three = {index: masks[index] for index in sorted(three)}
    seeds = voxels_of({index: Crop.of(mask) for index, mask in three.items()}, case.stack)
    return {
        METHODS[0]: voxels_of(propagate(case.session, case.stack, {largest: masks[largest]}, 0, last).masks,
                              case.stack),
        METHODS[1]: voxels_of(propagate(case.session, case.stack, three, 0, last).masks, case.stack),
        METHODS[2]: fill_between(seeds),
        METHODS[3]: grow_cut(case, seeds, sorted(three)),
        METHODS[4]: case.on_every_slice(),
    }


def fill_between(seeds: np.ndarray) -> np.ndarray:
    """Slicer's filter behind "Fill between slices"."""
    import slicer

    fill = slicer.vtkITKMorphologicalContourInterpolator()
    fill.SetInputData(_vtk_image(seeds.astype(np.uint8)))
    fill.Update()
    return _array(fill.GetOutput(), seeds.shape) > 0


def grow_cut(case: Case, seeds: np.ndarray, prompted: list[int]) -> np.ndarray:
    """Slicer's filter behind "Grow from seeds"; background: around the object on prompted slices, and far from it."""
    import slicer

    labels = np.where(seeds, 1, 0).astype(np.uint8)
    height = len(labels)
    for plane in (case.stack.planes[index] for index in prompted):
        block = labels[plane.insert(np.ones(plane.shape, bool), case.session.volume).slices]
        block[(block == 0) & ~ndimage.binary_dilation(block == 1, iterations=4)] = 2
    margin = max(2, height // 20)
    inside = np.flatnonzero(seeds.any(axis=(1, 2)))
    spread = inside[-1] - inside[0]
    low, high = max(0, inside[0] - spread // 3 - margin), min(height - 1, inside[-1] + spread // 3 + margin)
    for border in (low, high):
        labels[border][labels[border] == 0] = 2
    grow = slicer.vtkImageGrowCutSegment()
    image = case.session.volume.array.astype(np.float32)
    grow.SetIntensityVolume(_vtk_image(image[low:high + 1]))
    grow.SetSeedLabelVolume(_vtk_image(labels[low:high + 1]))
    grow.Update()
    found = np.zeros(labels.shape, bool)
    found[low:high + 1] = _array(grow.GetOutput(), labels[low:high + 1].shape) == 1
    return found


def count_interactions(case: Case) -> int:
    """Prompted slices until Dice 0.85 in 3D: the largest one, then always the worst one, propagated anew."""
    last = len(case.stack) - 1
    prompted = {case.largest: case.ask(case.largest)}
    known, changed = None, None
    for count in range(1, MOST_ROUNDS + 1):
        known = propagate(case.session, case.stack, prompted, 0, last, known=known, changed=changed)
        if dice(voxels_of(known.masks, case.stack), case.truth) >= WANTED:
            return count
        errors = [np.count_nonzero((known.masks[index].full() if index in known.masks else False) ^ truth)
                  if index not in prompted and truth.sum() >= 8 else -1 for index, truth in enumerate(case.slices)]
        changed = int(np.argmax(errors))
        prompted[changed] = case.ask(changed)
    return MOST_ROUNDS + 1


def surface_dice(found: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> float:
    """Share of the surfaces within 2 mm of each other (MONAI); 0 where nothing was found."""
    if not found.any():
        return 0.0
    both = np.argwhere(found | truth)
    cut = tuple(slice(max(0, low - 2), high + 3) for low, high in zip(both.min(0), both.max(0), strict=True))
    masks = [torch.from_numpy(np.stack([~one[cut], one[cut]])[None].astype(np.float32)) for one in (found, truth)]
    return float(compute_surface_dice(*masks, [2.0], spacing=tuple(map(float, spacing[::-1])))[0, 0])


@click.group()
def main() -> None:
    """Benchmarks of whole volumes."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())


@main.command()
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option("--per-volume", default=2, show_default=True, help="Structures drawn from each volume.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="segmote-tiny", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def accuracy(root: Path, per_volume: int, seed: int, model: str, output: Path) -> None:
    """3D Dice, surface Dice and interactions, one line per structure and method."""
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", "structure", "slices", "method", "dice", "surface_dice", "interactions"])
        for case in open_cases(root, per_volume, seed, model):
            for method, found in run_methods(case).items():
                count = count_interactions(case) if method == METHODS[0] else ""
                writer.writerow([case.volume, case.label, len(case.present), method,
                                 round(dice(found, case.truth), 4),
                                 round(surface_dice(found, case.truth, case.session.volume.spacing), 4), count])
            file.flush()
            click.echo(f"{case.volume} {case.label}")


@main.command()
@click.argument("table_path", type=click.Path(exists=True, path_type=Path))
def table(table_path: Path) -> None:
    """The figures of ``accuracy`` as Markdown."""
    rows = list(csv.DictReader(table_path.open(encoding="utf-8")))
    cases = list(dict.fromkeys((row["volume"], row["structure"], row["slices"]) for row in rows))
    click.echo("| volume | structure | slices | " + " | ".join(METHODS) + " | slices to 0.85 |")
    click.echo("|" + " --- |" * (len(METHODS) + 4))
    better = 0
    for case in cases:
        own = {row["method"]: row for row in rows if (row["volume"], row["structure"], row["slices"]) == case}
        better += float(own[METHODS[1]]["dice"]) > float(own[METHODS[2]]["dice"])
        count = int(own[METHODS[0]]["interactions"])
        click.echo("| " + " | ".join([*case, *(f"{float(own[method]['dice']):.2f}" for method in METHODS),
                                      str(count) if count <= MOST_ROUNDS else f"> {MOST_ROUNDS}"]) + " |")
    for name in ("dice", "surface_dice"):
        means = [np.mean([np.mean([float(row[name]) for row in rows if row["volume"] == volume
                                   and row["method"] == method])
                          for volume in {row["volume"] for row in rows}]) for method in METHODS]
        click.echo(f"| mean over volumes, {name.replace('_', ' ')} | | | "
                   + " | ".join(f"**{mean:.3f}**" for mean in means) + " | |")
    click.echo(f"\nPropagation beats filling between the same three slices on {better} of {len(cases)} structures.")


@main.command()
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option("--per-volume", default=4, show_default=True, help="Structures drawn from each volume.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="segmote-tiny", show_default=True)
def pieces(root: Path, per_volume: int, seed: int, model: str) -> None:
    """What a box for each piece brings over one box, where a third of a structure's slices show several pieces."""
    click.echo("| volume | structure | boxes a slice | one box: 3 slices | propagated | a box per piece: 3 slices "
               "| propagated |\n|" + " --- |" * 7)

    def is_cut(case: Case) -> bool:
        return bool(np.mean([len(piece_boxes(case.slices[index])) > 1 for index in case.present]) > 1 / 3)

    for case in open_cases(root, per_volume, seed, model, fits=is_cut):
        three, cells = sorted(three_slices(case)), []
        for draw in (lambda mask: [tight_box(mask)], piece_boxes):
            masks = {index: case.ask(index, draw) for index in three}
            carried = propagate(case.session, case.stack, masks, 0, len(case.stack) - 1).masks
            cells += [np.mean([dice(masks[index], case.slices[index]) for index in three]),
                      dice(voxels_of(carried, case.stack), case.truth)]
        drawn = np.mean([len(piece_boxes(case.slices[index])) for index in three])
        click.echo(f"| {case.volume} | {case.label} | {drawn:.1f} | " + " | ".join(f"{x:.2f}" for x in cells) + " |")


@main.command()
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option("--only", multiple=True, help="Folder to take; default: all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="segmote-tiny", show_default=True)
def directions(root: Path, only: tuple[str, ...], seed: int, model: str) -> None:
    """Do three orthogonal directions agree better than one? Boxes on every slice in each, and two votes of three."""
    click.echo("| volume | structure | axial | sagittal | coronal | two of three |\n|" + " --- |" * 6)
    for case in open_cases(root, 1, seed, model, only):
        found = [case.along(name).on_every_slice() for name in NORMALS]
        scores = [dice(one, case.truth) for one in (*found, np.sum(found, axis=0) >= 2)]
        click.echo("| " + " | ".join([case.volume, case.label, *(f"{score:.3f}" for score in scores)]) + " |")


@main.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="segmote-tiny", show_default=True)
def speed(folder: Path, model: str) -> None:
    """Seconds per slice, memory against the number of slices, prefetch hits, time from Cancel to idle."""
    case = next(open_cases(folder.parent, 1, 0, model, (folder.name,)))
    session, stack, process = case.session, case.stack, psutil.Process()
    count = len(stack)
    seconds = {}
    for name in ("encode, first time", "encode, from the cache"):
        session._at_hand.clear()
        session._encoded_before.clear()
        started = time.perf_counter()
        for plane in stack.planes:
            session.encode([plane])
        seconds[name] = (time.perf_counter() - started) / count
    memory = []
    middle = case.middle
    for reach in (2, max(3, count // 4), count):
        first, last = max(0, middle - reach), min(count - 1, middle + reach)
        started = time.perf_counter()
        propagate(session, stack, {middle: case.slices[middle]}, first, last)
        seconds[f"propagate, up to {last - first + 1} slices"] = (time.perf_counter() - started) / (last - first + 1)
        memory.append((last - first + 1, process.memory_info().rss / 2**20))
    for name, value in seconds.items():
        click.echo(f"{name}: {1000 * value:.0f} ms per slice")
    click.echo("resident memory: " + ", ".join(f"{value:.0f} MiB after {n} slices" for n, value in memory))
    click.echo(f"prefetch: {prefetch_hits(case, model):.0%} of clicks found their slice ready")
    alone, meanwhile, ready = click_while_prefetching(case, model)
    click.echo(f"click on an encoded slice: {1000 * alone:.0f} ms alone, {1000 * meanwhile:.0f} ms while others are "
               f"prefetched ({meanwhile / alone:.1f} times as long), of which {ready} of {count} were ready by then")
    click.echo(f"cancel to idle: {1000 * cancel_to_idle(case):.0f} ms until the panel is free, "
               f"{1000 * cancel_to_idle(case, thread=True):.0f} ms until the thread has ended")


def fresh_session(case: Case, model: str) -> Session:
    """A session on a case's volume that has encoded nothing yet."""
    return Session(load_predictor(model, "auto", False), case.session.volume, case.session.intensity_range)


def prefetch_hits(case: Case, model: str, clicks: int = 20, seconds_between: float = 1.0) -> float:
    """A reader scrolls one to four slices, looks for a second and clicks: how often is the slice encoded?"""
    rng, jobs, session = np.random.default_rng(0), Jobs(), fresh_session(case, model)
    index, hits = len(case.stack) // 2, 0
    for _ in range(clicks):
        index = int(np.clip(index + rng.integers(1, 5) * rng.choice([-1, 1]), 0, len(case.stack) - 1))

        def work(job, middle=index):
            for offset in range(9):
                for near in {middle - offset, middle + offset}:
                    if 0 <= near < len(case.stack) and job.step():
                        session.encode([case.stack.planes[near]], job.cancelled)

        jobs.submit("prefetch", work, lambda _: None, lambda _: None, urgent=False)
        time.sleep(seconds_between)
        hits += session.is_encoded(case.stack.planes[index])
    jobs.stop()
    return hits / clicks


def click_while_prefetching(case: Case, model: str, clicks: int = 7) -> tuple[float, float, int]:
    """Median seconds of a click with nothing else to do, and in the middle of prefetching; slices ready at the end."""
    jobs, session = Jobs(), fresh_session(case, model)
    plane = case.stack.planes[len(case.stack) // 2]
    point = plane.to_ras(np.array([plane.shape[::-1]]) / 2)
    session.predict(plane, positives=point)

    def answer() -> float:
        started, done = time.perf_counter(), []
        jobs.submit("click", lambda job: session.predict(plane, positives=point), done.append, done.append)
        while not done:
            jobs.deliver(0.01)
        return time.perf_counter() - started

    def prefetch(job):
        while job.step():
            for other in case.stack.planes:
                if job.step():
                    session.encode([other], job.cancelled)

    alone = float(np.median([answer() for _ in range(clicks)]))
    jobs.submit("prefetch", prefetch, lambda _: None, lambda _: None, urgent=False)
    time.sleep(0.05)
    meanwhile = float(np.median([answer() for _ in range(clicks)]))
    ready = sum(session.is_encoded(other) for other in case.stack.planes)
    jobs.stop()
    return alone, meanwhile, ready


def cancel_to_idle(case: Case, thread: bool = False) -> float:
    """Seconds from Cancel in the middle of a propagation until jobs are idle, or until the thread has really ended."""
    jobs, running, ended = Jobs(), threading.Event(), threading.Event()
    middle = case.middle

    def work(job):
        propagate(case.session, case.stack, {middle: case.slices[middle]}, 0, len(case.stack) - 1,
                  lambda *_: running.set() or job.step())
        ended.set()

    jobs.submit("run", work, lambda _: None, lambda _: None, urgent=False)
    running.wait(60)
    started = time.perf_counter()
    jobs.cancel()
    while not ended.is_set() if thread else jobs.busy():
        time.sleep(0.001)
    passed = time.perf_counter() - started
    jobs.stop()
    return passed


def _vtk_image(array: np.ndarray):
    from vtk import vtkImageData
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return image


def _array(image, shape: tuple[int, ...]) -> np.ndarray:
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


if __name__ == "__main__":
    main()
