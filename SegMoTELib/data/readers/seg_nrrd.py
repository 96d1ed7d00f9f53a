"""3D Slicer's ``.seg.nrrd``: named segments, in layers where they overlap, often cropped to their extent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegMoTELib.data.volumes import GEOMETRY_TOLERANCE, Raster
from SegMoTELib.errors import DataError


def read_segment_names(paths: list[Path]) -> list[str]:
    """Return the names of all segments in some files, sorted; a file that cannot be read adds none."""
    names: set[str] = set()
    for path in paths:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            found = _segments({key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}, path)
        except (RuntimeError, DataError):  # told by name when its turn to be read comes
            continue
        names.update(name for name, _, _ in found)
    return sorted(names)


def read_segments(path: Path, image: Raster) -> dict[str, np.ndarray]:
    """Return the segments of a file on the grid of its image.

    Args:
        path: a ``.seg.nrrd`` file, possibly cropped; its voxels must lie on the image's voxels.
        image: the volume it belongs to.

    Returns:
        name -> bool array of the image's size.

    Raises:
        DataError: unreadable, without segments, or on another grid.
    """
    try:
        stored = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: not a readable segmentation ({str(error).splitlines()[-1].strip()}).") from error
    segments = _segments({key: stored.GetMetaData(key) for key in stored.GetMetaDataKeys()}, path)
    if not segments:
        raise DataError(f"{path}: no segments described in its header.")
    if image.image is None or stored.GetDimension() != image.dimension:
        raise DataError(f"{path}: {stored.GetDimension()}D segments for a {image.dimension}D image.")
    if image.dimension == 3:
        stored = sitk.DICOMOrient(stored, "LPS")
    offset = np.subtract(image.image.TransformPhysicalPointToContinuousIndex(stored.GetOrigin()), 0)
    if not (np.allclose(stored.GetSpacing(), image.image.GetSpacing(), atol=GEOMETRY_TOLERANCE)
            and np.allclose(stored.GetDirection(), image.image.GetDirection(), atol=GEOMETRY_TOLERANCE)
            and np.allclose(offset, np.round(offset), atol=0.05)):
        raise DataError(f"{path}: its voxels do not lie on the voxels of the image.")
    return _on_grid(stored, np.round(offset).astype(int)[::-1], image, segments, path)


def _on_grid(stored: sitk.Image, offset: np.ndarray, image: Raster, segments: list[tuple[str, int, int]],
             path: Path) -> dict[str, np.ndarray]:
    """Copy voxels by whole steps, so nothing is resampled; labelled voxels outside the image are an error."""
    array = sitk.GetArrayFromImage(stored)
    layers = array if array.ndim > image.dimension else array[..., None]
    size = np.array(layers.shape[:-1])
    first, last = np.clip(-offset, 0, size), np.clip(np.array(image.size) - offset, 0, size)
    inside = tuple(slice(low, high) for low, high in zip(first, last, strict=True))
    target = tuple(slice(low, high) for low, high in zip(first + offset, last + offset, strict=True))
    masks: dict[str, np.ndarray] = {}
    for name, value, layer in segments:
        if not 0 <= layer < layers.shape[-1]:
            raise DataError(f"{path}: segment {name!r} should be in layer {layer}, but the layers end at "
                            f"{layers.shape[-1] - 1}.")
        segment = layers[..., layer] == value
        mask = np.zeros(image.size, bool)
        mask[target] = segment[inside]
        if mask.sum() != segment.sum():
            raise DataError(f"{path}: segment {name!r} reaches beyond the image.")
        masks[name] = masks[name] | mask if name in masks else mask
    return masks


def _segments(metadata: dict[str, str], path: Path) -> list[tuple[str, int, int]]:
    """(name, label value, layer) of each segment in a header; before Slicer 4.11 each had a layer of its own."""
    found: list[tuple[str, int, int]] = []
    described = filter(None, (re.fullmatch(r"Segment(\d+)_ID", key) for key in metadata))
    for index in sorted(int(match[1]) for match in described):
        prefix = f"Segment{index}_"
        try:
            value, layer = int(metadata.get(prefix + "LabelValue", 1)), int(metadata.get(prefix + "Layer", index))
        except ValueError as error:
            raise DataError(f"{path}: LabelValue and Layer of segment {index} must be numbers ({error}).") from None
        found.append((metadata.get(prefix + "Name") or metadata[prefix + "ID"], value, layer))
    return found
