"""The embedding cache: what it recognises, what it lets go, and files it must not trust."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from SegMoTELib.interaction.embeddings import SUFFIX, EmbeddingCache, EmbeddingFolder, signature
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import ImageEmbedding

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def embedding(value: float, count: int = 1) -> ImageEmbedding:
    """An embedding of 64 numbers an image, 128 bytes in half precision."""
    return ImageEmbedding(torch.full((count, 3, 4, 4), value), (torch.full((count, 1, 4, 4), -value),))


@pytest.fixture
def folder(tmp_path) -> EmbeddingFolder:
    return EmbeddingFolder(tmp_path / "embeddings")


@pytest.fixture
def stored(folder) -> Path:
    """A file with the embedding "a"."""
    folder.store("a", embedding(1))
    return folder.path / ("a" + SUFFIX)


def fill(cache: EmbeddingCache, *keys: str) -> list[str]:
    """Ask for embeddings one by one; returns which of them had to be computed."""
    computed = []
    for key in keys:
        cache.encode([key], lambda rows, key=key: computed.append(key) or embedding(ord(key)))
    return computed


def test_the_signature_follows_pixels_encoder_and_shape_and_nothing_else():
    changed = PIXELS.copy()
    changed[7, 3, 1] ^= 1
    seen = [signature(PIXELS, "one"), signature(changed, "one"), signature(PIXELS, "two"),
            signature(PIXELS.reshape(30, 20, 3), "one")]
    assert len(set(seen)) == len(seen)
    assert signature(PIXELS.copy(), "one") == seen[0]
    assert signature(np.asfortranarray(PIXELS), "one") == seen[0]


def test_the_fingerprint_follows_weights_and_precision(predictor):
    before = predictor.fingerprint
    assert Predictor(predictor.model, "cpu", "fp32").fingerprint == before
    with torch.no_grad():
        next(predictor.model.image_encoder.parameters()).view(-1)[0] += 1e-3
    assert Predictor(predictor.model, "cpu", "fp32").fingerprint != before


def test_the_least_recently_used_leave_and_the_budget_holds():
    cache = EmbeddingCache(budget=300)
    assert fill(cache, "a", "b", "a", "c", "a", "b") == ["a", "b", "c", "b"]
    assert cache.nbytes <= 300
    assert len(cache) == 2


def test_an_embedding_larger_than_the_budget_is_given_and_not_kept():
    cache = EmbeddingCache(budget=100)
    assert fill(cache, "a", "a") == ["a", "a"]
    assert cache.nbytes == 0


def test_several_are_computed_together_and_each_once():
    cache, asked = EmbeddingCache(budget=10_000), []
    fill(cache, "b")
    found = cache.encode(["a", "b", "c", "a"], lambda rows: asked.append(rows) or
                         ImageEmbedding.cat([embedding(row + 1) for row in rows]))
    assert asked == [[0, 2]]
    assert [float(one.features[0, 0, 0, 0]) for one in found] == [1, ord("b"), 3, 1]
    assert all(one.features.dtype == torch.float16 and len(one) == 1 for one in found)
    assert found[0].features.untyped_storage().nbytes() == found[0].features.nbytes  # no view of the batch


def test_what_one_thread_computes_another_waits_for_and_the_budget_holds_throughout():
    cache, computed, over = EmbeddingCache(budget=3 * 128), [], []

    def compute(key):
        computed.append(key)
        time.sleep(0.02)
        return embedding(ord(key))

    def ask(keys):
        for key in keys:
            (found,) = cache.encode([key], lambda rows, key=key: compute(key))
            assert float(found.features[0, 0, 0, 0]) == ord(key)
            over.append(cache.nbytes > cache.budget)

    threads = [threading.Thread(target=ask, args=("abc",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(computed) == ["a", "b", "c"]
    assert not any(over)
    assert (cache.hits, cache.misses) == (15, 3)


def test_a_thread_that_fails_does_not_fail_those_that_wait_for_it():
    cache, started, results = EmbeddingCache(1000), threading.Event(), []

    def failing(rows):
        started.set()
        time.sleep(0.1)
        raise RuntimeError("no")

    def first():
        with pytest.raises(RuntimeError):
            cache.encode(["a"], failing)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(5)
    results = cache.encode(["a"], lambda rows: embedding(7))
    thread.join(5)
    assert float(results[0].features[0, 0, 0, 0]) == 7


def test_an_embedding_on_disk_serves_the_next_session(folder):
    assert fill(EmbeddingCache(1000, folder.path), "a") == ["a"]
    cache = EmbeddingCache(1000, folder.path)
    assert fill(cache, "a") == []
    (found,) = cache.encode(["a"], lambda rows: pytest.fail("it is there"))
    assert torch.equal(found.features, embedding(ord("a")).features.half())
    assert torch.equal(found.early[0], embedding(ord("a")).early[0].half())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "renamed"])
def test_a_damaged_or_mistaken_file_is_computed_anew(folder, stored, damage):
    content = bytearray(stored.read_bytes())
    if damage == "flipped":
        content[-5] ^= 0x40
    stored.write_bytes({"truncated": bytes(content[:-9]), "empty": b"", "text": b"not an embedding"}.get(
        damage, bytes(content)))
    key = "a"
    if damage == "renamed":
        key = "b"
        stored = stored.rename(folder.path / ("b" + SUFFIX))
    assert folder.load(key) is None
    assert not stored.exists()
    assert fill(EmbeddingCache(1000, folder.path), key) == [key]
    assert folder.load(key) is not None


def test_a_file_of_another_version_is_not_used(folder, stored):
    save_file(load_file(stored), stored, {"signature": "a", "version": "0", "checksum": ""})
    assert folder.load("a") is None


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used_last(folder, stored):
    folder.limit = int(2.5 * stored.stat().st_size)
    folder.store("b", embedding(2))
    old = stored.stat()
    os.utime(stored, (old.st_atime - 100, old.st_mtime - 100))
    os.utime(folder.path / ("b" + SUFFIX), (old.st_atime - 200, old.st_mtime - 200))
    assert folder.load("b") is not None  # used again: now "a" is the oldest
    folder.store("c", embedding(3))
    assert sorted(file.stem for _, _, file in folder.files()) == ["b", "c"]


def test_a_folder_that_cannot_be_written_does_not_stop_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert fill(EmbeddingCache(1000, tmp_path / "file"), "a", "a") == ["a"]


def test_a_folder_that_may_only_be_read_still_serves(folder, stored, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.utime", refused)
    monkeypatch.setattr("pathlib.Path.unlink", refused)
    assert folder.load("a") is not None
    stored.write_bytes(b"damaged")
    assert folder.load("a") is None


def test_a_full_disk_is_told_once_and_does_not_stop_the_work(folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("SegMoTELib.interaction.embeddings.save", full)
    assert fill(EmbeddingCache(10_000), "a") == ["a"]
    cache = EmbeddingCache(10_000, folder.path)
    assert fill(cache, "a", "b", "a") == ["a", "b"]
    assert len([record for record in caplog.records if "No space" in record.getMessage()]) == 1


def test_what_interrupted_writing_left_is_removed(folder, stored):
    left = folder.path / ("0" * 32 + ".part")
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    EmbeddingFolder(folder.path).store("b", embedding(2))
    assert not left.exists()
    left.write_bytes(b"half")
    folder.clear()
    assert not left.exists()


def test_clearing_removes_the_files_and_says_how_much(folder, stored):
    size = stored.stat().st_size
    assert folder.clear() == size
    assert folder.files() == []


def test_two_processes_share_a_folder(folder):
    code = ("import sys, torch; from pathlib import Path\n"
            "from SegMoTELib.interaction.embeddings import EmbeddingFolder\n"
            "from SegMoTELib.network import ImageEmbedding\n"
            "folder = EmbeddingFolder(Path(sys.argv[1]), 40_000)\n"
            "for turn in range(60):\n"
            "    value = turn % 12\n"
            "    found = folder.load(str(value))\n"
            "    if found is None:\n"
            "        folder.store(str(value), ImageEmbedding(torch.full((1, 3, 16, 16), float(value)), ()))\n"
            "    else:\n"
            "        assert (found.features == value).all()\n")
    both = [subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    for process in both:
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
        assert "damaged" not in complaints
    assert not list(folder.path.glob("*.part"))
    assert sum(size for _, size, _ in folder.files()) <= 40_000


def test_answers_through_the_cache_are_those_of_the_model_within_half_precision(predictor, image):
    cached = Predictor(predictor.model, "cpu", "fp32", EmbeddingCache(1 << 20))
    click = {"point_coords": np.array([[20, 10]]), "point_labels": np.array([1]), "return_logits": True}
    answers = []
    for one in (predictor, cached, cached):
        one.set_image(image)
        answers.append(one.predict(**click)[0])
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-2)
    np.testing.assert_array_equal(answers[1], answers[2])
    assert (cached.cache.hits, cached.cache.misses) == (1, 1)
