"""Predictor: set an image once, predict masks many times; segment-anything's ``SamPredictor`` contract."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

from SegMoTELib.interaction.devices import choose_device, choose_precision, describe, out_of_memory
from SegMoTELib.interaction.embeddings import EmbeddingCache, signature
from SegMoTELib.interaction.expert_view import ExpertView
from SegMoTELib.interaction.focus import View, ViewTransform, find_parts, find_view, mask_extent, part_weights
from SegMoTELib.interaction.prompts import Prompts, checked_prompts, seen_extent, split_by_box, union, with_clicks
from SegMoTELib.interaction.threshold import best_threshold
from SegMoTELib.interaction.transforms import SquareTransform, to_rgb8
from SegMoTELib.network import AutoTarget, ImageEmbedding, MaskPrediction, SegMoTE

log = logging.getLogger(__name__)
Result = TypeVar("Result")

VIEWS_KEPT = 64  # closer looks at one image whose embeddings are kept for the next click
READY_KEPT = 8  # embeddings kept in the decoder's precision, with what it prepares once per image
ENCODED_AT_ONCE = {"cuda": 16, "mps": 8, "cpu": 4}  # images


@dataclass
class EncodedImage:
    """An image ready for prompts, made by ``Predictor.encode_image``; keep it to come back to the image later.

    Attributes:
        pixels: (H, W, 3) uint8. transform: its geometry in the network's input. embedding: of the whole image.
        views: parts of the image that were looked at closer, with their geometry and embedding; the latest ones, and
            only without a cache, whose budget they would escape. domains: (1, D) what kind of image it is, once asked.
    """

    pixels: np.ndarray
    transform: SquareTransform
    embedding: ImageEmbedding
    views: dict[View, tuple[ViewTransform, ImageEmbedding]] = field(default_factory=dict, repr=False)
    domains: torch.Tensor | None = field(default=None, repr=False)


class Predictor:
    """Interactive prediction over any SegMoTE model (SAM's, the published, our own).

    Args:
        model: moved to the device. device: "auto", "cuda", "mps", "cpu". precision: of the encoder: "auto", "fp32",
            "fp16", "bf16"; the decoder computes in fp32. cache: keeps embeddings, in half precision.

    Attributes:
        last: the latest :class:`MaskPrediction`, for the expert view.
        focus: look again at small objects through a crop; by default where the network's input is small.
        turn: there is one current image; threads hold this lock from ``set_encoded`` to their answer.
    """

    def __init__(self, model: SegMoTE, device: str | None = None, precision: str = "auto",
                 cache: EmbeddingCache | None = None) -> None:
        self.device = choose_device(device or "auto")
        self.dtype = choose_precision(self.device, precision)
        self.model = _placed(model, self.device, self.dtype).eval()
        self.cache = cache
        self.turn = threading.Lock()
        self._moving = threading.Lock()  # while the model goes to the CPU
        self._fingerprint = ""
        self._ready: OrderedDict[int, tuple[ImageEmbedding, ImageEmbedding]] = OrderedDict()
        self.last: MaskPrediction | None = None
        self.focus = model.compact
        self.reset_image()

    @property
    def is_image_set(self) -> bool:
        """True once ``set_image`` has been called."""
        return self._encoded is not None

    @property
    def encoded(self) -> EncodedImage:
        """The current image.

        Raises:
            RuntimeError: no image is set.
        """
        if self._encoded is None:
            raise RuntimeError("no image is set: call set_image(image) before predicting")
        return self._encoded

    @property
    def auto_targets(self) -> tuple[AutoTarget, ...]:
        """What ``predict_auto`` can segment."""
        return self.model.config.auto_targets if self.model.auto_trained and self.model.prompt_tokenizer else ()

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what the encoder makes of pixels (weights, geometry, precision)."""
        if not self._fingerprint:
            digest = hashlib.blake2b(repr(self.dtype).encode(), digest_size=16)
            settings = asdict(replace(self.model.config, auto_targets=(), domains=()))
            digest.update(repr(sorted(settings.items())).encode())
            for name, tensor in sorted(self.model.image_encoder.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def describe(self) -> str:
        """Device and precision in words."""
        return describe(self.device, self.dtype)

    def reset_image(self) -> None:
        """Forget the current image."""
        self._encoded: EncodedImage | None = None
        self._answered: tuple | None = None  # embedding, transform and prompts of the latest prediction

    def set_image(self, image: np.ndarray, intensity_range: tuple[float, float] | None = None) -> None:
        """Encode an image and make it the current one; arguments and errors of ``encode_image``."""
        pixels = to_rgb8(image, intensity_range)
        self.reset_image()
        self.set_encoded(self.encode_image(pixels))

    def encode_image(self, image: np.ndarray, intensity_range: tuple[float, float] | None = None) -> EncodedImage:
        """Encode an image without making it the current one; may be called from another thread.

        Args:
            image: (H, W) or (H, W, 3); uint8, or any other number type with ``intensity_range``.
            intensity_range: (black, white) values, e.g. the window; outside is clipped.

        Raises:
            ValueError: wrong shape, dtype or range.
        """
        return self.encode_images([image], intensity_range)[0]

    def encode_images(self, images: Sequence[np.ndarray], intensity_range: tuple[float, float] | None = None,
                      keep: Callable[[], bool] = lambda: True) -> list[EncodedImage]:
        """``encode_image`` for several images at once, which a GPU does faster; the cache keeps them if ``keep()``."""
        pixels = [to_rgb8(image, intensity_range) for image in images]
        transforms = [SquareTransform(self.model.config, *image.shape[:2]) for image in pixels]
        embeddings = self._embed(pixels, transforms, keep)
        return [EncodedImage(*parts) for parts in zip(pixels, transforms, embeddings, strict=True)]

    def set_encoded(self, encoded: EncodedImage) -> None:
        """Make an encoded image the current one."""
        self.reset_image()
        self._encoded = encoded

    def predict(self, point_coords: np.ndarray | None = None, point_labels: np.ndarray | None = None,
                box: np.ndarray | None = None, mask_input: np.ndarray | None = None, multimask_output: bool = True,
                return_logits: bool = False, adapters: bool | None = None,
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks for one object.

        Args:
            point_coords: (P, 2) x, y in image pixels. point_labels: (P,), 1 inside, 0 outside.
            box: (4,) x0, y0, x1, y1 in image pixels, any two opposite corners; or (N, 4), one around each separate
                piece of the object: what is found in any of them, every click correcting the piece nearest to it.
            mask_input: (1, h, w) low-resolution logits of an earlier call; of several boxes those with clicks use it.
            multimask_output: without adapters, SAM's three masks; with adapters the router resolves the ambiguity and
                there is one mask. return_logits: logits instead of a boolean mask.
            adapters: use the experts; default: yes if the checkpoint brought them (SAM's own does not).

        Returns:
            masks (C, H, W), bool, or float32 and above 0 inside; predicted IoU (C,) float32; low-resolution logits
            (C, h, w) float32.

        Raises:
            RuntimeError: no image is set. ValueError: no prompt, or arrays of the wrong shape or with NaN.
        """
        encoded = self.encoded
        prompts, boxes = checked_prompts(point_coords, point_labels, box, mask_input, self.model.config.mask_size)
        settings = {"adapters": self.model.adapters_trained if adapters is None else adapters,
                    "multimask": multimask_output}
        if boxes is None:
            masks, iou, low = self._answer(encoded, prompts, settings)
        else:
            masks, iou, low = _united([self._answer(encoded, piece, settings)
                                       for piece in split_by_box(prompts, boxes, encoded.transform)])
        return (masks if return_logits else masks > 0), iou, low

    def predict_auto(self, target: str | None = None, return_logits: bool = False,
                     ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment a target without prompts; returns what ``predict`` returns, with C = 1.

        Args:
            target: name of one of ``auto_targets``; None for the first.

        Raises:
            RuntimeError: no image is set. ValueError: the model does not offer the target.
        """
        encoded = self.encoded
        if not self.auto_targets:
            raise ValueError("this model offers no auto targets")
        name = self.auto_targets[0].name if target is None else target
        masks, iou, low = self._decode(encoded.embedding, encoded.transform, Prompts(),
                                       {"auto": name, "adapters": self.model.adapters_trained})
        return (masks if return_logits else masks > 0), iou, low

    def refine(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits for an object whose mask is nearly known, such as a neighbouring slice's; as ``predict`` returns them.

        Args:
            mask: (H, W) bool, not empty; it and its box are the prompts. Thin ones are not looked at in parts: that
                would cost dozens of encodings for every slice.

        Raises:
            RuntimeError: no image is set.
        """
        prompts = Prompts(box=mask_extent(mask), mask=torch.from_numpy(self.mask_input(mask)))
        settings = {"adapters": self.model.adapters_trained, "multimask": False}
        view = self._view_of(self.encoded, prompts) if self.focus else None
        if view is not None:
            return self._look_closer(self.encoded, view, prompts, settings)
        return self._decode(self.encoded.embedding, self.encoded.transform, prompts, settings)

    def mask_input(self, mask: np.ndarray) -> np.ndarray:
        """Low-resolution logits (1, h, w) of a (H, W) bool mask of the current image, soft at the outline.

        Raises:
            RuntimeError: no image is set.
        """
        inside, outside = (ndimage.distance_transform_edt(part) for part in (mask, ~mask))
        logits = np.clip(2 * (inside - outside), -8, 8).astype(np.float32)
        return self.encoded.transform.apply_logits(torch.from_numpy(logits[None])).numpy()

    def predict_clicks(self, encoded: EncodedImage, clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answers to single clicks, each for itself, on the whole image: no closer looks.

        Args:
            clicks: (N, 2) x, y in image pixels, all inside of something.

        Returns:
            Low-resolution logits (N, h, w) and estimated IoU (N,), float32.
        """
        points = torch.from_numpy(encoded.transform.apply_points(clicks))[:, None].float()
        with torch.inference_mode():
            found = self.model.decode(self._made_ready(encoded.embedding), adapters=self.model.adapters_trained,
                                      points=(points, torch.ones(len(clicks), 1, dtype=torch.int64)),
                                      domains=self._domains_of(encoded))
        return found.logits[:, 0].float().cpu().numpy(), found.iou[:, 0].float().cpu().numpy()

    def expert_view(self) -> ExpertView:
        """Which experts gave the latest mask, how sure the router was, and where the expert tokens looked.

        Raises:
            RuntimeError: nothing was predicted on this image yet, or without adapters.
        """
        if self._answered is None or not self._answered[2]["adapters"]:
            raise RuntimeError("the expert view needs a prediction with adapters on the current image")
        with torch.no_grad():
            embedding, transform, prompts = self._answered
            prediction = self.model.decode(embedding, **prompts, attention=True)
            assert prediction.attention is not None  # with adapters and asked for
            assert prediction.selected is not None
            assert prediction.token_probabilities is not None
            attention = transform.inverse_masks(prediction.attention[0], 0.0)
            likely = prediction.domain_probabilities
            shares = {} if likely is None else dict(zip(self.model.config.domains, likely[0].tolist(), strict=True))
        return ExpertView(
            selected=int(prediction.selected[0]),
            token_probabilities=prediction.token_probabilities[0].float().cpu().numpy(),
            routing=tuple(layer[0].cpu().numpy() for layer in prediction.routing),
            gate_probabilities=tuple(layer[0].float().cpu().numpy() for layer in prediction.gate_probabilities),
            attention=attention.cpu().numpy(),
            domains=dict(sorted(shares.items(), key=lambda pair: -pair[1])))

    def _embed(self, pixels: Sequence[np.ndarray], transforms: Sequence[SquareTransform | ViewTransform],
               keep: Callable[[], bool] = lambda: True) -> list[ImageEmbedding]:
        """Embeddings of (H, W, 3) uint8 images, one each: from the cache, or computed together."""
        def compute(rows: list[int]) -> ImageEmbedding:
            return self._run_encoder(torch.cat([transforms[row].apply_image(pixels[row]) for row in rows]))

        if self.cache is None:
            together = compute(list(range(len(pixels))))
            return [together[[row]] for row in range(len(pixels))] if len(pixels) > 1 else [together]
        seen = [image[transform.view.cut] if isinstance(transform, ViewTransform) else image
                for image, transform in zip(pixels, transforms, strict=True)]
        return self.cache.encode([signature(image, self.fingerprint) for image in seen], compute, keep)

    def _run_encoder(self, batch: torch.Tensor) -> ImageEmbedding:
        """Encode (B, 3, S, S), as many at once as the device takes."""
        size = min(len(batch), ENCODED_AT_ONCE[self.device.type])
        found, first = [], 0
        while first < len(batch):
            try:
                with torch.no_grad():
                    found.append(self._steadily(partial(self.model.encode, batch[first:first + size])))
                first += size
            except RuntimeError as error:
                if self.device.type == "cpu" or not out_of_memory(error):
                    raise
                if size == 1:
                    self._fall_back_to_cpu()
                size = max(1, size // 2)
        return found[0] if len(found) == 1 else ImageEmbedding.cat([part.to(self.device) for part in found])

    def _steadily(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives; again, where another thread was moving the model to the CPU meanwhile."""
        device = self.device
        try:
            return work()
        except RuntimeError:
            if self.device == device:
                raise
            with self._moving:
                pass  # until it is there
            return work()

    def _made_ready(self, embedding: ImageEmbedding) -> ImageEmbedding:
        """An embedding as the decoder wants it; the latest ones keep what it prepares once per image."""
        if embedding.features.dtype == self.model.dtype and embedding.features.device == self.device:
            return embedding
        if id(embedding) not in self._ready:
            self._ready[id(embedding)] = embedding, embedding.to(self.device, self.model.dtype)
            while len(self._ready) > READY_KEPT:
                self._ready.popitem(last=False)
        self._ready.move_to_end(id(embedding))
        return self._ready[id(embedding)][1]

    def _view_of(self, encoded: EncodedImage, prompts: Prompts) -> View | None:
        """Where to look closer, as far as the prompts tell before the first decode."""
        extent = None
        if prompts.box is not None:
            extent = prompts.box.astype(float)
        if prompts.mask is not None:
            extent = union(extent, mask_extent(encoded.transform.inverse_masks(prompts.mask)[0].numpy() > 0))
        if extent is None:
            return None
        return find_view(with_clicks(extent, prompts), *encoded.pixels.shape[:2])

    def _answer(self, encoded: EncodedImage, prompts: Prompts, settings: dict) -> tuple:
        """Logits (C, H, W), above 0 inside, IoU (C,), and low-resolution logits (C, h, w) to be fed back."""
        masks, iou, low = self._look(encoded, prompts, settings)
        if self.model.compact and prompts.is_box_alone:  # who says more knows more of the outline than this guesses
            masks = np.stack([mask - best_threshold(mask) for mask in masks])
        return masks, iou, low

    def _look(self, encoded: EncodedImage, prompts: Prompts, settings: dict) -> tuple:
        """What the network answers: seen whole, closer, or in parts, as the object asks."""
        if not self.focus:
            return self._decode(encoded.embedding, encoded.transform, prompts, settings)
        view = self._view_of(encoded, prompts)
        if view is None:
            found = self._decode(encoded.embedding, encoded.transform, prompts, settings)
            if prompts.box is None and prompts.mask is None:
                extent = seen_extent(found[0][0], prompts)
                view = find_view(extent, *encoded.pixels.shape[:2]) if extent is not None else None
        if view is not None:
            found = self._look_closer(encoded, view, prompts, settings)
        return self._look_at_parts(encoded, view, prompts, settings, found)

    def _look_closer(self, encoded: EncodedImage, view: View, prompts: Prompts, settings: dict) -> tuple:
        """Decode on a crop."""
        transform, embedding = self._embedding_of(encoded, view)
        inside = replace(prompts)
        if prompts.mask is not None:
            inside.mask = transform.apply_logits(encoded.transform.inverse_masks(prompts.mask))
        masks, iou, _ = self._decode(embedding, transform, inside, settings)
        return masks, iou, encoded.transform.apply_logits(torch.from_numpy(masks)).numpy()

    def _look_at_parts(self, encoded: EncodedImage, view: View | None, prompts: Prompts, settings: dict,
                       found: tuple) -> tuple:
        """Answer in overlapping parts where a single mask is too thin to be drawn well; else what was found."""
        logits, iou, _ = found
        side = view.side if view is not None else max(encoded.pixels.shape[:2])
        size = self.model.config.image_size
        region = union(prompts.box, seen_extent(logits[0], prompts))
        parts = find_parts(logits[0] > 0, region, size / side, size) if len(logits) == 1 and region is not None else []
        if not parts:
            return found
        answered, total, weight = self._answered, np.zeros_like(logits[0]), np.zeros_like(logits[0])
        for part in parts:
            inside = prompts.inside(part, logits[0])
            if inside is None:
                continue
            transform, embedding = self._embedding_of(encoded, part)
            if inside.coords is None or (logits[0][part.cut] > 0).any():
                inside.mask = transform.apply_logits(torch.from_numpy(logits))
            masks, _, _ = self._decode(embedding, transform, inside, settings)
            fade = part_weights(part)
            total[part.cut] += fade * masks[0][part.cut]
            weight[part.cut] += fade
        self._answered = answered
        masks = np.where(weight > 0, total / np.maximum(weight, 1e-6), logits[0])[None]
        return masks, iou, encoded.transform.apply_logits(torch.from_numpy(masks)).numpy()

    def _embedding_of(self, encoded: EncodedImage, view: View) -> tuple[ViewTransform, ImageEmbedding]:
        """Geometry and embedding of a closer look; the cache keeps the embedding, or the image where there is none."""
        if view in encoded.views:
            return encoded.views[view]
        transform = ViewTransform(self.model.config, view, *encoded.pixels.shape[:2])
        found = transform, self._embed([encoded.pixels], [transform])[0]
        if self.cache is None:
            while len(encoded.views) >= VIEWS_KEPT:
                encoded.views.pop(next(iter(encoded.views)))
            encoded.views[view] = found
        return found

    def _decode(self, embedding: ImageEmbedding, transform: SquareTransform | ViewTransform, prompts: Prompts,
                settings: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits on the image (C, H, W), IoU (C,) and low-resolution logits (C, h, w), float32."""
        return self._steadily(lambda: self._decode_now(embedding, transform, prompts, settings))

    def _decode_now(self, embedding: ImageEmbedding, transform: SquareTransform | ViewTransform, prompts: Prompts,
                    settings: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = {**prompts.tensors(transform), **settings}
        embedding = self._made_ready(embedding)
        self._answered = (embedding, transform, inputs)
        with torch.inference_mode():
            if settings["adapters"]:  # the whole image tells its kind better than a part
                inputs["domains"] = self._domains_of(self.encoded)
            self.last = self.model.decode(embedding, **inputs)
            low = self.last.logits[0].float()
            # One mask at a time: three full-size float maps at once would not stay in cache.
            masks = torch.cat([transform.inverse_masks(mask[None]) for mask in low])
        return masks.cpu().numpy(), self.last.iou[0].float().cpu().numpy(), low.cpu().numpy()

    def _domains_of(self, encoded: EncodedImage) -> torch.Tensor | None:
        """(1, D) what kind of image it is, asked once per image: it takes a seventh of a decode."""
        if encoded.domains is None:
            encoded.domains = self.model.domains(self._made_ready(encoded.embedding))
        return encoded.domains if encoded.domains is None else encoded.domains.to(self.device)

    def _fall_back_to_cpu(self) -> None:
        with self._moving:
            if self.device.type == "cpu":  # another thread has done it
                return
            log.warning("The GPU ran out of memory; continuing on the CPU, more slowly.")
            self.device = torch.device("cpu")
            self.dtype = choose_precision(self.device)
            self.model = _placed(self.model, self.device, self.dtype)
            self._fingerprint = ""
            self._ready.clear()
            torch.cuda.empty_cache()


def _united(pieces: list[tuple]) -> tuple:
    """The answers (masks, IoU, low-resolution logits) of an object's pieces as one; IoU by the area of each."""
    masks, iou, low = (np.stack(parts) for parts in zip(*pieces, strict=True))
    areas = (masks > 0).sum(axis=(2, 3)) + 1e-6
    return masks.max(axis=0), ((iou * areas).sum(axis=0) / areas.sum(axis=0)).astype(np.float32), low.max(axis=0)


def _placed(model: SegMoTE, device: torch.device, dtype: torch.dtype) -> SegMoTE:
    """Move a model; only the encoder, where the time goes, takes the reduced precision."""
    model = model.to(device, torch.float32)
    model.image_encoder.to(dtype)
    return model
