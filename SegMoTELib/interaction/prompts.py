"""Prompts of one object in pixels of its image: checked, split by box, cut to a part, and the extent they know of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from SegMoTELib.interaction.focus import OUTSIDE, View, ViewTransform, mask_extent
from SegMoTELib.interaction.transforms import SquareTransform


@dataclass
class Prompts:
    """Prompts of one object in image pixels: (P, 2) x, y and (P,) labels, (4,) box, (1, h, w) low-resolution logits."""

    coords: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | None = None
    mask: torch.Tensor | None = None

    @property
    def is_box_alone(self) -> bool:
        """True where nothing but a box tells what is meant."""
        return self.box is not None and self.coords is None and self.mask is None

    def tensors(self, transform: SquareTransform | ViewTransform) -> dict:
        """What ``SegMoTE.decode`` takes, in the network's input."""
        points = boxes = None
        if self.coords is not None and self.labels is not None:
            points = (torch.from_numpy(transform.apply_points(self.coords))[None].float(),
                      torch.from_numpy(self.labels)[None])
        if self.box is not None:
            boxes = torch.from_numpy(transform.apply_boxes(self.box))[None].float()
        return {"points": points, "boxes": boxes, "masks": None if self.mask is None else self.mask[None]}

    def inside(self, part: View, logits: np.ndarray) -> Prompts | None:
        """The prompts for a part of the image: its clicks, and the box cut to it; None where nothing asks for it.

        Without a box, a part that has no click gets the box around what is known there, (H, W) ``logits``.
        """
        cut = Prompts()
        if self.coords is not None and self.labels is not None:
            pixels = np.clip(np.round(self.coords), 0, np.array(logits.shape[::-1]) - 1)  # those that were clicked on
            held = np.array([part.holds(np.tile(pixel, 2)) for pixel in pixels])
            if held.any():
                cut.coords, cut.labels = self.coords[held], self.labels[held]
        box = self.box
        if box is None and cut.coords is None:
            box = mask_extent(logits[part.cut] > 0)
            box = None if box is None else box + np.tile([part.x0, part.y0], 2)
        if box is not None:
            low, high = np.maximum(box[:2], (part.x0, part.y0)), np.minimum(box[2:], (part.x1 - 1, part.y1 - 1))
            cut.box = np.concatenate([low, high]) if (high >= low).all() else None
        return cut if cut.box is not None or (cut.labels is not None and (cut.labels == 1).any()) else None


def seen_extent(logits: np.ndarray, prompts: Prompts) -> np.ndarray | None:
    """Extent of a mask that was found from clicks, clicks included; None where nothing was found."""
    extent = mask_extent(logits > 0)
    return None if extent is None else with_clicks(extent, prompts)


def with_clicks(extent: np.ndarray, prompts: Prompts) -> np.ndarray:
    """Extent enlarged to hold the clicks."""
    if prompts.coords is None:
        return extent
    low, high = prompts.coords.min(axis=0), prompts.coords.max(axis=0)
    return np.concatenate([np.minimum(extent[:2], low), np.maximum(extent[2:], high)])


def union(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """Smallest extent holding both."""
    if one is None or other is None:
        return one if other is None else other
    return np.concatenate([np.minimum(one[:2], other[:2]), np.maximum(one[2:], other[2:])])


def split_by_box(prompts: Prompts, boxes: np.ndarray, transform: SquareTransform) -> list[Prompts]:
    """Prompts for each of (N, 4) boxes around the separate pieces of an object.

    A click belongs to the nearest box, to all that it lies in. A piece with clicks gets its share of the mask; one that
    nobody clicked in keeps its box alone, so that a click changes only the piece it is for.
    """
    pieces = [Prompts(box=box) for box in boxes]
    if prompts.coords is None or prompts.labels is None:
        return pieces
    shares = [None] * len(boxes) if prompts.mask is None else _shares(prompts.mask, boxes, transform)
    for piece, own, share in zip(pieces, _nearest(prompts.coords, boxes), shares, strict=True):
        if own.any():
            piece.coords, piece.labels, piece.mask = prompts.coords[own], prompts.labels[own], share
    return pieces


def _nearest(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N, P) bool: which of (P, 2) points x, y have which of (N, 4) boxes nearest; all where they lie in several."""
    corners = boxes.reshape(-1, 2, 2)[:, :, None]
    away = np.linalg.norm(np.maximum(0, np.maximum(corners[:, 0] - points, points - corners[:, 1])), axis=-1)
    return away == away.min(axis=0)


def _shares(mask: torch.Tensor, boxes: np.ndarray, transform: SquareTransform) -> list[torch.Tensor]:
    """(1, h, w) low-resolution logits, for each box outside where another one is nearer."""
    side = mask.shape[-1]
    middles = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) + 0.5) / side
    nearest = _nearest(middles * transform.config.image_size, transform.apply_boxes(boxes))
    return [mask.masked_fill(torch.from_numpy(~own.reshape(1, side, side)), OUTSIDE) for own in nearest]


def checked_prompts(coords, labels, box, mask, mask_size: int) -> tuple[Prompts, np.ndarray | None]:
    """Prompts of arrays as ``Predictor.predict`` takes them, and (N, 4) boxes where there are several.

    Args:
        mask_size: the side of low-resolution logits.

    Raises:
        ValueError: arrays of the wrong shape, or with NaN; names the argument.
    """
    prompts, boxes = Prompts(), None
    if coords is not None:
        coords = _checked("point_coords", coords, (None, 2))
        labels = _checked("point_labels", labels if labels is not None else [], (len(coords),))
        if not np.isin(labels, (1, 0, -1)).all():
            raise ValueError("point_labels must be 1 inside or 0 outside, or -1 for a point that does not count")
        if len(coords):
            prompts.coords, prompts.labels = coords, labels.astype(np.int64)
    elif labels is not None:
        raise ValueError("point_labels were given without point_coords")
    if box is not None:
        corners = np.asarray(box)
        if corners.ndim == 2 and len(corners) > 1:
            boxes = _sorted(_checked("box", corners, (None, 4)).astype(float))
        else:
            prompts.box = _sorted(_checked("box", corners[0] if corners.ndim == 2 and len(corners) else corners, (4,)))
    if mask is not None:
        prompts.mask = torch.from_numpy(_checked("mask_input", mask, (1, mask_size, mask_size)).astype(np.float32))
    return prompts, boxes


def _sorted(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) any two opposite corners -> x0, y0, x1, y1."""
    return np.sort(boxes.reshape(*boxes.shape[:-1], 2, 2), axis=-2).reshape(boxes.shape)


def _checked(name: str, values: object, shape: tuple[int | None, ...]) -> np.ndarray:
    """Array of the given shape (None = any) without NaN or infinity.

    Raises:
        ValueError: naming the argument.
    """
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "uifb":
        expected = "(" + ", ".join("N" if want is None else str(want) for want in shape) + ")"
        raise ValueError(f"{name} must be numbers of shape {expected}; got shape {array.shape}, {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite values")
    return array
