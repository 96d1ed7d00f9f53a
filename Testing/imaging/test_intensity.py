"""Which values become black and white."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.intensity import PRESETS, range_of
from SegMoTELib.imaging.volume import Volume


def volume_of(array) -> Volume:
    return Volume(np.asarray(array), np.eye(4))


def test_a_window_is_width_and_centre():
    assert range_of(volume_of(np.zeros((2, 2, 2))), "window", (400, 40)) == (-160, 240)


@pytest.mark.parametrize("name", PRESETS)
def test_ct_presets_do_not_look_at_the_values(name):
    assert range_of(volume_of(np.zeros((2, 2, 2))), name) == PRESETS[name]


def test_percentiles_ignore_outliers_and_values_that_are_not_numbers():
    array = np.random.default_rng(0).uniform(0, 100, (30, 30, 30))
    array[0, 0, :3] = 1e9, np.nan, np.inf
    black, white = range_of(volume_of(array), "percentiles")
    assert 0 <= black < 2
    assert 98 < white <= 100


def test_a_flat_volume_has_a_range_too():
    black, white = range_of(volume_of(np.full((3, 3, 3), 7)), "percentiles")
    assert black == 7
    assert white > black


def test_colour_of_eight_bits_is_shown_as_it_is():
    assert range_of(volume_of(np.zeros((1, 4, 4, 3), np.uint8)), "percentiles") is None


@pytest.mark.parametrize(("array", "mapping", "window", "message"), [
    (np.zeros((2, 2, 2)), "window", None, "set them, or choose percentiles"),
    (np.zeros((2, 2, 2)), "window", (0, 10), "set them, or choose percentiles"),
    (np.zeros((2, 2, 2)), "rainbow", None, "choose one of"),
    (np.full((2, 2, 2), np.nan), "percentiles", None, "no finite value"),
])
def test_what_cannot_be_shown_is_said(array, mapping, window, message):
    with pytest.raises(VolumeError, match=message):
        range_of(volume_of(array), mapping, window)


@pytest.mark.parametrize("value", [7, 2**63, -3.4e38, 1e20])
def test_one_value_everywhere_has_a_range_however_large_it_is(value):
    array = np.full((2, 3, 4), value, np.uint64 if value == 2**63 else np.float32)
    black, white = range_of(Volume(array, np.eye(4)), "percentiles")
    assert np.float32(black) < np.float32(white) < np.inf
