"""The compact model's decoder: prompts are also drawn as maps and mixed with the image by convolutions.

Learning from a filled box or a Gaussian click is an order of magnitude faster for a small network trained from scratch
than learning from sparse tokens alone. The token path (SAM's transformer, the experts, the hypernetworks) stays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.decoder import ExpertDecoder, MaskPrediction
from SegMoTELib.network.encoders import ImageEmbedding, ResidualBlock
from SegMoTELib.network.transformer import ImageSide

CLICK_SIGMA = 1.25  # radius of a drawn click, in cells of the prompt map (stride 4)
PROMPT_CHANNELS = 5  # positive clicks, negative clicks, box, previous mask, "there is a previous mask"
FINE_WIDTH, FINEST_WIDTH = 48, 16  # channels at strides 4 and 2


class CompactPromptEncoder(PromptEncoder):
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
    out = like.new_zeros(count, PROMPT_CHANNELS, size, size)
    cell = image_size / size
    centers = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * cell
    if points is not None:
        coords, labels = points
        distance = (coords.to(like.dtype)[..., None] + 0.5 - centers) / (CLICK_SIGMA * cell)  # (N, P, 2, size)
        gauss = torch.exp(-0.5 * distance ** 2)
        clicks = gauss[:, :, 1, :, None] * gauss[:, :, 0, None, :]
        for channel, label in ((0, 1), (1, 0)):
            out[:, channel] = (clicks * (labels == label).to(like.dtype)[..., None, None]).amax(dim=1)
    if boxes is not None:
        low, high = boxes.to(like.dtype)[:, :2, None], boxes.to(like.dtype)[:, 2:, None] + 1  # extremes are inclusive
        # Fraction of each cell that lies inside, so that sub-cell boxes keep their place.
        cover = (torch.minimum(centers + cell / 2, high) - torch.maximum(centers - cell / 2, low)).clamp(0) / cell
        out[:, 2] = cover[:, 1, :, None] * cover[:, 0, None, :]
    if masks is not None:
        probability = masks.to(like.dtype).sigmoid()
        out[:, 3] = F.interpolate(probability, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
        out[:, 4] = 1
    return out


class CompactDecoder(ExpertDecoder):
    """Token decoder over a small convolutional decoder at strides 8, 4 and 2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        del self.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList([MLP(dim, dim, self._mask_width(), 3)])
        stride4, stride2 = config.compact_widths[1], config.compact_widths[0]
        self.prompt_stem = nn.Sequential(nn.Conv2d(PROMPT_CHANNELS, 32, 3, padding=1), nn.ReLU())
        self.prompt_down = nn.Conv2d(32, dim, 3, stride=2, padding=1)
        self.mixer = nn.Sequential(ResidualBlock(dim), ResidualBlock(dim))
        self.to_fine = nn.Conv2d(dim, FINE_WIDTH, 1)
        self.skip_fine = nn.Conv2d(stride4, FINE_WIDTH, 1)
        self.prompt_fine = nn.Conv2d(32, FINE_WIDTH, 1)
        self.refine = ResidualBlock(FINE_WIDTH)
        self.to_finest = nn.Conv2d(FINE_WIDTH, self._mask_width(), 1)
        self.skip_finest = nn.Conv2d(stride2, self._mask_width(), 1)
        self.finish = _finish(self._mask_width())
        self.target_dense = nn.Embedding(max(1, len(config.auto_targets)), dim)
        nn.init.zeros_(self.target_dense.weight)

    def _mask_width(self) -> int:
        return FINEST_WIDTH

    def _build_expert_features(self) -> None:
        """The experts' own finishing convolution on the finest features."""
        self.expert_finish = _finish(self._mask_width())

    def forward(self, embedding: ImageEmbedding, image_pe: Tensor, prompt_maps: Tensor, sparse: Tensor,
                targets: Tensor | None, experts: bool, attention: bool = False) -> MaskPrediction:
        """Decode N prompts on 1 or N images.

        Args:
            prompt_maps: (N, 5, 2h, 2w) of :func:`draw_prompts`. sparse: (N, P, C). targets: (N,) auto targets or None.
            experts: use the adapters. attention: also return attention maps.
        """
        drawn = self.prompt_stem(prompt_maps.contiguous(memory_format=torch.channels_last))
        mixed = embedding.features + self.prompt_down(drawn)
        if targets is not None:
            mixed = mixed + self.target_dense(targets)[:, :, None, None]
        mixed = self.mixer(mixed)
        keys = mixed.flatten(2).transpose(1, 2)
        image = ImageSide(keys, keys + image_pe)
        tokens, expert_slice = self._output_tokens(sparse, experts)
        tokens, keys, routings = self.transformer(tokens, image, image_pe, expert_slice)
        finest = self._finest(mixed + keys.transpose(1, 2).unflatten(2, mixed.shape[2:]), drawn, embedding)
        features = (self.finish(finest) + self.expert_finish(finest)) if experts else self.finish(finest)

        def masks_of(hyper: Tensor) -> Tensor:
            return (hyper @ features.flatten(2)).unflatten(2, features.shape[2:])

        if not experts:
            return self._base_masks(tokens, masks_of, multimask=False)
        prediction = self._expert_masks(tokens, expert_slice, routings, masks_of)
        if attention:
            prediction.attention = self._attention_maps(tokens, expert_slice, keys, image_pe)
        return prediction

    def _finest(self, coarse: Tensor, drawn: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Bring mixed features from stride 8 to stride 2 with the encoder's own detail, (N, 16, 4h, 4w)."""
        fine = F.interpolate(self.to_fine(coarse), scale_factor=2, mode="bilinear", align_corners=False)
        fine = self.refine(fine + self.skip_fine(embedding.early[0]) + self.prompt_fine(drawn))
        finest = F.interpolate(self.to_finest(fine), scale_factor=2, mode="bilinear", align_corners=False)
        return finest + self.skip_finest(embedding.early[1])


def _finish(width: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
