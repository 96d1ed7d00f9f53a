"""Any intensity range to 8 bit, the same mapping for a whole volume."""

from __future__ import annotations

import numpy as np

from SegMoTELib.errors import DataError

CT_WINDOW = (40.0, 400.0)  # centre and width in HU: soft tissue, the usual window of abdominal CT
PERCENTILES = (0.5, 99.5)


def to_8_bit(values: np.ndarray, modality: str, ct_window: tuple[float, float] = CT_WINDOW) -> np.ndarray:
    """Map intensities to uint8; uint8 input comes back as it is.

    CT is mapped by a window in HU, everything else linearly between the 0.5 and 99.5 percentiles of the array, so a
    volume must come as a whole. So is CT in unsigned integers, which cannot hold HU.

    Args:
        values: any shape and numeric dtype; HU for CT.
        modality: "CT" or another.
        ct_window: (centre, width) in HU.

    Returns:
        uint8 array of the same shape.

    Raises:
        DataError: the array holds no finite value.
    """
    if values.dtype == np.uint8:
        return values
    in_hu = modality == "CT" and values.dtype.kind in "if"
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise DataError("the image holds no finite value")
    if in_hu:
        centre, width = ct_window
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = np.percentile(values[finite], PERCENTILES)
    scaled = np.clip((values - low) / max(high - low, float(np.finfo(np.float32).tiny)), 0, 1)
    return np.round(np.where(finite, scaled, 0) * 255).astype(np.uint8)


def as_grey_or_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W) or (H, W, 3): alpha is dropped, three equal channels become one.

    Args:
        pixels: (H, W), or (H, W, C) with 1 to 4 channels.

    Raises:
        DataError: another number of channels.
    """
    if pixels.ndim == 2:
        return pixels
    channels = pixels.shape[-1]
    if pixels.ndim != 3 or channels > 4:
        raise DataError(f"an image of shape {pixels.shape} is neither grey nor RGB")
    colours = pixels[..., :3] if channels >= 3 else pixels[..., :1]
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    return np.ascontiguousarray(colours)
