"""Dense supervision of the encoder: name every pixel's class, from the encoder's features alone.

One image teaches all its classes at once, at the cost of the encoder alone, so that a small encoder learns what things
are much sooner than from prompts. The head is thrown away after training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegMoTELib.data.pack import Pack
from SegMoTELib.network import ImageEmbedding, ModelConfig

WIDTH = 64
NEVER = -1e4  # logit of other sets' classes


class ClassList:
    """Numbers all classes of all data sets; 0 is the background, which they share.

    Args:
        packs: data sets.
    """

    def __init__(self, packs: list[Pack]) -> None:
        names = [(pack.code, value) for pack in packs for value in sorted(pack.labels)]
        self.index = {name: number for number, name in enumerate(names, start=1)}

    def __len__(self) -> int:
        """Number of classes with the background."""
        return len(self.index) + 1

    def of_set(self, code: str) -> tuple[list[int], Tensor]:
        """The classes of a data set, background first, and (256,) int64: label value -> place in that list.

        Values that are not labels of the set are background.
        """
        own = sorted((value, number) for (owner, value), number in self.index.items() if owner == code)
        places = torch.zeros(256, dtype=torch.int64)
        for place, (value, _) in enumerate(own, start=1):
            places[value] = place
        return [0, *(number for _, number in own)], places


class DenseHead(nn.Module):
    """Class logits at stride 4 from an embedding of the compact encoder."""

    def __init__(self, config: ModelConfig, classes: ClassList) -> None:
        super().__init__()
        self.classes = classes
        self.coarse = nn.Conv2d(config.embed_dim, WIDTH, 1)
        self.fine = nn.Conv2d(config.compact_widths[1], WIDTH, 1)
        self.classify = nn.Linear(WIDTH, len(classes))

    def forward(self, embedding: ImageEmbedding, labels: Tensor, codes: list[str]) -> Tensor:
        """Cross-entropy + Dice over the classes of each image's own data set, averaged over B images; a scalar.

        Args:
            embedding: of B images. labels: (B, S, S) uint8 label values. codes: the data set of each image.
        """
        coarse = F.interpolate(self.coarse(embedding.features), scale_factor=2, mode="bilinear", align_corners=False)
        features = F.relu(coarse + self.fine(embedding.early[0]))
        sets = [self.classes.of_set(code) for code in codes]
        most = max(len(own) for own, _ in sets)
        own = torch.tensor([numbers + [-1] * (most - len(numbers)) for numbers, _ in sets], device=labels.device)
        chosen = own.clamp_min(0).flatten()
        weight = self.classify.weight.index_select(0, chosen).unflatten(0, own.shape)
        bias = self.classify.bias.index_select(0, chosen).unflatten(0, own.shape)
        logits = (weight @ features.flatten(2) + bias[:, :, None]).float()  # (B, classes, pixels)
        logits = logits.masked_fill((own < 0)[:, :, None], NEVER)
        step = labels.shape[-1] // features.shape[-1]
        small = labels[:, step // 2::step, step // 2::step].flatten(1).long()
        truth = torch.stack([places for _, places in sets]).to(labels.device).gather(1, small)
        return F.cross_entropy(logits, truth) + _dice_loss(logits, truth)


def _dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over images of the mean Dice loss of the classes present: logits (B, K, P), truth (B, P) in 0..K-1."""
    probability = logits.softmax(dim=1)
    right = probability.gather(1, truth[:, None])[:, 0]
    nothing = torch.zeros_like(probability[:, :, 0])
    overlap, size = nothing.scatter_add(1, truth, right), nothing.scatter_add(1, truth, torch.ones_like(right))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=2) + size + 1)
    present = (size > 0).float()
    present[:, 0] = 0  # the background is no structure
    return ((dice * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)).mean()
