"""Auto over a volume: a target found on every slice of a range, made consistent in 3D."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.propagation import Watcher
from SegMoTELib.interaction.session import Session

SMOOTHING = 1.0  # slices: standard deviation of the smoothing of scores along the axis
REACH = 2  # slices that it looks to either side
SMALLEST_PIECE = 0.05  # of the largest; smaller ones are removed
ENCODED_TOGETHER = 4  # slices
LEAST_IOU = 0.4  # as the model estimates it; below, a slice counts as empty


@dataclass
class AutoResult:
    """What Auto found.

    Attributes:
        masks: slice index -> mask, slices without the target left out. slices: how many were looked at.
        removed: pieces left out because they were small and apart. cancelled: the watcher ended it.
    """

    masks: dict[int, Crop] = field(default_factory=dict)
    slices: int = 0
    removed: int = 0
    cancelled: bool = False


def segment_slices(session: Session, stack: PlaneStack, target: str, first: int, last: int,
                   watch: Watcher = lambda progress, index, mask: True) -> AutoResult:
    """Find a target on slices ``first`` to ``last`` (inclusive) of a stack.

    Scores are smoothed along the axis, so that one slice does not disagree with its neighbours, and pieces of less than
    5 % of the largest are removed. A few slices are held at a time, whatever the volume's size.

    Args:
        stack: slices of the session's volume. watch: called with the progress (0 to 1) and each slice's mask before
            pieces are removed; False cancels.

    Raises:
        PromptError: the model does not offer the target, or an empty range.
    """
    session.check_target(target)
    if not 0 <= first <= last < len(stack):
        raise PromptError(f"The range must lie within slices 1 to {len(stack)}.")
    found = AutoResult(slices=last - first + 1)
    held: deque[np.ndarray | None] = deque(maxlen=2 * REACH + 1)
    for index in range(first, last + 1 + REACH):
        if index <= last:
            if (index - first) % ENCODED_TOGETHER == 0:
                session.encode(stack.planes[index:min(index + ENCODED_TOGETHER, last + 1)])
            logits, iou = session.auto_logits(stack.planes[index], target)
            held.append(logits if iou >= LEAST_IOU else np.full_like(logits, -8))
        else:
            held.append(None)
        middle = index - REACH
        if middle < first:
            continue
        mask = Crop.of(_smoothed(held, index - middle) > 0)
        if mask.area:
            found.masks[middle] = mask
        if not watch((middle - first + 1) / found.slices, middle, mask):
            found.cancelled = True
            break
    return _without_small_pieces(found)


def _smoothed(held: deque[np.ndarray | None], back: int) -> np.ndarray:
    """Gaussian mean of the slices around the one that is ``back`` from the newest; missing ones are left out."""
    center = len(held) - 1 - back
    total, weights = np.zeros(()), 0.0
    for place, logits in enumerate(held):
        if logits is not None:
            weight = np.exp(-0.5 * ((place - center) / SMOOTHING) ** 2)
            total, weights = total + weight * np.clip(logits, -8, 8), weights + weight
    return total / weights


def _without_small_pieces(found: AutoResult) -> AutoResult:
    """Remove what is not connected with something large; two slices are looked at together, never the whole volume."""
    sizes: list[int] = []  # pixels, of the pieces of all slices, numbered one after the other
    links: list[np.ndarray] = []  # (2, N) pairs of pieces that touch
    first_of: dict[int, int] = {}  # slice -> number of its first piece
    previous, above = -2, np.zeros((0, 0), int)
    for index, mask in sorted(found.masks.items()):
        pieces, count = _pieces(mask)
        first_of[index] = len(sizes)
        sizes += np.bincount(pieces.ravel(), minlength=count + 1)[1:].tolist()
        if previous == index - 1:
            links.append(_touching(above, pieces) + [[first_of[previous] - 1], [first_of[index] - 1]])
        previous, above = index, pieces
    if not sizes:
        return found
    pairs = np.concatenate(links, axis=1) if links else np.zeros((2, 0), int)
    graph = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(sizes), len(sizes)))
    count, body = connected_components(graph, directed=False)
    volumes = np.bincount(body, weights=sizes)
    large = volumes >= SMALLEST_PIECE * volumes.max()
    found.removed = count - int(np.count_nonzero(large))
    kept = {}
    for index, mask in found.masks.items():
        pieces, count = _pieces(mask)
        stays = np.concatenate([[False], large[body[first_of[index]:first_of[index] + count]]])
        kept[index] = Crop.of(stays[pieces])
    found.masks = {index: mask for index, mask in kept.items() if mask.area}
    return found


def _pieces(mask: Crop) -> tuple[np.ndarray, int]:
    """Numbered pieces of a slice's mask, (rows, columns) int32 as large as the slice, and how many."""
    pieces, count = ndimage.label(mask.array, np.ones((3, 3)))
    whole = np.zeros(mask.shape, np.int32)
    whole[mask.window(0)] = pieces
    return whole, count


def _touching(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(2, N) numbers of pieces on neighbouring slices that touch, also at a corner."""
    padded, (rows, columns) = np.pad(one, 1), one.shape
    base = int(other.max(initial=0)) + 1
    codes = [np.zeros(0, np.int64)]
    for row, column in itertools.product(range(3), range(3)):
        shifted = padded[row:row + rows, column:column + columns]
        both = (shifted > 0) & (other > 0)
        codes.append(np.unique(shifted[both].astype(np.int64) * base + other[both]))
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), base))
