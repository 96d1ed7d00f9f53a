"""The release step: which auto targets stay, and that nothing else changes."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from SegMoTELib.network import AutoTarget, ModelConfig, build_model

SPEC = importlib.util.spec_from_file_location("release", Path(__file__).with_name("release.py"))
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

TARGETS = tuple(AutoTarget(name) for name in ("polyp", "nerve", "spleen"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = replace(ModelConfig.tiny(TARGETS), image_size=64, compact_widths=(8, 16, 32, 32, 32),
                     compact_depths=(0, 1, 1, 1, 1), embed_dim=64, decoder_mlp=64, expert_rank=16)
    model = build_model(config).eval()
    torch.nn.init.normal_(model.mask_decoder.target_dense.weight)
    return model


def test_kept_targets_answer_as_before(model):
    smaller = release.released(model, ["spleen", "polyp"], 64).eval()
    assert [target.name for target in smaller.config.auto_targets] == ["polyp", "spleen"]
    embedding = model.encode(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        before, after = model.decode(embedding, auto="spleen"), smaller.decode(embedding, auto="spleen")
    assert torch.equal(before.logits, after.logits)


def test_another_input_size_keeps_the_weights(model):
    larger = release.released(model, [target.name for target in TARGETS], 96).eval()
    assert larger.config.image_size == 96
    assert larger.decode(larger.encode(torch.randn(1, 3, 96, 96)), auto="nerve").logits.shape[-1] == 48
    for name, value in model.state_dict().items():
        assert torch.equal(larger.state_dict()[name], value)


def test_places_of_this_machine_do_not_travel_with_the_weights(tmp_path):
    config = {"stage": "adapt", "start": "/elsewhere/me/runs/base/model.safetensors", "seed": 3,
              "data": ["../shared/pack", str(tmp_path / "data" / "pack"), "/elsewhere/me/data/other"]}
    metadata = {"training_adapt": json.dumps(config), "training_adapt_steps": "7", "training_data": '{"a": "CC0"}',
                "versions": "segmote 1"}
    clean = release.portable(metadata, tmp_path)
    assert json.loads(clean.pop("training_adapt")) == config | {
        "start": "base/model.safetensors", "data": ["../shared/pack", "data/pack", "data/other"]}
    assert clean == {key: value for key, value in metadata.items() if key != "training_adapt"}


def test_scores_of_auto_targets_are_read_from_the_evaluation(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text("target,method,mode,dice\npolyp,SegMoTE,auto,0.9\npolyp,SegMoTE,auto,0.7\n"
                    "polyp,SegMoTE,box,0.1\nnerve,frozen base,auto,0.3\n")
    assert release.auto_dice(path) == {"polyp": pytest.approx(0.8)}


def test_means_without_a_data_set_leave_out_it_and_the_baselines():
    summary = [{"level": level, "name": name, "method": method, "mode": mode, "metrics": {"dice": {"mean": mean}}}
               for mode in release.MODES
               for level, name, method, mean in (
                   ("dataset", "a", "SegMoTE", 0.9), ("dataset", "b", "SegMoTE", 0.7),
                   ("dataset", "bad", "SegMoTE", 0.1),
                   ("dataset", "a", "GrabCut", 0.2), ("overall", "all", "SegMoTE", 0.5))]
    assert release.means_without(summary, "bad") == (
        "box 0.800, box per piece 0.800, 1 click 0.800, 3 clicks 0.800, 5 clicks 0.800")
