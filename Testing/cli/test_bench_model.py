"""``segmote bench model``: what it compares must be equal, or its ratios say nothing."""

from __future__ import annotations

import torch

from SegMoTELib.benchmarks.model import _bench_click, _bench_published, _same_weights


def test_a_click_is_compared_on_equal_masks():
    with torch.no_grad():
        rows = _bench_click(*_same_weights(None), repeats=1)
    assert set(rows) == {"three masks", "one mask"}
    for row in rows.values():
        assert row["max_difference"] < 1e-4
        assert row["ratio"] == row["segment_anything"] / row["segmote"] > 0


def test_the_published_decoder_equals_the_naive_formulation():
    with torch.no_grad():
        row = _bench_published(repeats=1)
    assert row["max_difference"] < 1e-4
