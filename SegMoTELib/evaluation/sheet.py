"""The contact sheet: best, median and worst case of every mode, as one picture."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SegMoTELib.data.pack import read_image
from SegMoTELib.errors import DataError
from SegMoTELib.evaluation.clicks import Box, Click, tight_box
from SegMoTELib.evaluation.results import MODES, Case

TRUTH, PREDICTION, BOXES, POSITIVE, NEGATIVE = "#00e5ff", "#ffb300", "#ffffff", "#33dd33", "#ff3333"


@dataclass(frozen=True, eq=False)
class Picture:
    """What is needed to draw a case; its masks are packed, since a run keeps thousands.

    Attributes:
        case: the scores.
        image_path: read again when drawn.
        shape: (H, W) of the masks.
        truth, prediction: compressed bits.
        boxes: that were drawn.
        clicks: made so far.
    """

    case: Case
    image_path: Path
    shape: tuple[int, int]
    truth: bytes
    prediction: bytes
    boxes: tuple[Box, ...]
    clicks: tuple[Click, ...]

    @classmethod
    def pack(cls, case: Case, image_path: Path, truth: np.ndarray, prediction: np.ndarray,
             boxes: Sequence[Box] = (), clicks: tuple[Click, ...] = ()) -> Picture:
        """Keep a case with its masks, boolean (H, W)."""
        return cls(case, image_path, truth.shape, _compress(truth), _compress(prediction), tuple(boxes), clicks)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return truth and prediction, boolean (H, W)."""
        truth, prediction = (
            np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=self.shape[0] * self.shape[1])
            .reshape(self.shape).astype(bool) for bits in (self.truth, self.prediction))
        return truth, prediction


def choose_pictures(pictures: list[Picture]) -> dict[str, dict[str, Picture]]:
    """Return mode -> "best", "median", "worst" -> picture by Dice, of the modes that occur; equals by their order."""
    chosen = {}
    for mode in MODES:
        ranked = sorted((picture for picture in pictures if picture.case.mode == mode),
                        key=lambda picture: -picture.case.metrics["dice"])
        if ranked:
            chosen[mode] = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    return chosen


def write_sheet(path: str | Path, pictures: list[Picture]) -> None:
    """Draw best, median and worst case of every mode into a PNG file, zoomed to the target and what was found.

    Raises:
        DataError: there is nothing to draw.
    """
    from matplotlib.figure import Figure

    chosen = choose_pictures(pictures)
    if not chosen:
        raise DataError("no case to draw on the contact sheet: no target was large enough.")
    figure = Figure(figsize=(12, 4.1 * len(chosen) + 0.6), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, (mode, ranks) in zip(axes, chosen.items(), strict=True):
        for axis, (rank, picture) in zip(row, ranks.items(), strict=True):
            _draw(axis, picture)
            case = picture.case
            axis.set_title(f"{MODES[mode]}, {rank}: Dice {case.metrics['dice']:.2f}\n"
                           f"{case.dataset}/{case.image}\n{case.target}", fontsize=9, parse_math=False)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=9, facecolor="#444444",
                  labelcolor="white")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def _draw(axis: Any, picture: Picture) -> None:
    axis.imshow(read_image(picture.image_path), cmap="gray", vmin=0, vmax=255)
    truth, prediction = picture.masks()
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask.any():
            # Padding closes the contour of a mask that touches the image's edge.
            rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
            axis.contour(columns, rows, np.pad(mask, 1), levels=[0.5], colors=colour, linewidths=1.4)
    for x0, y0, x1, y1 in picture.boxes:
        axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=BOXES, linestyle="--", linewidth=1)
    for number, click in enumerate(picture.clicks, start=1):
        colour = POSITIVE if click.label else NEGATIVE
        axis.plot(click.x, click.y, "o", color=colour, markeredgecolor="black", markersize=8)
        axis.annotate(str(number), (click.x, click.y), ha="center", va="center", fontsize=6)
    x0, y0, x1, y1 = tight_box(truth | prediction)
    margin = max(16, max(x1 - x0, y1 - y0) // 2)
    axis.set_xlim(max(-0.5, x0 - margin), min(picture.shape[1] - 0.5, x1 + margin))
    axis.set_ylim(min(picture.shape[0] - 0.5, y1 + margin), max(-0.5, y0 - margin))
    axis.set_axis_off()


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=TRUTH, label="truth"), Line2D([], [], color=PREDICTION, label="prediction"),
             Line2D([], [], color=BOXES, linestyle="--", label="box")]
    return lines + [Line2D([], [], color=colour, marker="o", linestyle="", label=label)
                    for colour, label in ((POSITIVE, "belongs"), (NEGATIVE, "does not"))]


def _compress(mask: np.ndarray) -> bytes:
    return zlib.compress(np.packbits(mask).data)
