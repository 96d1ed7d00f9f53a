"""Propagation on synthetic objects whose ends are known, with the bundled model."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction import carrying, propagation
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.interaction.propagation import propagate
from SegMoTELib.interaction.session import Session
from SegMoTELib.network import load_checkpoint
from SegMoTELib.zoo import resolve_model

SHAPE = (40, 64, 64)


def ball(center, radii, shape=SHAPE) -> np.ndarray:
    """Ellipsoid, bool (K, J, I); centre and radii as k, j, i."""
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    return (((grid - center) / radii) ** 2).sum(axis=-1) <= 1


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu", "fp32")
    predictor.focus = False  # no closer looks: these objects are large, and it is four times as fast
    return predictor


@pytest.fixture
def scan(predictor):
    """Function: bool (K, J, I), grey difference -> session and stack of a noisy volume with this object in it."""
    def make(truth, contrast=60.0, matrix=None):
        noise = np.random.default_rng(0).normal(0, 5, truth.shape)
        volume = Volume((100 + contrast * truth + noise).astype(np.float32),
                        np.diag([1.0, 1, 1, 1]) if matrix is None else matrix)
        return Session(predictor, volume, (40.0, 220.0)), PlaneStack.along(volume, "axial")
    return make


def voxels(found, stack) -> np.ndarray:
    """The masks of a result as one (K, J, I) array."""
    whole = np.zeros(stack.volume.array.shape, bool)
    for index, mask in found.masks.items():
        patch = stack.planes[index].insert(mask.full(), stack.volume)
        whole[patch.slices] |= patch.array
    return whole


def on(stack, truth, index) -> np.ndarray:
    """A (K, J, I) truth on a slice of the stack."""
    return stack.planes[index].extract(Volume(truth.astype(np.uint8), stack.volume.ijk_to_ras)) > 0


def test_an_ellipsoid_is_followed_to_both_ends_and_no_further(scan):
    truth = ball((20, 32, 30), (12, 18, 14))
    session, stack = scan(truth)
    found = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1)
    assert dice(voxels(found, stack), truth) > 0.93
    assert min(found.masks) in (8, 9, 10)
    assert max(found.masks) in (30, 31, 32)
    assert set(found.ends) == {-1, 1}
    assert all("end of the range" not in reason for _, reason in found.ends.values())


def test_it_does_not_leak_into_a_touching_twin(scan):
    truth, twin = ball((20, 32, 20), (12, 12, 11)), ball((20, 32, 43), (12, 12, 12))
    session, stack = scan(truth | twin)
    found = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1)
    assert dice(voxels(found, stack), truth) > 0.85
    assert np.count_nonzero(voxels(found, stack) & twin) < 0.1 * np.count_nonzero(twin)


def test_two_prompted_slices_meet_in_the_middle_and_stay_as_they_are(scan):
    truth = ball((20, 32, 30), (18, 14, 20))
    session, stack = scan(truth)
    prompted = {index: on(stack, truth, index) for index in (8, 30)}
    found = propagate(session, stack, prompted, 8, 30)
    assert sorted(found.masks) == list(range(8, 31))
    for index, mask in prompted.items():
        np.testing.assert_array_equal(found.masks[index].full(), mask)
    assert all(dice(found.masks[index].full(), on(stack, truth, index)) > 0.93 for index in range(8, 31))


def test_a_correction_stays_and_is_carried_only_as_far_as_it_matters(scan, monkeypatch):
    truth = ball((20, 32, 30), (15, 18, 14))
    session, stack = scan(truth)
    first = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1)
    calls, carry = [], carrying.carry
    monkeypatch.setattr(propagation, "carry", lambda *a: calls.append(a[4]) or carry(*a))
    correct = first.masks[26].full()
    again = propagate(session, stack, {20: on(stack, truth, 20), 26: correct}, 0, len(stack) - 1, known=first,
                      changed=26)
    np.testing.assert_array_equal(again.masks[26].full(), correct)
    assert len(calls) <= 8  # nothing was changed: a few looks to either side settle it
    assert all(index > 20 for index in calls)  # below the other prompt nothing can have changed
    assert {index: mask.area for index, mask in again.masks.items() if index < 20} == {
        index: mask.area for index, mask in first.masks.items() if index < 20}


def test_a_real_correction_reaches_its_neighbours(scan):
    truth = ball((20, 32, 30), (15, 18, 14))
    session, stack = scan(truth)
    first = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1)
    smaller = on(stack, ball((20, 32, 30), (15, 9, 7)), 26)
    again = propagate(session, stack, {20: on(stack, truth, 20), 26: smaller}, 0, len(stack) - 1, known=first,
                      changed=26)
    np.testing.assert_array_equal(again.masks[26].full(), smaller)
    assert again.masks[25].area < first.masks[25].area


def test_the_range_is_kept(scan):
    truth = ball((20, 32, 30), (15, 18, 14))
    session, stack = scan(truth)
    found = propagate(session, stack, {20: on(stack, truth, 20)}, 17, 22)
    assert sorted(found.masks) == list(range(17, 23))
    assert found.ends == {-1: (17, "the end of the range"), 1: (22, "the end of the range")}


def test_a_slice_left_empty_is_not_passed(scan):
    truth = ball((20, 32, 30), (15, 18, 14))
    session, stack = scan(truth)
    nothing = np.zeros(stack.planes[0].shape, bool)
    found = propagate(session, stack, {18: on(stack, truth, 18), 22: nothing, 14: nothing, 26: on(stack, truth, 26)},
                      0, 28)
    assert sorted(found.masks) == [15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28]
    assert found.ends == {-1: (15, "slice 15 was left empty"), 1: (28, "the end of the range")}


def test_where_grey_values_tell_nothing_it_does_not_run_on(scan):
    truth = ball((39, 32, 30), (6, 8, 8), (60, 64, 64))
    session, stack = scan(truth, contrast=0.0)
    found = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1)
    assert min(found.masks) >= 20 - 13
    assert max(found.masks) <= 20 + 13
    assert all("prompt a slice" in reason or "too small" in reason for _, reason in found.ends.values())


@pytest.mark.parametrize("stop_after", [1, 4, 11])
def test_cancelling_keeps_the_finished_slices(scan, stop_after):
    truth = ball((20, 32, 30), (15, 18, 14))
    session, stack = scan(truth)
    seen = []
    found = propagate(session, stack, {20: on(stack, truth, 20)}, 0, len(stack) - 1,
                      lambda progress, index, mask: seen.append((progress, index)) or len(seen) < stop_after)
    assert found.cancelled
    assert len(seen) == stop_after
    assert set(found.masks) == {20, *(index for _, index in seen)}
    assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)


def test_an_oblique_anisotropic_volume_is_followed_and_has_no_holes(scan):
    basis, _ = np.linalg.qr(np.array([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [-0.05, 0.2, 0.98]]))
    matrix = np.eye(4)
    matrix[:3, :3] = basis * (0.8, 0.8, 2.0)
    truth = ball((20, 32, 30), (12, 18, 14))
    session, _ = scan(truth, matrix=matrix)
    tilted = np.eye(4)
    tilted[:3, :3] = matrix[:3, :3] / (0.8, 0.8, 2.0) @ [[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)],
                                                         [0, np.sin(0.3), np.cos(0.3)]]
    stack = PlaneStack.parallel_to(session.volume, tilted)
    seed = stack.nearest(session.volume.to_ras(np.array([30, 32, 20])))
    found = propagate(session, stack, {seed: on(stack, truth, seed)}, 0, len(stack) - 1)
    whole = voxels(found, stack)
    assert dice(whole, truth) > 0.88
    inner = ball((20, 32, 30), (6, 9, 7))
    assert whole[inner].all()


@pytest.mark.parametrize(("prompted", "span", "complaint"), [
    ({}, (0, 9), "segment the object on one slice"), ({5: False}, (0, 9), "segment the object on one slice"),
    ({5: True}, (6, 9), "must hold"), ({5: True}, (0, 4), "must hold"), ({5: True}, (0, 40), "must hold"),
    ({5: True}, (-1, 9), "must hold")])
def test_what_cannot_be_propagated_is_refused(scan, prompted, span, complaint):
    session, stack = scan(ball((20, 32, 30), (15, 18, 14)))
    masks = {index: np.full(stack.planes[0].shape, filled) for index, filled in prompted.items()}
    with pytest.raises(PromptError, match=complaint):
        propagate(session, stack, masks, *span)
