"""A small synthetic data set and configs that train in seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from SegMoTELib.network import AutoTarget
from SegMoTELib.training.config import Phase, TrainingConfig

SMALL = {"compact_widths": (8, 16, 32, 32, 32), "compact_depths": (0, 1, 1, 1, 1), "embed_dim": 64, "decoder_mlp": 64,
         "expert_rank": 16, "prompt_tokens": 2}
DISK = (AutoTarget("disk", "synthetic", sources=("shapes:1",)),)


@pytest.fixture
def a_pack(tmp_path):
    """Six 64 x 64 images with a bright disk (label 1) and a dark square (label 2)."""
    folder = tmp_path / "shapes"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    names = []
    for index in range(6):
        image = rng.normal(110, 8, (64, 64))
        label = np.zeros((64, 64), np.uint8)
        rows, columns = np.mgrid[:64, :64]
        center, radius = rng.integers(18, 46, 2), rng.integers(8, 14)
        label[48:60, 4:16] = 2
        label[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius ** 2] = 1
        image[label == 1] += 90
        image[label == 2] -= 70
        name = f"case{index}"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(label).save(folder / "labels" / f"{name}.png")
        names.append(name)
    (folder / "dataset.json").write_text(json.dumps({
        "name": "shapes", "modality": "synthetic", "task_type": "multiclass", "licence": "CC0",
        "labels": {"0": "background", "1": "disk", "2": "square"},
        "splits": {"train": names[:4], "val": names[4:5], "test": names[5:]}}))
    return folder


@pytest.fixture
def a_config(a_pack):
    """Six base steps at 64 px."""
    return TrainingConfig(stage="base", data=(str(a_pack),), phases=(Phase(64, 4, 2, 1), Phase(64, 2, 2, 2)),
                          model=SMALL, auto_targets=DISK, masks_per_image=2, warmup_steps=2, validate_every=100,
                          dense_weight=0.5, checkpoint_every=100, seed=3)
