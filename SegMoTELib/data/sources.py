"""Sources of labelled images: which layout a folder has, and the data sets in it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from SegMoTELib.data.grey_levels import CT_WINDOW
from SegMoTELib.data.items import BadFile, SourceSet, safe_name
from SegMoTELib.data.readers.common import DESCRIPTION, carried_info, read_description
from SegMoTELib.errors import DataError


def open_sources(folders: list[Path], layout: str = "auto",
                 ct_window: tuple[float, float] = CT_WINDOW) -> list[SourceSet]:
    """List the data sets in some folders; nothing but descriptions and headers is read yet.

    A data set whose description cannot be used is reported as a bad file when there are others.

    Args:
        folders: data set folders, or folders of data set folders (each with a ``dataset.json``).
        layout: "pack", "nnunet", "imis", "pairs", "dicom" or "auto".
        ct_window: (centre, width) in HU for CT that is not 8 bit yet.

    Returns:
        Data sets with unique codes, in the order given; a folder that is named twice comes once.

    Raises:
        DataError: a folder that does not exist or holds nothing that can be read.
    """
    if not (math.isfinite(ct_window[0]) and 0 < ct_window[1] < math.inf):
        raise DataError(f"a CT window of {ct_window[0]:g} and {ct_window[1]:g} HU has no width or no place; the centre "
                        "comes first, then the width.")
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder.")
        for one in _set_folders(Path(os.path.abspath(folder))):  # "." has no name to call a data set by
            found.setdefault(one.resolve(), one)
    sets: list[SourceSet] = []
    for one in found.values():
        try:
            name = detect_layout(one) if layout == "auto" else layout
            sets += import_module(f"SegMoTELib.data.readers.{name}").read(one, ct_window)
        except DataError as error:
            if len(found) == 1:
                raise
            sets.append(SourceSet(safe_name(one.name), "unknown", {}, carried_info({}, one), [],
                                  [BadFile(one / DESCRIPTION, str(error))]))
    if not any(one.references or one.bad_files for one in sets):
        raise DataError(f"{', '.join(map(str, folders))}: no image with a label found.")
    return _with_unique_codes(sets)


def detect_layout(folder: Path) -> str:
    """Return the layout a data set folder has; pairs where nothing else shows.

    Raises:
        DataError: a ``dataset.json`` that cannot be read.
    """
    description = read_description(folder)
    if "splits" in description and (folder / "images").is_dir():
        return "pack"
    if (folder / "labelsTr").is_dir():
        return "nnunet"
    pairs = description.get("training") or description.get("test") or []
    if isinstance(pairs, list) and any(str(pair.get("label", "")).endswith(".npz")
                                       for pair in pairs if isinstance(pair, dict)):
        return "imis"
    from SegMoTELib.data.readers.dicom import has_dicom

    return "dicom" if has_dicom(folder) else "pairs"


def _set_folders(folder: Path) -> list[Path]:
    """The folder itself, or the data sets one level below it."""
    below = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    return [folder] if (folder / DESCRIPTION).exists() or not below else below


def _with_unique_codes(sets: list[SourceSet]) -> list[SourceSet]:
    """Number the codes that occur twice; groups stay apart unless a reader said that sets share them."""
    taken: set[str] = set()
    unique = []
    for one in sets:
        code, count = one.code, 1
        while code.lower() in taken:
            count += 1
            code = f"{one.code}_{count}"
        taken.add(code.lower())
        unique.append(replace(one, code=code, group_space=one.group_space or code))
    return unique
