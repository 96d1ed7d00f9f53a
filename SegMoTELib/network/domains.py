"""Domain experts: the decoder works a little differently on each kind of image, and a learned router tells which it is.

A small network that is asked for the ring of heart muscle in cine MR, for nuclei and for polyps averages what a box
means over all of them. Here every training data set has a short code; the code of an image is their mean, weighted by
the router's probabilities, and scales and shifts the channels of the decoder's blocks (FiLM, arXiv 1709.07871).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegMoTELib.network.encoders import ImageEmbedding

CODE_WIDTH = 48
LEAST_SPREAD = 0.05  # of a statistic over images: few images alike must not make others look extreme
FIT_STEPS, FIT_RATE, SMOOTHING = 600, 2e-3, 0.1  # of the router's regression


class DomainExperts(nn.Module):
    """Router over D domains and the modulation of the decoder's residual blocks.

    Args:
        dims: channels of the image embedding and of its early maps. count: D. widths: channels of each modulated block,
            in order of use.
    """

    def __init__(self, dims: tuple[int, ...], count: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.center: Tensor
        self.spread: Tensor
        seen = 3 * dims[0] + 2 * sum(dims[1:])
        self.register_buffer("center", torch.zeros(seen))
        self.register_buffer("spread", torch.ones(seen))
        self.router = nn.Linear(seen, count)
        self.codes = nn.Embedding(count, CODE_WIDTH)
        self.modulations = nn.ModuleList(_zero_linear(CODE_WIDTH, 4 * width) for width in widths)  # starts as the base

    def route(self, embedding: ImageEmbedding) -> Tensor:
        """Probabilities (B, D) of the domains of B whole images."""
        return self.router((image_statistics(embedding) - self.center) / self.spread).softmax(dim=1)

    def fit(self, statistics: Tensor, truth: Tensor) -> None:
        """Teach the router by images of known domain: logistic regression in which all domains count the same.

        Args:
            statistics: (B, S) of :func:`image_statistics`. truth: (B,) int64, indices of domains.
        """
        self.center.copy_(statistics.mean(dim=0))
        self.spread.copy_(statistics.std(dim=0, correction=0).clamp_min(LEAST_SPREAD))
        seen = (statistics - self.center) / self.spread
        weight = 1 / torch.bincount(truth, minlength=len(self.router.bias))[truth]
        optimizer = torch.optim.AdamW(self.router.parameters(), lr=FIT_RATE, weight_decay=0.1)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                loss = F.cross_entropy(self.router(seen), truth, reduction="none", label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                ((loss * weight).sum() / weight.sum()).backward()
                optimizer.step()
        optimizer.zero_grad()

    def forward(self, probabilities: Tensor) -> list[Tensor]:
        """One (N, 4C) modulation per block, see ``ResidualBlock``, for domains known or routed, (N, D)."""
        code = probabilities @ self.codes.weight
        return [layer(code) for layer in self.modulations]


def image_statistics(embedding: ImageEmbedding) -> Tensor:
    """Mean and standard deviation of every channel of all maps, and maximum of the coarsest's: (B, 3C + 2C' + 2C'')."""
    parts = [embedding.features.amax(dim=(2, 3))]
    for channels in (embedding.features, *embedding.early):
        parts += [channels.mean(dim=(2, 3)), channels.std(dim=(2, 3))]
    return torch.cat(parts, dim=1)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
