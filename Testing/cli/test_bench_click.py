"""segmote bench click: stages that add up, on a real scene."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("slicer")

from SegMoTELib.cli.bench import command


def test_the_stages_add_up_and_a_cached_slice_is_not_encoded_again(tmp_path):
    path = tmp_path / "click.json"
    result = CliRunner().invoke(command, ["click", "--clicks", "2", "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "from click to segment" in result.output
    seconds = json.loads(path.read_text())["seconds"]
    assert seconds["cached"]["encode"] == 0
    assert seconds["first"]["encode"] > 0
    for stages in seconds.values():
        assert all(value >= 0 for value in stages.values())
        assert stages["decode"] > 0
