"""The ablation study: it resumes, shares what is frozen, and measures routing as it says."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import AutoTarget, ModelConfig, build_model, load_checkpoint, save_checkpoint

SPEC = importlib.util.spec_from_file_location("ablations", Path(__file__).with_name("ablations.py"))
ablations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ablations)


def write_pack(folder: Path) -> None:
    """Write a data set of four noisy images with a bright square; its modality is named like the folder."""
    names = [f"case{number}" for number in range(4)]
    for number, name in enumerate(names):
        label = np.zeros((48, 56), np.uint8)
        label[12:34, 10 + 4 * number:30 + 4 * number] = 1
        image = np.random.default_rng(number).normal(90, 10, label.shape) + 80 * label
        for kind, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    (folder / "dataset.json").write_text(json.dumps({
        "modality": folder.name, "licence": "CC0", "labels": {"0": "background", "1": "square"},
        "splits": {"train": names[:2], "val": names[2:3], "test": names[3:]}}))


@pytest.fixture
def study_options(tmp_path, monkeypatch):
    """Two small data sets, a random base and the options of a study of two steps on them."""
    for code in ("one", "two"):
        write_pack(tmp_path / "data" / code)
    monkeypatch.setattr(ablations, "ADAPTED", ("one",))
    monkeypatch.setattr(ablations, "LEFT_OUT", ("two",))
    monkeypatch.setattr(ablations, "TARGETS", (AutoTarget("blob", sources=("one:1",)),))
    monkeypatch.setattr("SegMoTELib.training.trainer.draw_curves", lambda log, picture: None)
    monkeypatch.setattr("SegMoTELib.training.trainer.VALIDATION_ITEMS", 16)
    # What an untrained model finds is noise, which would be looked at in a dozen parts after every click.
    monkeypatch.setattr(Predictor, "_look_at_parts", lambda self, encoded, view, prompts, settings, found: found)
    torch.manual_seed(0)
    config = replace(ModelConfig.tiny(), image_size=64, compact_widths=(8, 16, 32, 32, 32),
                     compact_depths=(0, 1, 1, 1, 1), embed_dim=64, decoder_mlp=64, expert_rank=16)
    model = build_model(config)
    model.adapters_trained = False
    save_checkpoint(model, tmp_path / "base.safetensors")
    return {"base": tmp_path / "base.safetensors", "data": tmp_path / "data", "out": tmp_path / "out", "steps": 2,
            "size": 64, "seeds": 2, "limit": 1}


def test_a_stopped_study_goes_on_and_trains_nothing_twice(study_options, monkeypatch):
    study_options["out"].mkdir()
    study = ablations.Study(**study_options)
    first = study.row({})
    assert {"adapted, box", "adapted, auto", "left out, 5 clicks"} < first.keys()
    encoded = study.training.misses
    assert study.row({"balance_weight": 0.0}).keys() == first.keys()
    assert study.training.misses == encoded  # the base is frozen: its embeddings serve all runs

    def no_training(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablations, "SharingTrainer", no_training)
    again = ablations.Study(**study_options)
    assert again.row({}) == first
    assert len(again.routing({})) == 2  # from the stored models
    with pytest.raises(AssertionError, match="trained again"):
        ablations.Study(**study_options | {"steps": 3}).row({})


def test_all_tables_are_written(study_options, tmp_path):
    options = [f"--{name}={value}" for name, value in (study_options | {"steps": 1}).items() if name != "seeds"]
    result = CliRunner().invoke(ablations.main, [*options, f"--results={tmp_path / 'tables.md'}"],
                                catch_exceptions=False)
    assert result.exit_code == 0
    text = (tmp_path / "tables.md").read_text()
    for title, variants in ablations.TABLES.values():
        assert f"## {title}" in text
        assert all(f"| {name} |" in text for name in variants)
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("trained_on", "words"), [
    ('{"one": "CC0", "other": "CC0"}', "one"), ('{"one": "CC0", "two": "CC0"}', "all"), ('{"other": "CC0"}', "none"),
    (None, "its file does not say")])
def test_the_head_tells_which_data_the_base_has_seen(study_options, tmp_path, trained_on, words):
    model = load_checkpoint(study_options["base"])
    save_checkpoint(model, tmp_path / "other.safetensors", {"training_data": trained_on} if trained_on else {})
    assert ablations.seen_by(tmp_path / "other.safetensors").endswith(words)


@pytest.mark.parametrize(("pairs", "share"), [
    ([("CT", 0), ("MR", 1), ("CT", 0), ("MR", 1)], 1.0), ([("CT", 0), ("MR", 0)], 0.0),
    ([("CT", 0), ("CT", 1), ("MR", 0), ("MR", 1)], 0.0), ([("CT", 0), ("CT", 0)], 0.0)])
def test_the_share_tells_how_much_an_expert_tells_about_the_modality(pairs, share):
    assert ablations.shared_share(pairs) == pytest.approx(share, abs=1e-9)
    assert np.isfinite(ablations.shared_share(pairs))
