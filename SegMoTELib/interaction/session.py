"""Session: one volume and its prompts in millimetres; planes are encoded once, answers are masks on planes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.embeddings import EmbeddingCache, signature
from SegMoTELib.interaction.targets import check_target

if TYPE_CHECKING:
    from SegMoTELib.interaction.everything import Candidate
    from SegMoTELib.interaction.predictor import EncodedImage, Predictor

PLANES_AT_HAND = 24  # planes whose pixels are kept; those of others are taken from the volume again
ON_PLANE = 0.5  # slices: how far from a plane a prompt still belongs to it


@dataclass(frozen=True)
class PlaneMask:
    """The answer to the prompts on one plane.

    Attributes:
        plane: where. mask: (rows, columns) bool. iou: the model's own estimate.
        logits: (1, h, w) low-resolution logits, for the next correction. seconds: stage -> time it took.
    """

    plane: SlicePlane
    mask: np.ndarray = field(repr=False)
    iou: float
    logits: np.ndarray = field(repr=False)
    seconds: dict[str, float]


class Session:
    """Prompts in RAS millimetres on any plane of one volume.

    Args:
        predictor: the model; its cache keeps the embeddings, it gets one if it has none.
        volume: what is segmented. intensity_range: (black, white) stored values, None for RGB.
    """

    def __init__(self, predictor: Predictor, volume: Volume, intensity_range: tuple[float, float] | None) -> None:
        self.predictor, self.volume, self.intensity_range = predictor, volume, intensity_range
        if predictor.cache is None:
            predictor.cache = EmbeddingCache()
        self._at_hand: OrderedDict[tuple, EncodedImage] = OrderedDict()
        self._encoded_before: dict[tuple, str] = {}  # plane -> the cache's key
        self._lock = threading.Lock()  # of the two above

    def is_encoded(self, plane: SlicePlane) -> bool:
        """True where the next prompt on this plane finds its embedding ready."""
        with self._lock:
            key, cache = plane.key(), self.predictor.cache
            return key in self._at_hand or (cache is not None and self._encoded_before.get(key) in cache)

    def encode(self, planes: Sequence[SlicePlane], cancelled: Callable[[], bool] = lambda: False) -> None:
        """Prepare planes for prompts; may be called from another thread. Nothing is kept once cancelled."""
        new = [plane for plane in planes if not self.is_encoded(plane)]
        images = [plane.extract(self.volume) for plane in new]
        self._take(new, self.predictor.encode_images(images, self.intensity_range, lambda: not cancelled()), cancelled)

    def image_on(self, plane: SlicePlane) -> np.ndarray:
        """(rows, columns, 3) uint8: the plane as the model sees it."""
        return self._encoded(plane, {}).pixels

    def predict(self, plane: SlicePlane, positives: np.ndarray | None = None, negatives: np.ndarray | None = None,
                box: np.ndarray | None = None, auto: str | None = None,
                previous: np.ndarray | None = None, mask: np.ndarray | None = None) -> PlaneMask:
        """Answer prompts on a plane.

        Args:
            positives, negatives: (N, 3) RAS millimetres, on the plane.
            box: (2, 3) opposite corners, RAS; or (N, 2, 3), one around each separate piece, see ``Predictor.predict``.
            auto: name of an auto target instead of prompts. previous: ``PlaneMask.logits`` of the last answer here.
            mask: (rows, columns) bool, instead of ``previous``: what is there already and is to be corrected.

        Raises:
            PromptError: nothing to go by, points that are not on the plane or outside the volume, an empty box, or a
                target that the model does not offer.
        """
        if auto is not None:
            self.check_target(auto)
        arguments = {} if auto is not None else self._arguments(plane, positives, negatives, box)
        seconds: dict[str, float] = {}
        with self._asking(plane, seconds):
            if mask is not None and mask.any():
                previous = self.predictor.mask_input(mask)
            if auto is not None:
                masks, iou, logits = self.predictor.predict_auto(auto)
            else:
                masks, iou, logits = self.predictor.predict(**arguments, mask_input=previous, multimask_output=False)
        return PlaneMask(plane, masks[0], float(iou[0]), logits[:1], seconds)

    def check_target(self, name: str) -> None:
        """Raise a ``PromptError`` that says what the model offers, if that is not among it."""
        check_target(name, [target.name for target in self.predictor.auto_targets])

    def everything(self, plane: SlicePlane, go_on: Callable[[float], bool] = lambda done: True) -> list[Candidate]:
        """What stands out on a plane, best first; ``go_on`` as in ``find_everything``."""
        from SegMoTELib.interaction.everything import find_everything

        return find_everything(self.predictor, self._encoded(plane, {}), go_on)

    def refine(self, plane: SlicePlane, mask: np.ndarray) -> tuple[np.ndarray, float]:
        """What the model makes of a (rows, columns) bool mask that is nearly right on a plane, such as a neighbour's.

        Returns:
            Logits (rows, columns) float32, and the model's estimate of their IoU.
        """
        with self._asking(plane, {}):
            masks, iou, _ = self.predictor.refine(mask)
        return masks[0], float(iou[0])

    def auto_logits(self, plane: SlicePlane, target: str) -> tuple[np.ndarray, float]:
        """Logits (rows, columns) float32 of an auto target on a plane, and the model's estimate of their IoU.

        Raises:
            ValueError: the model does not offer the target; see ``check_target``.
        """
        with self._asking(plane, {}):
            masks, iou, _ = self.predictor.predict_auto(target, return_logits=True)
        return masks[0], float(iou[0])

    @contextmanager
    def _asking(self, plane: SlicePlane, seconds: dict[str, float]):
        """The predictor with this plane as its current image."""
        encoded = self._encoded(plane, seconds)
        started = time.perf_counter()
        with self.predictor.turn:
            self.predictor.set_encoded(encoded)
            yield
        seconds["decode"] = time.perf_counter() - started

    def _encoded(self, plane: SlicePlane, seconds: dict[str, float]) -> EncodedImage:
        with self._lock:
            if plane.key() in self._at_hand:
                self._at_hand.move_to_end(plane.key())
                return self._at_hand[plane.key()]
        started = time.perf_counter()
        image = plane.extract(self.volume)
        seconds["extract"] = time.perf_counter() - started
        started = time.perf_counter()
        encoded = self.predictor.encode_images([image], self.intensity_range)
        seconds["encode"] = time.perf_counter() - started
        self._take([plane], encoded)
        return encoded[0]

    def _take(self, planes: Sequence[SlicePlane], encoded: Sequence[EncodedImage],
              cancelled: Callable[[], bool] = lambda: False) -> None:
        if cancelled():
            return
        keys = [signature(one.pixels, self.predictor.fingerprint) for one in encoded]
        with self._lock:
            for plane, one, key in zip(planes, encoded, keys, strict=True):
                self._at_hand[plane.key()] = one
                self._encoded_before[plane.key()] = key
            while len(self._at_hand) > PLANES_AT_HAND:
                self._at_hand.popitem(last=False)

    def _arguments(self, plane: SlicePlane, positives, negatives, box) -> dict:
        """Prompts in pixels of the plane; see ``predict`` for the errors."""
        groups = [np.asarray(points if points is not None else [], np.float64).reshape(-1, 3)
                  for points in (positives, negatives)]
        boxes = np.asarray(box if box is not None else [], np.float64)
        boxes = boxes[None] if boxes.ndim == 2 else boxes
        if len(groups[0]) == 0 and len(boxes) == 0:
            raise PromptError("Only excluded points: add a point inside the object, or a box." if len(groups[1])
                              else "Nothing to go by: add a point inside the object, or a box.")
        points = np.concatenate(groups)
        if not np.isfinite(points).all():
            raise PromptError("A point has no position; place it again.")
        arguments: dict = {}
        if len(points):
            if not self._on_plane(plane, points):
                raise PromptError("A point does not lie on the slice; prompts of several slices are kept apart.")
            pixels = plane.to_pixels(points)
            if not self._in_image(plane, pixels).all():
                raise PromptError("A point lies outside the volume; move it onto the image.")
            arguments["point_coords"] = pixels
            arguments["point_labels"] = np.repeat([1, 0], [len(group) for group in groups])
        if len(boxes):
            arguments["box"] = np.stack([self._box(plane, one) for one in boxes])
        return arguments

    def _box(self, plane: SlicePlane, corners: np.ndarray) -> np.ndarray:
        """(4,) x0, y0, x1, y1 of the outermost pixels inside two RAS corners, cut to the image."""
        if corners.shape != (2, 3) or not np.isfinite(corners).all():
            raise PromptError("A box needs two opposite corners.")
        if not self._on_plane(plane, corners.mean(axis=0)):
            raise PromptError("A box does not lie on the slice; prompts of several slices are kept apart.")
        pixels = np.sort(plane.to_pixels(corners), axis=0)
        if (pixels[1] - pixels[0] < 1).any():
            raise PromptError("The box is empty; draw it around the object.")
        limits = np.array(plane.shape[::-1]) - 1
        if (pixels[1] < 0).any() or (pixels[0] > limits).any():
            raise PromptError("The box lies outside the volume; draw it on the image.")
        return np.concatenate([np.clip(pixels[0], 0, limits), np.clip(pixels[1], 0, limits)])

    def _on_plane(self, plane: SlicePlane, points: np.ndarray) -> bool:
        return bool((np.abs(plane.distance(points)) <= ON_PLANE * plane.thickness(self.volume) + 1e-6).all())

    @staticmethod
    def _in_image(plane: SlicePlane, pixels: np.ndarray) -> np.ndarray:
        return np.all((pixels >= -0.5) & (pixels <= np.array(plane.shape[::-1]) - 0.5), axis=-1)
