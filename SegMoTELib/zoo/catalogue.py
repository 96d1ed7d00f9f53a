"""The catalogue of weights: what exists, where it comes from, under which licence, and how to recognise it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from SegMoTELib.errors import ModelError

MODELS_FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Models"
SUFFIXES = (".safetensors", ".pth", ".pt")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HASH = re.compile(r"|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue (``Resources/Models/catalogue.json``).

    Attributes:
        name: what users type. title: what users read. architecture: as ``segmote info`` names it.
        file: name of the weights file. url: its source, "" for a bundled model.
        size: bytes, or None where it could not be confirmed. hash: "sha256:..." or "md5:..." as publicly documented, or
        "" where none was found. licence: SPDX name or a description; licence_url: its text. permissive: whether it may
        be fetched without accepting the licence explicitly.
        modalities: intended images. trained_on: data. remark: what could not be confirmed, and anything worth knowing.

    Raises:
        ModelError: a name or file that is not a plain word, so could lead out of the folder, or a malformed hash or
            size.
    """

    name: str
    title: str
    architecture: str
    file: str
    url: str
    size: int | None
    hash: str
    licence: str
    licence_url: str
    permissive: bool
    modalities: str
    trained_on: str
    remark: str = ""

    def __post_init__(self) -> None:
        """Refuse what could write outside the folder of models, or hide that bytes are not checked."""
        texts = {key: value for key, value in vars(self).items() if key not in ("size", "permissive")}
        if not all(isinstance(value, str) for value in texts.values()) or not isinstance(self.permissive, bool):
            raise ModelError(f"The catalogue's entry {self.name!r} has a value of the wrong kind.")
        for value in (self.name, self.file):
            if not PLAIN_NAME.fullmatch(value):
                raise ModelError(f"The catalogue's entry {self.name!r}: {value!r} is not a plain name.")
        if not self.file.endswith(SUFFIXES):
            raise ModelError(f"The catalogue's entry {self.name!r}: weights end in {', '.join(SUFFIXES)}.")
        if not HASH.fullmatch(self.hash):
            raise ModelError(f"The catalogue's entry {self.name!r}: {self.hash!r} is not a hash.")
        if self.size is not None and (type(self.size) is not int or self.size <= 0):
            raise ModelError(f"The catalogue's entry {self.name!r}: {self.size!r} is not a size in bytes.")

    @property
    def bundled(self) -> bool:
        """Whether the weights come with the extension."""
        return not self.url


@cache
def catalogue() -> dict[str, Entry]:
    """Return all entries by name, the bundled ones first."""
    return read_catalogue(MODELS_FOLDER / "catalogue.json")


def read_catalogue(path: Path) -> dict[str, Entry]:
    """Read a catalogue file.

    Raises:
        ModelError: missing, damaged, two entries of one name or file, or an address that is not encrypted.
    """
    try:
        entries = [Entry(**one) for one in json.loads(path.read_text(encoding="utf-8"))["models"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a catalogue of models ({error}); install SegMoTE again.") from error
    for entry in entries:
        for url in (entry.url, entry.licence_url):
            if url and urlsplit(url).scheme != "https":
                raise ModelError(f"{path}: {entry.name}: {url} is not an https address.")
    if len({one.name.lower() for one in entries}) < len(entries) or len({one.file for one in entries}) < len(entries):
        raise ModelError(f"{path}: two entries have the same name or file.")
    return {one.name: one for one in entries}


def find_entry(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        ModelError: no such model, with the names there are.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise ModelError(f"{name}: not in the catalogue, which has {', '.join(catalogue())}.") from None
