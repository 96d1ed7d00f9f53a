"""Image files and volumes with their geometry, cut into labelled slices."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageOps

from SegMoTELib.data.grey_levels import CT_WINDOW, as_grey_or_rgb, to_8_bit
from SegMoTELib.data.items import Item
from SegMoTELib.errors import DataError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
ORIENTATION_TAG = 0x0112  # of EXIF and TIFF; 1 is upright
NIFTI_HEADER = 348  # bytes; a NIfTI file starts with this number
GEOMETRY_TOLERANCE = 1e-2  # mm for origins and spacings, cosine for directions


@dataclass(frozen=True)
class Raster:
    """Pixels with their geometry.

    Attributes:
        array: (Y, X) or (Z, Y, X), colour channels last where there are any.
        dimension: 2 or 3 spatial dimensions.
        spacing_mm: one a spatial axis in the array's order, or None for a plain picture.
        image: the SimpleITK image behind it, or None for a plain picture.
    """

    array: np.ndarray
    dimension: int
    spacing_mm: tuple[float, ...] | None
    image: sitk.Image | None

    @property
    def size(self) -> tuple[int, ...]:
        """Number of pixels along each spatial axis."""
        return self.array.shape[:self.dimension]


def is_image_file(path: Path) -> bool:
    """Tell by its name whether a file is a picture or a volume that can be read here."""
    return path.name.lower().endswith(PICTURE_SUFFIXES + VOLUME_SUFFIXES)


def stem(path: Path) -> str:
    """Return a file's name without its image suffix (``.nii.gz`` is one suffix)."""
    name = path.name
    for suffix in (".seg.nrrd", *VOLUME_SUFFIXES, *PICTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[:-len(suffix)]
    return path.stem


def read_raster(path: Path, label: bool = False) -> Raster:
    """Read a picture or a volume; volumes are brought to LPS axis order without resampling.

    Args:
        path: the file. label: it holds labels: a palette's indices, not its colours, and nothing that was compressed
            with losses.

    Raises:
        DataError: missing, unreadable, neither 2D nor 3D, or labels that such a file cannot hold.
    """
    if not path.exists():
        raise DataError(f"{path}: file not found.")
    try:
        if path.name.lower().endswith(PICTURE_SUFFIXES):
            return _read_picture(path, label)
        holes = _check_nifti(path, label) if path.name.lower().endswith((".nii", ".nii.gz")) else None
        image = sitk.ReadImage(str(path))
    except (OSError, EOFError, zlib.error, SyntaxError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable image ({_last_line(error)}).") from error
    return raster_of(image if holes is None else _with_holes(image, holes), path)


def _read_picture(path: Path, label: bool) -> Raster:
    with Image.open(path) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise DataError(f"{path}: {pages} pages; convert a stack to NIfTI or NRRD.")
        if label and picture.format == "JPEG":
            raise DataError(f"{path}: JPEG changes pixel values, so it cannot hold labels; export them as PNG.")
        deep = picture.mode in ("RGB", "RGBA") and ";16" in str(picture.tile[0][3])
        orientation = picture.getexif().get(ORIENTATION_TAG, 1)
        if orientation != 1 if deep else orientation > 4 and picture.format == "TIFF":  # Pillow would garble it
            raise DataError(f"{path}: stored turned (orientation {orientation}); save it upright.")
        if deep:
            return Raster(_deep_colours(path), 2, None, None)
        picture.load()  # which turns a TIFF
        ImageOps.exif_transpose(picture, in_place=True)  # upright, as it was shown to whoever labelled it
        as_stored = label or picture.mode in ("1", "L", "LA", "RGB", "RGBA", "F") or picture.mode.startswith("I")
        return Raster(np.asarray(picture if as_stored else picture.convert("RGB")), 2, None, None)


def _deep_colours(path: Path) -> np.ndarray:
    """(H, W, 3) colours of 16 bits, of which Pillow would drop the lower half without a word."""
    import cv2

    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DataError(f"{path}: its 16 bits a channel cannot be read; save it with 8 bits a channel.")
    return values[..., 2::-1]


def raster_of(image: sitk.Image, path: Path) -> Raster:
    """Wrap a SimpleITK image; ``path`` is named in errors.

    Raises:
        DataError: neither 2D nor 3D.
    """
    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise DataError(f"{path}: {dimension} dimensions, expected 2 or 3.")
    if dimension == 3:
        image = sitk.DICOMOrient(image, "LPS")
    return Raster(sitk.GetArrayFromImage(image), dimension, tuple(reversed(image.GetSpacing())), image)


def check_same_grid(image: Raster, label: Raster, label_path: Path) -> None:
    """Make sure a label lies on its image's pixels.

    Raises:
        DataError: another size, spacing, origin or direction.
    """
    if image.size != label.size:
        raise DataError(f"{label_path}: {'x'.join(map(str, label.size))} pixels, but its image has "
                        f"{'x'.join(map(str, image.size))}.")
    if image.image is None or label.image is None:
        return
    for what, get in (("spacing", sitk.Image.GetSpacing), ("origin", sitk.Image.GetOrigin),
                      ("direction", sitk.Image.GetDirection)):
        here, there = get(label.image), get(image.image)
        if not np.allclose(here, there, atol=GEOMETRY_TOLERANCE):
            raise DataError(f"{label_path}: its {what} {np.round(here, 4).tolist()} differs from the image's "
                            f"{np.round(there, 4).tolist()}.")


def labelled_slices(identifier: str, image: Raster, labels: list[np.ndarray], modality: str, source_file: Path, *,
                    group: str, split: str | None = None,
                    ct_window: tuple[float, float] = CT_WINDOW) -> Iterator[Item]:
    """Cut a volume along its axis of largest spacing, or take a 2D image as it is.

    Slices without a label are left out; a 2D image always comes back, so that an empty label can be reported.

    Raises:
        DataError: a volume without any labelled voxel.

    Args:
        identifier: name of the image; slices get ``_z012`` (or y, x) appended.
        image: the pixels.
        labels: uint8 index maps of the image's size; overlapping labels need several.
        modality: decides the mapping to 8 bit.
        source_file: named in the report.
        group: of all slices.
        split: of all slices where the source fixes it.
        ct_window: (centre, width) in HU.
    """
    if image.dimension == 3 and not any(label.any() for label in labels):
        raise DataError(f"{source_file}: its label is empty; no voxel is labelled.")
    pixels, spacing = to_8_bit(image.array, modality, ct_window), image.spacing_mm or ()
    for number, label in enumerate(labels, start=1):
        layer = f"_layer{number}" if number > 1 else ""
        if image.dimension == 2:
            yield Item(identifier + layer, as_grey_or_rgb(pixels), label, group, source_file, split,
                       (spacing[0], spacing[1]) if spacing else None)
            continue
        axis = int(np.argmax(spacing))
        down, right = (value for other, value in enumerate(spacing) if other != axis)
        for index in np.flatnonzero(label.any(axis=tuple({0, 1, 2} - {axis}))):
            place = f"_{'zyx'[axis]}{index:03d}" if label.shape[axis] > 1 else ""
            yield Item(identifier + place + layer, as_grey_or_rgb(pixels.take(index, axis)), label.take(index, axis),
                       group, source_file, split, (down, right))


def _check_nifti(path: Path, label: bool) -> np.ndarray | None:
    """Count the bytes, and look for NaN and infinities: ITK turns what is missing and what is no number to 0, silently.

    Returns:
        places of what is no number among the voxels in stored order, or None; labels with such are an error.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    dimensions, offset = int(reader.GetMetaData("dim[0]")), int(float(reader.GetMetaData("vox_offset")))
    voxels = math.prod(max(1, int(reader.GetMetaData(f"dim[{axis}]"))) for axis in range(1, dimensions + 1))
    expected = offset + voxels * int(reader.GetMetaData("bitpix")) / 8
    kind = {"16": "f4", "64": "f8"}.get(reader.GetMetaData("datatype"))
    holes, voxel = [], 0
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
        header = stream.read(offset)
        found = len(header)
        order = "<" if int.from_bytes(header[:4], "little") == NIFTI_HEADER else ">"
        for block in iter(lambda: stream.read(1 << 20), b""):
            found += len(block)
            if kind:
                values = np.frombuffer(block, order + kind, len(block) // int(kind[1]))
                holes.append(np.flatnonzero(~np.isfinite(values)) + voxel)
                voxel += len(values)
    if label and any(map(len, holes)):
        raise DataError(f"{path}: labels must be integers, found NaN or infinite values.")
    if found < expected:
        raise DataError(f"{path}: not a readable image (truncated: {found} of {expected:.0f} bytes).")
    return np.concatenate(holes) if any(map(len, holes)) else None


def _with_holes(image: sitk.Image, holes: np.ndarray) -> sitk.Image:
    """Put NaN back where a NIfTI file holds no number, so that it is as dark as in any other format and not 0 HU."""
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind != "f" or image.GetNumberOfComponentsPerPixel() > 1:
        return image
    array.flat[holes[holes < array.size]] = np.nan
    restored = sitk.GetImageFromArray(array)
    restored.CopyInformation(image)
    return restored


def _last_line(error: Exception) -> str:
    """SimpleITK puts the sentence that matters last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
