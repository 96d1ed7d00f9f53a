"""What a training step learns from, images and first prompts; prepared by background processes where a GPU waits.

Everything here depends on (seed, step, item) alone, never on who prepares it or when.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from SegMoTELib.training.config import TrainingConfig
from SegMoTELib.training.dataset import Item, TrainingData
from SegMoTELib.training.prompts import EXTRA_CLICKS, extra_clicks, first_click, jittered_box

UNSURE_SHARE = 0.1  # of targets whose kind of image is not told, so that the mean code suits unknown kinds
SEVERAL_SHARE = 0.15  # single-round steps whose first prompt holds several clicks
ROUNDS_BEFORE, ROUNDS_BEFORE_SHARES = (0, 1, 2, 4), (0.5, 0.2, 0.15, 0.15)  # of other single-round steps
LATE_BOX_SHARE = 0.4  # of these, how often a box gets late rounds too: a box should be enough more often than a click
WORKERS, AHEAD = 0.6, 2  # background processes per core, and steps that each prepares ahead
PATIENCE = 300  # seconds for a step's batches, after which preparing them must have failed


@dataclass
class Batch:
    """B images with M targets each, N = B x M in image-major order, and every target's first prompt.

    Attributes:
        images: (B, S, S, 3) uint8. labels: (B, S, S) uint8 label values. keys: (B,) of the images.
        truth: (N, S, S) bool. targets: (N,) int64 auto target or -1.
        modes: (N,) "box", "point" or "auto". boxes: (N, 4) float32, used by "box". clicks: (N, 2) float32, "point".
        extra: further clicks of the first prompt, (N, E, 2) float32 and (N, E) int64 labels, or None.
        found: (N,) bool, False for what is no target but stands where none was large enough to be seen.
        unsure: (N,) bool, targets whose kind of image is not told in training.
        rngs: (N,) for the prompts that follow, so that a prompt depends on its item alone.
    """

    images: Tensor
    labels: Tensor
    keys: list[tuple]
    truth: Tensor
    targets: np.ndarray
    modes: np.ndarray
    boxes: Tensor
    clicks: Tensor
    extra: tuple[Tensor, Tensor] | None
    found: np.ndarray
    unsure: np.ndarray
    rngs: list[np.random.Generator]

    @staticmethod
    def of(items: list[Item], seeds: list[int], config: TrainingConfig, several: bool = False) -> Batch:
        """Stack items and draw their first prompts.

        Args:
            seeds: one number per item. several: the first prompt holds several clicks.
        """
        truth = np.concatenate([item.masks for item in items])
        targets = np.concatenate([item.targets for item in items])
        rngs = [np.random.default_rng(seed * 1000 + m) for seed in seeds for m in range(len(items[0].masks))]
        modes = np.array([_mode(config, rng, target) for rng, target in zip(rngs, targets, strict=True)])
        unsure = np.array([rng.random() < UNSURE_SHARE for rng in rngs])
        boxes, clicks = np.zeros((len(truth), 4), np.float32), np.zeros((len(truth), 2), np.float32)
        coords = np.zeros((len(truth), EXTRA_CLICKS, 2), np.float32)
        labels = np.full((len(truth), EXTRA_CLICKS), -1)
        for i, (mask, rng) in enumerate(zip(truth, rngs, strict=True)):
            if modes[i] == "box":
                boxes[i] = jittered_box(mask, rng)
            elif modes[i] == "point":
                clicks[i] = first_click(mask, rng)
            if several:
                coords[i], labels[i] = extra_clicks(mask, rng)
        return Batch(torch.from_numpy(np.stack([item.image for item in items])),
                     torch.from_numpy(np.stack([item.label for item in items])), [item.key for item in items],
                     torch.from_numpy(truth), targets, modes, torch.from_numpy(boxes), torch.from_numpy(clicks),
                     (torch.from_numpy(coords), torch.from_numpy(labels)) if several else None,
                     np.repeat([item.found for item in items], len(items[0].masks)), unsure, rngs)


def _mode(config: TrainingConfig, rng: np.random.Generator, target: int) -> str:
    if target >= 0 and (config.targets_only or rng.random() < config.auto_share):
        return "auto"
    return "box" if rng.random() < config.box_share else "point"


def beginning(config: TrainingConfig, step: int) -> tuple[bool, dict[str, int]]:
    """Whether a step's first prompts hold several clicks, and how many rounds go before those learned from."""
    rng = np.random.default_rng([config.seed, step])
    if config.targets_only or config.phase_at(step).rounds > 1:
        return False, {}
    if rng.random() < SEVERAL_SHARE:
        return True, {}
    before = int(rng.choice(ROUNDS_BEFORE, p=ROUNDS_BEFORE_SHARES))
    return False, {"point": before, "auto": before, "box": before if rng.random() < LATE_BOX_SHARE else 0}


class StepBatches(Dataset):
    """The batches of every step of a run: by step, this process's share for each backward pass.

    Args:
        data: what items are drawn from. config: of the run. world, rank: processes, and this one's number.
    """

    def __init__(self, data: TrainingData, config: TrainingConfig, world: int, rank: int) -> None:
        self.data, self.config, self.world, self.rank = data, config, world, rank

    def __getitem__(self, step: int) -> list[tuple[int, Batch]]:
        """Return (seed, batch) of every backward pass of a step."""
        several, _ = beginning(self.config, step)
        phase = self.config.phase_at(step)
        data, share = self.data.at_size(phase.size), phase.batch // (self.world * self.config.accumulate)
        parts = []
        for part in range(self.config.accumulate):
            first = (part * self.world + self.rank) * share
            seeds = [(self.config.seed * 1_000_003 + step) * 4096 + first + i for i in range(share)]
            items = [data.item(np.random.default_rng(seed), augment=self.config.augmented) for seed in seeds]
            parts.append((seeds[0], Batch.of(items, seeds, self.config, several)))
        return parts

    def from_step(self, step: int, end: int, device: torch.device) -> Iterator[list[tuple[int, Batch]]]:
        """Yield the batches of steps ``step`` to ``end - 1``: prepared ahead for a GPU, on demand for a CPU.

        Processes are forked, so that they share the images; where that is impossible the caller's process prepares.
        """
        ahead = device.type == "cuda" and "fork" in multiprocessing.get_all_start_methods()
        if not ahead:
            return iter(DataLoader(self, batch_size=None, sampler=range(step, end), collate_fn=_as_is))
        cv2.setNumThreads(1)  # a process forked while OpenCV's threads are about waits for them for ever
        return iter(DataLoader(self, batch_size=None, sampler=range(step, end), collate_fn=_as_is,
                               num_workers=max(1, int(WORKERS * (os.cpu_count() or 1) / self.world)),
                               prefetch_factor=AHEAD, timeout=PATIENCE, multiprocessing_context="fork"))


def _as_is(parts: list[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
    return parts
