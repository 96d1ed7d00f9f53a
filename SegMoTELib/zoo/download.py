"""Fetching weights: resumed, verified before use, moved into place at once; only ever on request."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from SegMoTELib.errors import CancelledError, ModelError
from SegMoTELib.zoo.catalogue import Entry
from SegMoTELib.zoo.store import models_folder, record, weights_path

ATTEMPTS = 5  # a cut connection is taken up again this often in one call
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
BLOCK = 1 << 16
SPARE = 1 << 28  # bytes left free on the disk

Progress = Callable[[int, "int | None"], None]


def fetch(entry: Entry, accept_licence: bool = False, progress: Progress | None = None,
          cancelled: Callable[[], bool] = lambda: False, folder: Path | None = None) -> Path:
    """Download, verify and keep a model's weights; return at once where they are there already.

    Args:
        entry: of the catalogue. accept_licence: the user agreed to a licence that is not permissive.
        progress: called with the bytes that are here and the bytes there will be (None: unknown).
        cancelled: asked between blocks; what has come is kept and resumed by the next call.
        folder: of the models, ``models_folder()`` if None.

    Returns:
        The weights file.

    Raises:
        CancelledError: ``cancelled`` said so. ModelError: licence not accepted, host out of reach, no room, or bytes
            that are not what the catalogue describes; the sentence says which file to place where.
    """
    import pooch
    import requests

    path = weights_path(entry, folder)
    if path.is_file():
        return path
    if not (entry.permissive or accept_licence):
        raise ModelError(f"{entry.title}: its licence ({entry.licence}) must be accepted first; read it at "
                         f"{entry.licence_url} (segmote models fetch {entry.name} --accept-licence).")
    folder = folder or models_folder()
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"Or download {entry.url} on another computer and place it at {path}."
    with _only_one(folder / f".{entry.file}.lock", cancelled):
        if path.is_file():  # another process fetched it meanwhile
            return path
        try:
            expected = entry.hash or _hash_of_host(entry.url)
            part = folder / f".{entry.file}.part"
            pooch.get_logger().setLevel("ERROR")
            pooch.retrieve(entry.url, expected, fname=entry.file, path=folder,
                           downloader=_Resumed(entry, part, progress or (lambda *_: None), cancelled, bool(expected)))
        except requests.RequestException as error:
            raise ModelError(f"{entry.title}: {urlsplit(entry.url).hostname} could not be reached or broke off "
                             f"({type(error).__name__}). Check the network and proxy and fetch again: what has come "
                             f"is kept. {by_hand}") from error
        except ValueError as error:  # pooch's word for another hash; it has removed the file
            raise ModelError(f"{entry.title}: what {urlsplit(entry.url).hostname} sent is not the published file (its "
                             f"{(expected or 'hash').split(':')[0]} differs); it was deleted. {by_hand}") from error
        except OSError as error:
            raise ModelError(f"{folder}: cannot be written ({error.strerror or error}).") from error
        record(path, entry.url)
    return path


class _Resumed:
    """A pooch downloader that keeps what came before a cut or a cancel, and goes on from there."""

    def __init__(self, entry: Entry, part: Path, progress: Progress, cancelled: Callable[[], bool],
                 resumable: bool) -> None:
        self.entry, self.part, self.progress, self.cancelled = entry, part, progress, cancelled
        if not resumable:  # without a hash, halves of two versions could be joined unnoticed
            part.unlink(missing_ok=True)

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        from requests import ConnectionError, Timeout
        from requests.exceptions import ChunkedEncodingError

        for attempt in range(ATTEMPTS):
            before = self._here()
            try:
                self._receive(url)
                break
            except (ConnectionError, Timeout, ChunkedEncodingError):
                if attempt == ATTEMPTS - 1 or (attempt and self._here() == before):
                    raise
        os.replace(self.part, output_file)

    def _here(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self, url: str) -> None:
        import requests

        here = self._here()
        headers = {"Range": f"bytes={here}-"} if here else {}
        headers["Accept-Encoding"] = "identity"
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as answer:
            if answer.status_code == 416 and here == self.entry.size:
                return  # nothing is missing
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if answer.status_code == 416 or (answer.status_code == 206 and not (start and int(start[1]) == here)):
                self.part.unlink()
                raise requests.ConnectionError("the host cannot resume this file")
            answer.raise_for_status()
            here = here if answer.status_code == 206 else 0
            total = self._total(answer, here)
            with self.part.open("ab" if here else "wb") as file:
                for block in answer.iter_content(BLOCK):
                    if self.cancelled():
                        raise CancelledError(f"{self.entry.title}: stopped; the next fetch goes on from here.")
                    file.write(block)
                    here += len(block)
                    if total is not None and here > total:
                        raise ModelError(f"{self.entry.title}: the host sent more than the {total} bytes announced.")
                    self.progress(here, total)
        if total is not None and here < total:
            raise requests.ConnectionError(f"cut off at {here} of {total} bytes")

    def _total(self, answer: object, here: int) -> int | None:
        """Bytes of the whole file, after checking that the answer can be it."""
        entry = self.entry
        host = urlsplit(entry.url).hostname
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise ModelError(f"{entry.title}: {host} answered with a web page instead of weights; a proxy or a login "
                             f"may be in the way. Open {entry.url} in a browser and place the file at "
                             f"{self.part.with_name(entry.file)}.")
        length = answer.headers.get("Content-Length", "")
        total = here + int(length) if length.isdigit() else entry.size
        if entry.size is not None and total != entry.size:
            self.part.unlink(missing_ok=True)
            raise ModelError(f"{entry.title}: {host} offers {total} bytes, but the published file has {entry.size}.")
        room = shutil.disk_usage(self.part.parent).free
        if total is not None and total - here + SPARE > room:
            raise ModelError(f"{self.part.parent}: needs {(total - here) / 1e6:.0f} MB and has {room / 1e6:.0f} MB; "
                             "make room or set SEGMOTE_MODEL_DIR to another folder.")
        return total


def _hash_of_host(url: str) -> str | None:
    """SHA-256 that Hugging Face announces for its large files, None where a host announces none."""
    import requests

    answer = requests.head(url, timeout=TIMEOUT, allow_redirects=False)
    tag = answer.headers.get("X-Linked-ETag", "").strip('"')
    return f"sha256:{tag}" if re.fullmatch("[0-9a-f]{64}", tag) else None


@contextmanager
def _only_one(path: Path, cancelled: Callable[[], bool]):
    """Wait until no other process fetches the same file."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            if cancelled():
                raise CancelledError("Stopped while another program fetches the same file.") from None
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
