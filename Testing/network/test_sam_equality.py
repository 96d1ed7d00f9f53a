"""With the adapters off and SAM's weights, the model is SAM: ViT-B at full size against SamPredictor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import load_checkpoint

IMAGE_SHAPE = (123, 211)
TOLERANCE = 1e-4
POINTS = {"point_coords": np.array([[50.3, 40.0], [150.0, 99.5], [7.0, 118.0]]), "point_labels": np.array([1, 0, 1])}
BOX = {"box": np.array([20.5, 10.0, 170.0, 100.25])}
MASK = {"mask_input": 6 * np.random.default_rng(7).standard_normal((1, 256, 256)).astype(np.float32)}
ONE_POINT = {key: value[:1] for key, value in POINTS.items()}
PROMPTS = {"one point": ONE_POINT, "points": POINTS, "box": BOX, "points and box": POINTS | BOX, "mask": MASK,
           "mask, point and box": MASK | ONE_POINT | BOX}


def random_sam() -> torch.nn.Module:
    """SAM ViT-B whose positions, relative positions and masks are all far from zero."""
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]().eval()
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3)
            elif "norm" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for head in sam.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.mul_(20)
    return sam


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One image, set in SamPredictor and in ours; ours read the weights from SAM's own file format."""
    sam = random_sam()
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(sam.state_dict(), path)
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_SHAPE, 3), dtype=np.uint8)
    theirs, ours = SamPredictor(sam), Predictor(load_checkpoint(path), device="cpu", precision="fp32")
    path.unlink()
    theirs.set_image(image)
    ours.set_image(image)
    return SimpleNamespace(theirs=theirs, ours=ours)


def test_the_image_embedding_is_sams(both):
    expected = both.theirs.get_image_embedding()
    assert expected.std() > 0.1
    assert (both.ours.encoded.embedding.features - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "one mask"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_masks_iou_and_low_resolution_logits_are_sams(both, prompt, multimask):
    expected = both.theirs.predict(**prompt, multimask_output=multimask, return_logits=True)
    actual = both.ours.predict(**prompt, multimask_output=multimask, return_logits=True)

    assert expected[2].std() > 1, "the comparison needs logits of a realistic size"
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_boolean_masks_are_sams(both):
    expected = both.theirs.predict(**POINTS)[0]
    actual = both.ours.predict(**POINTS)[0]
    assert actual.dtype == expected.dtype == bool
    assert (actual != expected).mean() < 1e-5


def test_sams_own_weights_leave_the_adapters_off_until_asked_for(both):
    assert not both.ours.model.adapters_trained
    assert both.ours.auto_targets == ()
    assert both.ours.predict(**BOX)[0].shape[0] == 3
    assert both.ours.last.expert_logits is None
    assert both.ours.predict(**BOX, adapters=True)[0].shape[0] == 1
    assert both.ours.last.expert_logits.shape[1] == 4
