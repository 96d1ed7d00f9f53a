"""Auto over slices and everything mode, with answers that are known."""

from __future__ import annotations

import contextlib
import types

import numpy as np
import pytest
from scipy import ndimage

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.auto import SMALLEST_PIECE, AutoResult, _without_small_pieces, segment_slices
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.everything import find_everything
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.interaction.session import Session
from SegMoTELib.interaction.targets import best_orientation, modality_note
from SegMoTELib.network import AutoTarget, load_checkpoint
from SegMoTELib.zoo import resolve_model


@pytest.fixture(scope="module")
def predictor():
    return Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu", "fp32")


@pytest.fixture
def answering(predictor, monkeypatch):
    """Function: (K, J, I) logits -> session and stack whose Auto answers with them."""
    def make(logits):
        volume = Volume(np.zeros(logits.shape, np.uint8), np.diag([1.0, 1, 3, 1]))
        session, stack = Session(predictor, volume, (0.0, 255.0)), PlaneStack.along(volume, "axial")
        by_plane = {plane.key(): plane.extract(Volume(logits.astype(np.float32), volume.ijk_to_ras))
                    for plane in stack.planes}
        monkeypatch.setattr(session, "auto_logits", lambda plane, target: (by_plane[plane.key()], 0.9))
        return session, stack
    return make


def test_a_slice_that_disagrees_with_its_neighbours_is_outvoted(answering, predictor):
    logits = np.full((9, 20, 20), -4.0)
    logits[:, 5:15, 5:15] = 4
    logits[4, 5:15, 5:15] = -1  # missed on one slice
    session, stack = answering(logits)
    found = segment_slices(session, stack, predictor.auto_targets[0].name, 0, 8)
    assert sorted(found.masks) == list(range(9))
    assert found.masks[4].area == 100


def test_small_pieces_apart_are_removed(answering, predictor):
    logits = np.full((9, 30, 30), -4.0)
    logits[1:8, 5:20, 5:20] = 4
    logits[3:5, 26:29, 26:29] = 4
    session, stack = answering(logits)
    found = segment_slices(session, stack, predictor.auto_targets[0].name, 0, 8)
    assert found.removed == 1
    assert not found.masks[3].full()[25:, 25:].any()


def test_a_range_is_kept_and_checked(answering, predictor):
    session, stack = answering(np.full((9, 20, 20), 4.0))
    name = predictor.auto_targets[0].name
    assert sorted(segment_slices(session, stack, name, 2, 5).masks) == [2, 3, 4, 5]
    for first, last in ((-1, 3), (3, 9), (5, 2)):
        with pytest.raises(PromptError, match="range"):
            segment_slices(session, stack, name, first, last)


def test_slices_that_the_model_itself_doubts_are_empty(answering, predictor, monkeypatch):
    session, stack = answering(np.full((9, 20, 20), 4.0))
    answer = session.auto_logits
    monkeypatch.setattr(session, "auto_logits", lambda plane, target: (answer(plane, target)[0], 0.1))
    assert segment_slices(session, stack, predictor.auto_targets[0].name, 0, 8).masks == {}


def test_nothing_found_is_nothing(answering, predictor):
    session, stack = answering(np.full((5, 20, 20), -4.0))
    found = segment_slices(session, stack, predictor.auto_targets[0].name, 0, 4)
    assert (found.masks, found.slices) == ({}, 5)


def test_cancelling_ends_it_with_the_slices_so_far(answering, predictor):
    session, stack = answering(np.full((9, 20, 20), 4.0))
    seen = []
    found = segment_slices(session, stack, predictor.auto_targets[0].name, 0, 8,
                           lambda progress, index, mask: seen.append(index) or len(seen) < 3)
    assert found.cancelled
    assert sorted(found.masks) == [0, 1, 2]


@pytest.mark.parametrize(("spacing", "expected"), [
    ((1, 1, 1), "axial"), ((1, 1, 4), "axial"), ((1, 4, 1), "coronal"), ((4, 1, 1), "sagittal")])
def test_the_slices_with_the_finest_pixels_are_chosen(spacing, expected):
    volume = Volume(np.zeros((6, 6, 6), np.uint8), np.diag([*map(float, spacing), 1.0]))
    assert best_orientation(volume) == expected


@pytest.mark.parametrize(("spacing", "expected"), [((1, 1, 1.5), "coronal"), ((1, 1, 4), "axial")])
def test_the_plane_of_the_training_slices_is_chosen_unless_the_voxels_speak_against_it(spacing, expected):
    volume = Volume(np.zeros((6, 6, 6), np.uint8), np.diag([*map(float, spacing), 1.0]))
    assert best_orientation(volume, "coronal") == expected


def test_many_pieces_on_many_slices_are_those_of_a_whole_volume():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(14, 40, 50)), 1.2)
    block = noise > 0.15
    block[5] = False  # a gap between slices
    found = _without_small_pieces(AutoResult({index: Crop.of(mask) for index, mask in enumerate(block) if mask.any()}))
    pieces, count = ndimage.label(block, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= SMALLEST_PIECE * sizes.max())
    for index in range(len(block)):
        kept = found.masks[index].full() if index in found.masks else np.zeros((40, 50), bool)
        np.testing.assert_array_equal(kept, np.isin(pieces[index], large))
    assert found.removed == count - len(large) > 0


def test_another_modality_than_trained_is_said():
    offered = (AutoTarget("spleen", modality="CT"), AutoTarget("thing"))
    def volume(modality):
        return Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4), modality)

    assert "trained on CT, this volume is MR" in modality_note(volume("MR"), "spleen", offered)
    assert modality_note(volume("CT"), "spleen", offered) == ""
    assert "trained on CT" in modality_note(volume(""), "spleen", offered)
    assert modality_note(volume("MR"), "thing", offered) == ""


def test_everything_finds_each_of_several_discs_once(predictor):
    image = np.full((96, 96), 60, np.uint8)
    rows, columns = np.indices(image.shape)
    discs = [((rows - r) ** 2 + (columns - c) ** 2) <= 14 ** 2 for r, c in ((24, 24), (24, 72), (70, 48))]
    for disc in discs:
        image[disc] = 200
    image = np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    found = find_everything(predictor, predictor.encode_image(image))
    for disc in discs:
        overlaps = [2 * (one.mask & disc).sum() / (one.mask.sum() + disc.sum()) for one in found]
        assert sum(overlap > 0.8 for overlap in overlaps) == 1


@pytest.mark.parametrize("shape", [(12, 640), (640, 12)])
def test_everything_looks_at_images_that_are_long_and_narrow(predictor, shape):
    image = np.full(shape, 60, np.uint8)
    place = tuple(slice(0, side // 2) if side > 12 else slice(2, 10) for side in shape)
    image[place] = 200
    clicked = []
    predictor = types.SimpleNamespace(turn=contextlib.nullcontext(), predict_clicks=lambda encoded, clicks: (
        clicked.extend(clicks), (np.full((len(clicks), 4, 4), -9.0), np.zeros(len(clicks))))[1])
    find_everything(predictor, types.SimpleNamespace(pixels=np.repeat(image[..., None], 3, 2)))
    assert len(clicked) == 16
    assert ((np.array(clicked) >= 0) & (np.array(clicked) < shape[::-1])).all()
