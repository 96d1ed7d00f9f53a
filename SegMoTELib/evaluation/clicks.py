"""A simulated clinician who sees the truth: deterministic clicks and boxes.

The first click goes to the point of the target farthest from its border, as in SAM's evaluation. Every further click
goes to the same point of the largest connected error: positive on a missed part, negative on a false one. A pixel is
never clicked twice. Coordinates are pixel indices, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from SegMoTELib.evaluation.metrics import bounds, dice
from SegMoTELib.evaluation.targets import MIN_PIXELS

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, all of them inside
MAX_PIECES = 5  # boxes that the simulated clinician draws for one target


class Click(NamedTuple):
    """One click: pixel indices, and 1 for "this belongs to it" or 0 for "this does not"."""

    x: int
    y: int
    label: int


@dataclass(frozen=True, eq=False)
class Step:
    """The state after one click.

    Attributes:
        clicks: all clicks so far.
        mask: boolean (H, W), what the method answered.
        dice: of that mask.
    """

    clicks: tuple[Click, ...]
    mask: np.ndarray
    dice: float


# (clicks so far, what the last call returned besides its mask) -> (boolean (H, W), something to hand to the next call)
Segment = Callable[[tuple[Click, ...], Any], tuple[np.ndarray, Any]]


def first_click(truth: np.ndarray) -> Click:
    """Return the click at the point of a target farthest from its border.

    Raises:
        ValueError: the target is empty.
    """
    click = _deepest(truth, 1, ())
    if click is None:
        raise ValueError("an empty target cannot be clicked.")
    return click


def corrective_click(truth: np.ndarray, prediction: np.ndarray, taken: tuple[Click, ...] = ()) -> Click | None:
    """Return the click in the middle of the largest connected error, or None when no unclicked error is left.

    Errors are 8-connected. Of two errors of one size the missed part comes first, then reading order decides.

    Args:
        truth, prediction: boolean (H, W).
        taken: clicks made before; their pixels are not clicked again.
    """
    errors = []
    inside = bounds(truth | prediction)  # labelling costs by the pixel
    truth, prediction = truth[inside], prediction[inside]
    corner = Click(inside[1].start, inside[0].start, 0)
    taken = tuple(Click(click.x - corner.x, click.y - corner.y, click.label) for click in taken)
    for wrong, label in ((truth & ~prediction, 1), (prediction & ~truth, 0)):
        components, count = ndimage.label(wrong, structure=np.ones((3, 3)))
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        errors += [(-sizes[index], 1 - label, index, components) for index in range(1, count + 1)]
    for _, negative, index, components in sorted(errors, key=lambda error: error[:3]):
        click = _deepest(components == index, 1 - negative, taken)
        if click is not None:
            return Click(click.x + corner.x, click.y + corner.y, click.label)
    return None


def simulate_clicks(segment: Segment, truth: np.ndarray, most: int, least: int, enough: float) -> list[Step]:
    """Click until the mask is good enough, and return every step.

    Args:
        segment: the method under test.
        truth: boolean (H, W), not empty.
        most: the largest number of clicks.
        least: go on to this many clicks even when the mask is good enough earlier.
        enough: the Dice at which the clinician stops; without any error left they stop anyway.
    """
    steps: list[Step] = []
    clicks: tuple[Click, ...] = ()
    state = None
    click: Click | None = first_click(truth)
    while click is not None and len(clicks) < most:
        clicks += (click,)
        mask, state = segment(clicks, state)
        steps.append(Step(clicks, mask, dice(mask, truth)))
        if len(clicks) >= least and steps[-1].dice >= enough:
            break
        click = corrective_click(truth, mask, clicks)
    return steps


def number_of_clicks(steps: list[Step], wanted: float, cap: int) -> tuple[int, bool]:
    """Return how many clicks it took to the wanted Dice, and whether it was reached; ``cap`` where it was not."""
    for count, step in enumerate(steps, start=1):
        if step.dice >= wanted:
            return count, True
    return cap, False


def piece_boxes(truth: np.ndarray) -> list[Box]:
    """Return a box around each separate piece of a target, as one draws them where a structure is cut several times.

    Pieces are 8-connected; the ``MAX_PIECES`` largest of at least ``MIN_PIXELS``, or the largest if all are smaller.
    Mazurowski et al. (arXiv 2304.10517) compare the same two uses of boxes, and find this one the best way to prompt.

    Raises:
        ValueError: the target is empty.
    """
    pieces, _ = ndimage.label(truth, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    if not len(sizes):
        raise ValueError("an empty target has no pieces.")
    order = np.argsort(-sizes, kind="stable")
    large = [index for index in order if sizes[index] >= MIN_PIXELS]
    return [tight_box(pieces == index + 1) for index in large[:MAX_PIECES] or order[:1]]


def tight_box(mask: np.ndarray) -> Box:
    """Return x0, y0, x1, y1 of a mask: the first and last column and row that hold it, inclusive, without margin.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("an empty mask has no box.")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _deepest(region: np.ndarray, label: int, taken: tuple[Click, ...]) -> Click | None:
    """Return a click on the unclicked pixel farthest from the region's border; the image's edge is a border too."""
    if not region.any():
        return None
    x0, y0, x1, y1 = tight_box(region)
    depth = ndimage.distance_transform_edt(np.pad(region[y0:y1 + 1, x0:x1 + 1], 1))[1:-1, 1:-1]
    for click in taken:
        if x0 <= click.x <= x1 and y0 <= click.y <= y1:
            depth[click.y - y0, click.x - x0] = 0
    row, column = np.unravel_index(np.argmax(depth), depth.shape)
    return Click(x0 + int(column), y0 + int(row), label) if depth[row, column] > 0 else None
