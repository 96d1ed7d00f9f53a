"""Errors are one sentence with exit status 1, or a traceback when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def segmote(*arguments):
    return subprocess.run([sys.executable, "-m", "SegMoTELib.cli", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("info", "missing.safetensors"), ("train", "missing.yaml", "-o", "run")])
def test_a_users_mistake_gives_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = segmote(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("segmote: ")
    assert "missing" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Traceback" in segmote("--debug", "info", "missing.safetensors").stderr
