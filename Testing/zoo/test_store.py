"""The catalogue and the user's folder of weights."""

from __future__ import annotations

import json
import os

import pytest

from SegMoTELib.errors import CheckpointError, ModelError
from SegMoTELib.zoo import BUNDLED, resolve_model, store
from SegMoTELib.zoo.catalogue import MODELS_FOLDER, catalogue, find_entry, read_catalogue
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
        assert entry.hash or "could not be confirmed" in entry.remark


def test_the_bundled_weights_are_those_of_the_catalogue():
    """After new weights: Testing/benchmarks/release.py notes their size and hash."""
    assert verify("segmote-tiny") == "sha256 as published"
    assert find("segmote-tiny").size == find_entry("segmote-tiny").size


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


def test_an_empty_file_can_be_removed(folder):
    """What an interrupted copy leaves; it would keep the weights from being fetched."""
    folder.mkdir()
    (folder / "sam_vit_b_01ec64.pth").touch()
    assert remove("sam-vit-b") == 0
    assert state("sam-vit-b") == "not downloaded"


def test_weights_in_a_folder_that_may_only_be_read_are_verified_all_the_same(folder, monkeypatch):
    folder.mkdir()
    (folder / "mine.pth").write_bytes(b"weights")

    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "record", forbid)
    assert verify("mine").startswith("no hash is published; sha256:")


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


def test_what_is_not_there_cannot_be_verified():
    with pytest.raises(ModelError, match="segmote models fetch sam-vit-b"):
        verify("sam-vit-b")


def test_files_placed_by_hand_under_a_taken_name_keep_their_ending(folder):
    folder.mkdir()
    for name in ("liver.pth", "liver.safetensors", "segmote-tiny.pth"):
        (folder / name).write_bytes(b"weights")
    names = [one.name for one in held() if one.state == "yours"]
    assert names == ["liver", "liver.safetensors", "segmote-tiny.pth"]
    assert resolve_model("segmote-tiny").parent != folder
    assert remove("liver.safetensors") == 7
    assert (folder / "liver.pth").is_file()


def test_a_folder_or_a_broken_link_named_like_weights_is_no_model(folder):
    (folder / "odd.pth").mkdir(parents=True)
    (folder / "gone.pth").symlink_to(folder / "nowhere")
    assert all(one.state != "yours" for one in held())


def test_weights_may_be_links_and_only_the_link_is_removed(folder, tmp_path):
    folder.mkdir()
    (tmp_path / "big.pth").write_bytes(b"weights")
    (folder / "mine.pth").symlink_to(tmp_path / "big.pth")
    assert resolve_model("mine") == folder / "mine.pth"
    remove("mine")
    assert (tmp_path / "big.pth").read_bytes() == b"weights"


def test_a_model_whose_hash_nobody_publishes_is_never_called_verified(folder):
    folder.mkdir()
    (folder / "segmote.pth").write_bytes(b"from somewhere")
    assert verify("segmote-published").startswith("no hash is published; sha256:")
    assert state("segmote-published") == "not verified"
    assert verify("segmote-published") == "sha256 as when it came"
    assert state("segmote-published") == "not verified"


@pytest.mark.parametrize("wrong", ["is a file", "below a file", "nobody's home"])
def test_a_folder_of_models_that_cannot_be_one_is_named(tmp_path, monkeypatch, wrong):
    (tmp_path / "taken").write_text("a file")
    chosen = {"is a file": tmp_path / "taken", "below a file": tmp_path / "taken" / "models",
              "nobody's home": "~no-such-user-here/models"}[wrong]
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(chosen))
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"weights")
    with pytest.raises(ModelError, match=r"taken|no-such-user-here"):
        add(weights)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path):
    folder.mkdir(mode=0o500)
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"weights")
    with pytest.raises(ModelError, match=r"cannot be copied to .*models"):
        add(weights)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sam-vit-b/../x", "~nobody-here/x", "x" * 5000,
                                  "nul\0byte", "."])
def test_a_name_that_leads_out_of_the_folder_finds_no_model(name):
    for function in (find, remove, verify, find_entry):
        with pytest.raises(ModelError):
            function(name)


@pytest.mark.parametrize("name", ["/nowhere/x.pth", "~nobody-here/x", "x" * 5000, "nul\0byte", "."])
def test_a_path_that_is_no_weights_file_is_refused(name):
    with pytest.raises(CheckpointError):
        resolve_model(name)


ENTRY = json.loads((MODELS_FOLDER / "catalogue.json").read_text(encoding="utf-8"))["models"][3]


@pytest.mark.parametrize("change", [
    {"file": "../../x.pth"}, {"file": "/tmp/x.pth"}, {"file": "a\\b.pth"}, {"file": ".hidden.pth"}, {"file": "x.sh"},
    {"file": "a/b.pth"}, {"file": ""}, {"file": "x\0.pth"}, {"name": "../x"}, {"name": ""}, {"name": "a b"},
    {"hash": "sha256:short"}, {"hash": "none"}, {"hash": None}, {"size": -1}, {"size": "12"}, {"size": True},
    {"url": "http://example.org/x.pth"}, {"url": "file:///etc/passwd"}, {"licence_url": "javascript:alert(1)"},
    {"permissive": "yes"}, {"title": ["x"]}, {"unknown": 1}, {"licence": None}])
def test_a_hostile_catalogue_is_refused_whole(tmp_path, change):
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({"models": [{**ENTRY, **change}]}))
    with pytest.raises(ModelError):
        read_catalogue(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{\"models\": 3}", "{\"models\": [3]}", "[" * 200_000,
                                  json.dumps({"models": [ENTRY, ENTRY]})])
def test_a_damaged_catalogue_is_named(tmp_path, text):
    path = tmp_path / "catalogue.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"catalogue\.json"):
        read_catalogue(path)


def test_a_sound_catalogue_is_read(tmp_path):
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({"models": [ENTRY]}))
    assert list(read_catalogue(path)) == [ENTRY["name"]]
