"""Fetching weights: resumed, verified before use, moved into place at once; only ever on request."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from SegMoTELib.errors import CancelledError, ModelError
from SegMoTELib.zoo.catalogue import Entry
from SegMoTELib.zoo.store import models_folder, record, weights_path

if TYPE_CHECKING:
    import requests

ATTEMPTS = 5  # a cut connection is taken up again this often in one call
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
BLOCK = 1 << 14  # small, so that a slow host does not delay a cancel
SPARE = 1 << 28  # bytes left free on the disk
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)

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
        CancelledError: ``cancelled`` said so. ModelError: licence not accepted, host out of reach, no room, a folder
            that cannot be written, or bytes that are not what the catalogue describes; the sentence says which file
            to place where.
    """
    import requests

    folder = folder or models_folder()
    path = weights_path(entry, folder)
    try:
        if path.is_file():
            return path
        if entry.bundled:
            raise ModelError(f"{entry.title}: comes with SegMoTE but is not at {path}; install SegMoTE again.")
        if not (entry.permissive or accept_licence):
            raise ModelError(f"{entry.title}: its licence ({entry.licence}) must be accepted first; read it at "
                             f"{entry.licence_url} (segmote models fetch {entry.name} --accept-licence).")
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / f".{entry.file}.lock", cancelled):
            if not path.is_file():  # another process may have fetched it meanwhile
                _download(entry, path, progress or (lambda *_: None), cancelled)
    except requests.RequestException as error:
        answer = error.response
        reason = type(error).__name__ if answer is None else f"it answered {answer.status_code} {answer.reason}".strip()
        raise ModelError(
            f"{entry.title}: {_host(entry)} could not be reached or broke off ({reason}). Check the network and proxy "
            f"and fetch again: what has come is kept. {_by_hand(entry, path)}") from error
    except OSError as error:
        raise ModelError(f"{folder}: models cannot be kept here ({error.strerror or error}); set SEGMOTE_MODEL_DIR to "
                         "another folder.") from error
    return path


def _download(entry: Entry, path: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Fetch, verify and note one file; ``fetch`` says what goes wrong."""
    import pooch
    from requests import RequestException

    expected = entry.hash or _hash_of_host(entry.url)
    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(entry.url, expected, fname=path.name, path=path.parent,
                       downloader=_Resumed(entry, path, progress, cancelled, bool(expected)))
    except RequestException:  # some of them are ValueErrors too
        raise
    except ValueError as error:  # pooch's word for another hash; it has removed the file
        raise ModelError(f"{entry.title}: what {_host(entry)} sent is not the published file (its "
                         f"{(expected or 'hash').split(':')[0]} differs); it was deleted. "
                         f"{_by_hand(entry, path)}") from error
    record(path, entry.url, checked=bool(expected))


def _host(entry: Entry) -> str:
    return urlsplit(entry.url).hostname or entry.url


def _by_hand(entry: Entry, path: Path) -> str:
    return f"Or download {entry.url} on another computer and place it at {path}."


class _Resumed:
    """A pooch downloader that keeps what came before a cut or a cancel, and goes on from there."""

    def __init__(self, entry: Entry, path: Path, progress: Progress, cancelled: Callable[[], bool],
                 resumable: bool) -> None:
        self.entry, self.path, self.progress, self.cancelled = entry, path, progress, cancelled
        self.part = path.with_name(f".{path.name}.part")
        # Without a hash, halves of two versions could be joined unnoticed; a link must not be followed; and what
        # another user of the folder began can be replaced, not continued.
        if (not resumable or self.part.is_symlink() or not os.access(self.part, os.W_OK)
                or (entry.size is not None and self._here() > entry.size)):
            self.part.unlink(missing_ok=True)

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
                self.part.unlink(missing_ok=True)
                raise requests.ConnectionError("the host cannot resume this file")
            answer.raise_for_status()
            if urlsplit(self.entry.url).scheme == "https" != urlsplit(answer.url).scheme:
                raise ModelError(f"{self.entry.title}: {_host(self.entry)} leads to an address that is not encrypted.")
            here = here if answer.status_code == 206 else 0
            total = self._total(answer, here)
            blocks = answer.iter_content(BLOCK)
            first = next(blocks, b"")
            if here == 0 and PAGE.match(first):
                raise self._is_page()
            with self.part.open("ab" if here else "wb") as file:
                for block in chain((first,), blocks):
                    if self.cancelled():
                        raise CancelledError(f"{self.entry.title}: stopped; the next fetch goes on from here.")
                    file.write(block)
                    here += len(block)
                    if total is not None and here > total:
                        break
                    self.progress(here, total)
        if total is not None and here > total:
            self.part.unlink()
            raise ModelError(f"{self.entry.title}: the host sent more than the {total} bytes announced.")
        if here < (total or 1):
            raise requests.ConnectionError(f"cut off at {here} of {total} bytes")

    def _total(self, answer: requests.Response, here: int) -> int | None:
        """Bytes of the whole file, after checking that the answer can be it."""
        entry = self.entry
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise self._is_page()
        length = answer.headers.get("Content-Length", "")
        total = here + int(length) if length.isdigit() else entry.size
        if entry.size is not None and total != entry.size:
            self.part.unlink(missing_ok=True)
            raise ModelError(f"{entry.title}: {_host(entry)} offers {total} bytes, but the published file has "
                             f"{entry.size}.")
        room = shutil.disk_usage(self.part.parent).free
        if total is not None and total - here + SPARE > room:
            raise ModelError(f"{self.part.parent}: needs {(total - here) / 1e6:.0f} MB and has {room / 1e6:.0f} MB; "
                             "make room or set SEGMOTE_MODEL_DIR to another folder.")
        return total

    def _is_page(self) -> ModelError:
        self.part.unlink(missing_ok=True)
        return ModelError(f"{self.entry.title}: {_host(self.entry)} answered with a web page instead of weights; a "
                          f"proxy or a login may be in the way. Open {self.entry.url} in a browser and place the file "
                          f"at {self.path}.")


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
        with suppress(OSError):  # left behind, it would keep everybody else out of a folder that several share
            path.unlink()
        lock.release()
