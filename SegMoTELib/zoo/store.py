"""The user's folder of weights: what is there, whether it is intact, adding and removing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from SegMoTELib.errors import ModelError
from SegMoTELib.zoo.catalogue import MODELS_FOLDER, Entry, catalogue

SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Held:
    """A model and what of it is on this machine.

    Attributes:
        name: what ``--model`` takes. path: of its weights. state: "bundled", "verified", "not verified", "not
        downloaded", "partly downloaded" or "yours". size: bytes on this machine.
    """

    name: str
    path: Path
    state: str
    size: int


def models_folder() -> Path:
    """Return the folder of downloaded weights: ``SEGMOTE_MODEL_DIR``, or the user's data folder."""
    from platformdirs import user_data_path

    chosen = os.environ.get("SEGMOTE_MODEL_DIR")
    return Path(chosen).expanduser() if chosen else user_data_path("segmote", appauthor=False) / "models"


def weights_path(entry: Entry, folder: Path | None = None) -> Path:
    """Return where an entry's weights are, or would be."""
    return (MODELS_FOLDER if entry.bundled else folder or models_folder()) / entry.file


def held(folder: Path | None = None) -> list[Held]:
    """Return the catalogue's models and the user's own, each with what of it is here."""
    folder = folder or models_folder()
    found = [_held(entry, folder) for entry in catalogue().values()]
    known = {entry.file for entry in catalogue().values()}
    if folder.is_dir():
        found += [Held(path.stem, path, "yours", path.stat().st_size) for path in sorted(folder.iterdir())
                  if path.suffix in SUFFIXES and path.name not in known and not path.name.startswith(".")]
    return found


def add(path: Path, name: str | None = None, folder: Path | None = None) -> str:
    """Copy a weights file of the user's into the folder and return the name that ``--model`` takes from now on.

    The caller has loaded it: this checks only the name.

    Raises:
        ModelError: a name that is taken or not a plain word, another suffix, or a file that cannot be copied.
    """
    path, folder = Path(path), folder or models_folder()
    name = path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ModelError(f"{name!r}: a model's name has letters, digits, '.', '_' and '-' only; choose one by --name.")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path}: weights end in {', '.join(SUFFIXES)}.")
    if any(name == one.name or f"{name}{path.suffix}" == one.path.name for one in held(folder)):
        raise ModelError(f"{name}: there is a model of this name already; choose another by --name.")
    target = folder / f"{name}{path.suffix}"
    part = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, part)
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be copied to {folder} ({error.strerror}).") from error
    record(target, "")
    return name


def remove(name: str, folder: Path | None = None) -> int:
    """Delete a model's weights, whole or partly downloaded; return the bytes that were freed.

    Raises:
        ModelError: a bundled model, or one that is not on this machine.
    """
    model = find(name, folder)
    if model.state == "bundled":
        raise ModelError(f"{name}: comes with the extension and stays.")
    if not model.size:
        raise ModelError(f"{name}: is not on this machine.")
    for path in (model.path, _record_path(model.path), model.path.with_name(f".{model.path.name}.part"),
                 model.path.with_name(f".{model.path.name}.lock")):
        path.unlink(missing_ok=True)
    return model.size


def verify(name: str, folder: Path | None = None) -> str:
    """Hash a model's weights again and compare them with what is published, or with what was recorded; say which.

    Raises:
        ModelError: not on this machine, or changed.
    """
    model = find(name, folder)
    if model.state in ("not downloaded", "partly downloaded") or not model.path.is_file():
        raise ModelError(f"{name}: is not on this machine; fetch it with: segmote models fetch {name}")
    entry = catalogue().get(name)
    published = entry.hash if entry else ""
    kept = _read_record(model.path).get("sha256", "")
    expected = published or (f"sha256:{kept}" if kept else "")
    if not expected:
        if model.state != "bundled":
            record(model.path, entry.url if entry else "")
        return f"no hash is published; sha256:{file_hash(model.path, 'sha256')}"
    algorithm, _, digest = expected.partition(":")
    if file_hash(model.path, algorithm) != digest:
        raise ModelError(f"{name}: {model.path} has changed or is damaged ({algorithm} differs). Remove and fetch it "
                         f"again: segmote models remove {name}")
    if model.state != "bundled":
        record(model.path, entry.url if entry else "")
    return f"{algorithm} as {'published' if published else 'when it came'}"


def find(name: str, folder: Path | None = None) -> Held:
    """Return one of ``held()``.

    Raises:
        ModelError: no such model.
    """
    models = {one.name: one for one in held(folder)}
    if name not in models:
        raise ModelError(f"{name}: no such model; there are {', '.join(models)}.")
    return models[name]


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file ("sha256", "md5")."""
    with path.open("rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record(path: Path, url: str) -> None:
    """Write beside verified weights what was verified, so that a later change of the file is seen."""
    status = path.stat()
    content = {"sha256": file_hash(path, "sha256"), "size": status.st_size, "modified": status.st_mtime_ns, "url": url}
    part = _record_path(path).with_name(_record_path(path).name + ".part")
    part.write_text(json.dumps(content))
    os.replace(part, _record_path(path))


def _held(entry: Entry, folder: Path) -> Held:
    path = weights_path(entry, folder)
    part = path.with_name(f".{path.name}.part")
    if path.is_file():
        status = path.stat()
        kept = _read_record(path)
        intact = (kept.get("size"), kept.get("modified")) == (status.st_size, status.st_mtime_ns)
        return Held(entry.name, path, "bundled" if entry.bundled else "verified" if intact else "not verified",
                    status.st_size)
    return Held(entry.name, path, *(("partly downloaded", part.stat().st_size) if part.is_file()
                                    else ("not downloaded", 0)))


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _read_record(path: Path) -> dict:
    try:
        content = json.loads(_record_path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
