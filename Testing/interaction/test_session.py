"""Session: prompts in millimetres, planes encoded once, errors that say what to do."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.interaction.session import Session
from SegMoTELib.network import ModelConfig, build_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(replace(ModelConfig.tiny(), image_size=96))


@pytest.fixture
def predictor(model):
    return Predictor(model, "cpu", "fp32")


@pytest.fixture
def count_encodings(predictor, monkeypatch):
    """Function: how many images went through the encoder, closer looks left out."""
    counted, run = [], predictor._run_encoder
    monkeypatch.setattr(predictor, "_run_encoder", lambda batch: counted.append(len(batch)) or run(batch))
    predictor.focus = False
    return lambda: sum(counted)


@pytest.fixture
def session(predictor):
    array = np.random.default_rng(0).normal(100, 20, (10, 48, 64)).astype(np.float32)
    matrix = np.diag([-1.0, -1.0, 3.0, 1.0])
    matrix[:3, 3] = 30, 20, -15
    return Session(predictor, Volume(array, matrix), (50.0, 150.0))


def axial(session, s=0.0) -> SlicePlane:
    return SlicePlane.through(session.volume, "axial", [0, 0, s])


def test_a_plane_is_encoded_once(session, count_encodings):
    plane = axial(session)
    assert not session.is_encoded(plane)
    session.encode([plane])
    assert session.is_encoded(axial(session))
    first = session.predict(plane, positives=[[0, 0, 0]])
    second = session.predict(axial(session), positives=[[0, 0, 0]])
    assert count_encodings() == 1
    assert "encode" not in first.seconds
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.mask.shape == plane.shape


def test_a_plane_seen_long_ago_is_taken_from_the_cache_and_answers_the_same(session, count_encodings):
    first = session.predict(axial(session, -12), positives=[[0, 0, -12]])
    session.encode([axial(session, s) for s in range(-9, 12, 3)])
    session._at_hand.clear()
    before = count_encodings()
    assert session.is_encoded(axial(session, -12))
    again = session.predict(axial(session, -12), positives=[[0, 0, -12]])
    assert count_encodings() == before
    np.testing.assert_array_equal(first.logits, again.logits)


def test_an_encoding_that_was_cancelled_is_not_kept(session):
    session.encode([axial(session)], cancelled=lambda: True)
    assert not session.is_encoded(axial(session))
    assert len(session.predictor.cache) == 0


def test_clicks_reach_the_model_as_pixels_of_the_plane(session, monkeypatch):
    seen = {}
    predict = session.predictor.predict
    monkeypatch.setattr(session.predictor, "predict", lambda **a: seen.update(a) or predict(**a))
    plane = axial(session)
    session.predict(plane, positives=[[10, -5, 0]], negatives=[[-4, 3, 0]], box=[[20, 10, 0], [-20, -12, 0]])
    np.testing.assert_allclose(plane.to_ras(seen["point_coords"]), [[10, -5, 0], [-4, 3, 0]], atol=1e-6)
    assert seen["point_labels"].tolist() == [1, 0]
    corners = plane.to_ras(seen["box"].reshape(2, 2))
    np.testing.assert_allclose(np.sort(corners[:, 0]), [-20, 20], atol=1e-6)
    np.testing.assert_allclose(np.sort(corners[:, 1]), [-12, 10], atol=1e-6)


def test_boxes_reach_the_model_one_for_each_piece(session, monkeypatch):
    seen = {}
    predict = session.predictor.predict
    monkeypatch.setattr(session.predictor, "predict", lambda **a: seen.update(a) or predict(**a))
    plane = axial(session)
    boxes = [[[20, 10, 0], [2, -12, 0]], [[-3, 4, 0], [-20, -8, 0]]]
    session.predict(plane, box=boxes)
    corners = np.sort(plane.to_ras(seen["box"].reshape(-1, 2, 2)), axis=1)
    np.testing.assert_allclose(corners[..., :2], np.sort(boxes, axis=1)[..., :2], atol=1e-6)


def test_an_answer_can_be_corrected(session):
    plane = axial(session)
    first = session.predict(plane, positives=[[0, 0, 0]])
    second = session.predict(plane, positives=[[0, 0, 0]], negatives=[[15, 0, 0]], previous=first.logits)
    assert second.logits.shape == first.logits.shape


def test_a_target_is_found_by_name(session):
    name = session.predictor.auto_targets[0].name
    assert session.predict(axial(session), auto=name).mask.shape == axial(session).shape
    with pytest.raises(PromptError, match="no auto target 'unicorn'; it offers"):
        session.predict(axial(session), auto="unicorn")


@pytest.mark.parametrize(("prompts", "message"), [
    ({}, "Nothing to go by"),
    ({"negatives": [[0, 0, 0]]}, "Only excluded points"),
    ({"positives": [[0, 0, 9]]}, "does not lie on the slice"),
    ({"positives": [[500, 0, 0]]}, "outside the volume"),
    ({"positives": [[np.nan, 0, 0]]}, "no position"),
    ({"box": [[5, 5, 0], [5, 5, 0]]}, "box is empty"),
    ({"box": [[500, 500, 0], [600, 600, 0]]}, "lies outside"),
    ({"box": [[5, 5, 0]]}, "two opposite corners"),
    ({"box": [[5, 5, 9], [-5, -5, 9]]}, "box does not lie on the slice"),
    ({"box": [[[5, 5, 0], [-5, -5, 0]], [[5, 5, 9], [-5, -5, 9]]]}, "box does not lie on the slice"),
    ({"box": np.zeros((0, 2, 3))}, "Nothing to go by"),
])
def test_prompts_that_say_nothing_are_explained_and_leave_the_session_usable(session, prompts, message):
    with pytest.raises(PromptError, match=message):
        session.predict(axial(session), **prompts)
    assert session.predict(axial(session), positives=[[0, 0, 0]]).mask.dtype == bool


def test_a_huge_volume_costs_no_more_than_its_slice(predictor):
    tracemalloc.start()
    one = np.random.default_rng(0).integers(0, 255, (2048, 2048), dtype=np.uint8)
    array = np.broadcast_to(one, (1000, 2048, 2048))  # 4 GiB, if anything copied it
    volume = Volume(array, np.eye(4))
    session = Session(predictor, volume, range_of(volume, "percentiles"))
    plane = SlicePlane.through(volume, "axial", [1000.0, 1000.0, 500.0])
    answer = session.predict(plane, positives=[[1000.0, 1000.0, 500.0]])
    plane.insert(answer.mask, volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.mask.shape == (2048, 2048)
    assert peak < 1 << 30


def test_sessions_of_one_model_in_several_threads_get_their_own_answers(predictor):
    volumes = [Volume(np.random.default_rng(seed).normal(100, 20, (2, 48, 64)).astype(np.float32), np.eye(4))
               for seed in range(4)]
    sessions = [Session(predictor, volume, (50.0, 150.0)) for volume in volumes]
    plane = SlicePlane.through(volumes[0], "axial", [20, 20, 0])
    alone = [session.predict(plane, positives=[[20, 20, 0]]).logits for session in sessions]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            together = list(threads.map(lambda session: session.predict(plane, positives=[[20, 20, 0]]).logits,
                                        sessions))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)
