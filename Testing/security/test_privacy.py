"""Patient data stay: no network, no readable trace in caches or logs, and what is private is private on disk."""

from __future__ import annotations

import inspect
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from SegMoTELib.cli.auto import command as auto_command
from SegMoTELib.cli.batch import command as batch_command
from SegMoTELib.cli.propagate import command as propagate_command
from SegMoTELib.cli.segment import command as segment_command
from SegMoTELib.imaging import files
from SegMoTELib.imaging.files import NamedMask, write_segmentation
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.embeddings import SUFFIX, EmbeddingCache, EmbeddingFolder
from SegMoTELib.network import ImageEmbedding

PATIENT, MRN = "DOE_JANE", "4711-0815"
WATCHED = """
import sys, logging
seen = []
def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "ftplib.", "smtplib.", "http.client.", "os.system", "os.exec",
                         "os.posix_spawn", "webbrowser.")):
        seen.append(event)
        raise RuntimeError(f"not allowed: {event} {arguments}")
sys.addaudithook(watch)
logging.basicConfig(filename=sys.argv.pop(1), level=logging.DEBUG)
from SegMoTELib.cli import run
status = run(sys.argv[1:])
print("EVENTS", seen, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def scan(tmp_path):
    """A volume whose folder, file name and header name a patient."""
    folder = tmp_path / "scans" / PATIENT
    folder.mkdir(parents=True)
    k, j, i = np.indices((4, 48, 56))
    array = 100 + 80 * (((j - 24) / 13) ** 2 + ((i - 26) / 12) ** 2 <= 1) + k
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetMetaData("patient", f"{PATIENT} {MRN}")
    sitk.WriteImage(image, str(folder / f"{MRN}.nrrd"))
    return folder / f"{MRN}.nrrd"


def test_a_segmentation_opens_no_network_and_leaves_no_name_in_cache_log_or_temporary_files(scan, tmp_path):
    out, log, temporary = tmp_path / "out.seg.nrrd", tmp_path / "log.txt", tmp_path / "tmp"
    temporary.mkdir()
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data"),
            "HOME": str(tmp_path / "home"), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", WATCHED, str(log), "segment", str(scan), "--box=-13,-10,2,-39,-38,2",
                           "--keep-embeddings", "--json", "-o", str(out)], capture_output=True, text=True,
                          env={**os.environ, **home})
    assert done.returncode == 0, done.stderr
    assert "EVENTS []" in done.stderr
    assert json.loads(done.stdout)["voxels"] > 100
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert any(path.suffix == SUFFIX for path in kept)
    assert [path for path in temporary.rglob("*") if path.is_file() and "segmote" in path.name.lower()] == []
    places = [*kept, log, out, *(path for path in temporary.rglob("*") if path.is_file()),
              *(path for name in ("data", "home") for path in (tmp_path / name).rglob("*") if path.is_file())]
    for path in places:
        assert PATIENT not in path.name
        assert MRN not in path.name
        assert PATIENT.encode() not in path.read_bytes()
        assert MRN.encode() not in path.read_bytes()


def test_the_watcher_would_have_seen_a_connection(tmp_path):
    reach = "import socket\nrun = lambda _: socket.socket().connect(('127.0.0.1', 9))"
    code = WATCHED.replace("from SegMoTELib.cli import run", reach)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True)
    assert "not allowed: socket." in done.stderr


@pytest.mark.parametrize("command", [segment_command, propagate_command, auto_command, batch_command])
def test_embeddings_go_to_disk_only_where_asked(command):
    assert command.make_context("segmote", [], resilient_parsing=True).params["keep_embeddings"] is False


def test_a_cache_is_in_memory_only_by_default():
    assert EmbeddingCache(1).disk is None
    assert inspect.signature(EmbeddingCache).parameters["folder"].default is None


def embedding(value: float) -> ImageEmbedding:
    return ImageEmbedding(torch.full((1, 3, 4, 4), value, dtype=torch.float16), ())


KEY, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path):
    """A cache on disk with one embedding."""
    kept = EmbeddingFolder(tmp_path / "embeddings")
    kept.store(KEY, embedding(1))
    return kept


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's folders by other means")
def test_cache_files_are_the_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        kept = EmbeddingFolder(tmp_path / "embeddings")
        kept.store(KEY, embedding(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in kept.path.iterdir()] == [0o600]


def test_an_embedding_says_nothing_of_its_image_but_a_hash(folder):
    with safe_open(folder.path / (KEY + SUFFIX), framework="pt") as stored:
        assert set(stored.metadata()) == {"signature", "checksum", "version"}


def crafted(folder: EmbeddingFolder, said: dict, tensors: dict | None = None) -> None:
    """Another file in the place of the embedding."""
    path = folder.path / (KEY + SUFFIX)
    with safe_open(path, framework="pt") as stored:
        metadata, own = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors or own, path, {**metadata, **said})


@pytest.mark.parametrize("craft", [
    lambda folder: crafted(folder, {"signature": OTHER}), lambda folder: crafted(folder, {"checksum": "0" * 40}),
    lambda folder: crafted(folder, {"version": "0"}),
    lambda folder: crafted(folder, {}, {"features": torch.zeros(1, 3, 4, 4, dtype=torch.float16)}),
    lambda folder: crafted(folder, {}, {"other": torch.zeros(1)}),
    lambda folder: (folder.path / (KEY + SUFFIX)).write_bytes(b"\x80\x04cposix\nsystem\n(S'false'\ntR."),
    lambda folder: (folder.path / (KEY + SUFFIX)).write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    lambda folder: (folder.path / (KEY + SUFFIX)).write_bytes(b"")],
    ids=["another's", "wrong checksum", "old", "other pixels", "other tensors", "a pickle", "a lying header", "empty"])
def test_a_crafted_cache_entry_is_thrown_away_and_computed_anew(folder, craft):
    assert folder.load(KEY) is not None
    craft(folder)
    assert folder.load(KEY) is None
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("key", ["../../x", "/tmp/x", "a/b", "..", "", "x" * 300, "a\\b", "nul\0"])
def test_a_key_that_is_no_hash_is_not_made_a_file(folder, key):
    for use in (folder.load, lambda one: folder.store(one, embedding(2))):
        with pytest.raises(ValueError, match="not a signature"):
            use(key)
    assert len(list(folder.path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's folders by other means")
@pytest.mark.parametrize(("umask", "expected"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_a_result_is_readable_for_whom_the_user_lets_read_new_files_also_while_it_is_written(
        tmp_path, monkeypatch, umask, expected):
    modes = []
    real = sitk.WriteImage

    def write(image, path, **options):
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        real(image, path, **options)

    monkeypatch.setattr(files.sitk, "WriteImage", write)
    volume, path = Volume(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "out.seg.nrrd"
    before = os.umask(umask)
    try:
        write_segmentation(path, volume, [NamedMask("a", (1, 2, 3), np.ones((2, 3, 4), bool))])
    finally:
        os.umask(before)
    assert [*modes, stat.S_IMODE(path.stat().st_mode)] == [expected, expected]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's folders by other means")
def test_a_result_in_the_place_of_a_private_file_stays_private(tmp_path):
    volume, path = Volume(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "out.seg.nrrd"
    path.touch(0o600)
    write_segmentation(path, volume, [NamedMask("a", (1, 2, 3), np.ones((2, 3, 4), bool))])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
