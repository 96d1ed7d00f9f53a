"""Pixels of a DICOM file as numbers that mean something: decompressed, cleaned, rescaled, bright where bright, RGB.

pydicom decodes; what its decoders lack (JPEG lossless, JPEG of 12 bits) GDCM decodes through SimpleITK.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SegMoTELib.errors import VolumeError, reason

if TYPE_CHECKING:
    from pydicom import Dataset

def quiet(function: Callable) -> Callable:
    """Decorator: keep pydicom's remarks on values, made when they are first looked at, from the user."""
    @wraps(function)
    def silenced(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **options)
    return silenced


def open_dicom(path: Path, **options: Any) -> Dataset:
    """pydicom's data set of a file, with a transfer syntax also where the file's own preamble is missing.

    Args:
        options: of ``pydicom.dcmread``. Errors are pydicom's, of many kinds.
    """
    import pydicom
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    data = pydicom.dcmread(path, force=True, **options)
    if not data.file_meta.get("TransferSyntaxUID"):
        implicit, little = data.original_encoding
        data.file_meta.TransferSyntaxUID = UID(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
                                               if little else ExplicitVRBigEndian)
    return data


@quiet
def frames_of(path: Path) -> np.ndarray:
    """(frames, rows, columns) of a file, or (frames, rows, columns, 3) RGB.

    Grey values are rescaled (frame by frame where the file says so); they keep their type where there is nothing to
    rescale, otherwise they are int16, int32 or float32. MONOCHROME1 is turned round within the range of its stored
    bits, so that bright is what the sender wants to see bright, with padding at the dark end; values in Hounsfield
    units and PET are never turned round. Palettes become uint8 RGB.

    Raises:
        VolumeError: damaged or compressed in a way that nothing here decodes; names the file.
    """
    try:
        data = open_dicom(path)
        if not any(data.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ValueError("it holds none")
        return _values(data, _decoded(data))
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise VolumeError(f"{path}: its pixels cannot be read ({reason(error)}).") from error


def _decoded(data: Dataset) -> np.ndarray:
    """(frames, rows, columns[, 3]) stored values, colours as RGB."""
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    try:
        frames = _each_frame(get_decoder(syntax), data)
    except (RuntimeError, NotImplementedError):
        if not syntax.is_encapsulated:
            raise
        try:
            frames = _each_frame(_gdcm(syntax), data)
        except RuntimeError as error:
            raise ValueError(f"{syntax.name}, cut off, damaged or not supported") from error
    array, kind = np.stack([frame for frame, _ in frames]), frames[0][1]["photometric_interpretation"]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 4 and kind not in ("RGB", "YBR_RCT", "YBR_ICT"):
        raise ValueError(f"colours of the kind {kind}")
    return array if array.ndim == 4 or syntax.is_encapsulated else _without_overlay(array, data)


def _each_frame(decoder: Any, data: Dataset) -> list[tuple[np.ndarray, dict]]:
    """Frames one by one, for colours are converted in float32."""
    try:
        return list(decoder.iter_array(data))
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        # pydicom corrects the sign of JPEG 2000 in place, and only what it decodes by index can be written to.
        return [decoder.as_array(data, index=number) for number in range(int(data.get("NumberOfFrames") or 1))]


@lru_cache
def _gdcm(syntax: str):
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

    decoder = Decoder(UID(syntax))
    decoder.add_plugin("simpleitk", (__name__, "decode_frame"))
    return decoder


def is_available(uid: str) -> bool:
    """Whether ``decode_frame`` can be tried; pydicom asks."""
    return True


def decode_frame(src: bytes, runner: Any) -> bytes:
    """One compressed frame by GDCM, in the form that pydicom asks of a decoder."""
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = runner.transfer_syntax
    one.SOPClassUID, one.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    one.Rows, one.Columns, one.SamplesPerPixel = runner.rows, runner.columns, runner.samples_per_pixel
    one.BitsAllocated, one.BitsStored = runner.bits_allocated, runner.bits_stored
    one.HighBit, one.PixelRepresentation = runner.bits_stored - 1, runner.pixel_representation
    one.PhotometricInterpretation = "MONOCHROME2"
    if runner.samples_per_pixel > 1:
        one.PhotometricInterpretation, one.PlanarConfiguration = str(runner.photometric_interpretation), 0
    one.PixelData = encapsulate([bytes(src)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        one.save_as(path, enforce_file_format=True)
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if runner.samples_per_pixel > 1:
        runner.set_option("photometric_interpretation", "RGB")
        runner.set_option("planar_configuration", 0)
    return array.astype(runner.pixel_dtype).tobytes()


def _without_overlay(array: np.ndarray, data: Dataset) -> np.ndarray:
    """Stored values without what else may lie in the bits above (old overlays) or below them."""
    allocated, stored = int(data.BitsAllocated), int(data.get("BitsStored") or data.BitsAllocated)
    if array.dtype.kind not in "iu" or stored >= allocated:
        return array
    above = allocated - 1 - int(data.get("HighBit", stored - 1))
    return np.right_shift(np.left_shift(array, above), allocated - stored)  # keeps the sign


def _values(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Rescaled values, or RGB."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    kind = str(data.get("PhotometricInterpretation", ""))
    if stored.ndim == 4:
        return stored
    if kind == "PALETTE COLOR":
        colours = np.stack([apply_color_lut(frame, data)[..., :3] for frame in stored])
        return (colours >> 8).astype(np.uint8) if colours.max() > 255 else colours.astype(np.uint8)
    rescale = [_rescale(data, number) for number in range(len(stored))]
    usual = "HU" if data.get("Modality") == "CT" else ""  # CT names its unit only where it is another
    in_units = data.get("Modality") == "PT" or any((unit or usual) == "HU" for *_, unit in rescale)
    inverted = kind == "MONOCHROME1" and not in_units
    padding = _padding(data, stored) if inverted else None
    if data.get("ModalityLUTSequence"):
        table = data.ModalityLUTSequence[0]
        values = apply_modality_lut(stored, data)
        values = np.uint16(2 ** int(table.LUTDescriptor[2]) - 1) - values if inverted else values
    else:
        values = np.stack([_line(frame, slope, intercept) for frame, (slope, intercept, _) in
                           zip(_inverted(stored, data) if inverted else stored, rescale, strict=True)])
    if padding is not None and padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    return values


def _inverted(stored: np.ndarray, data: Dataset) -> np.ndarray:
    """The stored range turned round: its least value for its greatest."""
    if stored.dtype.kind == "f":
        return stored.min() + stored.max() - stored
    if stored.dtype.kind == "i":
        return -1 - stored
    top = stored.dtype.type(2 ** int(data.BitsStored) - 1)
    return top - np.minimum(stored, top)


def _padding(data: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where a file says that there is no image."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return None
    ends = sorted((int(value), int(data.get("PixelPaddingRangeLimit", value))))
    return (stored >= ends[0]) & (stored <= ends[1])


def _rescale(data: Dataset, frame: int) -> tuple[float, float, str]:
    """(slope, intercept, type) of a frame: its own, the shared, or the file's."""
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    sources = [*groups[frame:frame + 1], *(data.get("SharedFunctionalGroupsSequence") or [])]
    items = [item for source in sources for item in source.get("PixelValueTransformationSequence") or []]
    item = (items or [data])[0]
    slope, intercept = (float(default if item.get(name) in (None, "") else item[name].value)
                        for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ValueError(f"its rescale slope is {slope:g} and its intercept {intercept:g}")
    return slope, intercept, str(item.get("RescaleType") or "")


def _line(frame: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if (slope, intercept) == (1, 0):
        return frame
    whole = slope == int(slope) and intercept == int(intercept) and frame.dtype.kind in "iu"
    if whole and max(abs(int(frame.min())), abs(int(frame.max()))) * abs(slope) + abs(intercept) < 2 ** 31:
        values = frame.astype(np.int32) * np.int32(slope) + np.int32(intercept)
        fits = values.min() >= -32768 and values.max() <= 32767
        return values.astype(np.int16) if fits else values
    return (frame.astype(np.float64) * slope + intercept).astype(np.float32)
