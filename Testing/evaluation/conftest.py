"""Small labelled data sets on disk and a predictor that needs no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage


def disk(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    """Return a filled circle, boolean."""
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    return (rows - row)**2 + (columns - column)**2 <= radius**2


@dataclass(frozen=True)
class FakeAutoTarget:
    """What a model offers without a prompt."""

    name: str
    modality: str
    sources: tuple[str, ...]


class FakePredictor:
    """Finds bright things: all of them inside boxes, or the connected ones that were clicked.

    Like a real model it gets better by correction: without previous logits it returns only half of what it found.
    """

    auto_targets = (FakeAutoTarget("blob", "CT", ("shapes:1",)),)

    def __init__(self) -> None:
        self.model = SimpleNamespace(adapters_trained=True)
        self.encoded = 0
        self.fed_back = []

    def set_image(self, image: np.ndarray) -> None:
        self.encoded += 1
        self._bright = (image if image.ndim == 2 else image.mean(axis=2)) > 120

    def predict(self, point_coords=None, point_labels=None, box=None, mask_input=None, multimask_output=True,
                adapters=None):
        assert not multimask_output
        mask = np.zeros_like(self._bright)
        if box is not None:
            assert (box.dtype, box.ndim) == (np.float32, 2)
            for x0, y0, x1, y1 in box.astype(int):
                mask[y0:y1 + 1, x0:x1 + 1] |= self._bright[y0:y1 + 1, x0:x1 + 1] if adapters is None else True
        else:
            assert point_coords.shape == (len(point_labels), 2)
            components, _ = ndimage.label(self._bright)
            for (x, y), positive in zip(point_coords.astype(int), point_labels, strict=True):
                mask[components == components[y, x]] = bool(positive) and components[y, x] > 0
            self.fed_back.append(mask_input)
            if mask_input is None:
                mask[:, int(point_coords[0, 0]):] = False
        return mask[None], np.array([0.9], np.float32), np.full((1, 4, 4), len(self.fed_back), np.float32)

    def predict_auto(self, target: str):
        assert target == "blob"
        return self._bright[None], np.array([0.9], np.float32), np.zeros((1, 4, 4), np.float32)


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def a_bright_disk() -> tuple[np.ndarray, np.ndarray]:
    """An image with one bright disk in noise, uint8 (96, 120), and its mask."""
    truth = disk((96, 120), 45, 66, 21)
    noise = np.random.default_rng(0).normal(0, 8, truth.shape)
    return np.clip(np.where(truth, 180, 60) + noise, 0, 255).astype(np.uint8), truth


@pytest.fixture
def make_pack():
    """Write a data set with n images of one bright disk (label 1) and one bright square (label 2)."""

    def make(folder: Path, images: int = 3, modality: str = "CT", instances: bool = False) -> Path:
        rng = np.random.default_rng(images)
        for name in ("images", "labels", *(["instances"] if instances else [])):
            (folder / name).mkdir(parents=True)
        identifiers = [f"case{index}" for index in range(images)]
        for index, identifier in enumerate(identifiers):
            label = disk((64, 72), 20, 22 + index, 11).astype(np.uint8)
            label[44:56, 40:60] = 2
            image = np.where(label > 0, 190, 50) + rng.normal(0, 6, label.shape)
            Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{identifier}.png")
            Image.fromarray(label).save(folder / "labels" / f"{identifier}.png")
            if instances:
                numbers = np.zeros(label.shape, np.uint16)
                for number in range(1, 10):
                    numbers[2:7, 7 * number:7 * number + 5] = 300 + number
                numbers[60, 60] = 999
                Image.fromarray(numbers).save(folder / "instances" / f"{identifier}.png")
        (folder / "dataset.json").write_text(json.dumps({
            "name": "shapes", "modality": modality, "labels": {"0": "background", "1": "blob", "2": "square"},
            "splits": {"train": [], "val": [], "test": identifiers}, "spacing_mm": {identifiers[0]: [0.5, 0.5]}}))
        return folder

    return make
