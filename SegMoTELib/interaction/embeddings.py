"""EmbeddingCache: image embeddings in half precision, the latest ones in memory, and on disk where asked for.

An embedding is known by what the encoder saw, not by whose it is: :func:`signature` hashes the pixels that volume,
plane and intensity mapping gave, with the encoder's weights, so that a change in any of them is another embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from SegMoTELib.network import ImageEmbedding

log = logging.getLogger(__name__)

VERSION = "1"  # of what an encoder makes of pixels; a change makes stored embeddings unusable
MEMORY_SHARE = 0.25  # of the free memory
DISK_LIMIT = 4 << 30  # bytes
SUFFIX, PART = ".embedding", ".part"
ABANDONED = 3600  # seconds after which a file that was not written to its end is removed
PLAIN_KEY = re.compile("[0-9A-Za-z]{1,64}")


def default_folder() -> Path:
    """Where embeddings are kept on disk by default."""
    return user_cache_path("segmote") / "embeddings"


def signature(pixels: np.ndarray, encoder: str) -> str:
    """Key of an image's embedding.

    Args:
        pixels: uint8 (H, W, 3), as the encoder gets them before resizing. encoder: ``Predictor.fingerprint``.
    """
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps([VERSION, encoder, list(pixels.shape)]).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class EmbeddingCache:
    """Least recently used embeddings leave when the budget is spent; safe to use from several threads.

    Args:
        budget: bytes in memory; default: a quarter of what is free now.
        folder: also keep embeddings there, for later sessions and other processes; their keys must be signatures.
        disk_limit: bytes there; those unused for longest are removed.

    Attributes:
        hits, misses: how often ``encode`` found an embedding, or had to compute it.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None, disk_limit: int = DISK_LIMIT) -> None:
        self.budget = int(MEMORY_SHARE * psutil.virtual_memory().available) if budget is None else budget
        self.disk = None if folder is None else EmbeddingFolder(folder, disk_limit)
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, ImageEmbedding] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()
        self._computing: dict[Hashable, Future] = {}  # what a thread is computing; None where it fails

    def __contains__(self, key: Hashable) -> bool:
        """Whether an embedding is in memory."""
        with self._lock:
            return key in self._kept

    def __len__(self) -> int:
        """Number of embeddings in memory."""
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes used in memory."""
        return self._used

    def encode(self, keys: Sequence[Hashable], compute: Callable[[list[int]], ImageEmbedding],
               keep: Callable[[], bool] = lambda: True) -> list[ImageEmbedding]:
        """Embeddings for keys, each of one image, half precision, on the CPU; those unknown are computed together.

        What another thread is computing is waited for, not computed twice.

        Args:
            keys: of the images. compute: positions in ``keys`` -> the embedding of these images.
            keep: asked after computing; nothing is kept where it says no.
        """
        keys = list(keys)
        asked = {key: self._find(key) for key in dict.fromkeys(keys)}
        found = {key: embedding for key, embedding in asked.items() if embedding is not None}
        own, others = self._claim([key for key in asked if key not in found])
        try:
            if own:
                found |= self._compute(own, [keys.index(key) for key in own], compute, keep)
        finally:
            with self._lock:
                for key in own:
                    self._computing.pop(key).set_result(found.get(key))
                self.misses += len(own)
                self.hits += len(asked) - len(own)
        for key, future in others.items():  # after its own work is done: nobody waits in a circle
            def compute_it(_: list[int], row: int = keys.index(key)) -> ImageEmbedding:
                return compute([row])

            found[key] = future.result() or self.encode([key], compute_it, keep)[0]
        return [found[key] for key in keys]

    def _claim(self, keys: list[Hashable]) -> tuple[list[Hashable], dict[Hashable, Future]]:
        """Keys that are for this thread to compute, and what others compute or just have."""
        own: list[Hashable] = []
        others: dict[Hashable, Future] = {}
        with self._lock:
            for key in keys:
                if key in self._kept:  # since it was looked for
                    others[key] = Future()
                    others[key].set_result(self._kept[key])
                elif key in self._computing:
                    others[key] = self._computing[key]
                else:
                    own.append(key)
                    self._computing[key] = Future()
        return own, others

    def _compute(self, keys: list[Hashable], rows: list[int], compute: Callable[[list[int]], ImageEmbedding],
                 keep: Callable[[], bool]) -> dict[Hashable, ImageEmbedding]:
        with torch.no_grad():
            computed = compute(rows).to("cpu", torch.float16)
        found = {}
        for row, key in enumerate(keys):
            # A copy: a view of the batch would keep all of it in memory.
            found[key] = computed[[row]] if len(keys) > 1 else computed
            if keep():
                self._keep(key, found[key])
                if self.disk is not None:
                    self.disk.store(str(key), found[key])
        return found

    def clear(self) -> None:
        """Forget what is in memory; what is on disk stays."""
        with self._lock:
            self._kept.clear()
            self._used = 0

    def _find(self, key: Hashable) -> ImageEmbedding | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        embedding = self.disk.load(str(key)) if self.disk is not None else None
        if embedding is not None:
            self._keep(key, embedding)
        return embedding

    def _keep(self, key: Hashable, embedding: ImageEmbedding) -> None:
        with self._lock:
            if key in self._kept or embedding.nbytes > self.budget:
                return
            self._kept[key] = embedding
            self._used += embedding.nbytes
            while self._used > self.budget:
                self._used -= self._kept.popitem(last=False)[1].nbytes


class EmbeddingFolder:
    """Embeddings in files, one safetensors file each; several processes may share a folder.

    A file that is damaged, or holds another embedding than its name says, is removed and counts as absent. Names are
    hashes and nothing in a file tells whose image it was; but features are made of its pixels, so folder and files are
    the user's alone.

    Args:
        path: made when first needed. limit: bytes.
    """

    def __init__(self, path: Path, limit: int = DISK_LIMIT) -> None:
        self.path, self.limit = Path(path), limit
        self._unlisted: int | None = None  # bytes written since the folder was last looked through
        self._complained = False

    def store(self, key: str, embedding: ImageEmbedding) -> None:
        """Write an embedding; a full or read-only disk is logged, not raised: a cache must not stop the work."""
        tensors = {"features": embedding.features, **{f"early{i}": early for i, early in enumerate(embedding.early)}}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        target, temporary = self._file(key), self.path / (uuid.uuid4().hex + PART)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                written = file.write(save(tensors, {"signature": key, "checksum": _checksum(tensors),
                                                    "version": VERSION}))
            os.replace(temporary, target)  # at once: others see the whole file or none
            self._make_room(written)
        except (OSError, SafetensorError) as error:
            if not self._complained:  # once, not for every slice
                log.warning("embeddings are not kept in %s: %s", self.path, error)
            self._complained = True
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def load(self, key: str) -> ImageEmbedding | None:
        """An embedding that was stored with this key, or None."""
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as stored:
                said = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            if (said.get("signature"), said.get("version"), said.get("checksum")) == (key, VERSION, _checksum(tensors)):
                embedding = ImageEmbedding(tensors["features"],
                                           tuple(tensors[f"early{i}"] for i in range(len(tensors) - 1)))
                with contextlib.suppress(OSError):  # a folder that may only be read still serves
                    os.utime(file)
                return embedding
        except OSError:  # never stored, removed by another process just now, or not to be read
            return None
        except (SafetensorError, KeyError, ValueError, TypeError):
            pass
        log.warning("%s was damaged and is computed again", file)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None

    def files(self, suffix: str = SUFFIX) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each embedding, oldest first."""
        found = []
        for file in self.path.glob("*" + suffix):
            try:
                state = file.stat()
            except OSError:  # removed by another process
                continue
            found.append((state.st_mtime, state.st_size, file))
        return sorted(found)

    def clear(self) -> int:
        """Remove all embeddings, and what interrupted writing left; returns how many bytes that freed."""
        files = self.files() + self.files(PART)
        for _, _, file in files:
            file.unlink(missing_ok=True)
        return sum(size for _, size, _ in files)

    def _file(self, key: str) -> Path:
        if not PLAIN_KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a signature, so it is not made a file's name")
        return self.path / (key + SUFFIX)

    def _make_room(self, written: int) -> None:
        """Remove what was unused for longest; looking through thousands of files waits until it may matter."""
        slack = self.limit // 64
        if self._unlisted is not None and self._unlisted + written <= slack:
            self._unlisted += written
            return
        self._unlisted = 0
        for _, _, file in (one for one in self.files(PART) if one[0] < time.time() - ABANDONED):
            file.unlink(missing_ok=True)
        files = self.files()
        excess = sum(size for _, size, _ in files) - (self.limit - slack)
        for _, size, file in files:
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            excess -= size


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
