"""What a training step learns from, by whoever it is prepared."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from SegMoTELib.data.pack import open_packs
from SegMoTELib.training.batches import StepBatches, beginning
from SegMoTELib.training.config import Phase
from SegMoTELib.training.dataset import TrainingData

PHASE = Phase(64, 12, 4, 1)


@pytest.fixture
def steps(a_config, a_pack):
    """Batches of the only process of a run."""
    return prepared_by(a_config, a_pack, world=1, rank=0)


def prepared_by(config, pack, world: int, rank: int) -> StepBatches:
    config = replace(config, phases=(PHASE,))
    data = TrainingData(open_packs([str(pack)]), "train", config.auto_targets, 64, 2)
    return StepBatches(data, config, world, rank)


def same(first, second) -> bool:
    """Whether two steps' batches and the random numbers of their later prompts are equal."""
    return all(seed == other_seed and torch.equal(one.images, other.images) and torch.equal(one.truth, other.truth)
               and np.array_equal(one.modes, other.modes) and torch.equal(one.boxes, other.boxes)
               and torch.equal(one.clicks, other.clicks) and one.rngs[0].random() == other.rngs[0].random()
               for (seed, one), (other_seed, other) in zip(first, second, strict=True))


needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs forked processes")


@needs_fork
def test_background_processes_prepare_what_the_process_itself_would(steps):
    ahead = list(steps.from_step(2, 12, torch.device("cuda")))
    on_demand = list(steps.from_step(2, 12, torch.device("cpu")))
    assert len(ahead) == len(on_demand) == 10
    assert all(same(*pair) for pair in zip(ahead, on_demand, strict=True))


@needs_fork
def test_background_processes_start_again_after_opencv_has_used_threads(steps):
    for _ in range(2):
        cv2.setNumThreads(4)
        for _ in range(20):  # clicks of later rounds are drawn by the process itself
            cv2.connectedComponents(np.eye(512, dtype=np.uint8))
        assert len(list(steps.from_step(0, 6, torch.device("cuda")))) == 6


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(steps):
    whole = list(steps.from_step(0, 6, torch.device("cpu")))
    assert all(same(*pair) for pair in zip(whole[4:], steps.from_step(4, 6, torch.device("cpu")), strict=True))


def test_two_processes_share_the_images_of_one(a_config, a_pack, steps):
    (_, whole), = steps[3]
    halves = [prepared_by(a_config, a_pack, 2, rank)[3][0][1] for rank in (0, 1)]
    assert torch.equal(whole.images, torch.cat([half.images for half in halves]))
    assert torch.equal(whole.truth, torch.cat([half.truth for half in halves]))


def test_first_prompts_suit_their_targets(steps):
    for step in range(12):
        several, _ = beginning(steps.config, step)
        (_, batch), = steps[step]
        assert (batch.extra is not None) == several
        for mode, mask, box, click in zip(batch.modes, batch.truth, batch.boxes, batch.clicks, strict=True):
            if mode == "box":
                assert 0 <= box[0] <= box[2] < 64
                assert 0 <= box[1] <= box[3] < 64
            elif mode == "point":
                assert mask[int(click[1]), int(click[0])]
            else:
                assert mode == "auto"
