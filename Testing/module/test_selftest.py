"""Slicer's own self-test of the module, under pytest."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("name", ["test_points_box_undo", "test_oblique_view", "test_propagate", "test_bad_input",
                                  "test_real_image"])
def test_the_modules_self_test_passes(module, sample_data, name):
    test = module.SegMoTETest()
    test.setUp()
    getattr(test, name)()
