"""make screenshots, as far as it needs no data of other packages: the pictures of Auto and of the Model section."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PySide6.QtWidgets")
pytest.importorskip("slicer")

ROOT = Path(__file__).parents[2]
CODE = ("import sys; sys.path.insert(0, '.')\nfrom pathlib import Path\nfrom Testing.demo import pictures\n"
        "pictures.auto(Path(sys.argv[1]))")
PROBE = "import sys; sys.path.insert(0, '.')\nfrom Testing.demo.views import _window\n_window((32, 32))[0].Render()"


def test_the_phantoms_head_is_found_and_drawn(tmp_path):
    from PIL import Image

    if subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True).returncode != 0:
        pytest.skip("nothing can be drawn on this machine: neither a display nor EGL")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / "auto.png").convert("RGB")).astype(int)
    view = picture[20:, 404:]
    coloured = np.ptp(view, axis=2) > 20
    assert coloured[120:180, 150:210].mean() > 0.9  # the head
    assert coloured[240:, :].mean() < 0.05  # the tissue below it
    panel = np.asarray(Image.open(tmp_path / "model.png").convert("L"))
    assert panel.shape[0] > 200  # both sections are unfolded
    assert (panel < 100).mean() > 0.01  # and have text in them


def test_the_pictures_in_the_repository_are_those_that_the_script_makes():
    made = set(re.findall(r'"(\w+\.png)"', (ROOT / "Testing" / "demo" / "pictures.py").read_text(encoding="utf-8")))
    assert made == {path.name for path in (ROOT / "Resources" / "Screenshots").glob("*.png")}
