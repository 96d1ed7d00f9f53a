"""``segmote models`` from the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from SegMoTELib.cli import group
from SegMoTELib.errors import CheckpointError, ModelError
from SegMoTELib.zoo import resolve_model
from SegMoTELib.zoo.catalogue import find_entry


@pytest.fixture
def segmote(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))

    def run(*arguments):
        return CliRunner().invoke(group, ["models", *map(str, arguments)], catch_exceptions=False).stdout

    return run


def test_the_list_is_readable_by_people_and_by_scripts(segmote):
    assert "segmote-tiny        bundled" in segmote("list")
    rows = {row["name"]: row for row in json.loads(segmote("list", "--json"))}
    assert rows["sam-vit-b"]["state"] == "not downloaded"
    assert rows["sam-vit-b"]["licence"] == "Apache-2.0"
    assert rows["sam-vit-b"]["architecture"] == "sam_vit_b"


def test_a_model_is_added_verified_used_by_name_and_removed(segmote, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(resolve_model("segmote-tiny").read_bytes())
    assert "--model kidney" in segmote("add", mine, "--name", "kidney")
    assert "kidney: sha256 as when it came" in segmote("verify")
    assert resolve_model("kidney").is_file()
    assert "15.9 MB freed" in segmote("remove", "kidney")


def test_a_file_that_is_no_model_is_not_added(segmote, tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError):
        segmote("add", tmp_path / "page.pth")
    assert "page" not in segmote("list")


def test_a_licence_must_be_accepted_before_anything_is_fetched(segmote):
    with pytest.raises(ModelError, match="--accept-licence"):
        segmote("fetch", "segmote-published")


def test_verify_names_every_model_that_is_not_intact(segmote, tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth"):
        (tmp_path / "models" / name).write_bytes(b"cut off")
    with pytest.raises(ModelError, match="not intact: sam-vit-b, sam-vit-l"):
        segmote("verify")


def test_a_file_placed_by_hand_is_to_be_verified_before_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path))
    (tmp_path / "medsam_vit_b.pth").write_bytes(b"from a stick")
    assert find_entry("medsam-vit-b").file == "medsam_vit_b.pth"
    result = CliRunner().invoke(group, ["models", "fetch", "medsam-vit-b"])
    assert result.stdout.strip() == str(tmp_path / "medsam_vit_b.pth")
    assert "segmote models verify medsam-vit-b" in result.stderr
    assert "nobody publishes" not in result.stderr
