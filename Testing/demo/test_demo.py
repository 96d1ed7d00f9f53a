"""make demo on a small volume: masks in the right place, pictures that show them, files that can be read again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("PySide6.QtWidgets")
pytest.importorskip("slicer")

ROOT = Path(__file__).parents[2]
PROBE = "import sys; sys.path.insert(0, '.')\nfrom Testing.demo.views import _window\n_window((32, 32))[0].Render()"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The demo's output folder and what it printed."""
    if subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True).returncode != 0:
        pytest.skip("nothing can be drawn on this machine: neither a display nor EGL")
    folder = tmp_path_factory.mktemp("demo")
    k, j, i = np.mgrid[:40, :80, :80]
    ball = ((i - 40) / 22) ** 2 + ((j - 38) / 20) ** 2 + ((k - 20) / 12) ** 2 <= 1
    noise = np.random.default_rng(0).normal(0, 8, ball.shape)
    for name, array in (("image", (60 + 110 * ball + noise).astype(np.int16)), ("label", ball.astype(np.uint8))):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.0, 1.8))
        sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
    done = subprocess.run([sys.executable, "Testing/demo/demo.py", "--volume", str(folder / "image.nrrd"), "--label",
                           str(folder / "label.nrrd"), "-o", str(folder / "out")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_every_view_reaches_a_good_dice_and_reports_its_stages(results):
    lines = results[1].splitlines()
    for name in ("axial", "sagittal", "oblique"):
        scores = [float(line.rsplit("Dice ", 1)[1]) for line in lines if line.startswith(f"{name}: ")]
        assert max(scores) > 0.9
    assert any("encode" in line and "decode" in line for line in lines)


@pytest.mark.parametrize("name", ["axial", "sagittal", "oblique"])
def test_the_pictures_show_the_mask_over_the_image(results, name):
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(results[0] / f"{name}.png")))[..., :3].astype(int)
    assert picture.std() > 10
    coloured = np.ptp(picture, axis=2) > 20
    assert 0.02 < coloured.mean() < 0.6
    middle = coloured[260:380, 260:380]
    assert middle.mean() > 0.8


def test_segmentation_and_scene_are_written(results):
    segmentation = sitk.ReadImage(str(results[0] / "segmentation.seg.nrrd"))
    assert segmentation.GetMetaData("Segment0_Name") == "axial view"
    assert sitk.GetArrayFromImage(segmentation).any()
    assert "segmentation.seg.nrrd" in (results[0] / "scene.mrml").read_text()
