"""Data sets that say something else than they seem to are refused; odd but sound ones are learned from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from SegMoTELib.data.pack import open_packs
from SegMoTELib.errors import DataError
from SegMoTELib.network import load_checkpoint
from SegMoTELib.training import trainer as trainer_module
from SegMoTELib.training.config import Phase
from SegMoTELib.training.dataset import TrainingData
from SegMoTELib.training.trainer import Trainer

TINY = np.zeros((64, 64), np.uint8)
TINY[30, 30:33] = 1


@pytest.fixture(autouse=True)
def short_endings(monkeypatch):
    """A run ends with a small validation and without a picture."""
    monkeypatch.setattr(trainer_module, "VALIDATION_ITEMS", 16)
    monkeypatch.setattr(trainer_module, "draw_curves", lambda log, picture: None)


def images_of(pack, split="train"):
    return TrainingData(open_packs([str(pack)]), split, (), 64, 2)


def give(pack, part, name, values):
    """Write a label or instance map of an image."""
    (pack / part).mkdir(exist_ok=True)
    Image.fromarray(values).save(pack / part / f"{name}.png")


def describe(pack, **changes):
    info = json.loads((pack / "dataset.json").read_text()) | changes
    (pack / "dataset.json").write_text(json.dumps(info))


def same(first, second) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("image", "masks", "targets"))


def test_data_sets_of_one_name_are_refused_even_where_one_is_left_out(a_config, a_pack, tmp_path):
    other = shutil.copytree(a_pack, tmp_path / "second" / "shapes")
    config = replace(a_config, data=(str(a_pack), str(other)))
    for emphasis in ({}, {"shapes": 0.0}):
        with pytest.raises(DataError, match="two data sets are named 'shapes'"):
            Trainer(replace(config, emphasis=emphasis), tmp_path / "run")


def test_an_instance_map_of_another_size_is_refused_by_name(a_pack):
    give(a_pack, "instances", "case2", np.ones((32, 48), np.uint16))
    with pytest.raises(DataError, match="shapes/case2: the instance map is 48x32 pixels, the label map 64x64"):
        images_of(a_pack)


def test_label_values_without_a_name_are_refused_by_name(a_pack):
    label = np.array(Image.open(a_pack / "labels" / "case1.png"))
    label[:3] = 255
    give(a_pack, "labels", "case1", label)
    with pytest.raises(DataError, match=r"shapes/case1: label values \[255\] are not named"):
        images_of(a_pack)


def test_an_empty_instance_map_is_as_good_as_none(a_pack):
    plain = images_of(a_pack)
    for index in range(4):
        give(a_pack, "instances", f"case{index}", np.zeros((64, 64), np.uint16))
    empty = images_of(a_pack)
    assert all(same(plain.item(np.random.default_rng(seed)), empty.item(np.random.default_rng(seed)))
               for seed in range(12))


def test_single_objects_are_learned_where_they_are_known(a_pack):
    for index in range(4):
        label = np.array(Image.open(a_pack / "labels" / f"case{index}.png"))
        give(a_pack, "instances", f"case{index}", np.where(label == 2, 300, 0).astype(np.uint16))
    items = [images_of(a_pack).item(np.random.default_rng(seed), augment=False) for seed in range(12)]
    squares = [mask for item in items for mask in item.masks if np.array_equal(mask, item.label == 2)]
    assert len(squares) > 12  # as a class and as an object


def test_a_very_long_image_keeps_a_row(a_config, a_pack, tmp_path):
    long = np.zeros((1, 2000), np.uint8)
    long[0, 500:1500] = 1
    for index in range(5):
        give(a_pack, "labels", f"case{index}", long)
        give(a_pack, "images", f"case{index}", long * 200)
    (_, image, label, _), *_ = images_of(a_pack).sets[0]
    assert image.shape == label.shape == (1, 512)
    Trainer(replace(a_config, phases=(Phase(64, 2, 2, 1),)), tmp_path / "run").run(progress=False)


def test_nothing_is_validated_where_every_mask_is_too_small(a_config, a_pack, tmp_path):
    give(a_pack, "labels", "case4", TINY)  # the only image of the validation split
    assert not images_of(a_pack, "val").item(np.random.default_rng(0), augment=False).found
    trainer = Trainer(a_config, tmp_path / "run")
    assert trainer.validate(a_config.phases[0]) == {}
    trainer.run(stop_after=1, progress=False)


def test_masks_too_small_are_left_out_of_validation(a_config, a_pack, tmp_path, monkeypatch):
    describe(a_pack, splits={"train": ["case0"], "val": [f"case{index}" for index in range(1, 6)]})
    for index in range(2, 6):
        give(a_pack, "labels", f"case{index}", TINY)
    asked = []
    of = trainer_module.Batch.of
    monkeypatch.setattr(trainer_module.Batch, "of", lambda items, seeds, config: asked.extend(
        zip(items, seeds, strict=True)) or of(items, seeds, config))
    assert Trainer(a_config, tmp_path / "run").validate(a_config.phases[0])
    assert {item.key for item, _ in asked} == {("shapes", "case1")}
    assert 0 < len(asked) < trainer_module.VALIDATION_ITEMS
    data = images_of(a_pack, "val")
    for item, seed in asked:  # the same draws as if nothing had been left out
        assert item.found
        assert np.array_equal(item.image, data.item(np.random.default_rng([7, seed]), augment=False).image)


def test_masks_too_small_to_be_seen_do_not_teach_that_the_whole_image_is_meant(a_config, a_pack, tmp_path, caplog):
    Trainer(a_config, tmp_path / "base").run(stop_after=1, progress=False)
    for index in range(4):
        give(a_pack, "labels", f"case{index}", TINY)
    start = str(tmp_path / "base" / "model.safetensors")
    trainer = Trainer(replace(a_config, stage="adapt", start=start, model={}), tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run(stop_after=3, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert [record.message[:50] for record in caplog.records] == ["none of a step's targets has 12 pixels at size 64,"]


def test_a_loss_of_nothing_has_a_gradient_for_other_processes_wait_for_one(a_config, a_pack, tmp_path):
    Trainer(a_config, tmp_path / "base").run(stop_after=1, progress=False)
    for index in range(4):
        give(a_pack, "labels", f"case{index}", TINY)
    start = str(tmp_path / "base" / "model.safetensors")
    for change in ({}, {"targets_only": True}):
        trainer = Trainer(replace(a_config, stage="adapt", start=start, model={}, **change), tmp_path / "run")
        (_, batch), = trainer._next_batches()
        loss, _ = trainer._wrapped()(batch, 1)
        loss.backward()
        assert loss == 0
        assert any(weight.grad is not None and not weight.grad.any() for weight in trainer.optimised)


def test_a_target_beside_one_too_small_is_learned_at_its_share(a_config, a_pack, tmp_path):
    trainer = Trainer(replace(a_config, dense_weight=0.0, model={**a_config.model, "image_size": 64}), tmp_path / "run")
    (_, batch), = trainer._next_batches()
    whole, _ = trainer._wrapped()(batch, 1)
    assert batch.found.all()
    batch.found[:] = False
    parts = []
    for index in range(len(batch.found)):
        batch.found[index] = True
        parts.append(float(trainer._wrapped()(batch, 1)[0].detach()))
        batch.found[index] = False
    assert float(whole.detach()) == pytest.approx(sum(parts), rel=1e-4)


def test_images_without_a_label_are_told_from_no_images(a_config, a_pack, tmp_path):
    for index in range(4):
        give(a_pack, "labels", f"case{index}", np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"none of the training images in .* their masks are all empty"):
        Trainer(a_config, tmp_path / "run").run(progress=False)
    describe(a_pack, splits={"train": [], "val": ["case4"]})
    with pytest.raises(DataError, match="no training images in"):
        Trainer(a_config, tmp_path / "run").run(progress=False)


def test_a_licence_goes_along_in_either_spelling(a_config, a_pack, tmp_path):
    describe(a_pack, licence="", license="CC BY 4.0")
    Trainer(a_config, tmp_path / "run").run(stop_after=1, progress=False)
    metadata = load_checkpoint(tmp_path / "run" / "model.safetensors").metadata
    assert json.loads(metadata["training_data"]) == {"shapes": "CC BY 4.0"}
