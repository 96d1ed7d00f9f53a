"""The catalogue of weights: what exists, where it comes from, under which licence, and how to recognise it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from SegMoTELib.errors import ModelError

MODELS_FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Models"


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

    @property
    def bundled(self) -> bool:
        """Whether the weights come with the extension."""
        return not self.url


@cache
def catalogue() -> dict[str, Entry]:
    """Return all entries by name, the bundled ones first."""
    entries = json.loads((MODELS_FOLDER / "catalogue.json").read_text(encoding="utf-8"))["models"]
    return {one["name"]: Entry(**one) for one in entries}


def find_entry(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        ModelError: no such model, with the names there are.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise ModelError(f"{name}: not in the catalogue, which has {', '.join(catalogue())}.") from None
