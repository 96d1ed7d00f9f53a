"""The trainer learns, resumes exactly, survives a kill, and gives the same result on two processes as on one."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from SegMoTELib.errors import CheckpointError, DataError
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import AutoTarget, load_checkpoint, save_checkpoint
from SegMoTELib.training import trainer as trainer_module
from SegMoTELib.training.batches import StepBatches
from SegMoTELib.training.config import Phase, load_training_config
from SegMoTELib.training.trainer import Trainer


@pytest.fixture(autouse=True)
def short_endings(request, monkeypatch):
    """A run ends with a small validation, and without curves but where they are tested: both take longer than it."""
    monkeypatch.setattr(trainer_module, "VALIDATION_ITEMS", 16)
    if "curves" not in request.node.name:
        monkeypatch.setattr(trainer_module, "draw_curves", lambda log, picture: None)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def as_yaml(config, path):
    """Write a config as a user would."""
    values = {**config.to_dict(), "data": list(config.data)}
    plain = yaml.safe_load(yaml.safe_dump(_plain(values)))
    path.write_text(yaml.safe_dump(plain))
    return path


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_a_resumed_run_equals_an_uninterrupted_one(a_config, tmp_path):
    Trainer(a_config, tmp_path / "whole").run(progress=False)
    for _ in range(3):  # three starts of two steps, each in a fresh trainer
        Trainer(a_config, tmp_path / "parts").run(stop_after=2, progress=False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs forked processes")
def test_a_run_fed_by_background_processes_is_the_same(a_config, tmp_path, monkeypatch):
    Trainer(a_config, tmp_path / "plain").run(progress=False)
    from_step = StepBatches.from_step
    monkeypatch.setattr(StepBatches, "from_step", lambda batches, step, end, device: from_step(
        batches, step, end, torch.device("cuda")))  # over two phases
    Trainer(a_config, tmp_path / "fed").run(progress=False)
    plain, fed = weights(tmp_path / "plain"), weights(tmp_path / "fed")
    assert all(torch.equal(plain[name], fed[name]) for name in plain)
    assert not multiprocessing.active_children()


def test_a_kill_while_saving_leaves_the_previous_checkpoint(a_config, tmp_path, monkeypatch):
    Trainer(a_config, tmp_path).run(stop_after=2, progress=False)
    before = (tmp_path / "last.pt").read_bytes()

    def cut_off(state, file):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Trainer(a_config, tmp_path).run(stop_after=1, progress=False)
    monkeypatch.undo()
    assert (tmp_path / "last.pt").read_bytes() == before
    Trainer(a_config, tmp_path).run(progress=False)
    Trainer(a_config, tmp_path / "whole").run(progress=False)
    one, other = weights(tmp_path), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_started_over_does_not_log_its_steps_twice(a_config, tmp_path):
    Trainer(a_config, tmp_path).run(progress=False)
    log = (tmp_path / "log.csv").read_text()
    (tmp_path / "last.pt").unlink()
    Trainer(a_config, tmp_path).run(progress=False)
    assert (tmp_path / "log.csv").read_text() == log


def test_without_warm_up_the_first_step_is_a_whole_one(a_config, tmp_path):
    rates = [Trainer(replace(a_config, warmup_steps=steps), tmp_path)._learning_rate() for steps in (0, 1, 4)]
    assert rates == [a_config.learning_rate, a_config.learning_rate, a_config.learning_rate / 4]


def test_the_largest_seed_is_taken(a_config, tmp_path):
    Trainer(replace(a_config, seed=2 ** 63 - 1), tmp_path).run(stop_after=1, progress=False)
    assert ",loss," in (tmp_path / "log.csv").read_text()


def test_another_config_does_not_continue_a_run(a_config, tmp_path):
    Trainer(a_config, tmp_path).run(stop_after=1, progress=False)
    with pytest.raises(CheckpointError, match="another config"):
        Trainer(replace(a_config, seed=4), tmp_path).run(progress=False)


def test_a_damaged_checkpoint_is_named(a_config, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        Trainer(a_config, tmp_path).run(progress=False)


def test_two_processes_give_the_result_of_one(a_config, tmp_path):
    config = as_yaml(a_config, tmp_path / "run.yaml")
    command = ["-m", "SegMoTELib.cli", "train", str(config), "--device", "cpu", "-o"]
    subprocess.run([sys.executable, *command, str(tmp_path / "one")], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command,
                    str(tmp_path / "two")], check=True, capture_output=True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    largest = max(float((one[name] - two[name]).abs().max()) for name in one)
    # Adam turns the sign of a gradient that is zero up to rounding into a whole step, hence the two bounds.
    assert largest < 6 * a_config.learning_rate
    mean = np.mean([float((one[name] - two[name]).abs().mean()) for name in one])
    assert mean < 0.05 * a_config.learning_rate


def test_accumulated_gradients_equal_one_large_batch(a_config, tmp_path):
    one_step = replace(a_config, phases=(Phase(64, 1, 4, 1),))
    Trainer(one_step, tmp_path / "large").run(progress=False)
    Trainer(replace(one_step, accumulate=2), tmp_path / "parts").run(progress=False)
    large, parts = weights(tmp_path / "large"), weights(tmp_path / "parts")
    mean = np.mean([float((large[name] - parts[name]).abs().mean()) for name in large])
    assert mean < 0.02 * a_config.learning_rate


@pytest.mark.parametrize(("batch", "accumulate"), [(3, 2), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(a_config, tmp_path, batch, accumulate):
    config = replace(a_config, phases=(Phase(64, 1, 8, 1), Phase(64, 1, batch, 1)), accumulate=accumulate)
    with pytest.raises(DataError, match=f"'batch' must be a multiple of {accumulate}, .* not {batch}"):
        Trainer(config, tmp_path)


def test_processes_share_a_batch_too(a_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(DataError, match="'batch' must be a multiple of 4"):
        Trainer(a_config, tmp_path)


def test_mixed_precision_learns_the_same_in_single_precision_weights(a_config, tmp_path):
    few = replace(a_config, phases=(Phase(64, 3, 4, 1),))
    exact, mixed = Trainer(few, tmp_path / "fp32"), Trainer(replace(few, precision="bf16"), tmp_path / "bf16")
    exact.run(progress=False)
    mixed.run(progress=False)
    learned = weights(tmp_path / "bf16")
    assert all(value.dtype == torch.float32 for value in learned.values() if value.is_floating_point())
    losses = [[float(line.split(",")[2]) for line in (tmp_path / name / "log.csv").read_text().splitlines()
               if ",loss," in line] for name in ("fp32", "bf16")]
    assert losses[0] != losses[1]  # bf16 rounds
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    with pytest.raises(DataError, match="precision must be"):
        replace(a_config, precision="fp16")


def test_a_run_leaves_model_log_and_curves_with_their_origin(a_config, tmp_path):
    Trainer(a_config, tmp_path).run(progress=False)
    model = load_checkpoint(tmp_path / "model.safetensors")
    assert model.metadata["training_base_steps"] == "6"
    assert '"seed": 3' in model.metadata["training_base"]
    assert "CC0" in model.metadata["training_data"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {line.split(",")[1] for line in (tmp_path / "log.csv").read_text().splitlines()}
    assert {"loss", "gradient"} <= names
    assert any(name.startswith("val/") for name in names)


def test_adapting_changes_the_adapters_only_and_encodes_every_image_once(a_config, tmp_path, monkeypatch):
    Trainer(a_config, tmp_path / "base").run(progress=False)
    start = tmp_path / "base" / "model.safetensors"
    config = replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 5, 4),))
    trainer = Trainer(config, tmp_path / "adapt")
    seen = []
    encode = trainer.model.encode
    monkeypatch.setattr(trainer.model, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    adapted = trainer.run(progress=False)
    assert sum(seen) <= 4  # four training images, five steps of four
    base, after = load_checkpoint(start).state_dict(), adapted.state_dict()
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    assert changed
    assert changed <= set(adapted.adapter_parameters())


def test_augmented_adapting_encodes_new_views_and_leaves_the_base_alone(a_config, tmp_path, monkeypatch):
    Trainer(a_config, tmp_path / "base").run(progress=False)
    start = tmp_path / "base" / "model.safetensors"
    config = replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 3, 2, 2),), augment=True)
    trainer = Trainer(config, tmp_path / "adapt")
    seen = []
    encode = trainer.model.encode
    monkeypatch.setattr(trainer.model, "encode", lambda pixels: seen.append(pixels) or encode(pixels))
    adapted = trainer.run(progress=False)
    views = torch.cat(seen)
    assert len(torch.unique(views.flatten(1), dim=0)) == len(views) == 6
    base, after = load_checkpoint(start).state_dict(), adapted.state_dict()
    assert {name for name in base if not torch.equal(base[name], after[name])} <= set(adapted.adapter_parameters())


def test_adapting_to_several_data_sets_learns_to_tell_them_apart(a_config, a_pack, tmp_path):
    Trainer(a_config, tmp_path / "base").run(progress=False)
    start = tmp_path / "base" / "model.safetensors"
    shutil.copytree(a_pack, tmp_path / "bright")
    for path in (tmp_path / "bright" / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path)) // 2).save(path)
    config = replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 40, 8, 1),), augment=True,
                     data=(str(a_pack), str(tmp_path / "bright")), learning_rate=3e-3)
    adapted = Trainer(config, tmp_path / "adapt").run(progress=False)
    assert load_checkpoint(tmp_path / "adapt" / "model.safetensors").config.domains == ("bright", "shapes")
    predictor = Predictor(adapted)
    for folder, code in ((a_pack, "shapes"), (tmp_path / "bright", "bright")):
        predictor.set_image(np.asarray(Image.open(folder / "images" / "case5.png")))
        predictor.predict(box=np.array([4, 48, 15, 59]))
        likely = predictor.expert_view().domains
        assert next(iter(likely)) == code
        assert sum(likely.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("started_with_adapters", [True, False])
@pytest.mark.parametrize("augment", [True, False])
def test_new_auto_targets_are_learned_without_a_change_to_boxes_and_clicks(a_config, a_pack, tmp_path, augment,
                                                                           started_with_adapters):
    Trainer(a_config, tmp_path / "base").run(progress=False)
    start = tmp_path / "base" / "model.safetensors"
    shutil.copytree(a_pack, tmp_path / "more")
    if started_with_adapters:
        Trainer(replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 2, 2),),
                        data=(str(a_pack), str(tmp_path / "more"))), tmp_path / "adapt").run(progress=False)
        start = tmp_path / "adapt" / "model.safetensors"
    targets = (AutoTarget("square", "synthetic", sources=("shapes:2",)), *a_config.auto_targets)
    config = replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 30, 4, 1),),
                     auto_targets=targets, targets_only=True, augment=augment, learning_rate=3e-3, average=0.5)
    Trainer(config, tmp_path / "targets").run(progress=False)
    models = [load_checkpoint(path) for path in (start, tmp_path / "targets" / "model.safetensors")]
    assert models[1].adapters_trained == started_with_adapters
    assert {"training_base", "training_targets"} <= models[1].metadata.keys()
    before, after = (Predictor(model, "cpu", "fp32") for model in models)
    image = np.asarray(Image.open(a_pack / "images" / "case5.png"))
    for predictor in (before, after):
        predictor.set_image(image)
    for prompt in ({"box": np.array([4, 48, 15, 59])},
                   {"point_coords": np.array([[30, 30], [10, 50]]), "point_labels": np.array([1, 0])}):
        results = [predictor.predict(**prompt, return_logits=True) for predictor in (before, after)]
        assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))
    assert [target.name for target in after.auto_targets] == ["square", "disk"]
    assert not np.array_equal(before.predict_auto("disk", True)[0], after.predict_auto("disk", True)[0])
    log = (tmp_path / "targets" / "log.csv").read_text()
    losses = [float(line.split(",")[2]) for line in log.splitlines() if line.split(",")[1] == "loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert "box" not in log
    assert "point" not in log


@pytest.mark.parametrize(("change", "message"), [
    ({"model": {"experts": 2}}, "prompt_tokens alone"), ({"phases": (Phase(32, 1, 2),)}, "size of the start, 64"),
    ({"auto_targets": ()}, "what is to be found"), ({"train_decoder": True}, "not together with train_decoder"),
    ({"stage": "base"}, "for the adapt stage")])
def test_what_would_change_more_than_auto_targets_is_refused(a_config, tmp_path, change, message):
    Trainer(replace(a_config, auto_targets=()), tmp_path / "base").run(stop_after=1, progress=False)
    config = {"stage": "adapt", "start": str(tmp_path / "base" / "model.safetensors"), "model": {},
              "targets_only": True, **change}
    with pytest.raises(DataError, match=message):
        Trainer(replace(a_config, **config), tmp_path / "run")


def test_targets_too_small_to_be_seen_do_not_end_a_run(a_config, a_pack, tmp_path):
    Trainer(a_config, tmp_path / "base").run(stop_after=1, progress=False)
    for path in (a_pack / "labels").iterdir():
        label = np.zeros((64, 64), np.uint8)
        label[30, 30:33] = 1
        Image.fromarray(label).save(path)
    config = replace(a_config, stage="adapt", start=str(tmp_path / "base" / "model.safetensors"), model={},
                     targets_only=True)
    Trainer(config, tmp_path / "run").run(stop_after=2, progress=False)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_what_the_start_learned_from_is_not_forgotten(a_config, a_pack, tmp_path):
    Trainer(a_config, tmp_path / "base").run(stop_after=1, progress=False)
    shutil.copytree(a_pack, tmp_path / "mine")
    for name, more in (("adapt", {}), ("damaged", {"training_data": "words"})):
        base = load_checkpoint(tmp_path / "base" / "model.safetensors")
        save_checkpoint(base, tmp_path / "start.safetensors", more)
        config = replace(a_config, stage="adapt", start=str(tmp_path / "start.safetensors"), model={},
                         phases=(Phase(64, 1, 2),), data=(str(tmp_path / "mine"),))
        Trainer(config, tmp_path / name).run(progress=False)
    known = [json.loads(load_checkpoint(tmp_path / name / "model.safetensors").metadata["training_data"])
             for name in ("adapt", "damaged")]
    assert known == [{"shapes": "CC0", "mine": "CC0"}, {"mine": "CC0"}]


def test_the_dense_head_is_not_part_of_the_model(a_config, tmp_path):
    Trainer(a_config, tmp_path).run(progress=False)
    assert not any(name.startswith("dense.") for name in weights(tmp_path))
    assert any(line.split(",")[1] == "dense" for line in (tmp_path / "log.csv").read_text().splitlines())


def test_the_decoder_learns_too_when_asked(a_config, tmp_path):
    Trainer(a_config, tmp_path / "base").run(progress=False)
    start = tmp_path / "base" / "model.safetensors"
    config = replace(a_config, stage="adapt", start=str(start), model={}, phases=(Phase(64, 2, 2),),
                     train_decoder=True)
    after = Trainer(config, tmp_path / "adapt").run(progress=False).state_dict()
    base = load_checkpoint(start).state_dict()
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    assert "mask_decoder.refine.conv1.weight" in changed
    assert not any(name.startswith("image_encoder.") for name in changed)


def test_one_image_is_learned_with_box_click_and_auto(a_config, a_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "VALIDATION_ITEMS", 2)
    torch.manual_seed(0)
    config = replace(a_config, phases=(Phase(64, 100, 4, 1),), image_share=0.25, learning_rate=2e-3, average=0.9,
                     model={**a_config.model, "image_size": 64}, auto_share=0.4, validate_every=1000)
    trainer = Trainer(config, tmp_path)
    only = trainer._data("train", 64).sets[0][0]
    # Without augmentation: the point is that the network can represent one image exactly.
    monkeypatch.setattr(trainer_module.TrainingData, "_square_matrix",
                        lambda self, *_: np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    predictor = Predictor(trainer.run(progress=False), "cpu", "fp32")
    predictor.focus = False  # nothing was learned at another scale
    image, truth = only[1], only[2] == 1
    predictor.set_image(image)
    rows, columns = np.nonzero(truth)
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    click = np.array([[columns.mean(), rows.mean()]])
    results = {"box": predictor.predict(box=box)[0][0],
               "click": predictor.predict(click, np.array([1]))[0][0]}
    results["auto"] = predictor.predict_auto("disk")[0][0]
    for name, mask in results.items():
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.97, name


@pytest.mark.parametrize(("text", "message"), [
    ("stage: base\nphases: [{size: 64, steps: 1, batch: 1}]", "needs 'data'"),
    ("stage: other\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]", "stage must be"),
    ("stage: adapt\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]", "needs 'start'"),
    ("stage: base\ndata: [x]\nlearning: 3\nphases: []", "unknown settings learning"),
    ("- 1\n- 2", "expected 'name: value'"),
    ("a: [1", "not a readable YAML"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, bach: 1}]", "bach"),
    ("stage: base\ndata: [x]\nphases: [{size: large, steps: 1, batch: 1}]", "size must be a whole number"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: -5, batch: 1}]", "steps must be a whole number"),
    ("stage: base\ndata: [x]\nphases: [64]", "expected 'name: value' pairs"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\ncheckpoint_every: 0", "of at least 1"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nlearning_rate: fast", "must be a number"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nlearning_rate: .nan", "must be a number"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nbox_share: 2", "from 0 to 1"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\naugment: maybe", "true or false"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nmodel: tiny", "pairs, not 'tiny'"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nemphasis: {a: b}", "emphasis of a must be"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\nauto_targets: [{name: a, color: red}]",
     "color must be"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\n1: x\nlearning: 3",
     "unknown settings 1, learning"),
    *(("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\n"
       f"auto_targets: [{{name: a, sources: {sources}}}]", "sources must be like")
      for sources in ("shapes", "[shapes]", '["shapes:disk"]', '["shapes:1", ":1"]', "[{shapes: 1}]", "5", "null")),
    ("stage: base\ndata: [x]\nphases: [{size: 64, step: 1, batch: 1}]", "unknown settings step of a phase"),
    ("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1}]", "batch of a phase must be given"),
    ("data: [x]\nphases: [{size: 64, steps: 1, batch: 1}]", "stage must be given"),
    ("stage: base\ndata: [x]\nphases: {size: 64, steps: 1, batch: 1}", "phases must be a list"),
    *(("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\n" + line, message) for line, message in (
        ("auto_targets: [disk]", "pairs where 'disk' stands"), ("auto_targets: [{nam: a}]", "settings nam of an auto"),
        ("auto_targets: [{name: 3}]", "name must be a text"), ("start: 3", "start must be a text"),
        ("clip_norm: 0", "clip_norm must be greater than 0"), ("learning_rate: 0", "greater than 0"),
        ("average: 2", "from 0 to 1"), ("emphasis: [a]", "emphasis must be"))),
    ("stage: base\ndata: 5\nphases: [{size: 64, steps: 1, batch: 1}]", "must name folders"),
    ("stage: base\ndata: [[x]]\nphases: [{size: 64, steps: 1, batch: 1}]", "must name folders"),
])
def test_a_broken_config_is_explained(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_training_config(path)


def test_a_number_as_people_write_it_and_one_folder_are_taken(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("stage: base\ndata: one folder\nphases: [{size: 64, steps: 1, batch: 1}]\nlearning_rate: 4e-4")
    config = load_training_config(path)
    assert (config.learning_rate, config.data) == (4e-4, ("one folder",))


def test_one_source_needs_no_list(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("stage: base\ndata: [x]\nphases: [{size: 64, steps: 1, batch: 1}]\n"
                    "auto_targets: [{name: disk, sources: 'shapes:1'}, {name: square, sources: ['a:b:2', 'c:3']}]")
    assert [target.sources for target in load_training_config(path).auto_targets] == [
        ("shapes:1",), ("a:b:2", "c:3")]


@pytest.mark.parametrize("change", [{"phases": (Phase(70, 1, 2, 1),)}, {"model": {"widths": 3}},
                                    {"model": {"compact_widths": [8]}}, {"model": {"embed_dim": 63}}])
def test_a_model_that_cannot_be_built_is_explained(a_config, tmp_path, change):
    with pytest.raises(DataError, match="cannot be used"):
        Trainer(replace(a_config, **change), tmp_path)


def test_a_target_without_images_is_said(a_config, tmp_path, caplog):
    Trainer(a_config, tmp_path)
    assert not caplog.records
    Trainer(replace(a_config, auto_targets=(AutoTarget("disk", sources=("shapes:9",)),)), tmp_path)
    assert "Auto will not learn it" in caplog.text


def test_an_emphasis_without_a_data_set_is_said(a_config, tmp_path, caplog):
    Trainer(replace(a_config, emphasis={"shapes": 2.0}), tmp_path)
    assert not caplog.records
    Trainer(replace(a_config, emphasis={"shapess": 0.0}), tmp_path)
    assert "shapess: its emphasis changes nothing" in caplog.text


def test_a_data_set_of_no_emphasis_is_left_out_of_training_and_origin(a_config, a_pack, tmp_path):
    shutil.copytree(a_pack, a_pack.parent / "more")
    config = replace(a_config, data=(str(a_pack), str(a_pack.parent / "more")), emphasis={"more": 0.0})
    trainer = Trainer(config, tmp_path / "run")
    assert [pack.code for pack in trainer.packs] == ["shapes"]
    trainer.run(stop_after=1, progress=False)
    metadata = load_checkpoint(tmp_path / "run" / "model.safetensors").metadata
    assert json.loads(metadata["training_data"]) == {"shapes": "CC0"}
    with pytest.raises(DataError, match="no training images"):
        Trainer(replace(config, emphasis={"more": 0.0, "shapes": 0.0}), tmp_path / "none").run(progress=False)


def test_missing_data_is_named(a_config, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        Trainer(replace(a_config, data=("nowhere",)), tmp_path)
