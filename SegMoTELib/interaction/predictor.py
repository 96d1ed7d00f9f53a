"""Predictor: set an image once, predict masks many times; segment-anything's ``SamPredictor`` contract."""

from __future__ import annotations

import logging

import numpy as np
import torch

from SegMoTELib.interaction.devices import choose_device, choose_precision, describe
from SegMoTELib.interaction.expert_view import ExpertView
from SegMoTELib.interaction.transforms import SquareTransform, to_rgb8
from SegMoTELib.network import AutoTarget, ImageEmbedding, MaskPrediction, SegMoTE

log = logging.getLogger(__name__)


class Predictor:
    """Interactive prediction over any SegMoTE model (SAM's, the published, our own).

    Args:
        model: moved to the device. device: "auto", "cuda", "mps", "cpu". precision: of the encoder: "auto", "fp32",
            "fp16", "bf16"; the decoder computes in fp32.

    Attributes:
        last: the latest :class:`MaskPrediction`, for the expert view.
    """

    def __init__(self, model: SegMoTE, device: str | None = None, precision: str = "auto") -> None:
        self.device = choose_device(device or "auto")
        self.dtype = choose_precision(self.device, precision)
        self.model = _placed(model, self.device, self.dtype).eval()
        self.last: MaskPrediction | None = None
        self.reset_image()

    @property
    def is_image_set(self) -> bool:
        """True once ``set_image`` has been called."""
        return self._embedding is not None

    @property
    def embedding(self) -> ImageEmbedding:
        """The current image's embedding.

        Raises:
            RuntimeError: no image is set.
        """
        if self._embedding is None:
            raise RuntimeError("no image is set: call set_image(image) before predicting")
        return self._embedding

    @property
    def auto_targets(self) -> tuple[AutoTarget, ...]:
        """What ``predict_auto`` can segment."""
        return self.model.config.auto_targets if self.model.auto_trained and self.model.prompt_tokenizer else ()

    def describe(self) -> str:
        """Device and precision in words."""
        return describe(self.device, self.dtype)

    def reset_image(self) -> None:
        """Forget the current image."""
        self._embedding: ImageEmbedding | None = None
        self._transform: SquareTransform | None = None
        self._prompts: dict | None = None

    def set_image(self, image: np.ndarray, intensity_range: tuple[float, float] | None = None) -> None:
        """Encode an image.

        Args:
            image: (H, W) or (H, W, 3); uint8, or any other number type with ``intensity_range``.
            intensity_range: (black, white) values, e.g. the window; outside is clipped.

        Raises:
            ValueError: wrong shape, dtype or range.
        """
        pixels = to_rgb8(image, intensity_range)
        self.reset_image()
        transform = SquareTransform(self.model.config, *pixels.shape[:2])
        batch = transform.apply_image(pixels)
        with torch.no_grad():
            try:
                embedding = self.model.encode(batch)
            except torch.cuda.OutOfMemoryError:
                self._fall_back_to_cpu()
                embedding = self.model.encode(batch)
        self._embedding, self._transform = embedding, transform

    def predict(self, point_coords: np.ndarray | None = None, point_labels: np.ndarray | None = None,
                box: np.ndarray | None = None, mask_input: np.ndarray | None = None, multimask_output: bool = True,
                return_logits: bool = False, adapters: bool | None = None,
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one object.

        Args:
            point_coords: (P, 2) x, y in image pixels. point_labels: (P,), 1 inside, 0 outside.
            box: (4,) x0, y0, x1, y1 in image pixels. mask_input: (1, h, w) low-resolution logits of an earlier call.
            multimask_output: without adapters, SAM's three masks; with adapters the router resolves the ambiguity and
                there is one mask. return_logits: logits instead of a boolean mask.
            adapters: use the experts; default: yes if the checkpoint brought them (SAM's own does not).

        Returns:
            masks (C, H, W), bool or float32; predicted IoU (C,) float32; low-resolution logits (C, h, w) float32.

        Raises:
            RuntimeError: no image is set. ValueError: no prompt, or arrays of the wrong shape or with NaN.
        """
        embedding = self.embedding
        points = boxes = masks = None
        if point_coords is not None:
            coords = _checked("point_coords", point_coords, (None, 2))
            labels = _checked("point_labels", point_labels if point_labels is not None else [], (len(coords),))
            if len(coords):
                points = (torch.from_numpy(self._transform.apply_points(coords))[None].float(),
                          torch.from_numpy(labels.astype(np.int64))[None])
        elif point_labels is not None:
            raise ValueError("point_labels were given without point_coords")
        if box is not None:
            corners = np.asarray(box)
            corners = _checked("box", corners[0] if corners.ndim == 2 and len(corners) == 1 else corners, (4,))
            boxes = torch.from_numpy(self._transform.apply_boxes(corners))[None].float()
        if mask_input is not None:
            size = self.model.config.mask_size
            masks = torch.from_numpy(_checked("mask_input", mask_input, (1, size, size)).astype(np.float32))[None]
        adapters = self.model.adapters_trained if adapters is None else adapters
        return self._decode(embedding, return_logits, points=points, boxes=boxes, masks=masks, adapters=adapters,
                            multimask=multimask_output)

    def predict_auto(self, target: str | None = None, return_logits: bool = False,
                     ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment a target without prompts; returns what ``predict`` returns, with C = 1.

        Args:
            target: name of one of ``auto_targets``; None for the first.

        Raises:
            RuntimeError: no image is set. ValueError: the model does not offer the target.
        """
        embedding = self.embedding
        if not self.auto_targets:
            raise ValueError("this model offers no auto targets")
        name = self.auto_targets[0].name if target is None else target
        return self._decode(embedding, return_logits, auto=name, adapters=self.model.adapters_trained)

    def expert_view(self) -> ExpertView:
        """Which experts gave the latest mask, how sure the router was, and where the expert tokens looked.

        Raises:
            RuntimeError: nothing was predicted on this image yet, or without adapters.
        """
        if self._prompts is None or not self._prompts["adapters"]:
            raise RuntimeError("the expert view needs a prediction with adapters on the current image")
        with torch.no_grad():
            prediction = self.model.decode(self.embedding, **self._prompts, attention=True)
            attention = self._transform.inverse_masks(prediction.attention[0])
        return ExpertView(
            selected=int(prediction.selected[0]),
            token_probabilities=prediction.token_probabilities[0].float().cpu().numpy(),
            routing=tuple(layer[0].cpu().numpy() for layer in prediction.routing),
            gate_probabilities=tuple(layer[0].float().cpu().numpy() for layer in prediction.gate_probabilities),
            attention=attention.cpu().numpy())

    def _decode(self, embedding: ImageEmbedding, return_logits: bool,
                **prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._prompts = prompts
        with torch.inference_mode():
            self.last = self.model.decode(embedding, **prompts)
            low = self.last.logits[0].float()
            # One mask at a time: three full-size float maps at once would not stay in cache.
            full = (self._transform.inverse_masks(mask[None]) for mask in low)
            masks = torch.cat([mask if return_logits else mask > 0 for mask in full])
        return masks.cpu().numpy(), self.last.iou[0].float().cpu().numpy(), low.cpu().numpy()

    def _fall_back_to_cpu(self) -> None:
        log.warning("The GPU ran out of memory; continuing on the CPU, more slowly.")
        self.device = torch.device("cpu")
        self.dtype = choose_precision(self.device)
        self.model = _placed(self.model, self.device, self.dtype)
        torch.cuda.empty_cache()


def _placed(model: SegMoTE, device: torch.device, dtype: torch.dtype) -> SegMoTE:
    """Move a model; only the encoder, where the time goes, takes the reduced precision."""
    model = model.to(device, torch.float32)
    model.image_encoder.to(dtype)
    return model


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
