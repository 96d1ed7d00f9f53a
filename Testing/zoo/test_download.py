"""Weights are fetched from hosts that are slow, cut, lie, or serve something else."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import pytest

from SegMoTELib.errors import CancelledError, ModelError
from SegMoTELib.zoo.download import BLOCK, fetch
from SegMoTELib.zoo.store import verify

from .conftest import CONTENT, CUT


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_weights_are_fetched_verified_and_recorded(host, entry, tmp_path):
    seen = []
    path = fetch(entry, progress=lambda here, total: seen.append((here, total)), folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert leftovers(tmp_path) == [".test.pth.json", "test.pth"]


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


def test_cancelling_keeps_what_came(host, entry, tmp_path):
    host.fault, blocks = "slow", []
    with pytest.raises(CancelledError):
        fetch(entry, progress=lambda here, _: blocks.append(here), cancelled=lambda: len(blocks) >= 2, folder=tmp_path)
    assert not (tmp_path / "test.pth").exists()
    host.fault = ""
    fetch(entry, folder=tmp_path)
    assert host.asked[-1] > 0


@pytest.mark.parametrize(("fault", "words"), [
    ("page", "web page"), ("announces less", "offers 2999995 bytes"), ("announces more", "offers 3000005 bytes"),
    ("other bytes", "not the published file"), ("missing", "could not be reached or broke off")])
def test_what_is_not_the_file_is_refused_and_nothing_is_left(host, entry, tmp_path, fault, words):
    host.fault = fault
    with pytest.raises(ModelError, match=words) as error:
        fetch(entry, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == []


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


def test_without_a_published_hash_the_hosts_own_is_taken(host, entry, tmp_path):
    unknown = dataclasses.replace(entry, hash="", size=None)
    host.announced = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ModelError, match="not the published file"):
        fetch(unknown, folder=tmp_path)
    host.announced = hashlib.sha256(CONTENT).hexdigest()
    assert fetch(unknown, folder=tmp_path).read_bytes() == CONTENT


def test_without_any_hash_halves_are_not_joined(host, entry, tmp_path):
    (tmp_path / ".test.pth.part").write_bytes(b"half of another version")
    assert fetch(dataclasses.replace(entry, hash="", size=None), folder=tmp_path).read_bytes() == CONTENT
    assert host.asked == [0]


def test_two_processes_fetch_once(host, entry, tmp_path):
    host.fault = "slow"
    code = ("import sys, pathlib\nfrom SegMoTELib.zoo.catalogue import Entry\n"
            "from SegMoTELib.zoo.download import fetch\n"
            f"fetch(Entry(**{dataclasses.asdict(entry)!r}), folder=pathlib.Path(sys.argv[1]))")
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert host.asked == [0]
    assert (tmp_path / "test.pth").read_bytes() == CONTENT


def test_a_file_that_changed_afterwards_is_seen(host, entry, tmp_path, monkeypatch):
    monkeypatch.setattr("SegMoTELib.zoo.store.catalogue", lambda: {entry.name: entry})
    path = fetch(entry, folder=tmp_path)
    assert verify(entry.name, tmp_path) == "sha256 as published"
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelError, match="changed or is damaged"):
        verify(entry.name, tmp_path)
