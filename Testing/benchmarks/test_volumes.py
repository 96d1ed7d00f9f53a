"""The benchmark of whole volumes, on a structure of two pieces with something else between them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

SPEC = importlib.util.spec_from_file_location("volumes_benchmark", Path(__file__).with_name("volumes.py"))
volumes = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = volumes  # its dataclasses look their module up
SPEC.loader.exec_module(volumes)


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_volume):
    """A folder with one volume: two balls of one label, and as bright a block of another between them."""
    k, j, i = np.mgrid[:10, :72, :96]
    label = np.zeros(k.shape, np.uint8)
    for column in (20, 76):
        label[(k - 5) ** 2 * 10 + (j - 36) ** 2 + (i - column) ** 2 < 200] = 1
    block = (abs(j - 36) < 14) & (abs(i - 48) < 13)
    folder = tmp_path_factory.mktemp("volumes") / "balls"
    return write_volume(folder, (label > 0) | block, label, labels={"1": "balls"}).parent


def run(*words) -> str:
    result = CliRunner().invoke(volumes.main, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_boxes_around_pieces_are_compared_with_one_around_both(root):
    cells = [cell.strip() for cell in run("pieces", root).splitlines()[-1].strip("|").split("|")]
    assert cells[:3] == ["balls", "balls", "2.0"]
    one, carried, each, carried_each = map(float, cells[3:])
    assert each > max(0.85, one + 0.05)
    assert carried_each > carried
