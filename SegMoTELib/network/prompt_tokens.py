"""PPT: prompt tokens read off the image embedding, one query set per named auto target (arXiv 2602.19213)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PromptTokenizer(nn.Module):
    """Learned queries attend to the image and become prompt tokens that stand in for a user's prompts.

    Args:
        dim: embedding width C. tokens: Q per target. targets: number of auto targets.
    """

    def __init__(self, dim: int, tokens: int, targets: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(targets, tokens, dim))
        self.norm_image = nn.LayerNorm(dim)
        self.position = nn.Linear(2, dim)
        self.attention = nn.MultiheadAttention(dim, num_heads=8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm_tokens = nn.LayerNorm(dim)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return (N, Q, C) prompt tokens for (N, C, h, w) features and (N,) target indices, int64."""
        image = self.norm_image(features.flatten(2).transpose(1, 2)) + self._position_encoding(features)
        tokens, _ = self.attention(self.queries[targets], image, image, need_weights=False)
        return self.norm_tokens(tokens + self.mlp(tokens))

    def _position_encoding(self, features: Tensor) -> Tensor:
        """Linear encoding of (x, y) in [-1, 1], (h*w, C)."""
        ys, xs = (torch.linspace(-1, 1, size, device=features.device, dtype=features.dtype)
                  for size in features.shape[-2:])
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
        return self.position(grid.view(-1, 2))
