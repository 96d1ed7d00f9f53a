"""``segmote info`` prints what a model is made of."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from SegMoTELib.cli import group
from SegMoTELib.network import ModelConfig, build_model, save_checkpoint


def run(*arguments):
    result = CliRunner().invoke(group, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_published_layout_adds_17_56_million_parameters():
    report = json.loads(run("info", "published", "--json"))[0]
    parts = report["parts"]
    assert parts["new in SegMoTE, with the released file's unused"] == pytest.approx(17.56e6, abs=5e3)
    assert parts["expert heads"] == pytest.approx(5.02e6, abs=5e3)
    assert parts["experts and router (MoTE)"] == pytest.approx(0.52e6, abs=5e3)
    assert parts["learned prompts (PPT)"] == pytest.approx(7.09e6, abs=5e3)


def test_tiny_fits_in_16_megabytes_at_half_precision():
    parts = json.loads(run("info", "tiny", "--json"))[0]["parts"]
    assert parts["all"] == parts["base"] + parts["new in SegMoTE"]
    assert parts["all"] <= 8e6


@pytest.mark.parametrize(("name", "millions"), [("vit_b", 93.735), ("vit_l", 312.343), ("vit_h", 641.091)])
def test_sams_own_parts_have_sams_size(name, millions):
    parts = json.loads(run("info", f"sam_{name}", "--json"))[0]["parts"]
    assert parts["base"] == pytest.approx(millions * 1e6, abs=2e3)


def test_a_checkpoint_file_shows_its_metadata(tmp_path):
    save_checkpoint(build_model(ModelConfig.tiny()), tmp_path / "mine.safetensors", {"licence": "CC0"})
    text = run("info", str(tmp_path / "mine.safetensors"))
    assert "licence: CC0" in text
    assert "auto targets: foreground" in text


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path):
    save_checkpoint(build_model(ModelConfig.tiny()), tmp_path / "mine.safetensors", {"licence": "\x1b]0;owned\x07CC0"})
    assert "  licence:  ]0;owned CC0\n" in run("info", str(tmp_path / "mine.safetensors"))


def test_help_and_version_need_no_torch_and_list_the_commands():
    text = run("--help")
    assert all(name in text for name in ("info", "curate", "train", "evaluate", "bench"))
    assert "0.1.0" in run("--version")
