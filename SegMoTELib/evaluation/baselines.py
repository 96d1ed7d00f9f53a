"""The methods compared: the model with and without its adapters, and classical interactive tools.

Every method gets the same boxes and the same first click; further clicks follow each method's own errors. Parameters of
the classical tools were chosen on the validation split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from skimage.segmentation import random_walker

from SegMoTELib.evaluation.clicks import Box, Click


class Method(Protocol):
    """What is evaluated; it understands boxes (:class:`TakesBoxes`), clicks (:class:`TakesClicks`) or both."""

    name: str

    def set_image(self, image: np.ndarray) -> None:
        """Prepare one image, uint8 (H, W) or (H, W, 3), for all its targets."""


@runtime_checkable
class TakesBoxes(Method, Protocol):
    """A method that understands boxes."""

    def from_boxes(self, boxes: Sequence[Box]) -> np.ndarray:
        """Return the mask, boolean (H, W), for a box around the object, or one around each of its pieces."""


@runtime_checkable
class TakesClicks(Method, Protocol):
    """A method that understands clicks."""

    def from_clicks(self, clicks: tuple[Click, ...], state: Any) -> tuple[np.ndarray, Any]:
        """Return the mask for all clicks so far and a state for the next call; the first call gets None."""


class PromptedModel:
    """A model behind ``Predictor``, as its checkpoint intends (with adapters if it brought them) or as the frozen base.

    One mask per prompt: with several to choose from, the choice would need the truth.
    """

    def __init__(self, predictor: Any, frozen: bool = False) -> None:
        self.name = "frozen base" if frozen else "SegMoTE"
        self._predictor = predictor
        self._frozen = frozen

    def set_image(self, image: np.ndarray) -> None:
        """Encode the image, once for both variants: the frozen base decodes from the embedding made for the other."""
        if not self._frozen:
            self._predictor.set_image(image)

    def from_boxes(self, boxes: Sequence[Box]) -> np.ndarray:
        """Return the mask for boxes."""
        return self._predict(box=np.array(boxes, np.float32))[0]

    def from_clicks(self, clicks: tuple[Click, ...], state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask for all clicks and the low-resolution logits, which the next call feeds back."""
        return self._predict(point_coords=np.array([(click.x, click.y) for click in clicks], np.float32),
                             point_labels=np.array([click.label for click in clicks], np.int32), mask_input=state)

    def _predict(self, **prompts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        masks, _, logits = self._predictor.predict(
            **prompts, multimask_output=False, adapters=False if self._frozen else None)
        return masks[0], logits


class _BoxByBox(ABC):
    """A method that knows one box at a time: of several it finds what is in any of them."""

    @abstractmethod
    def from_box(self, box: Box) -> np.ndarray:
        """Return the mask for a box."""

    def from_boxes(self, boxes: Sequence[Box]) -> np.ndarray:
        """Return the mask for boxes."""
        return np.logical_or.reduce([self.from_box(box) for box in boxes])


class Ellipse(_BoxByBox):
    """The ellipse inscribed in the box, whatever the image shows: what the box alone already tells."""

    name = "ellipse in box"

    def set_image(self, image: np.ndarray) -> None:
        """Keep the image's size."""
        self._shape = image.shape[0], image.shape[1]

    def from_box(self, box: Box) -> np.ndarray:
        """Return the mask for a box."""
        return _ellipse(self._shape, box, 1.0)


class GrabCut(_BoxByBox):
    """GrabCut (Rother et al. 2004, OpenCV) from the box.

    Works on the box and as much context around it as half its longer side, all of that certain background. The inner
    half of the inscribed ellipse is taken for certain foreground, the rest of the ellipse for probable foreground and
    the corners for probable background: on medical images, whose colours hardly separate, this is far better than
    the box alone (Dice 0.62 instead of 0.22 on a sample of the validation split).
    """

    name = "GrabCut"
    core = 0.5

    def set_image(self, image: np.ndarray) -> None:
        """Keep the image as three channels."""
        self._image = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image

    def from_box(self, box: Box) -> np.ndarray:
        """Return the mask for a box; where the box leaves no background to learn from, the whole box."""
        x0, y0, x1, y1 = box
        margin = max(8, (max(x1 - x0, y1 - y0) + 1) // 2)
        left, top = max(0, x0 - margin), max(0, y0 - margin)
        window = np.s_[top:y1 + 1 + margin, left:x1 + 1 + margin]
        crop = np.ascontiguousarray(self._image[window])
        inner = (x0 - left, y0 - top, x1 - left, y1 - top)
        shape = crop.shape[0], crop.shape[1]
        labels = np.full(shape, cv2.GC_BGD, np.uint8)
        labels[inner[1]:inner[3] + 1, inner[0]:inner[2] + 1] = cv2.GC_PR_BGD
        labels[_ellipse(shape, inner, 1.0)] = cv2.GC_PR_FGD
        labels[_ellipse(shape, inner, self.core)] = cv2.GC_FGD
        if (labels == cv2.GC_BGD).any():
            cv2.setRNGSeed(0)  # its k-means starts from OpenCV's global generator
            unused = (0, 0, 0, 0)  # the mask stands for the rectangle
            cv2.grabCut(crop, labels, unused, np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
        else:
            labels[...] = cv2.GC_FGD
        mask = np.zeros(self._image.shape[:2], bool)
        mask[window] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        return mask


class RandomWalker:
    """The random walker (Grady 2006, scikit-image) from clicks.

    Works on the image reduced to ``side`` pixels and solves to ``tolerance``, for speed: on the validation split 160
    pixels and a finer solution gained nothing. Seeds are small discs at the clicks; the image's frame is background,
    since a walker needs seeds of both kinds.
    """

    name = "random walker"
    side = 128
    radius = 2
    beta = 1000.0
    tolerance = 1e-2

    def set_image(self, image: np.ndarray) -> None:
        """Reduce the image."""
        self._shape = image.shape[0], image.shape[1]
        self._scale = min(1.0, self.side / max(self._shape))
        size = [max(3, round(length * self._scale)) for length in self._shape]
        self._small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float64) / 255

    def from_clicks(self, clicks: tuple[Click, ...], state: None) -> tuple[np.ndarray, None]:
        """Return the mask for all clicks."""
        rows, columns = self._small.shape[:2]
        seeds = np.zeros((rows, columns), np.int32)
        seeds[[0, -1], :] = 2
        seeds[:, [0, -1]] = 2
        for click in clicks:
            centre = min(int(click.x * self._scale), columns - 1), min(int(click.y * self._scale), rows - 1)
            cv2.circle(seeds, centre, self.radius, 1 if click.label else 2, thickness=-1)
        # Nothing to decide, nothing to decide by, or later clicks erased the first.
        if not {0, 1, 2} <= set(np.unique(seeds)) or self._small.std() == 0:
            probability = (seeds == 1).astype(np.float32)
        else:
            probability = random_walker(
                self._small, seeds, beta=self.beta, mode="cg_j", tol=self.tolerance, prob_tol=np.inf,
                return_full_prob=True, channel_axis=-1 if self._small.ndim == 3 else None)[0].astype(np.float32)
        full = cv2.resize(probability, self._shape[::-1], interpolation=cv2.INTER_LINEAR)
        return full > 0.5, None


def _ellipse(shape: tuple[int, int], box: Box, fraction: float) -> np.ndarray:
    """Return the ellipse inscribed in an inclusive box, its axes shrunk to a fraction, boolean of that shape.

    It always holds the middle of the box, however thin that is.
    """
    x0, y0, x1, y1 = box
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    across = (columns - (x0 + x1) / 2) / max(0.75, fraction * (x1 - x0 + 1) / 2)
    down = (rows - (y0 + y1) / 2) / max(0.75, fraction * (y1 - y0 + 1) / 2)
    return across**2 + down**2 <= 1


def choose_methods(predictor: Any | None, baselines: bool) -> list[Method]:
    """Return what is compared, in the order of the tables.

    Args:
        predictor: a ``Predictor``, or None to run the classical tools alone.
        baselines: the frozen base, where it differs from the model, and the classical tools too.
    """
    methods: list[Method] = [] if predictor is None else [PromptedModel(predictor)]
    if baselines:
        if predictor is not None and predictor.model.adapters_trained:
            methods.append(PromptedModel(predictor, frozen=True))
        methods += [Ellipse(), GrabCut(), RandomWalker()]
    return methods
