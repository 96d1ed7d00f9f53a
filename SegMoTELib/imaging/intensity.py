"""Which stored values become black and white."""

from __future__ import annotations

import numpy as np

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.volume import Volume

PRESETS = {"ct_soft_tissue": (-160.0, 240.0), "ct_lung": (-1350.0, 150.0), "ct_bone": (-450.0, 1050.0),
           "ct_brain": (0.0, 80.0)}  # Hounsfield units: window 400/40, 1500/-600, 1500/300, 80/40
MAPPINGS = ("window", "percentiles", *PRESETS)
PERCENTILES = (0.5, 99.5)
SAMPLED = 2_000_000  # voxels looked at for percentiles
DISTINCT = 1e-6  # of a value: what float32 can tell from it
LARGEST = float(np.finfo(np.float32).max)  # slices are float32; what is beyond counts as no number


def range_of(volume: Volume, mapping: str, window: tuple[float, float] | None = None) -> tuple[float, float] | None:
    """(black, white) stored values, or None for colour images of 8 bits, which are shown as they are.

    Args:
        volume: what is shown. mapping: one of ``MAPPINGS``. window: (width, centre), for "window".

    Raises:
        VolumeError: unknown mapping, "window" without one, or a volume without a finite value.
    """
    if volume.is_rgb and volume.array.dtype == np.uint8:
        return None
    if mapping in PRESETS:
        return PRESETS[mapping]
    if mapping == "window":
        if window is None or not window[0] > 0:
            raise VolumeError("The volume has no window and level; set them, or choose percentiles.")
        return window[1] - window[0] / 2, window[1] + window[0] / 2
    if mapping != "percentiles":
        raise VolumeError(f"{mapping!r} is not an intensity mapping; choose one of {', '.join(MAPPINGS)}.")
    step = max(1, round((volume.array.size / SAMPLED) ** (1 / 3)))
    values = np.asarray(volume.array[::step, ::step, ::step], np.float64)
    values = values[np.abs(values) <= LARGEST]
    if values.size == 0:
        raise VolumeError("The volume holds no finite value that can be shown; it may be damaged.")
    black, white = (float(value) for value in np.percentile(values, PERCENTILES))
    return (black, white) if white > black else (black, black + max(1.0, abs(black) * DISTINCT))
