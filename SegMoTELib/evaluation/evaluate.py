"""Run methods over data sets: box, simulated clicks and prompt-free, every image encoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any
from zlib import crc32

import numpy as np

from SegMoTELib.data.pack import Pack, Sample, check_names
from SegMoTELib.errors import DataError
from SegMoTELib.evaluation.baselines import Method, TakesBoxes, TakesClicks, choose_methods
from SegMoTELib.evaluation.clicks import MAX_PIECES, Box, number_of_clicks, piece_boxes, simulate_clicks, tight_box
from SegMoTELib.evaluation.metrics import SURFACE_TOLERANCE, scores
from SegMoTELib.evaluation.results import BOX_METRIC, CLICK_COUNTS, NOC_CAP, NOC_GOALS, Case, Evaluation, Failure
from SegMoTELib.evaluation.sheet import Picture
from SegMoTELib.evaluation.targets import MAX_INSTANCES, MIN_PIXELS, Target, find_auto_targets, find_targets

# (images done, images in all, data set and image just done)
Progress = Callable[[int, int, str], None]


def evaluate(packs: list[Pack], predictor: Any | None, split: str = "test", baselines: bool = True,
             limit: int | None = None, seed: int = 0, progress: Progress | None = None, workers: int = 1,
             load: Callable[[], Any] | None = None) -> Evaluation:
    """Evaluate a model and the baselines on one split of every data set.

    An image that cannot be evaluated, for whatever reason, is reported in ``failures`` and does not stop the run.

    Args:
        packs: data sets; those without an image in this split are left out, and named in ``absent``.
        predictor: a ``Predictor``, or None to run the classical tools alone.
        split: "train", "val" or "test".
        baselines: compare with the frozen base and the classical tools.
        limit: at most this many images per data set, drawn with the seed.
        seed: decides which images and which single objects are drawn.
        progress: called after every image.
        workers: processes that share the images, each with its part of the CPU's threads; the outcome is the same but
            for the rounding of sums that other numbers of threads add up.
        load: makes ``predictor`` anew in a worker; needed with several workers, and must be picklable.

    Raises:
        DataError: two data sets of one name, no image in this split, or not one that could be evaluated.
    """
    check_names(packs)
    codes = [pack.code for pack in packs]
    chosen = [(pack, identifier) for pack in packs for identifier in choose_images(pack, split, limit, seed)]
    if not chosen:
        raise DataError(f"no images in the split {split!r} of {', '.join(codes) or 'no data'}.")
    bench = _Bench(predictor, baselines, seed)
    result = Evaluation(settings={
        "split": split, "limit": limit, "seed": seed, "datasets": list(dict.fromkeys(pack.code for pack, _ in chosen)),
        "methods": [method.name for method in bench.methods], "min_target_pixels": MIN_PIXELS,
        "max_instances_per_image": MAX_INSTANCES, "max_boxes": MAX_PIECES, "max_clicks": NOC_CAP,
        "surface_tolerance": SURFACE_TOLERANCE,
        "surface_tolerance_unit": "mm where the spacing is known, else pixels"})
    result.absent = [code for code in codes if code not in result.settings["datasets"]]
    outcomes = map(bench.evaluate, chosen) if workers == 1 else _spread(chosen, workers, load, baselines, seed)
    for done, ((pack, identifier), found) in enumerate(zip(chosen, outcomes, strict=True), start=1):
        if isinstance(found, Failure):
            result.failures.append(found)
        else:
            found.add_to(result)
        if progress is not None:
            progress(done, len(chosen), f"{pack.code}/{identifier}")
    if len(result.failures) == len(chosen):
        first = result.failures[0]
        raise DataError(f"none of {len(chosen)} images could be evaluated; {first.dataset}/{first.image}: "
                        f"{first.reason}")
    return result


class _Bench:
    """What one process needs to evaluate images one by one."""

    def __init__(self, predictor: Any | None, baselines: bool, seed: int) -> None:
        self.predictor, self.seed = predictor, seed
        self.methods = choose_methods(predictor, baselines)
        self.offered = tuple(predictor.auto_targets) if predictor is not None else ()

    def evaluate(self, one: tuple[Pack, str]) -> _Found | Failure:
        """Evaluate one image; whatever is wrong with it is the outcome."""
        pack, identifier = one
        try:
            return _evaluate_image(pack, identifier, self.methods, self.predictor, self.offered, self.seed)
        except Exception as error:  # one bad image must not cost the hours spent on the others
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            return Failure(pack.code, str(identifier), reason)


_bench: _Bench  # a worker process's own, made by _start


def _spread(chosen: list[tuple[Pack, str]], workers: int, load: Callable[[], Any] | None, baselines: bool,
            seed: int) -> Iterator[_Found | Failure]:
    """Outcomes in the order of the images; processes are started afresh, since torch does not survive a fork."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (load, baselines, seed, threads)) as pool:
        yield from pool.map(_evaluate_here, chosen)


def _start(load: Callable[[], Any] | None, baselines: bool, seed: int, threads: int) -> None:
    """Prepare a worker process."""
    global _bench
    if load is not None:
        import torch

        torch.set_num_threads(threads)
    _bench = _Bench(load() if load is not None else None, baselines, seed)


def _evaluate_here(one: tuple[Pack, str]) -> _Found | Failure:
    return _bench.evaluate(one)


@dataclass
class _Found:
    """What one image gave."""

    sample: Sample
    cases: list[Case] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    skipped: int = 0
    targets: int = 0

    def add(self, target: Target, method: str, mode: str, metrics: dict[str, float]) -> Case:
        case = Case(self.sample.dataset, self.sample.modality, self.sample.identifier, target.name,
                    int(np.count_nonzero(target.mask)), method, mode, metrics)
        self.cases.append(case)
        return case

    def add_mask(self, target: Target, method: str, mode: str, mask: np.ndarray, draw: bool, **prompts: Any) -> Case:
        case = self.add(target, method, mode, scores(mask, target.mask, self.sample.spacing_mm))
        if draw:
            self.pictures.append(Picture.pack(case, self.sample.image_path, target.mask, mask, **prompts))
        return case

    def add_to(self, result: Evaluation) -> None:
        result.cases += self.cases
        result.pictures += self.pictures
        if self.skipped:
            result.skipped[self.sample.dataset] = result.skipped.get(self.sample.dataset, 0) + self.skipped
        if not self.targets:
            result.untargeted[self.sample.dataset] = result.untargeted.get(self.sample.dataset, 0) + 1


def choose_images(pack: Pack, split: str, limit: int | None, seed: int) -> list[str]:
    """Identifiers of a split's images, at most ``limit`` of them, drawn by ``seed``."""
    identifiers = list(dict.fromkeys(pack.info["splits"].get(split, [])))  # one listed twice counts once
    if limit is None or limit >= len(identifiers):
        return identifiers
    drawn = np.random.default_rng((seed, crc32(pack.code.encode()))).choice(len(identifiers), limit, replace=False)
    return [identifiers[index] for index in sorted(drawn)]


def sample_targets(pack: Pack, sample: Sample, label: np.ndarray, seed: int) -> tuple[list[Target], int]:
    """:func:`find_targets` of a sample and its (H, W) label map; the draw depends on ``seed`` and the image alone."""
    return find_targets(label, pack.labels, sample.load_instances(),
                        (seed, crc32(f"{pack.code}/{sample.identifier}".encode())))


def _evaluate_image(pack: Pack, identifier: str, methods: list[Method], predictor: Any | None,
                    offered: tuple[Any, ...], seed: int) -> _Found:
    sample = pack.sample(identifier)
    image, label = sample.load_image(), sample.load_label()
    found = _Found(sample)
    targets, found.skipped = sample_targets(pack, sample, label, seed)
    auto_targets = find_auto_targets(label, pack, offered)
    found.targets = len(targets) + found.skipped
    if not targets and not auto_targets:
        return found
    for method in methods:
        method.set_image(image)
    for target in targets:
        boxes = [tight_box(target.mask)], piece_boxes(target.mask)
        for method in methods:
            draw = method is methods[0]
            if isinstance(method, TakesBoxes):
                _box(found, target, method, *boxes, draw)
            if isinstance(method, TakesClicks):
                _click(found, target, method, draw)
    if predictor is not None:  # which offers them
        for target in auto_targets:
            mask = predictor.predict_auto(target.name)[0][0]
            found.add_mask(target, methods[0].name, "auto", mask, draw=True)
    return found


def _box(found: _Found, target: Target, method: TakesBoxes, whole: list[Box], pieces: list[Box], draw: bool) -> None:
    mask = method.from_boxes(whole)
    found.add_mask(target, method.name, "box", mask, draw, boxes=whole)
    if pieces != whole:
        mask = method.from_boxes(pieces)
    case = found.add_mask(target, method.name, "boxes", mask, draw, boxes=pieces)
    case.metrics[BOX_METRIC] = float(len(pieces))


def _click(found: _Found, target: Target, method: TakesClicks, draw: bool) -> None:
    steps = simulate_clicks(method.from_clicks, target.mask, NOC_CAP, max(CLICK_COUNTS), max(NOC_GOALS))
    for count in CLICK_COUNTS:
        step = steps[min(count, len(steps)) - 1]  # a mask without any error left needs no further click
        found.add_mask(target, method.name, f"click{count}", step.mask, draw, clicks=step.clicks)
    metrics: dict[str, float] = {}
    for goal in NOC_GOALS:
        clicks, reached = number_of_clicks(steps, goal, NOC_CAP)
        metrics |= {f"noc{goal * 100:.0f}": float(clicks), f"reached{goal * 100:.0f}": float(reached)}
    found.add(target, method.name, "clicks", metrics)
