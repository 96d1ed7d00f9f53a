"""Volumes from files and segmentations into files, by SimpleITK."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError, reason
from SegMoTELib.imaging.dicom import is_dicom, read_dicom, read_series
from SegMoTELib.imaging.dicom_seg import dicom_seg
from SegMoTELib.imaging.volume import LPS_TO_RAS, Volume

NIFTI = (".nii", ".nii.gz")
SEGMENTATIONS = (".seg.nrrd", ".dcm", ".nii.gz", ".nii")
PAIRED = (".hdr", ".img", ".img.gz")  # header and data in two files
UNCHECKED = (*NIFTI, *PAIRED, ".vtk", ".gipl", ".gipl.gz", ".mrc")  # SimpleITK makes up what is missing at their end
BIG_TIFF = 43  # version of TIFF files with places of 64 bits
PIECE = 1 << 20
SKEWED = 0.25  # of the smallest spacing: how far an axis may lead away from where right angles would lead it


@dataclass(frozen=True)
class NamedMask:
    """One segment to write: a name, a colour of 0-255, and a (K, J, I) bool mask; masks may overlap.

    terminology: an entry in Slicer's serialised form, or "".
    """

    name: str
    color: tuple[int, int, int]
    mask: np.ndarray = field(repr=False)
    terminology: str = ""


def read_volume(path: str | Path, series: str = "") -> Volume:
    """Read any image SimpleITK reads, a DICOM file, or a DICOM series from its folder.

    Args:
        path: file or folder. series: Series Instance UID, where a folder holds several.

    Raises:
        VolumeError: missing, unreadable or incomplete file, several series or one that is no regular volume, a series
            to choose in a single file, or more than three dimensions.
    """
    path = Path(path)
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder.")
    try:
        if path.is_dir() or path.name.upper() == "DICOMDIR":
            return read_series(path, series)
        if series:
            raise VolumeError(f"{path}: is one file, and a series is chosen in a folder; give its DICOM folder, or "
                              "leave the series out.")
        if is_dicom(path):
            return read_dicom(path)
        _refuse_name(path)
        _refuse_truncated(path)
        if path.suffix.lower() in (".tif", ".tiff"):
            _refuse_missing_pages(path)
        image = sitk.ReadImage(str(path))
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except MemoryError as error:
        raise VolumeError(f"{path}: does not fit into memory.") from error
    except RuntimeError as error:
        raise VolumeError(f"{path}: not an image that can be read ({_reason(error)}).") from error
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if dimension == 2:
        image = sitk.JoinSeries(image)
    elif dimension != 3:
        raise VolumeError(f"{path}: has {dimension} dimensions; save one frame as a 3D volume.")
    if components not in (1, 3):
        raise VolumeError(f"{path}: has {components} values per voxel; one (grey) or three (RGB) are needed.")
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), LPS_TO_RAS @ matrix, name=path.name)


def write_segmentation(path: str | Path, volume: Volume, segments: list[NamedMask]) -> None:
    """Write segments atomically, in the format that the file's name says; a file of that name is replaced.

    ``.seg.nrrd``: what Slicer opens as a segmentation; segments that do not overlap share one layer, as Slicer stores
    them. ``.dcm``: a DICOM SEG of the series the volume was read from. ``.nii``, ``.nii.gz``: a label map, 1 for the
    first segment.

    Raises:
        VolumeError: no segments, a mask of another shape, another ending, segments that overlap in a label map, a
            label map of skewed axes, a DICOM SEG of a volume that is not from DICOM, or a file that cannot be written.
    """
    path = Path(path)
    if not segments:
        raise VolumeError("There is no segment to write.")
    for segment in segments:
        if segment.mask.shape != volume.array.shape[:3]:
            raise VolumeError(f"The segment {segment.name!r} has another geometry than the volume.")
    check_output(path, volume)
    if path.name.endswith(".dcm"):
        _write_dicom_seg(path, volume, segments)
        return
    labelmap = path.name.endswith(NIFTI)
    layers, places = _layers(segments)
    if labelmap and len(layers) > 1:
        raise VolumeError(f"{path}: the segments overlap, which a label map cannot hold; write a .seg.nrrd.")
    image = sitk.GetImageFromArray(np.stack(layers, axis=-1) if len(layers) > 1 else layers[0],
                                   isVector=len(layers) > 1)
    lps = LPS_TO_RAS @ volume.ijk_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    for key, value in ({} if labelmap else _tags(segments, places, volume.shape)).items():
        image.SetMetaData(key, value)
    _write_atomically(lambda part: _write_and_compare(image, part), path)


def find_obstacle(path: Path) -> str | None:
    """What keeps a file from being put in its place, in words; None where nothing does, missing folders included."""
    there = next((one for one in path.absolute().parents if one.exists()), None)
    if there is None or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is no folder that you may write to"
    return None


def check_output(path: Path, volume: Volume | None = None) -> None:
    """Refuse what ``write_segmentation`` could not write, before hours of work.

    Args:
        volume: what will be segmented, where it is known already.

    Raises:
        VolumeError: another ending than those of ``SEGMENTATIONS``, a folder, a place that cannot be written, a label
            map of skewed axes, or a DICOM SEG without highdicom or of a volume that is not from DICOM, or in place of
            one of its files.
    """
    _refuse_name(path.absolute())
    if not path.name.endswith(SEGMENTATIONS):
        raise VolumeError(f"{path}: a segmentation's name ends in {', '.join(SEGMENTATIONS)}.")
    if path.is_dir():
        raise VolumeError(f"{path}: is a folder; give the name of a file.")
    obstacle = find_obstacle(path)
    if obstacle is not None:
        raise VolumeError(f"{path}: cannot be written ({obstacle}).")
    if volume is not None and path.exists() and any(source.exists() and path.samefile(source)
                                                    for source in volume.sources):
        raise VolumeError(f"{path}: is a file of the volume itself; choose another name.")
    if volume is not None and path.name.endswith(NIFTI) and _is_skewed(volume):
        raise VolumeError(f"{path}: the axes of the volume are not at right angles, which NIfTI cannot hold; write a "
                          ".seg.nrrd.")
    if path.name.endswith(".dcm"):
        if find_spec("highdicom") is None:
            raise VolumeError("DICOM SEG needs highdicom: pip install segmote[dicom]; or write a .seg.nrrd.")
        if volume is not None and not volume.sources:
            raise VolumeError(f"{path}: a DICOM SEG refers to a DICOM series, but the volume was not read from one; "
                              "write a .seg.nrrd.")


def _write_dicom_seg(path: Path, volume: Volume, segments: list[NamedMask]) -> None:
    """As DICOM SEG; where the series cannot carry one, as .seg.nrrd beside it, so that no work is lost."""
    if not any(segment.mask.any() for segment in segments):
        raise VolumeError(f"{path}: there is no voxel to write; a DICOM SEG cannot be empty.")
    try:
        found = dicom_seg(path, volume, segments)
    except VolumeError as error:
        number, rescue = 1, path.with_name(f"{path.name[:-4]}.seg.nrrd")
        while rescue.exists():
            number, rescue = number + 1, path.with_name(f"{path.name[:-4]}_{number + 1}.seg.nrrd")
        write_segmentation(rescue, volume, segments)
        raise VolumeError(f"{error} The segments are in {rescue} instead.") from error
    _write_atomically(found.save_as, path)


def _refuse_name(path: Path) -> None:
    """SimpleITK ends the whole program at a name that is no Unicode text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise VolumeError(f"{path}: its name has characters of another encoding than UTF-8; rename it.") from None


def _reason(error: RuntimeError) -> str:
    """SimpleITK's words, or ours where they mislead."""
    words = reason(error)
    if "orthonormal" in words:
        return "its header gives axes that are not at right angles, or are damaged; resample it or correct the header"
    if words.startswith("Reason:"):  # of whichever system call failed last
        return "its data are missing, cut off or damaged"
    return words


def _is_skewed(volume: Volume) -> bool:
    """Whether right angles, which are all that NIfTI holds, would put voxels into another place."""
    left, _, right = np.linalg.svd(volume.directions)
    away = np.linalg.norm((volume.directions - left @ right) * volume.spacing * volume.shape, axis=0)
    return bool(away.max() > SKEWED * volume.spacing.min())


def _refuse_truncated(path: Path) -> None:
    """SimpleITK makes up the missing end of some files; half a scan must not pass for a whole one."""
    data = _data_file(path)
    if data is None:
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    bits = sitk.GetArrayViewFromImage(sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(),
                                                 reader.GetNumberOfComponents())).nbytes
    # The type in memory is wider than on disk where the header scales values: trust the header's own bits per voxel.
    needed = int(np.prod(reader.GetSize(), dtype=np.int64)) * min(bits, _nifti_bytes(reader, bits))
    present = 0
    try:
        with data.open("rb") as file:
            packed = data.name.lower().endswith(".gz") and file.read(2) == b"\x1f\x8b"  # some are so in name only
        with (gzip.open if packed else open)(data, "rb") as file:
            while present < needed and (piece := file.read(PIECE)):
                present += len(piece)
    except (EOFError, OSError, zlib.error) as error:
        raise VolumeError(f"{data}: is cut off or damaged; copy it again.") from error
    if present < needed:
        raise VolumeError(f"{data}: is cut off: {present} of at least {needed} bytes are there; copy it again.")


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


def _data_file(path: Path) -> Path | None:
    """The file whose length tells whether an image is all there; None where SimpleITK sees that itself."""
    name = path.name.lower()
    ending = next((end for end in sorted(UNCHECKED, key=len, reverse=True) if name.endswith(end)), None)
    if ending in PAIRED:
        stem = path.name[:-len(ending)]
        pair = (path.with_name(stem + end) for end in (".img", ".img.gz", ".IMG", ".IMG.GZ"))
        return next((one for one in pair if one.is_file()), None)
    if ending == ".vtk":
        with path.open("rb") as file:
            return None if b"ASCII" in file.read(PIECE).split(b"\n", 3)[2:3] else path
    return path if ending else None


def _nifti_bytes(reader: sitk.ImageFileReader, default: int) -> int:
    """Bytes per voxel as the header says."""
    if not reader.HasMetaDataKey("bitpix"):
        return default
    return max(1, int(reader.GetMetaData("bitpix")) // 8)


def _layers(segments: list[NamedMask]) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """uint8 layers and, per segment, its layer and label value; a segment goes to the first layer it fits."""
    layers: list[np.ndarray] = []
    places: list[tuple[int, int]] = []
    for segment in segments:
        number = next((n for n, layer in enumerate(layers)
                       if layer.max() < 255 and not layer[segment.mask].any()), len(layers))
        if number == len(layers):
            layers.append(np.zeros(segment.mask.shape, np.uint8))
        value = sum(1 for layer, _ in places if layer == number) + 1
        layers[number][segment.mask] = value
        places.append((number, value))
    return layers, places


def _tags(segments: list[NamedMask], places: list[tuple[int, int]], shape: tuple[int, int, int]) -> dict[str, str]:
    """Slicer's segment fields (vtkMRMLSegmentationStorageNode)."""
    extent = " ".join(f"0 {n - 1}" for n in shape)
    tags = {"Segmentation_MasterRepresentation": "Binary labelmap",
            "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
            "Segmentation_ReferenceImageExtentOffset": "0 0 0"}
    for index, (segment, (layer, value)) in enumerate(zip(segments, places, strict=True)):
        tags |= {f"Segment{index}_ID": f"Segment_{index + 1}", f"Segment{index}_Name": segment.name,
                 f"Segment{index}_NameAutoGenerated": "0", f"Segment{index}_ColorAutoGenerated": "0",
                 f"Segment{index}_Color": " ".join(f"{part / 255:.6f}" for part in segment.color),
                 f"Segment{index}_Extent": extent, f"Segment{index}_Layer": str(layer),
                 f"Segment{index}_LabelValue": str(value)}
        if segment.terminology:
            tags[f"Segment{index}_Tags"] = f"TerminologyEntry:{segment.terminology}|"
    return tags


def _write_and_compare(image: sitk.Image, path: str) -> None:
    """On a full disk, SimpleITK leaves half a file without a word."""
    sitk.WriteImage(image, path, useCompression=True)
    try:
        back = sitk.ReadImage(path)  # its own name: a view does not keep its image alive
        same = np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(image))
    except RuntimeError:
        same = False
    if not same:
        raise OSError("what was written does not come back; is the disk full?")


def _write_atomically(write: Callable[[str], None], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = next(end for end in SEGMENTATIONS if path.name.endswith(end))
        handle, temporary = tempfile.mkstemp(suffix=ending, prefix=".", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written ({error.strerror}).") from error
    try:
        write(temporary)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise VolumeError(f"{path}: cannot be written ({reason(error)}).") from error
    finally:  # Ctrl+C too leaves no half file
        Path(temporary).unlink(missing_ok=True)
