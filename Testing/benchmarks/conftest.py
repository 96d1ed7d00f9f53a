"""Volumes as the benchmarks read them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture(scope="session")
def write_volume():
    """Function: folder, bright places, label map (K, J, I), info -> the folder with a noisy image and its label."""
    def write(folder, bright, label, **info):
        folder.mkdir()
        image = 40 + 100 * bright + np.random.default_rng(0).normal(0, 5, label.shape)
        for name, array in (("image", image.astype(np.float32)), ("label", label.astype(np.uint8))):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nii.gz"))
        (folder / "info.json").write_text(json.dumps({"modality": "MR", **info}))
        return folder
    return write
