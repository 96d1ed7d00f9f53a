"""Synthetic pictures with a blob, and every source layout made from them on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage

REAL_PACK = Path(__file__).parents[3] / "shared" / "data" / "pack"  # beside the repository


def a_picture(seed: int = 0, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy uint8 picture with one bright blob, and the blob's mask; another seed is another picture."""
    rng = np.random.default_rng(seed)
    background = ndimage.gaussian_filter(rng.normal(size=(size, size)), 6)
    rows, columns = np.ogrid[:size, :size]
    row, column = rng.uniform(0.4, 0.6, 2) * size
    height, width = rng.uniform(0.14, 0.24, 2) * size
    mask = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
    grey = 90 + 12 * background / background.std() + 70 * mask + rng.normal(0, 6, (size, size))
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def a_volume(seed: int = 0, depth: int = 4, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 (Z, Y, X) intensities and a uint8 label in all slices but the first."""
    pairs = [a_picture(seed * 100 + index, size) for index in range(depth)]
    image = np.stack([picture for picture, _ in pairs]).astype(np.int16) * 2 - 200
    label = np.stack([mask for _, mask in pairs]).astype(np.uint8)
    label[0] = 0
    return image, label


def write_volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.7, 5.0)) -> None:
    """Write an array (Z, Y, X) with its spacing (x, y, z) in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def write_png(path: Path, array: np.ndarray) -> None:
    """Write an 8-bit picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.fixture
def a_pack(tmp_path: Path) -> Callable[..., Path]:
    """Make a data set in the pack's layout: ``a_pack("code", train=[1, 2], test=[3])`` with seeds as pictures."""

    def make(code: str = "blobs", info: dict | None = None, **splits: list[int]) -> Path:
        folder = tmp_path / "sources" / code
        for seed in (seed for seeds in splits.values() for seed in seeds):
            image, mask = a_picture(seed)
            write_png(folder / "images" / f"p{seed}.png", image)
            write_png(folder / "labels" / f"p{seed}.png", mask.astype(np.uint8))
        description = {"name": "Blobs", "modality": "CT", "labels": {"0": "background", "1": "blob"},
                       "licence": "CC BY 4.0", "source": "made up", "caveat": "synthetic",
                       "splits": {split: [f"p{seed}" for seed in seeds] for split, seeds in splits.items()}}
        (folder / "dataset.json").write_text(json.dumps(description | (info or {})))
        return folder

    return make


@pytest.fixture
def an_nnunet_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make an nnU-Net raw folder: ``an_nnunet_folder(cases=4, channels=["CT"])``."""

    def make(cases: int = 4, channels: tuple[str, ...] = ("CT",)) -> Path:
        folder = tmp_path / "sources" / "Dataset007_Blob"
        for case in range(cases):
            image, label = a_volume(case)
            for channel in range(len(channels)):
                write_volume(folder / "imagesTr" / f"blob_{case:03d}_{channel:04d}.nii.gz", image + channel)
            write_volume(folder / "labelsTr" / f"blob_{case:03d}.nii.gz", label)
        (folder / "dataset.json").write_text(json.dumps({
            "channel_names": {str(number): name for number, name in enumerate(channels)}, "file_ending": ".nii.gz",
            "labels": {"background": 0, "blob": 1}, "licence": "CC BY-SA 4.0", "numTraining": cases}))
        return folder

    return make


@pytest.fixture(name="a_picture")
def fixture_a_picture() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Give tests ``a_picture(seed, size)``."""
    return a_picture


@pytest.fixture(name="a_volume")
def fixture_a_volume() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Give tests ``a_volume(seed, depth, size)``."""
    return a_volume


@pytest.fixture(name="write_volume")
def fixture_write_volume() -> Callable[..., None]:
    """Give tests ``write_volume(path, array, spacing)``."""
    return write_volume


@pytest.fixture(name="write_png")
def fixture_write_png() -> Callable[..., None]:
    """Give tests ``write_png(path, array)``."""
    return write_png


@pytest.fixture(name="truncate")
def fixture_truncate() -> Callable[[Path], None]:
    """Give tests ``truncate(path)``."""
    return truncate


@pytest.fixture
def real_pack() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not REAL_PACK.is_dir():
        pytest.skip(f"no real images at {REAL_PACK}")
    return REAL_PACK
