"""Auto over a volume: a target found on every slice of a range, made consistent in 3D."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.planes import NORMALS
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
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


def best_orientation(volume: Volume) -> str:
    """ "axial", "coronal" or "sagittal": the one whose slices have the finest pixels; axial where all are alike."""
    steps = {name: PlaneStack.along(volume, name).step for name in ("axial", "coronal", "sagittal")}
    return max(NORMALS, key=lambda name: (round(steps[name], 3), name == "axial"))


def modality_note(volume: Volume, target: str, offered: tuple) -> str:
    """What to know about a target's modality: "" only where the volume says that it is of the one it was trained on."""
    trained = next((one.modality for one in offered if one.name == target), "")
    names = {"CT": "CT", "MR": "MR", "US": "ultrasound", "PT": "PET"}
    own = names.get(volume.modality, "")
    if not trained or trained.split()[0] == own:
        return ""
    if not own:
        return f"It was trained on {trained}: on anything else the result means nothing."
    return f"It was trained on {trained}, this volume is {own}: the result means nothing."


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
    held: deque[np.ndarray] = deque(maxlen=2 * REACH + 1)
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


def _smoothed(held: deque, back: int) -> np.ndarray:
    """Gaussian mean of the slices around the one that is ``back`` from the newest; missing ones are left out."""
    center = len(held) - 1 - back
    total, weights = 0.0, 0.0
    for place, logits in enumerate(held):
        if logits is not None:
            weight = np.exp(-0.5 * ((place - center) / SMOOTHING) ** 2)
            total, weights = total + weight * np.clip(logits, -8, 8), weights + weight
    return total / weights


def _without_small_pieces(found: AutoResult) -> AutoResult:
    """Remove what is not connected with something large."""
    if not found.masks:
        return found
    first, last = min(found.masks), max(found.masks)
    row = min(mask.row for mask in found.masks.values())
    column = min(mask.column for mask in found.masks.values())
    rows = max(mask.row + mask.array.shape[0] for mask in found.masks.values()) - row
    columns = max(mask.column + mask.array.shape[1] for mask in found.masks.values()) - column
    block = np.zeros((last - first + 1, rows, columns), bool)
    cuts = {index: np.s_[index - first, mask.row - row:mask.row - row + mask.array.shape[0],
                         mask.column - column:mask.column - column + mask.array.shape[1]]
            for index, mask in found.masks.items()}
    for index, mask in found.masks.items():
        block[cuts[index]] = mask.array
    pieces, count = ndimage.label(block, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= SMALLEST_PIECE * sizes.max())
    found.removed = count - len(large)
    kept = {index: Crop(mask.row, mask.column, np.isin(pieces[cuts[index]], large), mask.shape)
            for index, mask in found.masks.items()}
    found.masks = {index: mask for index, mask in kept.items() if mask.area}
    return found
