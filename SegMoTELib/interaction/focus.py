"""Focus: look again at a small object through a crop of the image, as RITM and FocalClick zoom in (arXiv 2102.06583).

A network that sees 256 pixels loses an organ of 20 pixels in a slice of 512. Where the object is small, the part of the
image around it is encoded by itself and the prompts are answered there. Where it is thin or scattered, as vessels are,
it is looked at in overlapping parts, each told what the first look found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from SegMoTELib.interaction.transforms import SquareTransform
from SegMoTELib.network import ModelConfig

CONTEXT = 2.0  # side of the view, in sides of the object
LARGEST = 0.7  # a view larger than this share of the image's longest side is not worth a second look
SMALLEST = 32  # pixels of the image: the smallest view
THIN = 12.0  # pixels of the network's input: a thinner structure is looked at in parts, ...
THICKNESS = 14.0  # ... magnified to about this thickness, ...
FINEST = 4.0  # ... at most this many input pixels per image pixel, ...
MOST_PARTS = 6  # ... in at most this many parts along a side
OUTSIDE = -16.0  # logits where a view does not look


@dataclass(frozen=True)
class View:
    """A rectangle of the image, pixels: x0, y0 inclusive, x1, y1 exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    def holds(self, extent: np.ndarray) -> bool:
        """Tell whether x0, y0, x1, y1 (inclusive pixels) lie inside."""
        return self.x0 <= extent[0] and self.y0 <= extent[1] and extent[2] < self.x1 and extent[3] < self.y1

    @property
    def cut(self) -> tuple[slice, slice]:
        """Index of the rectangle in a (H, W) array."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def side(self) -> int:
        """The longer side, pixels."""
        return max(self.x1 - self.x0, self.y1 - self.y0)


def find_view(extent: np.ndarray, height: int, width: int) -> View | None:
    """The view for an object, moved inside the image; None where the object is large enough to see as it is.

    Args:
        extent: (4,) x0, y0, x1, y1 of its extreme pixels, as far as known; may reach outside the image.
    """
    low = np.clip(np.floor(extent[:2]), 0, (width - 1, height - 1))
    high = np.clip(np.ceil(extent[2:]), low, (width - 1, height - 1))
    side = int(max(SMALLEST, round(CONTEXT * float((high - low).max() + 1))))
    if side > LARGEST * max(height, width):
        return None
    start = np.round((low + high + 1 - side) / 2).astype(int)
    x0, y0 = (max(0, min(int(value), limit - side)) for value, limit in zip(start, (width, height), strict=True))
    return View(x0, y0, min(x0 + side, width), min(y0 + side, height))


def mask_extent(mask: np.ndarray) -> np.ndarray | None:
    """(4,) x0, y0, x1, y1 of the extreme pixels of a (H, W) mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], float) if len(rows) else None


def mask_thickness(mask: np.ndarray) -> float:
    """Mean width of a (H, W) mask in pixels: twice its area over the length of its border; 0 where it is empty."""
    padded = np.pad(mask, 1)
    border = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    return 2 * float(np.count_nonzero(mask)) / border if border else 0.0


def find_parts(mask: np.ndarray, region: np.ndarray, scale: float, size: int) -> list[View]:
    """Overlapping views that cover a thin structure; none where the mask is thick enough, or no part would be finer.

    Args:
        mask: (H, W) bool, what was found so far; where it is empty, parts of a third of the region are tried.
        region: (4,) x0, y0, x1, y1 where the structure may be. scale: input pixels per image pixel when it was found.
        size: S, side of the network's input.
    """
    height, width = mask.shape
    low = np.clip(np.floor(region[:2]), 0, (width - 1, height - 1))
    high = np.clip(np.ceil(region[2:]), low, (width - 1, height - 1))
    extent = high - low + 1
    thickness = mask_thickness(mask)
    if thickness * scale >= THIN:
        return []
    wanted = size * thickness / THICKNESS if thickness else extent.max() / 3
    side = int(max(wanted, size / FINEST, 1.25 * extent.max() / MOST_PARTS))
    if side * scale > LARGEST * size:
        return []
    starts = []
    for first, length, limit in zip(low, extent, (width, height), strict=True):
        count = int(np.ceil(max(1.0, (1.2 * length - 0.2 * side) / side)))
        corners = first + np.linspace(0, length - side, count) if count > 1 else [first + (length - side) / 2]
        starts.append([max(0, min(round(corner), limit - side)) for corner in corners])
    return [View(x, y, min(x + side, width), min(y + side, height)) for y in starts[1] for x in starts[0]]


def part_weights(view: View) -> np.ndarray:
    """(h, w) float32 weights that fade towards the border of a view, where less of the surroundings was seen."""
    fade = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) / n
            for n in (view.y1 - view.y0, view.x1 - view.x0)]
    return np.minimum(fade[0][:, None], fade[1][None])


class ViewTransform:
    """Geometry of a view in a model's square input; the same methods as :class:`SquareTransform`, on the whole image.

    Args:
        config: of the model. view: what is seen. height, width: of the whole image, pixels.
    """

    def __init__(self, config: ModelConfig, view: View, height: int, width: int) -> None:
        self.view, self.height, self.width = view, height, width
        self._inside = SquareTransform(config, view.y1 - view.y0, view.x1 - view.x0)

    def apply_image(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32, normalised."""
        return self._inside.apply_image(np.ascontiguousarray(self._cut(image)))

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y in image pixels -> the same in the square, float64; pixel centres stay centres."""
        centers = np.asarray(points, np.float64) - (self.view.x0, self.view.y0) + 0.5
        return self._inside.apply_points(centers) - 0.5

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(..., 4) x0, y0, x1, y1 of extreme pixels of the image -> of extreme pixels of the square, float64."""
        edges = np.asarray(boxes, np.float64) - (self.view.x0, self.view.y0) * 2 + (0, 0, 1, 1)
        return self._inside.apply_boxes(edges) - (0, 0, 1, 1)

    def apply_logits(self, logits: Tensor) -> Tensor:
        """(C, H, W) logits on the image -> (C, h, w) low-resolution logits of the view."""
        return self._inside.apply_logits(self._cut(logits.movedim(0, -1)).movedim(-1, 0))

    def inverse_masks(self, logits: Tensor, outside: float = OUTSIDE) -> Tensor:
        """(C, h, w) low-resolution logits -> (C, H, W) on the image, float32; ``outside`` where the view ends."""
        inner = self._inside.inverse_masks(logits)
        view = self.view
        return F.pad(inner, (view.x0, self.width - view.x1, view.y0, self.height - view.y1), value=outside)

    def _cut(self, image):
        return image[self.view.cut]
