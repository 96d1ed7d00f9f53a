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

    def of_set(self, code: str) -> Tensor:
        """(256,) int64: label value of a data set -> class; unknown values are background."""
        table = torch.zeros(256, dtype=torch.int64)
        for (owner, value), number in self.index.items():
            if owner == code:
                table[value] = number
        return table


class DenseHead(nn.Module):
    """Class logits at stride 4 from an embedding of the compact encoder."""

    def __init__(self, config: ModelConfig, classes: ClassList) -> None:
        super().__init__()
        self.classes = classes
        self.coarse = nn.Conv2d(config.embed_dim, WIDTH, 1)
        self.fine = nn.Conv2d(config.compact_widths[1], WIDTH, 1)
        self.classify = nn.Conv2d(WIDTH, len(classes), 1)

    def forward(self, embedding: ImageEmbedding, labels: Tensor, codes: list[str]) -> Tensor:
        """Cross-entropy + Dice over the classes of each image's own data set, averaged over B images; a scalar.

        Args:
            embedding: of B images. labels: (B, S, S) uint8 label values. codes: the data set of each image.
        """
        coarse = F.interpolate(self.coarse(embedding.features), scale_factor=2, mode="bilinear", align_corners=False)
        logits = self.classify(F.relu(coarse + self.fine(embedding.early[0]))).float()
        step = labels.shape[-1] // logits.shape[-1]
        small = labels[:, step // 2::step, step // 2::step].long()
        losses = []
        for image, label, code in zip(logits, small, codes, strict=True):
            table = self.classes.of_set(code).to(label.device)
            own = torch.unique(table)  # background first
            truth = torch.searchsorted(own, table[label])
            losses.append(_image_loss(image[own], truth))
        return torch.stack(losses).mean()


def _image_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy + mean Dice loss over the classes present: logits (K, h, w), truth (h, w) in 0..K-1."""
    cross_entropy = F.cross_entropy(logits[None], truth[None])
    present = torch.unique(truth)
    present = present[present > 0]
    if len(present) == 0:
        return cross_entropy
    probability = logits.softmax(dim=0)[present]
    inside = (truth[None] == present[:, None, None]).to(probability.dtype)
    overlap = (probability * inside).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(1, 2)) + inside.sum(dim=(1, 2)) + 1)
    return cross_entropy + dice.mean()
