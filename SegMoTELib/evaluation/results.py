"""What an evaluation found: single cases, their summary with bootstrap intervals, and both as files."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from SegMoTELib.evaluation.metrics import draw_resamples, interval, resampled_means

# Numbers of clicks at which a mask is scored; NOC_CAP is the most the simulated clinician makes.
CLICK_COUNTS = (1, 3, 5)
NOC_CAP = 10
NOC_GOALS = (0.85, 0.90)

# mode -> title: a box around all of a target, one around each of its pieces, clicks, no prompt; "clicks" holds the
# number of clicks to each goal instead of a mask's scores.
MODES = {"box": "box", "boxes": "box per piece",
         **{f"click{count}": f"{count} click{'s' * (count > 1)}" for count in CLICK_COUNTS},
         "auto": "auto", "clicks": "clicks needed"}
MASK_METRICS = ("dice", "iou", "surface_dice")
BOX_METRIC = "boxes"
CLICK_METRICS = ("noc85", "noc90", "reached85", "reached90")


@dataclass(frozen=True)
class Case:
    """One method on one target in one mode.

    Attributes:
        dataset, modality, image, target: where it comes from; ``pixels`` is the target's size.
        method: name of the method.
        mode: a key of ``MODES``.
        metrics: ``MASK_METRICS``, each 0 to 1, in mode "boxes" with their number, ``BOX_METRIC``; in mode "clicks"
            ``CLICK_METRICS`` (counts, and 1 or 0 for reached).
    """

    dataset: str
    modality: str
    image: str
    target: str
    pixels: int
    method: str
    mode: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """An image that could not be evaluated, and why; none of its targets count."""

    dataset: str
    image: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of a summary.

    Attributes:
        level: "overall", "modality" or "dataset"; the first two are macro means, every data set counting alike.
        name: of the modality or data set; "all" overall.
        method, mode: as in ``Case``.
        images, targets: how many there are.
        metrics: an estimate per metric.
    """

    level: str
    name: str
    method: str
    mode: str
    images: int
    targets: int
    metrics: dict[str, Estimate]


@dataclass
class Evaluation:
    """The outcome of a run; equal runs give equal outcomes.

    Attributes:
        settings: what was run on what.
        cases: every score.
        failures: images that could not be evaluated.
        skipped: data set -> targets left out as too small.
        untargeted: data set -> images with nothing to segment.
        absent: data sets without an image in this split.
        pictures: what the contact sheet draws, one per case of the first method that has a mask.
    """

    settings: dict[str, Any]
    cases: list[Case] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    untargeted: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    def summary(self) -> list[Row]:
        """Return the table: overall, per modality and per data set, in the order the cases were found.

        A data set's score is the mean over its targets. Intervals come from 1000 resamples of the images within every
        data set; images of one patient resemble each other, so where a data set has few patients the intervals
        are too narrow.
        """
        return _Summary(self.cases).rows()

    def write_json(self, path: str | Path) -> None:
        """Write settings, summary, failures and counts of what was left out."""
        content = {"settings": self.settings, "summary": [asdict(row) for row in self.summary()],
                   "failures": [asdict(failure) for failure in self.failures],
                   "skipped_small_targets": self.skipped, "images_without_target": self.untargeted,
                   "datasets_without_split": self.absent}
        _prepare(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def write_csv(self, path: str | Path) -> None:
        """Write one line per case; metrics that a mode does not have stay empty."""
        fields = ["dataset", "modality", "image", "target", "pixels", "method", "mode", *MASK_METRICS, BOX_METRIC,
                  *CLICK_METRICS]
        with _prepare(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            for case in self.cases:
                line = asdict(case)
                metrics = line.pop("metrics")
                writer.writerow(line | {name: round(value, 6) for name, value in metrics.items()})


class _Summary:
    """Bootstraps once per data set, so that methods and modes are compared on the same resamples."""

    def __init__(self, cases: list[Case]) -> None:
        self._groups: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
        self._images: dict[str, dict[str, int]] = defaultdict(dict)
        self._modality: dict[str, str] = {}
        for case in cases:
            self._groups[case.dataset, case.method, case.mode].append(case)
            self._images[case.dataset].setdefault(case.image, len(self._images[case.dataset]))
            self._modality[case.dataset] = case.modality
        self._draws = {name: draw_resamples(len(images), crc32(name.encode()))
                       for name, images in self._images.items()}
        self._estimates = {key: self._resample(key[0], group) for key, group in self._groups.items()}

    def rows(self) -> list[Row]:
        """Return overall, then every modality, then every data set."""
        datasets = list(self._modality)
        levels = [("overall", "all", datasets)]
        levels += [("modality", modality, [name for name in datasets if self._modality[name] == modality])
                   for modality in dict.fromkeys(self._modality.values())]
        levels += [("dataset", name, [name]) for name in datasets]
        pairs = dict.fromkeys((method, mode) for _, method, mode in self._groups)
        rows = []
        for level, name, members in levels:
            for method, mode in pairs:
                keys = [(dataset, method, mode) for dataset in members if (dataset, method, mode) in self._groups]
                if keys:
                    rows.append(self._row(level, name, keys))
        return rows

    def _row(self, level: str, name: str, keys: list[tuple[str, str, str]]) -> Row:
        metrics = {}
        for metric in self._estimates[keys[0]]:
            found = [self._estimates[key][metric] for key in keys]
            # A resample that misses a rare target in one data set is a mean over the other data sets.
            stacked = np.ma.masked_invalid([means for _, means in found])
            low, high = interval(stacked.mean(axis=0).filled(np.nan))
            metrics[metric] = Estimate(float(np.mean([mean for mean, _ in found])), low, high)
        cases = [case for key in keys for case in self._groups[key]]
        return Row(level, name, keys[0][1], keys[0][2], len({(case.dataset, case.image) for case in cases}), len(cases),
                   metrics)

    def _resample(self, dataset: str, cases: list[Case]) -> dict[str, tuple[float, np.ndarray]]:
        images = self._images[dataset]
        index = np.array([images[case.image] for case in cases])
        counts = np.bincount(index, minlength=len(images))
        found = {}
        for metric in cases[0].metrics:
            values = np.array([case.metrics[metric] for case in cases], float)
            sums = np.bincount(index, weights=values, minlength=len(images))
            found[metric] = (float(values.mean()), resampled_means(sums, counts, self._draws[dataset]))
        return found


def _prepare(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
