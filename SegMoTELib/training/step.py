"""One optimisation step's forward pass: encode once, prompt, look at the error, prompt again."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegMoTELib.interaction.embeddings import EmbeddingCache
from SegMoTELib.network import ImageEmbedding, MaskPrediction, SegMoTE
from SegMoTELib.training.batches import Batch
from SegMoTELib.training.config import TrainingConfig
from SegMoTELib.training.dense import DenseHead
from SegMoTELib.training.losses import iou_head_loss, mask_iou, mask_loss
from SegMoTELib.training.prompts import corrective_click

EMBEDDING_BYTES = 6 << 30  # of memory for the adapt stage's embeddings
LOOK_TWICE_SHARE = 0.5  # of boxes with a late round: the first mask is given back without a click, as parts get it


class InteractiveStep(nn.Module):
    """Loss of a batch under simulated interaction; a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: SegMoTE, config: TrainingConfig, dense: DenseHead | None = None) -> None:
        super().__init__()
        self.model, self.config, self.dense = model, config, dense
        self.adapters = config.stage == "adapt" and model.adapters_trained
        self.embeddings = EmbeddingCache(EMBEDDING_BYTES)

    def forward(self, batch: Batch, rounds: int,
                before: dict[str, int] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over targets and rounds, and named means for the log.

        What is no target counts as a loss of 0; a loss that nothing was learned from still has a gradient, of 0, for
        other processes wait for one.

        Args:
            rounds: prompts per target that are learned from.
            before: by kind of first prompt ("box", "point", "auto"), corrected rounds that come first and are not
                learned from: a late round at a third of its price.
        """
        pixels, truth = self._pixels(batch.images), batch.truth.to(self.model.device)
        if not self.config.augmented:
            embedding = ImageEmbedding.cat(self.embeddings.encode(
                batch.keys, lambda rows: self.model.encode(pixels[rows]))).to(self.model.device, self.model.dtype)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.stage == "base"):
                embedding = self.model.encode(pixels)
        count = len(truth)
        owner = torch.arange(len(pixels), device=self.model.device).repeat_interleave(count // len(pixels))
        domains = self._domains(batch)
        losses, log = [], {}
        for mode in ("box", "point", "auto"):
            rows = np.flatnonzero((batch.modes == mode) & batch.found)
            if len(rows) == 0:
                continue
            here = torch.from_numpy(rows).to(self.model.device)
            loss, values = self._interact(batch, rows, embedding[owner[here]], truth[here], rounds,
                                          (before or {}).get(mode, 0), None if domains is None else domains[here])
            losses.append(loss)
            for name, value in values.items():
                log[f"{mode}/{name}"] = value.mean()
        loss = torch.zeros((), device=self.model.device)
        if losses:
            loss = torch.cat(losses).mean() * float(batch.found.mean())
        if self.dense is not None:
            log["dense"] = self.dense(embedding, batch.labels.to(self.model.device), [code for code, _ in batch.keys])
            loss = loss + self.config.dense_weight * log["dense"]
            log["dense"] = log["dense"].detach()
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss = loss + 0 * next(weight for weight in self.model.parameters() if weight.requires_grad).sum()
        return loss, log

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S) normalised, on the model's device."""
        mean, std = (torch.tensor(values, device=self.model.device) for values in (
            self.model.config.pixel_mean, self.model.config.pixel_std))
        return ((images.to(self.model.device).float() - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _domains(self, batch: Batch) -> Tensor | None:
        """Probabilities (N, D): each target's data set, or anything; None where the model is to see for itself."""
        names = self.model.config.domains
        if not self.adapters or not names or self.config.targets_only:
            return None
        of_image = torch.tensor([names.index(code) for code, _ in batch.keys])
        known = F.one_hot(of_image, len(names)).float().repeat_interleave(len(batch.truth) // len(of_image), dim=0)
        if self.model.training:
            known[batch.unsure] = 1 / len(names)
        return known.to(self.model.device)

    def _interact(self, batch: Batch, rows: np.ndarray, embedding: ImageEmbedding, truth: Tensor, rounds: int,
                  before: int, domains: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """All rounds of a batch's ``rows``, which have one kind of first prompt; (N,) losses and IoUs by round."""
        mode, rngs = batch.modes[rows[0]], [batch.rngs[i] for i in rows]
        boxes = points = previous = auto = None
        if mode == "box":
            boxes = batch.boxes[rows]
        elif mode == "point":
            points = (batch.clicks[rows][:, None], torch.ones(len(rows), 1, dtype=torch.int64))
        else:
            auto = torch.from_numpy(batch.targets[rows])
        if batch.extra is not None and mode != "auto":
            points = _append(points, batch.extra[0][rows], batch.extra[1][rows])
        small = F.avg_pool2d(truth[:, None].float(), truth.shape[-1] // self.model.config.mask_size)[:, 0]
        losses: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for index in range(before + rounds):
            learn = index >= before
            with torch.set_grad_enabled(torch.is_grad_enabled() and learn):
                prediction = self.model.decode(embedding, points=points, boxes=boxes, masks=previous, auto=auto,
                                               adapters=self.adapters, domains=domains)
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
