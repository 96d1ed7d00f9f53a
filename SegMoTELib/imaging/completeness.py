"""Files that are cut off or damaged where SimpleITK makes up what is missing: half a scan must not pass for a whole."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError

NIFTI = (".nii", ".nii.gz")
PAIRED = (".hdr", ".img", ".img.gz")  # header and data in two files
HEADERS = {".gipl": 256, ".gipl.gz": 256, ".mrc": 1024}  # bytes before the voxels, at least
META = (".mha", ".mhd")
UNCHECKED = (*NIFTI, *PAIRED, *HEADERS, *META, ".vtk")
BIG_TIFF = 43  # version of TIFF files with places of 64 bits
PIECE = 1 << 20


def refuse_incomplete(path: Path) -> None:
    """Let an image file pass that is all there, as far as its own kind can tell; a file of another kind, too.

    Raises:
        VolumeError: it is cut off or damaged. OSError: it cannot be read. RuntimeError: SimpleITK's, of its header.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        _refuse_missing_pages(path)
        return
    name = path.name.lower()
    ending = next((end for end in sorted(UNCHECKED, key=len, reverse=True) if name.endswith(end)), None)
    data = None if ending is None else _data_file(path, ending)
    if data is None:
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    needed, present = _bytes_needed(reader, HEADERS.get(ending or "", 0)), 0
    try:
        with data.open("rb") as file:
            for count in _inflated(file, data == path) if ending in META else _lengths(file, data):
                present += count
                if present >= needed:
                    break
    except (EOFError, OSError, zlib.error) as error:
        raise VolumeError(f"{data}: is cut off or damaged; copy it again.") from error
    if present < needed:
        raise VolumeError(f"{data}: is cut off: {present} of at least {needed} bytes are there; copy it again.")


def _data_file(path: Path, ending: str) -> Path | None:
    """The file whose length tells whether an image is all there; None where SimpleITK sees that itself."""
    if ending in PAIRED:
        stem = path.name[:-len(ending)]
        pair = (path.with_name(stem + end) for end in (".img", ".img.gz", ".IMG", ".IMG.GZ"))
        return next((one for one in pair if one.is_file()), None)
    if ending == ".vtk":
        with path.open("rb") as file:
            return None if b"ASCII" in file.read(PIECE).split(b"\n", 3)[2:3] else path
    if ending in META:
        with path.open("rb") as file:
            fields = _meta_fields(file)
        if fields.get("compresseddata", "")[:1] not in ("T", "t", "1"):
            return None
        kept = path.parent / fields.get("elementdatafile", "")
        return path if kept.name == "LOCAL" else kept if kept.is_file() else None
    return path


def _bytes_needed(reader: sitk.ImageFileReader, header: int) -> int:
    """Bytes of the voxels and of what comes before them in their file, once it is unpacked."""
    size = sitk.GetArrayViewFromImage(sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(),
                                                 reader.GetNumberOfComponents())).nbytes
    # The type in memory is wider than on disk where a NIfTI header scales values: trust its own bits per voxel.
    if reader.HasMetaDataKey("bitpix"):
        size = min(size, max(1, int(reader.GetMetaData("bitpix")) // 8))
    if reader.HasMetaDataKey("vox_offset"):
        offset = float(reader.GetMetaData("vox_offset"))
        header = int(offset) if 0 <= offset < np.inf else 0
    return header + int(np.prod(reader.GetSize(), dtype=np.int64)) * size


def _lengths(file: BinaryIO, path: Path) -> Iterator[int]:
    """Lengths of the pieces of a file, unpacked if it is packed; some are so in name only."""
    packed = path.name.lower().endswith(".gz") and file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source = gzip.GzipFile(fileobj=file) if packed else file
    while piece := source.read(PIECE):
        yield len(piece)


def _inflated(file: BinaryIO, after_header: bool) -> Iterator[int]:
    """Lengths of the pieces of a MetaImage's voxels: SimpleITK takes what lay in memory for those it cannot inflate."""
    if after_header:
        _meta_fields(file)
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    while not inflate.eof and (piece := file.read(PIECE // 16)):
        yield len(inflate.decompress(piece))


def _meta_fields(file: BinaryIO) -> dict[str, str]:
    """The fields of a MetaImage's header, names in small letters; leaves the file where its own voxels begin."""
    fields: dict[str, str] = {}
    while "elementdatafile" not in fields and (line := file.readline(PIECE)):
        name, _, value = line.decode("latin-1").partition("=")
        fields[name.strip().lower()] = value.strip()
    return fields


def _refuse_missing_pages(path: Path) -> None:
    """SimpleITK leaves out the pages of a TIFF file that lie beyond its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        def number(at: int, width: int) -> int:
            if at + width > size:
                raise VolumeError(f"{path}: is cut off: pages are missing; copy it again.")
            file.seek(at)
            return int.from_bytes(file.read(width), "big" if mark == b"MM" else "little")

        mark = file.read(2)
        if mark not in (b"II", b"MM"):
            return
        start, width, counter, entry = (8, 8, 8, 20) if number(2, 2) == BIG_TIFF else (4, 4, 2, 12)
        page, seen = number(start, width), {0}  # the chain of pages ends with no place
        while page not in seen:
            seen.add(page)
            page = number(page + counter + entry * number(page, counter), width)
