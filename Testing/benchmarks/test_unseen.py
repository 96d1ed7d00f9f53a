"""The benchmark of unseen kinds of images reads volumes as they are laid out and compares adapters with their base."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from click.testing import CliRunner

SPEC = importlib.util.spec_from_file_location("unseen", Path(__file__).with_name("unseen.py"))
unseen = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(unseen)


def test_a_ball_is_compared_on_the_slices_that_hold_it(tmp_path, write_volume):
    k, j, i = np.mgrid[:16, :64, :64]
    ball = (k - 8) ** 2 * 9 + (j - 30) ** 2 + (i - 34) ** 2 < 400
    folder = write_volume(tmp_path / "ball", ball, ball)
    targets = unseen.targets_of(folder)
    assert 8 <= len(targets) <= 12
    assert all(len(masks) == 1 and masks[0].sum() >= 60 for _, masks, _ in targets)
    result = CliRunner().invoke(unseen.main, [str(folder)])
    assert result.exit_code == 0, result.output
    name, boxes, base, adapted, kinds = [cell.strip() for cell in result.output.splitlines()[-1].strip("|").split("|")]
    assert (name, int(boxes)) == ("ball", len(targets))
    assert min(float(base), float(adapted)) > 0.8
    assert sum(int(one.split()[-1]) for one in kinds.split(", ")) == len(targets)
