"""SAM's 2x2 stride-2 transposed convolutions, layer norms and mask products, computed on image tokens.

A transposed convolution whose kernel equals its stride never mixes neighbours: on (N, L, C) tokens it is one matrix
product that gives every token a 2 x 2 patch. Staying in this layout until the mask itself keeps channels contiguous
(fast layer norm, no transposes) and moves one channel per mask instead of dozens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def expand_tokens(tokens: Tensor, up: Any) -> Tensor:
    """Apply a 2x2 stride-2 ``ConvTranspose2d``: (..., C_in) -> (..., 2, 2, C_out)."""
    weight = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels)
    bias = up.bias.repeat(4)
    return F.linear(tokens, weight, bias).unflatten(-1, (2, 2, up.out_channels))


def layer_norm_channels(x: Tensor, norm: Any) -> Tensor:
    """segment-anything's ``LayerNorm2d`` on channels-last data (..., C)."""
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def upscale(tokens: Tensor, layers: nn.Sequential) -> Tensor:
    """Run [up, LayerNorm2d, GELU, up, (GELU)] on (N, L, C) tokens -> (N, L, 2, 2, 2, 2, C_out)."""
    x = F.gelu(layer_norm_channels(expand_tokens(tokens, layers[0]), layers[1]))
    x = expand_tokens(x, layers[3])
    return F.gelu(x) if len(layers) == 5 else x


def to_map(x: Tensor, size: int) -> Tensor:
    """Rearrange (N, L, 2, 2, 2, 2, K), L = size^2, into an NHWC map (N, 4 size, 4 size, K)."""
    x = x.unflatten(1, (size, size)).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(x.shape[0], 4 * size, 4 * size, -1)


def product_masks(upscaled: Tensor, hyper: Tensor, size: int) -> Tensor:
    """Masks as dot products: (1|N, L, 2, 2, 2, 2, C) features with (N, K, C) -> (N, K, 4 size, 4 size)."""
    x = hyper @ upscaled.flatten(1, 5).transpose(1, 2)  # (N, K, 16 L)
    x = x.unflatten(2, (size, size, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return x.reshape(x.shape[0], -1, 4 * size, 4 * size)


def product_after_conv(x: Tensor, conv: Any, hyper: Tensor) -> Tensor:
    """``hyper . conv(x)`` without the 3x3 ``Conv2d``'s wide output: (N, H, W, C), (N, K, C_out) -> (N, K, H, W).

    The dot product is folded into the 3x3 kernel, so K maps are convolved instead of C_out; the nine taps are one
    matrix product and ``F.fold`` adds them up at their places.
    """
    n, height, width, channels = x.shape
    kernel = torch.einsum("nko,ocij->nkijc", hyper, conv.weight.flip(2, 3)).reshape(n, -1, channels)
    taps = kernel @ x.view(n, height * width, channels).transpose(1, 2)  # (N, 9 K, H W)
    out = F.fold(taps, (height, width), kernel_size=3, padding=1)
    return out + (hyper @ conv.bias)[:, :, None, None]
