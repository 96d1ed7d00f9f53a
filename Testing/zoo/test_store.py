"""The catalogue and the user's folder of weights."""

from __future__ import annotations

import pytest

from SegMoTELib.errors import CheckpointError, ModelError
from SegMoTELib.zoo import BUNDLED, resolve_model
from SegMoTELib.zoo.catalogue import catalogue, find_entry
from SegMoTELib.zoo.store import add, find, held, remove, verify


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def state(name):
    return find(name).state


def test_every_entry_says_where_it_comes_from_and_under_which_licence():
    assert tuple(one.name for one in catalogue().values() if one.bundled) == BUNDLED
    for entry in catalogue().values():
        assert entry.bundled or entry.url.startswith("https://")
        assert entry.licence
        assert entry.licence_url.startswith("https://")
        assert entry.hash or entry.bundled or "could not be confirmed" in entry.remark
        assert "/" not in entry.file


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ModelError, match="segmote-tiny"):
        find_entry("unknown")


def test_nothing_is_downloaded_unasked(folder):
    assert state("sam-vit-b") == "not downloaded"
    with pytest.raises(CheckpointError, match="segmote models fetch sam-vit-b"):
        resolve_model("sam-vit-b")
    assert not folder.exists()


def test_a_half_download_is_shown_and_can_be_removed(folder):
    folder.mkdir()
    (folder / ".sam_vit_b_01ec64.pth.part").write_bytes(b"half")
    assert state("sam-vit-b") == "partly downloaded"
    assert remove("sam-vit-b") == 4
    assert list(folder.iterdir()) == []


def test_a_file_placed_by_hand_is_found_but_not_called_verified(folder):
    folder.mkdir()
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"from a stick")
    assert state("sam-vit-b") == "not verified"
    assert resolve_model("sam-vit-b") == folder / "sam_vit_b_01ec64.pth"
    with pytest.raises(ModelError, match="damaged"):
        verify("sam-vit-b")


def test_a_model_of_ones_own_is_used_by_name_and_removed(folder, tmp_path):
    mine = tmp_path / "liver.safetensors"
    mine.write_bytes(resolve_model("segmote-tiny").read_bytes()[:1000])
    assert add(mine) == "liver"
    assert state("liver") == "yours"
    assert resolve_model("liver") == folder / "liver.safetensors"
    assert verify("liver") == "sha256 as when it came"
    assert remove("liver") == 1000
    assert mine.is_file()
    assert "liver" not in [one.name for one in held()]


@pytest.mark.parametrize("name", ["../escape", "a b", "", ".hidden", "segmote-tiny", "sam_vit_b_01ec64"])
def test_a_name_that_is_taken_or_leaves_the_folder_is_refused(tmp_path, name):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    with pytest.raises(ModelError):
        add(path, name)


def test_what_is_not_there_cannot_be_removed_and_the_bundled_model_stays():
    with pytest.raises(ModelError, match="not on this machine"):
        remove("sam-vit-b")
    with pytest.raises(ModelError, match="stays"):
        remove("segmote-tiny")
