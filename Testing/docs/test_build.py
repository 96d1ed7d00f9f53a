"""The pages and the API reference build without a warning."""

from __future__ import annotations

import subprocess
import sys

import pytest

from Testing.docs.pages import ROOT

pytest.importorskip("PySide6.QtWidgets")
pytest.importorskip("slicer")


def test_the_documentation_builds_without_warnings(tmp_path):
    done = subprocess.run([sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-d",
                           str(tmp_path / "doctrees"), "docs", str(tmp_path / "html")],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "html").rglob("*.html")}
    assert {"clinician.html", "troubleshooting.html", "SegMoTELib.interaction.predictor.html"} <= pages
    reference = (tmp_path / "html" / "_api" / "SegMoTELib.interaction.predictor.html").read_text(encoding="utf-8")
    assert "set_image" in reference
    assert "propagate" in (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
