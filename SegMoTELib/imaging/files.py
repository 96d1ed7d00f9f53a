"""Volumes from files and segmentations into files, by SimpleITK."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegMoTELib.errors import VolumeError, reason
from SegMoTELib.imaging.completeness import NIFTI, refuse_incomplete
from SegMoTELib.imaging.dicom import is_dicom, read_dicom, read_series
from SegMoTELib.imaging.dicom_seg import dicom_seg
from SegMoTELib.imaging.volume import LPS_TO_RAS, Volume

SEGMENTATIONS = (".seg.nrrd", ".dcm", ".nii.gz", ".nii")
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
        if not path.is_file():
            raise VolumeError(f"{path}: is no ordinary file; save the volume to one.")
        if is_dicom(path):
            return read_dicom(path)
        _refuse_name(path)
        refuse_incomplete(path)
        image = sitk.ReadImage(str(path))
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except MemoryError as error:
        raise VolumeError(f"{path}: does not fit into memory.") from error
    except RuntimeError as error:
        raise VolumeError(f"{path}: not an image that can be read ({_reason(error)}).") from error
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:  # a series of one
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0))
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
    path = _followed(path)
    there = next((one for one in path.absolute().parents if os.path.exists(one)), None)
    if there is None or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is no folder that you may write to"
    try:
        for name in path.absolute().relative_to(there).parts:
            with suppress(FileNotFoundError):
                os.lstat(there / name)  # too long a name is told here, and not where its folder is still missing
    except OSError as error:
        return error.strerror or str(error)
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} is write-protected"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return f"{path} is no ordinary file"
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
    if os.path.isdir(path):  # Path.is_dir fails on too long a name, which is told next
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
    """Write beside a file, then put it in its place; where a link leads, if it is one."""
    place = _followed(path)
    part = place.with_name(f".{uuid.uuid4().hex}{next(end for end in SEGMENTATIONS if path.name.endswith(end))}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # As readable as any new file, which tempfile's are not, and no more than what it replaces.
        mode = 0o666 & (place.stat().st_mode if place.exists() else ~0)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        write(str(part))
        os.replace(part, place)
    except (RuntimeError, OSError) as error:
        words = getattr(error, "strerror", None) or reason(error)
        raise VolumeError(f"{path}: cannot be written ({words}).") from error
    finally:  # Ctrl+C too leaves no half file
        with suppress(OSError):
            part.unlink()


def _followed(path: Path) -> Path:
    """Where a link leads; the path itself if it is none."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path
