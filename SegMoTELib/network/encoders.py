"""Image encoders behind one interface: normalised pixels in, :class:`ImageEmbedding` out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn

from SegMoTELib.network.config import ModelConfig

# The relative-position bias is built in blocks of this size so that it stays in cache instead of filling memory
# (12 heads at 1024 px would need 805 MB in fp32). On a GPU, launches cost more than memory traffic.
BIAS_BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20, "mps": 128 << 20}


CONTRAST_WINDOWS = (24, 96)  # sides of the windows of local contrast, input pixels
FLAT = 0.03  # standard deviation, about two grey levels, below which local contrast fades


@dataclass
class ImageEmbedding:
    """What the encoder knows of B images; expensive to compute, cheap to keep.

    Attributes:
        features: (B, C, h, w) image embedding.
        early: finer or earlier features that the decoder's expert branch uses; sam_vit: one (B, h, w, width) map;
            compact: (B, 64, 2h, 2w) and (B, 32, 4h, 4w).
        prepared: the decoder's per-image products, filled on the first decode without gradients.
    """

    features: Tensor
    early: tuple[Tensor, ...]
    prepared: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of images B."""
        return self.features.shape[0]

    def __getitem__(self, index: Tensor | slice | list[int]) -> ImageEmbedding:
        """Select or repeat images along B, e.g. ``embedding[[0, 0, 1]]`` for two prompts on image 0 and one on 1."""
        if isinstance(index, Tensor):  # the backward pass of index_select is several times faster than of indexing
            return ImageEmbedding(self.features.index_select(0, index),
                                  tuple(early.index_select(0, index) for early in self.early))
        return ImageEmbedding(self.features[index], tuple(early[index] for early in self.early))

    def to(self, *args, **kwargs) -> ImageEmbedding:
        """Move or cast like ``Tensor.to``; per-image products are dropped and recomputed when needed."""
        return ImageEmbedding(self.features.to(*args, **kwargs), tuple(e.to(*args, **kwargs) for e in self.early))

    @property
    def nbytes(self) -> int:
        """Bytes held by the embedding itself (without ``prepared``)."""
        return sum(tensor.nbytes for tensor in (self.features, *self.early))

    @staticmethod
    def cat(embeddings: list[ImageEmbedding]) -> ImageEmbedding:
        """Join embeddings along B."""
        return ImageEmbedding(torch.cat([e.features for e in embeddings]),
                              tuple(torch.cat(parts) for parts in zip(*[e.early for e in embeddings], strict=True)))


def build_encoder(config: ModelConfig) -> nn.Module:
    """Return the encoder a config asks for; ``forward(pixels (B,3,S,S)) -> ImageEmbedding``."""
    return SamEncoder(config) if config.encoder == "sam_vit" else CompactEncoder(config)


class SamEncoder(ImageEncoderViT):
    """segment-anything's ViT, same parameters, computed faster.

    The attention uses fused kernels with the decomposed relative position (MViTv2) as an additive bias built block by
    block; padding tokens of windowed blocks skip the linear layers (their result is the bias alone). Equal to
    ``ImageEncoderViT.forward`` up to rounding. The output of the first global-attention block is kept as early feature
    (as in HQ-SAM and the released SegMoTE).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            depth=config.encoder_depth, embed_dim=config.encoder_width, img_size=config.image_size, mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=config.encoder_norm_eps), num_heads=config.encoder_heads,
            patch_size=config.encoder_stride, qkv_bias=True, use_rel_pos=True,
            global_attn_indexes=config.global_attention, window_size=14, out_chans=config.embed_dim,
        )
        self.early_block = config.global_attention[0]

    def forward(self, pixels: Tensor) -> ImageEmbedding:
        """Encode (B, 3, S, S) normalised pixels."""
        x = self.patch_embed(pixels) + self.pos_embed
        early = x
        for index, block in enumerate(self.blocks):
            x = x + _block_attention(block, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            if index == self.early_block:
                early = x
        return ImageEmbedding(self.neck(x.permute(0, 3, 1, 2)), (early,))


def _block_attention(block: Any, x: Tensor) -> Tensor:
    """Attention of one ViT block on normalised tokens (B, H, W, C), windowed or global."""
    attention = block.attn
    height, width = x.shape[1:3]
    qkv = attention.qkv(x)
    size = block.window_size
    if size == 0:
        return attention.proj(_attend(attention, qkv))
    pad_h, pad_w = -height % size, -width % size
    if pad_h or pad_w:
        # SAM pads zeros after the norm, so a padded token's q, k and v are the bias of the projection.
        padded = attention.qkv.bias.to(qkv.dtype).expand(x.shape[0], height + pad_h, width + pad_w, -1).contiguous()
        padded[:, :height, :width] = qkv
        qkv = padded
    windows, padded_size = window_partition(qkv, size)
    return attention.proj(window_unpartition(_attend(attention, windows), size, padded_size, (height, width)))


def _attend(attention: Any, qkv: Tensor) -> Tensor:
    """Multi-head attention with decomposed relative position: (B, H, W, 3C) -> (B, H, W, C)."""
    batch, height, width, _ = qkv.shape
    heads = attention.num_heads
    qkv = qkv.view(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, tokens, d)
    q, k, v = qkv.reshape(3, batch * heads, height * width, -1)
    rows = q.view(batch * heads, height, width, -1)
    rel_h = torch.einsum("bhwc,hkc->bhwk", rows, get_rel_pos(height, height, attention.rel_pos_h))[..., None]
    rel_w = torch.einsum("bhwc,wkc->bhwk", rows, get_rel_pos(width, width, attention.rel_pos_w))[..., None, :]
    explicit = qkv.device.type == "cpu" and qkv.dtype == torch.float32
    out = (_explicit_blocks if explicit else _fused_blocks)(q * attention.scale, k, v, rel_h, rel_w)
    return out.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).flatten(3)


def _explicit_blocks(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention (M, L, d) in blocks that stay in cache: the bias is written first, the product added onto it.

    In fp32 on a CPU this is about twice as fast as the fused kernel with a bias.
    """
    matrices, height, width = rel_h.shape[:3]
    group, rows = _block_shape(matrices, height, width, q)
    k = k.transpose(1, 2).contiguous()
    reuse = None if torch.is_grad_enabled() else q.new_empty(group, rows, width, height, width)
    out = []
    for m in range(0, matrices, group):
        some = slice(m, min(m + group, matrices))
        for r in range(0, height, rows):
            row = slice(r, min(r + rows, height))
            target = None if reuse is None else reuse[:some.stop - m, :row.stop - r]
            scores = torch.add(rel_h[some, row], rel_w[some, row], out=target).flatten(3).flatten(1, 2)
            scores.baddbmm_(q[some, r * width:row.stop * width], k[some])
            weights = torch.softmax(scores, dim=-1, out=None if reuse is None else scores)
            out.append(torch.bmm(weights, v[some]))
    return _join(out, matrices // group + (matrices % group > 0))


def _fused_blocks(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention (M, L, d) by the fused kernel, which keeps fp32 sums in reduced precision; ``q`` is scaled already."""
    matrices, height, width = rel_h.shape[:3]
    group, rows = _block_shape(matrices, height, width, q)
    out = []
    for m in range(0, matrices, group):
        some = slice(m, m + group)
        for r in range(0, height, rows):
            row = slice(r, r + rows)
            bias = (rel_h[some, row] + rel_w[some, row]).flatten(3).flatten(1, 2)
            query = q[some, r * width:(r + rows) * width]
            out.append(F.scaled_dot_product_attention(query[None], k[some][None], v[some][None],
                                                      attn_mask=bias[None], scale=1.0)[0])
    return _join(out, matrices // group + (matrices % group > 0))


def _block_shape(matrices: int, height: int, width: int, q: Tensor) -> tuple[int, int]:
    """How many matrices (image x head), or rows of one, make a bias block of the right size."""
    budget = BIAS_BLOCK_BYTES.get(q.device.type, BIAS_BLOCK_BYTES["cuda"])
    row_bytes = width * height * width * q.element_size()
    rows = min(height, max(1, budget // row_bytes))
    return (min(matrices, max(1, budget // (row_bytes * height))) if rows == height else 1), rows


def _join(blocks: list[Tensor], groups: int) -> Tensor:
    """Blocks in (group, row) order -> one (M, L, d) tensor."""
    per_group = len(blocks) // groups
    if per_group == 1:
        return torch.cat(blocks)
    return torch.cat([torch.cat(blocks[g * per_group:(g + 1) * per_group], dim=1) for g in range(groups)])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm around an identity; keeps shape (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Return x plus the block's correction.

        Args:
            modulation: (B, 4C) or (1, 4C) scales and shifts after the two norms; zeros change nothing.
        """
        if modulation is None:
            y = self.conv1(F.relu(self.norm1(x)))
            return x + self.conv2(F.relu(self.norm2(y)))
        scale1, shift1, scale2, shift2 = modulation[:, :, None, None].chunk(4, dim=1)
        y = self.conv1(F.relu(torch.addcmul(shift1, self.norm1(x), 1 + scale1)))
        return x + self.conv2(F.relu(torch.addcmul(shift2, self.norm2(y), 1 + scale2)))


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation of every convolution; torch's default starts too small for a deep network from scratch."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class CompactEncoder(nn.Module):
    """Plain 3x3 convolutions in five stages (strides 2 to 32), joined top-down at stride 8.

    Plain convolutions train and run faster per minute on a CPU than mobile or transformer blocks of the same accuracy.
    Beside the colours they see the local contrast, in which a faint lesion is as plain as a bright one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.compact_widths
        self.stages = nn.ModuleList()
        previous = colours = 3 + len(CONTRAST_WINDOWS)
        for width, depth in zip(widths, config.compact_depths, strict=True):
            down: list[nn.Module] = [nn.Conv2d(previous, width, 3, stride=2, padding=1)]
            if previous != colours:
                down = [nn.GroupNorm(8, previous), nn.ReLU(), *down]
            self.stages.append(nn.Sequential(*down, *[ResidualBlock(width) for _ in range(depth)]))
            previous = width
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.embed_dim, 1) for width in widths[2:])
        self.neck = nn.Sequential(nn.GroupNorm(8, config.embed_dim), nn.ReLU(),
                                  nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1))
        initialise_convolutions(self)

    def forward(self, pixels: Tensor) -> ImageEmbedding:
        """Encode (B, 3, S, S) normalised pixels, S a multiple of 32."""
        x = torch.cat([pixels, local_contrast(pixels)], dim=1).contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.lateral[2](maps[4])
        for level in (1, 0):
            lateral = self.lateral[level](maps[level + 2])
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return ImageEmbedding(self.neck(top), (maps[1], maps[0]))


def local_contrast(pixels: Tensor) -> Tensor:
    """Brightness minus its local mean over its local standard deviation, one map per window.

    Args:
        pixels: (B, 3, S, S) normalised, S a multiple of 32.

    Returns:
        (B, 2, S, S), about 0 in mean and 1 in standard deviation; 0 where the window is flat.
    """
    brightness = pixels.mean(dim=1, keepdim=True)
    powers = torch.cat([brightness, brightness.square()], dim=1)
    maps = []
    for window in CONTRAST_WINDOWS:
        cells = F.avg_pool2d(powers, window // 3)
        cells = F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)
        mean, square = F.interpolate(cells, size=pixels.shape[-2:], mode="bilinear", align_corners=False).split(1, 1)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        maps.append((brightness - mean) / (deviation + FLAT))
    return torch.cat(maps, dim=1)
