"""Weights are fetched from hosts that are slow, cut, lie, or serve something else."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests

from SegMoTELib.errors import CancelledError, ModelError
from SegMoTELib.zoo.download import BLOCK, fetch
from SegMoTELib.zoo.store import add, find, verify

from .conftest import CONTENT, CUT


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_weights_are_fetched_verified_and_recorded(host, entry, tmp_path):
    seen = []
    path = fetch(entry, progress=lambda here, total: seen.append((here, total)), folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert leftovers(tmp_path) == [".test.pth.json", "test.pth"]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's files by other means")
def test_weights_are_readable_for_whom_the_user_lets_read_new_files(host, entry, tmp_path):
    before = os.umask(0o027)
    try:
        path = fetch(entry, folder=tmp_path)
        (tmp_path / "mine.pth").write_bytes(b"")
        add(tmp_path / "mine.pth", "another", tmp_path)
    finally:
        os.umask(before)
    assert {one.name: stat.S_IMODE(one.stat().st_mode) for one in (path, tmp_path / "another.pth")} == {
        "test.pth": 0o640, "another.pth": 0o640}


def test_what_is_there_is_not_fetched_again(host, entry, tmp_path):
    fetch(entry, folder=tmp_path)
    fetch(entry, folder=tmp_path)
    assert len(host.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(host, entry, tmp_path):
    host.fault = "cut once"
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT
    assert host.asked == [0, CUT // BLOCK * BLOCK]


def test_a_host_that_cannot_resume_starts_over(host, entry, tmp_path):
    host.fault = "cannot resume"
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT


def test_a_host_that_keeps_breaking_off_leaves_what_came_for_the_next_time(host, entry, tmp_path):
    host.fault = "always cut"
    with pytest.raises(ModelError, match=r"place it at .*test\.pth"):
        fetch(entry, folder=tmp_path)
    assert (tmp_path / ".test.pth.part").stat().st_size == CUT // BLOCK * BLOCK
    host.fault = ""
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT
    assert host.asked[-1] == CUT // BLOCK * BLOCK


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only the administrator can be two users")
def test_what_a_colleague_began_does_not_keep_others_out_of_a_folder_that_they_share(host, entry):
    """What one user leaves there can be read by all, but written by nobody else."""
    host.fault = "always cut"
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        shared.chmod(0o777)
        with pytest.raises(ModelError, match="place it at"):
            fetch(entry, folder=shared)
        host.fault = ""
        os.setresuid(12345, 12345, 0)
        try:
            assert fetch(entry, folder=shared).read_bytes() == CONTENT
        finally:
            os.setresuid(0, 0, 0)


@pytest.mark.parametrize("fault", ["nothing", "page after a mark"])
def test_what_is_no_weights_is_refused_without_a_hash_too(host, entry, tmp_path, fault):
    host.fault = fault
    with pytest.raises(ModelError):
        fetch(dataclasses.replace(entry, hash="", size=None), folder=tmp_path)
    assert not (tmp_path / "test.pth").exists()


def test_cancelling_keeps_what_came(host, entry, tmp_path):
    host.fault, blocks = "slow", []
    with pytest.raises(CancelledError):
        fetch(entry, progress=lambda here, _: blocks.append(here), cancelled=lambda: len(blocks) >= 2, folder=tmp_path)
    assert not (tmp_path / "test.pth").exists()
    host.fault = ""
    fetch(entry, folder=tmp_path)
    assert host.asked[-1] > 0


@pytest.mark.parametrize(("fault", "words"), [
    ("page", "web page"), ("page in disguise", "offers 4. bytes"), ("page after a mark", "web page"),
    ("leads astray", r"broke off \(InvalidSchema\)"),
    ("announces less", "offers 2999995 bytes"), ("announces more", "offers 3000005 bytes"),
    ("other bytes", "not the published file"), ("missing", r"broke off \(it answered 404 Not Found\)")])
def test_what_is_not_the_file_is_refused_and_nothing_is_left(host, entry, tmp_path, fault, words):
    host.fault = fault
    with pytest.raises(ModelError, match=words) as error:
        fetch(entry, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == []


def test_a_page_in_disguise_is_refused_where_neither_size_nor_hash_are_known(host, entry, tmp_path):
    host.fault = "page in disguise"
    with pytest.raises(ModelError, match="web page"):
        fetch(dataclasses.replace(entry, hash="", size=None), folder=tmp_path)
    assert leftovers(tmp_path) == []


def test_a_host_that_does_not_say_how_much_comes_is_checked_at_the_end(host, entry, tmp_path):
    host.fault = "announces nothing"
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT


def test_a_host_that_stops_sending_is_given_up_and_what_came_is_kept(host, entry, tmp_path, monkeypatch):
    monkeypatch.setattr("SegMoTELib.zoo.download.TIMEOUT", (1, 0.2))
    host.fault = "stalls"
    with pytest.raises(ModelError, match="broke off"):
        fetch(entry, folder=tmp_path)
    host.fault = ""
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT
    assert host.asked[-1] >= CUT // BLOCK * BLOCK


@pytest.mark.parametrize("part", [b"halves of something else", CONTENT + b"too much"], ids=["wrong", "too long"])
def test_a_part_that_is_not_the_files_beginning_costs_a_second_fetch_at_most(host, entry, tmp_path, part):
    (tmp_path / ".test.pth.part").write_bytes(part)
    if len(part) < len(CONTENT):
        with pytest.raises(ModelError, match="not the published file"):
            fetch(entry, folder=tmp_path)
        assert leftovers(tmp_path) == []
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT


def test_a_link_in_place_of_the_part_is_not_followed(host, entry, tmp_path):
    folder, victim = tmp_path / "models", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"precious")
    for name in (".test.pth.part", ".test.pth.json.part", "test.pth"):
        (folder / name).symlink_to(victim if name != "test.pth" else tmp_path / "nowhere")
    assert fetch(entry, folder=folder).read_bytes() == CONTENT
    assert victim.read_bytes() == b"precious"
    assert not (folder / "test.pth").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_the_proxy_of_the_environment_is_used(host, entry, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{host.server_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{host.server_port}")
    far = dataclasses.replace(entry, url="http://weights.invalid/test.pth")
    assert fetch(far, folder=tmp_path).read_bytes() == CONTENT
    assert host.paths == ["http://weights.invalid/test.pth"]
    host.fault = "proxy wants a password"
    with pytest.raises(ModelError, match=r"proxy.*place it at"):
        fetch(far, folder=tmp_path / "again")


def test_a_redirect_to_an_address_that_is_not_encrypted_is_refused(host, entry, tmp_path, monkeypatch):
    real = requests.get
    monkeypatch.setattr(requests, "get", lambda _, **options: real(entry.url, **options))
    with pytest.raises(ModelError, match="not encrypted"):
        fetch(dataclasses.replace(entry, url="https://weights.invalid/test.pth"), folder=tmp_path)
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_hold_models_is_named(host, entry, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(ModelError, match="SEGMOTE_MODEL_DIR"):
            fetch(entry, folder=folder)
    assert host.asked == []


def test_a_bundled_model_that_is_missing_is_not_searched_on_the_network(host, entry, monkeypatch, tmp_path):
    monkeypatch.setattr("SegMoTELib.zoo.store.MODELS_FOLDER", tmp_path)
    with pytest.raises(ModelError, match="install SegMoTE again"):
        fetch(dataclasses.replace(entry, url=""), folder=tmp_path)
    assert host.asked == []


def test_a_host_out_of_reach_names_the_file_to_place_by_hand(entry, tmp_path):
    nowhere = dataclasses.replace(entry, url="http://127.0.0.1:9/test.pth")
    with pytest.raises(ModelError, match=r"127\.0\.0\.1 could not be reached.*place it at .*test\.pth"):
        fetch(nowhere, folder=tmp_path)


def test_without_room_nothing_is_fetched(host, entry, tmp_path, monkeypatch):
    monkeypatch.setattr("SegMoTELib.zoo.download.SPARE", 1 << 60)
    with pytest.raises(ModelError, match="SEGMOTE_MODEL_DIR"):
        fetch(entry, folder=tmp_path)
    assert leftovers(tmp_path) == []


def test_a_licence_that_is_not_permissive_must_be_accepted(host, entry, tmp_path):
    strict = dataclasses.replace(entry, permissive=False, licence="research only")
    with pytest.raises(ModelError, match=r"research only.*https://example\.org/licence"):
        fetch(strict, folder=tmp_path)
    assert host.asked == []
    assert fetch(strict, accept_licence=True, folder=tmp_path).is_file()


def test_without_a_published_hash_the_hosts_own_is_taken(host, entry, tmp_path, monkeypatch):
    unknown = dataclasses.replace(entry, hash="", size=None)
    host.announced = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ModelError, match="not the published file"):
        fetch(unknown, folder=tmp_path)
    host.announced = hashlib.sha256(CONTENT).hexdigest()
    assert fetch(unknown, folder=tmp_path).read_bytes() == CONTENT
    monkeypatch.setattr("SegMoTELib.zoo.store.catalogue", lambda: {unknown.name: unknown})
    assert find(unknown.name, tmp_path).state == "verified"


def test_without_any_hash_halves_are_not_joined_and_nothing_is_called_verified(host, entry, tmp_path, monkeypatch):
    (tmp_path / ".test.pth.part").write_bytes(b"half of another version")
    unknown = dataclasses.replace(entry, hash="", size=None)
    assert fetch(unknown, folder=tmp_path).read_bytes() == CONTENT
    assert host.asked == [0]
    monkeypatch.setattr("SegMoTELib.zoo.store.catalogue", lambda: {unknown.name: unknown})
    assert find(unknown.name, tmp_path).state == "not verified"


FETCH = "import sys, pathlib; from SegMoTELib.zoo.catalogue import Entry; from SegMoTELib.zoo.download import fetch"


def fetching(entry, folder):
    """Another process that fetches."""
    code = f"{FETCH}; fetch(Entry(**{dataclasses.asdict(entry)!r}), folder=pathlib.Path(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)])


def test_two_processes_fetch_once(host, entry, tmp_path):
    host.fault = "slow"
    both = [fetching(entry, tmp_path) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert host.asked == [0]
    assert (tmp_path / "test.pth").read_bytes() == CONTENT


def test_a_killed_process_leaves_its_part_for_the_next(host, entry, tmp_path):
    host.fault = "slow"
    process = fetching(entry, tmp_path)
    part = tmp_path / ".test.pth.part"
    for _ in range(1000):
        if part.exists() and part.stat().st_size > 200_000:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    host.fault = ""
    assert fetch(entry, folder=tmp_path).read_bytes() == CONTENT
    assert host.asked[-1] >= 200_000


def test_a_file_that_changed_afterwards_is_seen(host, entry, tmp_path, monkeypatch):
    monkeypatch.setattr("SegMoTELib.zoo.store.catalogue", lambda: {entry.name: entry})
    path = fetch(entry, folder=tmp_path)
    assert verify(entry.name, tmp_path) == "sha256 as published"
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelError, match="changed or is damaged"):
        verify(entry.name, tmp_path)
