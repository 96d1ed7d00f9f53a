"""One optimisation step's forward pass: encode once, prompt, look at the error, prompt again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegMoTELib.interaction.embeddings import EmbeddingCache
from SegMoTELib.network import ImageEmbedding, MaskPrediction, SegMoTE
from SegMoTELib.training.config import TrainingConfig
from SegMoTELib.training.dataset import Item
from SegMoTELib.training.dense import DenseHead
from SegMoTELib.training.losses import iou_head_loss, mask_iou, mask_loss
from SegMoTELib.training.prompts import corrective_click, extra_clicks, first_click, jittered_box

EMBEDDING_BYTES = 6 << 30  # of memory for the adapt stage's embeddings
UNSURE_SHARE = 0.1  # of targets whose kind of image is not told, so that the mean code suits unknown kinds
LOOK_TWICE_SHARE = 0.5  # of boxes with a late round: the first mask is given back without a click, as parts get it


@dataclass
class Batch:
    """Items stacked for the network.

    Attributes:
        pixels: (B, 3, S, S) normalised. truth: (N, S, S) bool, N = B x M, image-major. targets: (N,) auto target or -1.
        seeds: (N,) of the prompt simulation, so that a prompt depends on its item alone. keys: (B,) of the images.
        labels: (B, S, S) uint8.
    """

    pixels: Tensor
    truth: np.ndarray
    targets: np.ndarray
    seeds: np.ndarray
    keys: list[tuple]
    labels: Tensor

    @staticmethod
    def stack(items: list[Item], seeds: list[int], mean: tuple, std: tuple) -> Batch:
        """Stack items; ``seeds`` has one number per item."""
        images = np.stack([item.image for item in items]).astype(np.float32)
        normalised = (images - np.array(mean, np.float32)) / np.array(std, np.float32)
        pixels = torch.from_numpy(normalised).permute(0, 3, 1, 2)
        masks_per_image = len(items[0].masks)
        return Batch(pixels.contiguous(), np.concatenate([item.masks for item in items]),
                     np.concatenate([item.targets for item in items]),
                     np.array([seed * 1000 + m for seed in seeds for m in range(masks_per_image)]),
                     [item.key for item in items], torch.from_numpy(np.stack([item.label for item in items])))


class InteractiveStep(nn.Module):
    """Loss of a batch under simulated interaction; a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: SegMoTE, config: TrainingConfig, dense: DenseHead | None = None) -> None:
        super().__init__()
        self.model, self.config, self.dense = model, config, dense
        self.adapters = config.stage == "adapt"
        self.embeddings = EmbeddingCache(EMBEDDING_BYTES)

    def forward(self, batch: Batch, rounds: int, several: bool = False,
                before: dict[str, int] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over targets and rounds, and named means for the log.

        Args:
            rounds: prompts per target that are learned from. several: the first prompt holds several clicks.
            before: by kind of first prompt ("box", "point", "auto"), corrected rounds that come first and are not
                learned from: a late round at a third of its price.
        """
        if not self.config.augmented:
            embedding = ImageEmbedding.cat(self.embeddings.encode(
                batch.keys, lambda rows: self.model.encode(batch.pixels[rows]))).to(self.model.device, self.model.dtype)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.adapters):
                embedding = self.model.encode(batch.pixels)
        count = len(batch.truth)
        owner = torch.arange(len(batch.pixels)).repeat_interleave(count // len(batch.pixels))
        rngs = [np.random.default_rng(int(seed)) for seed in batch.seeds]
        modes = np.array([self._mode(rng, target) for rng, target in zip(rngs, batch.targets, strict=True)])
        domains = self._domains([batch.keys[i][0] for i in owner], rngs)
        losses, log = [], {}
        for mode in ("box", "point", "auto"):
            rows = np.flatnonzero(modes == mode)
            if len(rows) == 0:
                continue
            loss, values = self._interact(mode, embedding[owner[rows]], batch.truth[rows], batch.targets[rows],
                                          [rngs[i] for i in rows], rounds, several, (before or {}).get(mode, 0),
                                          None if domains is None else domains[rows])
            losses.append(loss)
            for name, value in values.items():
                log[f"{mode}/{name}"] = value.mean()
        loss = torch.cat(losses).mean()
        if self.dense is not None:
            log["dense"] = self.dense(embedding, batch.labels.to(embedding.features.device),
                                      [code for code, _ in batch.keys])
            loss = loss + self.config.dense_weight * log["dense"]
            log["dense"] = log["dense"].detach()
        return loss, log

    def _mode(self, rng: np.random.Generator, target: int) -> str:
        if target >= 0 and rng.random() < self.config.auto_share:
            return "auto"
        return "box" if rng.random() < self.config.box_share else "point"

    def _domains(self, codes: list[str], rngs: list[np.random.Generator]) -> Tensor | None:
        """Probabilities (N, D): each target's data set, or anything; None for a model without domain experts."""
        names = self.model.config.domains
        if not self.adapters or not names:
            return None
        known = F.one_hot(torch.tensor([names.index(code) for code in codes]), len(names)).float()
        if self.model.training:
            known[[i for i, rng in enumerate(rngs) if rng.random() < UNSURE_SHARE]] = 1 / len(names)
        return known.to(self.model.device)

    def _interact(self, mode: str, embedding: ImageEmbedding, truth: np.ndarray, targets: np.ndarray,
                  rngs: list[np.random.Generator], rounds: int, several: bool, before: int,
                  domains: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """All rounds of one kind of first prompt; returns (N,) losses and (N,) IoUs by round."""
        device = embedding.features.device
        boxes = points = previous = None
        auto = None
        if mode == "box":
            boxes = torch.from_numpy(np.stack([jittered_box(*pair) for pair in zip(truth, rngs, strict=True)]))
        elif mode == "point":
            clicks = np.stack([first_click(*pair) for pair in zip(truth, rngs, strict=True)])
            points = (torch.from_numpy(clicks)[:, None], torch.ones(len(truth), 1, dtype=torch.int64))
        else:
            auto = torch.from_numpy(targets)
        if several and mode != "auto":
            extra = [extra_clicks(*pair) for pair in zip(truth, rngs, strict=True)]
            points = _append(points, torch.from_numpy(np.stack([coords for coords, _ in extra])),
                             torch.from_numpy(np.stack([labels for _, labels in extra])))
        losses: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for index in range(before + rounds):
            learn = index >= before
            with torch.set_grad_enabled(torch.is_grad_enabled() and learn):
                prediction = self.model.decode(embedding, points=points, boxes=boxes, masks=previous, auto=auto,
                                               adapters=self.adapters, domains=domains)
            small = _fraction(truth, prediction.logits.shape[-1], device)
            values[f"iou{index}"] = mask_iou(prediction.logits[:, 0], small)
            if learn:
                losses.append(self._loss(prediction, small))
            if index + 1 < before + rounds:
                previous = prediction.logits.detach()
                points = _add_clicks(points, previous[:, 0], small, self.model.config.image_size, rngs,
                                     skip=LOOK_TWICE_SHARE if mode == "box" and self.model.training else 0.0)
        return torch.stack(losses).mean(dim=0), values

    def _loss(self, prediction: MaskPrediction, truth: Tensor) -> Tensor:
        loss = mask_loss(prediction.logits[:, 0], truth)
        if prediction.expert_logits is None or prediction.balance_loss is None:
            return loss + iou_head_loss(prediction.iou, prediction.logits, truth)
        if prediction.expert_iou is not None:
            loss = loss + iou_head_loss(prediction.expert_iou, prediction.expert_logits, truth)
        return loss + self.config.balance_weight * prediction.balance_loss


def _fraction(truth: np.ndarray, size: int, device: torch.device) -> Tensor:
    """(N, S, S) bool -> (N, size, size) float, the share of every low-resolution pixel inside the target."""
    full = torch.from_numpy(truth).to(device, torch.float32)
    return F.avg_pool2d(full[:, None], truth.shape[-1] // size)[:, 0]


def _add_clicks(points, logits: Tensor, truth: Tensor, image_size: int, rngs: list[np.random.Generator],
                skip: float = 0.0):
    """Append one corrective click per target, in input pixels; ``skip`` of them are left out."""
    scale = image_size / logits.shape[-1]
    predicted, inside = (logits > 0).cpu().numpy(), (truth > 0.5).cpu().numpy()
    clicks = [corrective_click(*triple) for triple in zip(predicted, inside, rngs, strict=True)]
    coords = torch.from_numpy(np.stack([(click + 0.5) * scale - 0.5 for click, _ in clicks]))[:, None].float()
    labels = torch.tensor([[-1 if skip and rng.random() < skip else label]
                           for (_, label), rng in zip(clicks, rngs, strict=True)])
    return _append(points, coords, labels)


def _append(points, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if points is None:
        return coords, labels
    return torch.cat([points[0], coords], dim=1), torch.cat([points[1], labels], dim=1)
