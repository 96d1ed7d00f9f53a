"""The predictor: numpy in and out, SamPredictor's contract, and words for what is wrong."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from SegMoTELib.errors import SegMoTEError
from SegMoTELib.interaction import devices
from SegMoTELib.interaction.devices import choose_device, choose_precision, describe
from SegMoTELib.interaction.embeddings import EmbeddingCache
from SegMoTELib.interaction.predictor import Predictor

CLICK = {"point_coords": np.array([[20.0, 10.0]]), "point_labels": np.array([1])}
BOX = {"box": np.array([5.0, 6.0, 40.0, 30.0])}


def low_logits(predictor: Predictor) -> np.ndarray:
    return predictor.predict(**CLICK)[2]


@pytest.mark.parametrize("prompt", [CLICK, BOX, CLICK | BOX], ids=["click", "box", "both"])
def test_masks_scores_and_logits_come_back_in_the_images_shape(any_predictor, image, prompt):
    any_predictor.set_image(image)
    assert any_predictor.is_image_set
    side = any_predictor.model.config.mask_size
    masks, iou, low = any_predictor.predict(**prompt)
    assert (masks.shape, masks.dtype) == ((1, 37, 53), bool)
    assert (iou.shape, iou.dtype) == ((1,), np.float32)
    assert (low.shape, low.dtype) == ((1, side, side), np.float32)

    logits = any_predictor.predict(**prompt, return_logits=True)[0]
    assert logits.dtype == np.float32
    assert np.array_equal(logits > 0, masks)
    assert any_predictor.last.expert_logits.shape == (1, 4, side, side)


def test_earlier_logits_are_a_prompt(any_predictor, image):
    any_predictor.set_image(image)
    low = low_logits(any_predictor)
    refined = any_predictor.predict(**CLICK, mask_input=low)[2]
    assert refined.shape == low.shape
    assert not np.allclose(refined, low)
    assert np.isfinite(any_predictor.predict(mask_input=low)[2]).all()


def test_the_same_input_gives_the_same_output(any_predictor, image):
    results = []
    for _ in range(2):
        any_predictor.set_image(image)
        results.append((*any_predictor.predict(**CLICK, return_logits=True), *any_predictor.predict_auto()))
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float16, np.float32,
                                   np.float64])
def test_every_number_type_shows_the_same_picture(predictor, image, dtype):
    values = (image // 2).astype(dtype)
    predictor.set_image(image // 2, intensity_range=(0, 127))
    expected = low_logits(predictor)
    predictor.set_image(values, intensity_range=(0, 127))
    assert np.array_equal(low_logits(predictor), expected)


def test_a_boolean_image_is_black_and_white(predictor, image):
    predictor.set_image(image > 99, intensity_range=(0, 1))
    expected = low_logits(predictor)
    predictor.set_image(np.where(image > 99, 255, 0).astype(np.uint8))
    assert np.array_equal(low_logits(predictor), expected)


def test_a_window_clips_and_nan_becomes_black(predictor, image):
    hounsfield = image.astype(np.float32) * 10 - 1000
    hounsfield[0, :4] = (np.nan, -np.inf, np.inf, -5000)
    predictor.set_image(hounsfield, intensity_range=(-160, 240))
    actual = low_logits(predictor)
    clipped = np.clip((hounsfield.astype(np.float64) + 160) * (255 / 400), 0, 255)
    clipped[0, :4] = (0, 0, 255, 0)
    predictor.set_image(clipped.round().astype(np.uint8))
    assert np.array_equal(low_logits(predictor), actual)


def test_a_grey_image_is_the_colour_image_with_three_equal_channels(predictor, image):
    predictor.set_image(image)
    grey = low_logits(predictor)
    predictor.set_image(np.repeat(image[..., None], 3, axis=2))
    assert np.array_equal(low_logits(predictor), grey)
    predictor.set_image(np.stack([image, image.T.reshape(image.shape), image], axis=2))
    assert not np.allclose(low_logits(predictor), grey)


def test_the_callers_arrays_are_left_alone(predictor, image):
    arrays = [image, *CLICK.values(), *BOX.values()]
    copies = [array.copy() for array in arrays]
    predictor.set_image(image, intensity_range=(10, 100))
    predictor.predict(**CLICK, **BOX)
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, copies, strict=True))


@pytest.mark.parametrize(("array", "window", "words"), [
    (np.zeros((4, 4), np.int16), None, "int16 image needs intensity_range"),
    (np.zeros((4, 4), bool), None, "bool image needs intensity_range"),
    (np.zeros((4, 4), np.float32), None, "float32 image needs intensity_range"),
    (np.zeros((4, 4), np.uint8), (5, 5), "black < white"),
    (np.zeros((4, 4), np.uint8), (9, 5), "black < white"),
    (np.zeros((4, 4), np.uint8), (0, np.nan), "finite"),
    (np.zeros((4, 4), complex), (0, 1), "must hold numbers"),
    (np.array([["a"]]), (0, 1), "must hold numbers"),
    (np.zeros(4, np.uint8), None, "got shape"), (np.zeros((4, 4, 4), np.uint8), None, "got shape"),
    (np.zeros((2, 4, 4, 3), np.uint8), None, "got shape"), (np.zeros((0, 4), np.uint8), None, "not empty"),
], ids=lambda value: str(getattr(value, "dtype", value)))
def test_an_image_that_cannot_be_shown_is_refused_and_the_old_one_kept(predictor, image, array, window, words):
    predictor.set_image(image)
    with pytest.raises(ValueError, match=words):
        predictor.set_image(array, intensity_range=window)
    assert predictor.predict(**CLICK)[0].shape == (1, 37, 53)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (1, 900), (900, 1), (3, 2000), (2000, 2), (300, 299)],
                         ids=str)
def test_images_of_any_shape_work(any_predictor, shape):
    any_predictor.set_image(np.full(shape, 100, np.uint8))
    masks, _, low = any_predictor.predict(point_coords=[[0, 0]], point_labels=[1])
    assert masks.shape == (1, *shape)
    assert np.isfinite(low).all()
    assert any_predictor.predict_auto()[0].shape == (1, *shape)


def test_predicting_needs_an_image_first_and_again_after_a_reset(predictor, image):
    for _ in range(2):
        assert not predictor.is_image_set
        with pytest.raises(RuntimeError, match="call set_image"):
            predictor.predict(**CLICK)
        with pytest.raises(RuntimeError, match="call set_image"):
            predictor.predict_auto()
        predictor.set_image(image)
        predictor.predict(**CLICK)
        predictor.reset_image()


def test_a_new_image_replaces_the_old_one(predictor, image):
    predictor.set_image(255 - image)
    predictor.predict(**CLICK)
    predictor.set_image(image)
    expected = low_logits(predictor)
    predictor.reset_image()
    predictor.set_image(image)
    assert np.array_equal(low_logits(predictor), expected)


@pytest.mark.parametrize(("prompt", "words"), [
    ({}, "needs a prompt"),
    ({"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)}, "needs a prompt"),
    ({"point_coords": [[np.nan, 3]], "point_labels": [1]}, "point_coords contains NaN"),
    ({"point_coords": [[np.inf, 3]], "point_labels": [1]}, "point_coords contains NaN or inf"),
    ({"point_coords": [3, 4], "point_labels": [1]}, r"point_coords must be numbers of shape \(N, 2\)"),
    ({"point_coords": [[3, 4, 5]], "point_labels": [1]}, "point_coords must be"),
    ({"point_coords": [["a", "b"]], "point_labels": [1]}, "point_coords must be numbers"),
    ({"point_coords": [[3, 4]]}, "point_labels must be"),
    ({"point_coords": [[3, 4]], "point_labels": [1, 0]}, "point_labels must be"),
    ({"point_labels": [1]}, "without point_coords"),
    ({"point_coords": [[3, 4]], "point_labels": [2]}, "point_labels must be 1 inside or 0 outside"),
    ({"point_coords": [[3, 4]], "point_labels": [0.5]}, "point_labels must be 1 inside or 0 outside"),
    ({"box": [1, 2, 3]}, r"box must be numbers of shape \(4\)"),
    ({"box": [[1, 2, 3], [1, 2, 3]]}, r"box must be numbers of shape \(N, 4\)"),
    ({"box": np.zeros((0, 4))}, "box must be"),
    ({"box": [[1, 2, 3, 4], [1, 2, np.inf, 4]]}, "box contains NaN"),
    ({"box": [1, 2, np.nan, 4]}, "box contains NaN"),
    ({"mask_input": np.zeros((16, 16))}, r"mask_input must be numbers of shape \(1, 16, 16\)"),
    ({"mask_input": np.zeros((1, 9, 16))}, "mask_input must be"),
    ({"mask_input": np.full((1, 16, 16), np.nan)}, "mask_input contains NaN"),
], ids=str)
def test_a_prompt_that_makes_no_sense_is_refused_by_name(predictor, image, prompt, words):
    predictor.set_image(image)
    with pytest.raises(ValueError, match=words):
        predictor.predict(**prompt)


def test_lists_integers_and_a_box_in_a_row_are_accepted(predictor, image):
    predictor.set_image(image)
    expected = predictor.predict(**CLICK, **BOX)[2]
    as_lists = predictor.predict(point_coords=[[20, 10]], point_labels=[True], box=[5, 6, 40, 30])[2]
    in_a_row = predictor.predict(**CLICK, box=BOX["box"][None])[2]
    assert np.array_equal(as_lists, expected)
    assert np.array_equal(in_a_row, expected)


@pytest.mark.parametrize("corners", [[2, 1, 0, 3], [0, 3, 2, 1], [2, 3, 0, 1]])
def test_a_box_may_be_given_by_any_two_opposite_corners(any_predictor, image, corners):
    any_predictor.set_image(image)
    boxes = np.array([BOX["box"], [2.0, 3.0, 12.0, 9.0]])
    for given in (BOX["box"], boxes):
        expected = any_predictor.predict(box=given)
        for found, wanted in zip(any_predictor.predict(box=given[..., corners]), expected, strict=True):
            assert np.array_equal(found, wanted)


def test_no_clicks_beside_a_box_are_just_the_box(predictor, image):
    predictor.set_image(image)
    expected = predictor.predict(**BOX)[2]
    assert np.array_equal(predictor.predict(**BOX, point_coords=np.zeros((0, 2)), point_labels=[])[2], expected)


BOXES = np.array([[2.0, 3.0, 20.0, 14.0], [30.0, 18.0, 50.0, 34.0]])


def test_several_boxes_find_what_is_in_any_of_them(any_predictor, image):
    any_predictor.set_image(image)
    alone = [any_predictor.predict(box=box) for box in BOXES]
    masks, iou, low = any_predictor.predict(box=BOXES)
    assert np.array_equal(masks, alone[0][0] | alone[1][0])
    assert np.array_equal(low, np.maximum(alone[0][2], alone[1][2]))
    assert min(alone[0][1], alone[1][1]) <= iou <= max(alone[0][1], alone[1][1])
    assert iou.dtype == np.float32
    assert np.array_equal(any_predictor.predict(box=BOXES[::-1])[0], masks)


def test_a_click_corrects_the_nearest_of_several_boxes_and_no_other(any_predictor, image):
    any_predictor.set_image(image)
    before, _, low = any_predictor.predict(box=BOXES, return_logits=True)
    click = {"point_coords": np.array([[52.0, 36.0]]), "point_labels": np.array([0])}
    first = any_predictor.predict(box=BOXES[0], return_logits=True)[0]
    after = any_predictor.predict(box=BOXES, **click, mask_input=low, return_logits=True)[0]
    assert (after >= first).all()  # the other piece is what it was
    assert not np.array_equal(after, before)
    second = any_predictor.predict(box=BOXES[1], **click, return_logits=True)[0]
    assert np.array_equal(any_predictor.predict(box=BOXES, **click, return_logits=True)[0], np.maximum(first, second))


@pytest.fixture
def asked(predictor, image, monkeypatch):
    """What the network is asked, in order, while the predictor answers on the image."""
    predictor.set_image(image)
    asked, look = [], predictor._look
    monkeypatch.setattr(predictor, "_look", lambda encoded, prompts, settings: asked.append(prompts) or look(
        encoded, prompts, settings))
    return asked


def test_each_box_is_told_of_the_earlier_mask_only_what_lies_nearest_to_it(predictor, asked):
    clicks = {"point_coords": np.array([[10.0, 8.0], [40.0, 25.0]]), "point_labels": np.array([1, 1])}
    predictor.predict(box=BOXES, **clicks, mask_input=np.ones((1, 16, 16)))
    assert [prompts.box.tolist() for prompts in asked] == BOXES.tolist()
    shares = [prompts.mask[0].numpy() > 0 for prompts in asked]
    assert np.array_equal(shares[0], ~shares[1])
    assert shares[0][2, 2]
    assert shares[1][9, 14]
    assert [prompts.coords.tolist() for prompts in asked] == [[[10, 8]], [[40, 25]]]


def test_a_click_in_two_boxes_is_for_both(predictor, asked):
    predictor.predict(**CLICK, box=[[5, 6, 40, 30], [15, 5, 25, 15], [45, 30, 50, 35]])
    assert [prompts.coords is not None for prompts in asked] == [True, True, False]


def test_without_adapters_sams_three_masks_are_on_offer(predictor, image):
    predictor.set_image(image)
    assert predictor.predict(**CLICK, adapters=False)[0].shape == (3, 37, 53)
    assert predictor.predict(**CLICK, adapters=False, multimask_output=False)[0].shape == (1, 37, 53)
    assert predictor.last.expert_logits is None
    predictor.model.adapters_trained = False
    assert predictor.predict(**CLICK)[0].shape == (3, 37, 53)


def test_auto_needs_trained_prompts_but_not_trained_experts(predictor, image):
    predictor.set_image(image)
    predictor.model.adapters_trained = False
    assert predictor.predict_auto()[0].shape == (1, 37, 53)
    assert predictor.last.expert_logits is None
    predictor.model.auto_trained = False
    assert predictor.auto_targets == ()
    with pytest.raises(ValueError, match="offers no auto targets"):
        predictor.predict_auto()


def test_auto_segments_by_name_and_lists_what_it_knows(any_predictor, image):
    any_predictor.set_image(image)
    assert [target.name for target in any_predictor.auto_targets] == ["lung", "brain"]
    first = any_predictor.predict_auto(return_logits=True)[0]
    assert first.shape == (1, 37, 53)
    assert np.array_equal(first, any_predictor.predict_auto("lung", return_logits=True)[0])
    assert not np.allclose(first, any_predictor.predict_auto("brain", return_logits=True)[0])
    with pytest.raises(ValueError, match="'liver'; it offers: 'lung', 'brain'"):
        any_predictor.predict_auto("liver")


def test_prediction_leaves_no_gradients_behind(predictor, image):
    predictor.set_image(image)
    predictor.predict(**CLICK)
    assert not predictor.encoded.embedding.features.requires_grad
    assert not predictor.last.logits.requires_grad


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_returns_the_same_types(image, predictor, precision):
    rough = Predictor(predictor.model, device="cpu", precision=precision)
    rough.set_image(image)
    results = rough.predict(**CLICK, **BOX), rough.predict_auto(), rough.predict(**CLICK, adapters=False)
    for masks, iou, low in results:
        assert (masks.dtype, iou.dtype, low.dtype) == (bool, np.float32, np.float32)
        assert np.isfinite(low).all()
        assert np.isfinite(iou).all()


GPU_FULL = (torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


@pytest.mark.parametrize("error", GPU_FULL, ids=str)
def test_running_out_of_gpu_memory_continues_on_the_cpu(predictor, image, monkeypatch, caplog, error):
    predictor.set_image(image)
    expected = low_logits(predictor)
    encode, calls = predictor.model.encode, []

    def fails_once(pixels):
        calls.append(predictor.device)
        if len(calls) == 1:
            raise error
        return encode(pixels)

    monkeypatch.setattr(predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(predictor.model, "encode", fails_once)
    monkeypatch.setattr(devices, "cpu_flags", frozenset)
    with caplog.at_level(logging.WARNING):
        predictor.set_image(image)
    assert len(calls) == 2
    assert "ran out of memory; continuing on the CPU" in caplog.text
    assert predictor.device == torch.device("cpu")
    assert predictor.dtype == torch.float32
    assert np.array_equal(low_logits(predictor), expected)


@pytest.mark.parametrize("error", GPU_FULL, ids=str)
def test_a_full_gpu_is_named_whatever_kind_of_error_says_so(error):
    assert devices.out_of_memory(error).startswith("The GPU's memory ran out; choose the CPU")


def test_memory_that_runs_out_on_the_cpu_too_ends_with_the_error_and_keeps_nothing(predictor, image, monkeypatch):
    def fails(pixels):
        raise torch.cuda.OutOfMemoryError("out of memory")

    predictor.cache = EmbeddingCache(1 << 20)
    monkeypatch.setattr(predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(predictor.model, "encode", fails)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        predictor.set_image(image)
    assert predictor.device == torch.device("cpu")
    assert len(predictor.cache) == 0
    assert not predictor.is_image_set


@pytest.mark.parametrize("step", ["encode", "decode"])
def test_work_that_another_thread_moves_to_the_cpu_meanwhile_is_done_there(predictor, image, monkeypatch, step):
    predictor.set_image(image)
    expected, real = low_logits(predictor), getattr(predictor.model, step)
    calls = []

    def moved_meanwhile(*arguments, **options):
        calls.append(predictor.device.type)
        if len(calls) == 1:
            other = threading.Thread(target=predictor._fall_back_to_cpu)
            other.start()
            other.join()
            raise RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu")
        return real(*arguments, **options)

    monkeypatch.setattr(predictor.model, step, moved_meanwhile)
    if step == "encode":
        monkeypatch.setattr(predictor, "device", torch.device("cuda"))
        predictor.set_image(image)
    else:
        monkeypatch.setattr(predictor, "_made_ready", lambda embedding: embedding)
        monkeypatch.setattr(predictor, "_domains_of", lambda encoded: None)
        monkeypatch.setattr(predictor, "device", torch.device("cuda"))
    assert np.array_equal(low_logits(predictor), expected)
    assert calls[:2] == ["cuda", "cpu"]


def test_another_failure_of_the_encoder_leaves_no_image_behind(predictor, image, monkeypatch):
    predictor.set_image(image)

    def fails(pixels):
        raise RuntimeError("broken")

    monkeypatch.setattr(predictor.model, "encode", fails)
    with pytest.raises(RuntimeError, match="broken"):
        predictor.set_image(image)
    assert not predictor.is_image_set


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:7", "meta"])
def test_a_device_that_is_not_here_is_refused(wanted):
    with pytest.raises(SegMoTEError, match="not available on this machine"):
        choose_device(wanted)


def test_something_that_is_no_device_or_precision_is_refused():
    with pytest.raises(SegMoTEError, match="'gpu' is not a device"):
        choose_device("gpu")
    with pytest.raises(SegMoTEError, match="'int8' is not a precision"):
        choose_precision(torch.device("cpu"), "int8")


def test_a_device_is_chosen_from_what_is_there(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device() == torch.device("cuda")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(SegMoTEError, match="cuda:1"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")


@pytest.mark.parametrize(("device", "flags", "expected"), [
    ("cuda", (), torch.float16), ("mps", ("amx_bf16",), torch.float32), ("cpu", (), torch.float32),
    ("cpu", ("avx512_bf16",), torch.float32), ("cpu", ("amx_bf16",), torch.bfloat16),
])
def test_the_precision_follows_the_hardware(monkeypatch, device, flags, expected):
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    assert choose_precision(torch.device(device)) == expected
    assert choose_precision(torch.device(device), "fp32") == torch.float32


def test_device_and_precision_are_described_in_words(predictor):
    assert predictor.describe().startswith("CPU (")
    assert predictor.describe().endswith("fp32")
    assert "bf16" in describe(torch.device("cpu"), torch.bfloat16)
