"""Training curves from the log, as a picture."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np


def draw_curves(log: Path, picture: Path) -> None:
    """Draw loss, training IoU and validation IoU from ``log.csv`` (step, name, value) into a PNG."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with open(log, newline="", encoding="utf-8") as file:
        for step, name, value in csv.reader(file):
            series[name].append((int(step), float(value)))
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, points in sorted(series.items()):
        steps, values = np.array(points).T
        if name == "loss":
            _smoothed(axes[0], steps, values, name)
        elif name.startswith("val/"):
            axes[2].plot(steps, values, marker=".", label=name[4:])
        elif "iou" in name:
            _smoothed(axes[1], steps, values, name)
    for axis, title in zip(axes, ("loss", "IoU in training", "IoU in validation"), strict=True):
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.savefig(picture, dpi=110)


def _smoothed(axis, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    window = max(1, len(values) // 40)
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1:], mean, label=label)
