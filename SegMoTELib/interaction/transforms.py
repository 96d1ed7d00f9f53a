"""From an image's own pixels to the network's square and back, for images, points, boxes and masks alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from SegMoTELib.network import ModelConfig


@dataclass(frozen=True)
class SquareTransform:
    """Geometry of one image in a model's square input.

    Attributes:
        config: decides size and resizing. height, width: of the image, pixels.
    """

    config: ModelConfig
    height: int
    width: int

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) that the image has inside the square."""
        size = self.config.image_size
        if self.config.resize == "squash":
            return size, size
        height, width = ResizeLongestSide.get_preprocess_shape(self.height, self.width, size)
        return max(height, 1), max(width, 1)  # a very elongated image keeps at least one row and column

    def apply_image(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, S, S) float32, normalised; padding is zero after normalisation, as in SAM."""
        size = self.config.image_size
        if self.config.resize == "squash":  # the released SegMoTE was trained on nearest-neighbour images
            resized = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST))
        else:
            resized = np.array(resize(to_pil_image(image), self.resized))  # as ResizeLongestSide.apply_image
        pixels = torch.from_numpy(resized.astype(np.float32)).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.pixel_mean, self.config.pixel_std))
        pixels = (pixels - mean) / std
        return F.pad(pixels, (0, size - pixels.shape[2], 0, size - pixels.shape[1]))[None]

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y in image pixels -> the same in the square, float64."""
        height, width = self.resized
        return np.asarray(points, np.float64) * (width / self.width, height / self.height)

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(..., 4) x0, y0, x1, y1 in image pixels -> the same in the square, float64."""
        corners = np.asarray(boxes, np.float64)
        return self.apply_points(corners.reshape(*corners.shape[:-1], 2, 2)).reshape(corners.shape)

    def apply_logits(self, logits: Tensor) -> Tensor:
        """(C, H, W) logits on the image -> (C, h, w) low-resolution logits, shrunk without aliasing; -16 = padding."""
        size = self.config.mask_size
        inside = tuple(max(1, round(side * size / self.config.image_size)) for side in self.resized)
        shrunk = F.interpolate(logits[None].float(), size=inside, mode="bilinear", align_corners=False, antialias=True)
        return F.pad(shrunk[0], (0, size - inside[1], 0, size - inside[0]), value=-16.0)

    def inverse_masks(self, logits: Tensor, outside: float = 0.0) -> Tensor:
        """(C, h, w) low-resolution logits -> (C, H, W) logits on the image, float32; there is no outside here.

        SAM's two bilinear steps (up to the square, crop, to the image) are linear and separable, so each axis is one
        small matrix and the whole is two matrix products; equal to ``Sam.postprocess_masks`` up to rounding.
        """
        logits = logits.float()
        size = self.config.image_size
        down = _axis_matrix(logits.shape[1], size, self.resized[0], self.height).to(logits.device)
        across = _axis_matrix(logits.shape[2], size, self.resized[1], self.width).to(logits.device)
        return down @ (logits @ across.t())


@lru_cache(maxsize=64)
def _axis_matrix(low: int, square: int, inside: int, full: int) -> Tensor:
    """(full, low) matrix of: low -> square, crop to ``inside``, -> full, all bilinear."""
    upscaled = F.interpolate(torch.eye(low)[None], size=square, mode="linear", align_corners=False)
    return F.interpolate(upscaled[..., :inside], size=full, mode="linear", align_corners=False)[0].t().contiguous()


def to_rgb8(image: np.ndarray, intensity_range: tuple[float, float] | None) -> np.ndarray:
    """Any 2D image -> (H, W, 3) uint8.

    Args:
        image: (H, W) or (H, W, 3); integer, float or bool. intensity_range: the values shown as black and white;
            needed for everything but uint8. Values outside are clipped, NaN becomes black.

    Raises:
        ValueError: wrong shape, no or empty range.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise ValueError(f"an image must be (H, W) or (H, W, 3) and not empty; got shape {image.shape}")
    if image.dtype.kind not in "uifb":
        raise ValueError(f"an image must hold numbers, not {image.dtype}")
    if intensity_range is None and image.dtype != np.uint8:
        raise ValueError(f"a {image.dtype} image needs intensity_range=(black, white), e.g. its window")
    if intensity_range is not None:
        black, white = map(float, intensity_range)
        if not (np.isfinite([black, white]).all() and white > black):
            raise ValueError(f"intensity_range must be two finite values, black < white; got {intensity_range}")
        scaled = (image.astype(np.float64) - black) * (255 / (white - black))
        image = np.nan_to_num(np.clip(scaled, 0, 255), nan=0.0).round().astype(np.uint8)
    return np.ascontiguousarray(np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image)
