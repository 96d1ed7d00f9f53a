"""The user's folder of weights: what is there, whether it is intact, adding and removing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from SegMoTELib.errors import ModelError
from SegMoTELib.zoo.catalogue import MODELS_FOLDER, PLAIN_NAME, SUFFIXES, Entry, catalogue


@dataclass(frozen=True)
class Held:
    """A model and what of it is on this machine.

    Attributes:
        name: what ``--model`` takes. path: of its weights. state: "bundled", "verified" (its hash was compared with the
        published one, and the file is as it was then), "not verified", "not downloaded", "partly downloaded" or
        "yours". size: bytes on this machine.
    """

    name: str
    path: Path
    state: str
    size: int


def models_folder() -> Path:
    """Return the folder of downloaded weights: ``SEGMOTE_MODEL_DIR``, or the user's data folder.

    Raises:
        ModelError: ``SEGMOTE_MODEL_DIR`` begins with the home of a user who does not exist.
    """
    from platformdirs import user_data_path

    chosen = os.environ.get("SEGMOTE_MODEL_DIR")
    try:
        return Path(chosen).expanduser() if chosen else user_data_path("segmote", appauthor=False) / "models"
    except RuntimeError as error:
        raise ModelError(f"SEGMOTE_MODEL_DIR is {chosen!r}, which is not a folder ({error}).") from None


def weights_path(entry: Entry, folder: Path | None = None) -> Path:
    """Return where an entry's weights are, or would be."""
    return (MODELS_FOLDER if entry.bundled else folder or models_folder()) / entry.file


def held(folder: Path | None = None) -> list[Held]:
    """Return the catalogue's models and the user's own, each with what of it is here.

    A file of the user's is named after its stem, or in full where another model has that name.

    Raises:
        ModelError: the folder is there but cannot be read.
    """
    folder = folder or models_folder()
    try:
        found = [_held(entry, folder) for entry in catalogue().values()]
        known = {entry.file for entry in catalogue().values()}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in SUFFIXES and path.name not in known and path.name[0] != "." and path.is_file():
                taken = path.stem.lower() in (one.name.lower() for one in found)
                found.append(Held(path.name if taken else path.stem, path, "yours", path.stat().st_size))
    except OSError as error:
        raise ModelError(f"{error.filename or folder}: cannot be read ({error.strerror or error}); is it the folder of "
                         "models that you mean (SEGMOTE_MODEL_DIR)?") from error
    return found


def add(path: Path, name: str | None = None, folder: Path | None = None) -> str:
    """Copy a weights file of the user's into the folder and return the name that ``--model`` takes from now on.

    The caller has loaded it: this checks only the name.

    Raises:
        ModelError: a name that is taken or not a plain word, another suffix, or a file that cannot be copied.
    """
    path, folder = Path(path), folder or models_folder()
    name = path.stem if name is None else name
    if not PLAIN_NAME.fullmatch(name):
        raise ModelError(f"{name!r}: a model's name has letters, digits, '.', '_' and '-' only; choose one by --name.")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path}: weights end in {', '.join(SUFFIXES)}.")
    target = folder / f"{name}{path.suffix}"
    # Some file systems do not tell capitals from small letters.
    if any(name.lower() == one.name.lower() or target.name.lower() == one.path.name.lower() for one in held(folder)):
        raise ModelError(f"{name}: there is a model of this name already; choose another by --name.")
    part = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # a link there must not be followed
        shutil.copyfile(path, part)
        os.replace(part, target)
        record(target, "", checked=False)
    except OSError as error:
        if folder.is_dir():
            part.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be copied to {folder} ({error.strerror or error}).") from error
    return name


def remove(name: str, folder: Path | None = None) -> int:
    """Delete a model's weights, whole or partly downloaded; return the bytes that were freed.

    Raises:
        ModelError: a bundled model, one that is not on this machine, or files that cannot be deleted.
    """
    model = find(name, folder)
    if model.state == "bundled":
        raise ModelError(f"{name}: comes with the extension and stays.")
    if not model.size and not model.path.is_file():
        raise ModelError(f"{name}: is not on this machine.")
    try:
        for path in (model.path, _record_path(model.path), model.path.with_name(f".{model.path.name}.part")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be deleted ({error.strerror or error}); is it in use?") from error
    return model.size


def verify(name: str, folder: Path | None = None) -> str:
    """Hash a model's weights again and compare them with what is published, or with what was recorded; say which.

    Raises:
        ModelError: not on this machine, or changed.
    """
    model = find(name, folder)
    if not model.path.is_file():
        raise ModelError(f"{name}: is not on this machine; fetch it with: segmote models fetch {name}")
    entry = catalogue().get(name)
    published = entry.hash if entry else ""
    kept = _read_record(model.path).get("sha256", "")
    expected = published or (f"sha256:{kept}" if kept else "")
    try:
        algorithm, _, digest = (expected or "sha256:").partition(":")
        found = file_hash(model.path, algorithm)
        if digest and found != digest:
            raise ModelError(f"{name}: {model.path} has changed or is damaged ({algorithm} differs). Remove and fetch "
                             f"it again: segmote models remove {name}")
    except OSError as error:
        raise ModelError(f"{model.path}: cannot be read ({error.strerror or error}).") from error
    if model.state != "bundled":
        with suppress(OSError):  # a shared folder that may only be read: intact all the same
            record(model.path, entry.url if entry else "", checked=bool(published))
    if not digest:
        return f"no hash is published; sha256:{found}"
    return f"{algorithm} as {'published' if published else 'when it came'}"


def find(name: str, folder: Path | None = None) -> Held:
    """Return one of ``held()``.

    Raises:
        ModelError: no such model.
    """
    models = held(folder)
    found = next((one for one in models if one.name == name), None)
    if found is None:
        raise ModelError(f"{name}: no such model; there are {', '.join(one.name for one in models)}.")
    return found


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file ("sha256", "md5")."""
    with path.open("rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record(path: Path, url: str, checked: bool) -> None:
    """Write beside weights what they are like now, so that a later change is seen.

    Args:
        path: of the weights. url: where they came from, or "". checked: they were compared with a published hash.
    """
    status = path.stat()
    content = {"sha256": file_hash(path, "sha256"), "size": status.st_size, "modified": status.st_mtime_ns, "url": url,
               "checked": checked}
    part = _record_path(path).with_name(_record_path(path).name + ".part")
    part.unlink(missing_ok=True)
    part.write_text(json.dumps(content))
    os.replace(part, _record_path(path))


def _held(entry: Entry, folder: Path) -> Held:
    path = weights_path(entry, folder)
    part = path.with_name(f".{path.name}.part")
    if path.is_file():
        status = path.stat()
        kept = _read_record(path)
        intact = (kept.get("size"), kept.get("modified"), kept.get("checked")) == (status.st_size, status.st_mtime_ns,
                                                                                   True)
        return Held(entry.name, path, "bundled" if entry.bundled else "verified" if intact else "not verified",
                    status.st_size)
    return Held(entry.name, path, *(("partly downloaded", part.stat().st_size) if part.is_file()
                                    else ("not downloaded", 0)))


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _read_record(path: Path) -> dict:
    try:
        content = json.loads(_record_path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
