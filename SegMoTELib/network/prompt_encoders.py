"""User prompts -> sparse tokens (SAM) and, for the compact model, maps that convolutions can read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from SegMoTELib.network.config import ModelConfig

CLICK_SIGMA = 1.25  # radius of a drawn click, in cells of the prompt map (stride 4)
PROMPT_CHANNELS = 5  # positive clicks, negative clicks, box, previous mask, "there is a previous mask"


class FloatPromptEncoder(PromptEncoder):
    """segment-anything's prompt encoder, kept in float32: coordinates and positions do not survive half precision."""

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


class CompactPromptEncoder(FloatPromptEncoder):
    """segment-anything's prompt encoder for points and boxes; masks go into the prompt maps instead."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(embed_dim=config.embed_dim, image_embedding_size=(config.embedding_size,) * 2,
                         input_image_size=(config.image_size,) * 2, mask_in_chans=16)
        del self.mask_downscaling, self.no_mask_embed

    def forward(self, points, boxes, masks) -> tuple[Tensor, None]:
        """Return sparse tokens (N, P, C); dense prompts are drawn by :func:`draw_prompts`."""
        parts = []
        if points is not None:
            parts.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            parts.append(self._embed_boxes(boxes))
        if not parts:
            parts.append(self.not_a_point_embed.weight.new_zeros(len(masks), 0, self.embed_dim))
        return torch.cat(parts, dim=1), None


def draw_prompts(size: int, image_size: int, count: int, points, boxes, masks, like: Tensor) -> Tensor:
    """Draw prompts on a (N, 5, size, size) map.

    Args:
        size: side of the map. image_size: side of the model's input, whose pixels the coordinates are in.
        count: N. points: (coords (N, P, 2), labels (N, P)) or None; labels 1, 0, and -1 for padding.
        boxes: (N, 4) or None. masks: (N, 1, h, w) logits or None. like: decides device and dtype.
    """
    exact = torch.float32  # half precision cannot tell neighbouring pixels apart
    out = torch.zeros(count, PROMPT_CHANNELS, size, size, device=like.device, dtype=exact)
    cell = image_size / size
    centers = (torch.arange(size, device=like.device, dtype=exact) + 0.5) * cell
    if points is not None:
        coords, labels = points
        distance = (coords.to(exact)[..., None] + 0.5 - centers) / (CLICK_SIGMA * cell)  # (N, P, 2, size)
        gauss = torch.exp(-0.5 * distance ** 2)
        clicks = gauss[:, :, 1, :, None] * gauss[:, :, 0, None, :]
        for channel, label in ((0, 1), (1, 0)):
            out[:, channel] = (clicks * (labels == label).to(exact)[..., None, None]).amax(dim=1)
    if boxes is not None:
        low, high = boxes.to(exact)[:, :2, None], boxes.to(exact)[:, 2:, None] + 1  # extremes are inclusive
        # Fraction of each cell that lies inside, so that sub-cell boxes keep their place.
        cover = (torch.minimum(centers + cell / 2, high) - torch.maximum(centers - cell / 2, low)).clamp(0) / cell
        out[:, 2] = cover[:, 1, :, None] * cover[:, 0, None, :]
    if masks is not None:
        probability = masks.to(exact).sigmoid()
        out[:, 3] = F.interpolate(probability, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
        out[:, 4] = 1
    return out.to(like.dtype)
