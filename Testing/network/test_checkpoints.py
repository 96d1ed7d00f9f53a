"""Weights travel whole or not at all, and a file that cannot be used says why, by its name."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from SegMoTELib.errors import CheckpointError
from SegMoTELib.network import AutoTarget, ModelConfig, SegMoTE, build_model, load_checkpoint, save_checkpoint
from SegMoTELib.network.checkpoints import attach_adapters
from SegMoTELib.network.model import is_adapter

TARGET = AutoTarget("brain", "MR", (1, 2, 3), "Segmentation category^Brain", ("a:1", "b:2"))


@pytest.fixture(scope="module")
def tiny() -> SegMoTE:
    """The compact model at full size."""
    torch.manual_seed(0)
    model = build_model(ModelConfig.tiny((TARGET,)))
    model.metadata = {"licence": "CC-BY-4.0"}
    return model


@pytest.fixture(scope="module")
def native(tiny: SegMoTE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint in our own layout."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(tiny, path, {"data": "12 sets", "seed": 3})
    return path


def refused(path: Path) -> str:
    """The message a file is refused with; it names the file and is one line."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def header_of(path: Path) -> dict[str, str]:
    """The strings that a safetensors file carries."""
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]


def rewritten(source: Path, target: Path, **header: str | None) -> Path:
    """A copy of a native checkpoint with other header fields."""
    changed = {key: value for key, value in {**header_of(source), **header}.items() if value is not None}
    save_file(load_file(source), target, metadata=changed)
    return target


def test_a_native_checkpoint_brings_weights_architecture_and_metadata(tiny, native):
    loaded = load_checkpoint(native)
    assert loaded.config == tiny.config
    assert loaded.config.auto_targets == (TARGET,)
    assert loaded.metadata == {"licence": "CC-BY-4.0", "data": "12 sets", "seed": "3"}
    assert loaded.adapters_trained
    assert not loaded.training
    state = tiny.state_dict()
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_half_precision_halves_the_file_and_stays_close(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 16 * 2**20
    loaded = load_checkpoint(tmp_path / "half.safetensors")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, tiny.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_saving_leaves_no_other_file_and_replaces_an_old_one(tiny, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")
    save_checkpoint(tiny, path)
    assert os.listdir(tmp_path) == ["weights.safetensors"]
    assert load_checkpoint(path).config == tiny.config


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("auto", [True, False])
def test_what_has_been_trained_is_remembered(small_sam_config, tmp_path, adapters, auto):
    model = build_model(small_sam_config)
    model.adapters_trained, model.auto_trained = adapters, auto
    save_checkpoint(model, tmp_path / "base.safetensors")
    loaded = load_checkpoint(tmp_path / "base.safetensors")
    assert (loaded.adapters_trained, loaded.auto_trained) == (adapters, auto)


@pytest.mark.parametrize("low_byte", [0x80, 0x50], ids=["like a pickle", "like a zip archive"])
def test_a_native_file_is_recognised_whatever_the_length_of_its_header(tmp_path, small_sam_config, low_byte):
    wanted = {0x80: lambda length: length % 256 == 0x80, 0x50: lambda length: length % 65536 == 0x4B50}[low_byte]
    model, path = build_model(small_sam_config), tmp_path / "length.safetensors"
    save_checkpoint(model, path, {"filler": ""})
    start = struct.unpack("<Q", path.read_bytes()[:8])[0]
    steps = next(n for n in range(1 << 17) if wanted(start + n))
    save_checkpoint(model, path, {"filler": "x" * steps})
    assert wanted(struct.unpack("<Q", path.read_bytes()[:8])[0])
    assert load_checkpoint(path).config == small_sam_config


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's files by other means")
def test_weights_are_readable_for_whom_the_user_lets_read_new_files(small_sam_config, tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(build_model(small_sam_config), tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == 0o640
    assert len(os.listdir(tmp_path)) == 1


def test_only_finite_weights_and_only_safetensors_are_written(small_sam_config, tmp_path):
    model = build_model(small_sam_config)
    with pytest.raises(CheckpointError, match=r"weights\.pth: native checkpoints end in \.safetensors"):
        save_checkpoint(model, tmp_path / "weights.pth")
    with torch.no_grad():
        model.mask_decoder.iou_token.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: mask_decoder\.iou_token\.weight contains"):
        save_checkpoint(model, tmp_path / "weights.safetensors", half=True)
    with torch.no_grad():
        model.mask_decoder.iou_token.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        save_checkpoint(model, tmp_path / "weights.safetensors")
    assert not os.listdir(tmp_path)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [
    lambda content, path: torch.save(content, path),
    lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    lambda content, path: path.write_bytes(pickle.dumps(content)),
], ids=["zip", "legacy", "bare pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, write):
    path, proof = tmp_path / "attack.pth", tmp_path / "proof"
    write({"image_encoder.pos_embed": torch.zeros(1), "x": Attack(proof)}, path)
    message = refused(path)
    assert not proof.exists()
    assert "could run code" in message or "cut off" in message


def test_a_missing_file_and_a_folder_are_no_weights(tmp_path):
    assert "no such weights file" in refused(tmp_path / "nowhere.safetensors")
    assert "no such weights file" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"P", b"hello, these are not weights\n" * 9, b"\x80", b"\x80\x02",
                                     b"PK\x03\x04", b"\x80\x02}.", b"PK\x03\x04" + b"{" * 99, bytes(200)],
                         ids=["empty", "one byte", "text", "start of a pickle", "pickle protocol", "start of a zip",
                              "empty pickle", "nonsense zip", "zeros"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.5, 0.9999])
def test_a_truncated_native_file_is_refused(native, tmp_path, fraction):
    path = tmp_path / "cut.safetensors"
    whole = native.read_bytes()
    path.write_bytes(whole[:int(fraction * len(whole))])
    assert "not a readable weights file" in refused(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_truncated_anywhere_or_damaged_is_refused(tmp_path, zipped):
    torch.manual_seed(0)
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.zeros(100), "b": torch.zeros(3, 3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(2, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:length])
        refused(path)
    for places in torch.randint(2, min(len(whole), 900), (60, 4)).tolist():
        damaged = bytearray(whole)
        for place in places:
            damaged[place] ^= 0x5A
        path.write_bytes(damaged)
        refused(path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "not SegMoTE's" in refused(path)


@pytest.mark.parametrize("trained", ["{", "3", "{}", None], ids=str)
def test_a_file_that_does_not_say_what_is_trained_is_refused(native, tmp_path, trained):
    assert "damaged" in refused(rewritten(native, tmp_path / "changed.safetensors", trained=trained))


def changed_config(**changes) -> str:
    return json.dumps({**ModelConfig.tiny().to_dict(), **changes})


@pytest.mark.parametrize(("config", "words"), [
    ("{", "damaged"), (None, "damaged"), ("[]", "architecture description"), ("3", "architecture description"),
    ("null", "architecture description"), ("{}", "architecture description"),
    (changed_config(flux_capacitor=3), "unknown fields: flux_capacitor"),
    (changed_config(encoder="resnet"), "encoder must be"),
    (changed_config(auto_targets=[7]), "not usable"),
    (changed_config(auto_targets=[{"name": "a"}]), "not usable"),
    (changed_config(compact_widths=[1, 2]), "damaged"),
    (changed_config(embed_dim="wide"), "damaged"),
    (changed_config(embed_dim=-8), "damaged"),
    (changed_config(encoder_stride=0), "damaged"),
    (changed_config(decoder_mlp=128), "shape"),
], ids=["broken JSON", "absent", "list", "number", "null", "empty", "unknown field", "unknown encoder",
        "numbers for targets", "half a target", "too few stages", "text for a number", "negative width", "no stride",
        "another width"])
def test_a_damaged_or_foreign_architecture_is_refused(native, tmp_path, config, words):
    assert words in refused(rewritten(native, tmp_path / "changed.safetensors", config=config))


@pytest.mark.parametrize(("change", "words"), [
    (lambda state: state.pop("mask_decoder.iou_token.weight"), "1 missing (first: mask_decoder.iou_token.weight)"),
    (lambda state: state.update(surprise=torch.zeros(1)), "1 unknown (first: surprise)"),
    (lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(1, 3)}), "has shape (1, 3)"),
    (lambda state: state["mask_decoder.iou_token.weight"].fill_(float("nan")), "NaN or infinite"),
    (lambda state: state["mask_decoder.iou_token.weight"].fill_(float("inf")), "NaN or infinite"),
], ids=["missing", "unknown", "shape", "nan", "infinite"])
def test_tensors_that_do_not_fit_are_refused(native, tmp_path, change, words):
    state = load_file(native)
    change(state)
    path = tmp_path / "changed.safetensors"
    save_file(state, path, metadata=header_of(native))
    assert words in refused(path)


@pytest.mark.parametrize(("content", "words"), [
    ({"layer1.0.conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, "neither SAM's nor SegMoTE's"),
    ({"state_dict": {"fc.bias": torch.zeros(2)}}, "neither SAM's nor SegMoTE's"),
    ({}, "no state dict"), ([torch.zeros(2)], "no state dict"), (torch.zeros(2), "no state dict"),
    ({"model": {"epoch": 3}}, "no state dict"), ({1: torch.zeros(2)}, "no state dict"),
    ({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 123), "mask_decoder.iou_token.weight": torch.zeros(1, 256),
      "image_encoder.blocks.6.norm1.weight": torch.zeros(123)}, "width 123 and 7 blocks is none of SAM's"),
], ids=["torchvision", "wrapped", "empty", "list", "tensor", "no tensors", "numbered", "odd width"])
def test_a_pickle_of_another_architecture_is_refused(tmp_path, content, words):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert words in refused(path)


@pytest.fixture
def small_sam_is_vit_b(monkeypatch: pytest.MonkeyPatch, small_sam_config: ModelConfig) -> dict[str, torch.Tensor]:
    """Let the loader take the small model for ViT-B; returns its base's state dict."""
    monkeypatch.setitem(load_checkpoint.__globals__["SAM_ENCODERS"], "vit_b", (32, 2, 2, (1,)))
    monkeypatch.setattr(ModelConfig, "sam", classmethod(lambda cls, name: small_sam_config))
    torch.manual_seed(3)
    return {name: value for name, value in build_model(small_sam_config).state_dict().items() if not is_adapter(name)}


@pytest.mark.parametrize("pack", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 2},
                                  lambda s: {f"module.{k}": v for k, v in s.items()},
                                  lambda s: {k: v.half() for k, v in s.items()}],
                         ids=["plain", "model", "state_dict", "data parallel", "half"])
def test_sams_file_loads_from_the_usual_containers_with_untrained_adapters(small_sam_is_vit_b, tmp_path, pack):
    torch.save(pack(small_sam_is_vit_b), tmp_path / "sam.pth")
    model = load_checkpoint(tmp_path / "sam.pth")
    assert not model.adapters_trained
    assert not model.auto_trained
    assert not model.training
    assert model.metadata["origin"] == "SAM vit_b"
    for name, value in small_sam_is_vit_b.items():
        assert torch.allclose(model.state_dict()[name], value, atol=2e-3)


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("prompt_encoder.no_mask_embed.weight"), "1 missing (first: prompt_encoder.no_mask_embed.weight)"),
    (lambda s: s.update(extra=torch.zeros(1)), "1 unknown (first: extra)"),
    (lambda s: s["image_encoder.pos_embed"].view(-1)[:1].fill_(float("nan")), "NaN"),
], ids=["missing", "unknown", "nan"])
def test_sams_file_with_a_missing_an_unknown_or_a_nan_tensor_is_refused(small_sam_is_vit_b, tmp_path, change, words):
    change(small_sam_is_vit_b)
    torch.save(small_sam_is_vit_b, tmp_path / "sam.pth")
    assert words in refused(tmp_path / "sam.pth")


def test_attached_adapters_keep_the_base_and_start_fresh_where_they_differ(small_sam_config):
    torch.manual_seed(4)
    model = build_model(small_sam_config)
    wider = attach_adapters(model, {"experts": 6}, (TARGET,))
    assert wider.config.experts == 6
    assert wider.config.auto_targets == (TARGET,)
    for name, value in model.state_dict().items():
        if not is_adapter(name):
            assert torch.equal(wider.state_dict()[name], value)
    assert wider.mask_decoder.expert_tokens.weight.shape[0] == 6
    with pytest.raises(CheckpointError, match="change the frozen base"):
        attach_adapters(model, {"decoder_mlp": 16})


def test_untrained_experts_of_a_compact_model_start_from_the_base(small_tiny_config):
    """Before any adapting, the experts' masks resemble the base's; experts that were trained are left alone."""
    torch.manual_seed(4)
    model = build_model(small_tiny_config).eval()
    model.adapters_trained = False
    pixels = torch.randn(1, 3, small_tiny_config.image_size, small_tiny_config.image_size)
    boxes = torch.tensor([[10.0, 10, 40, 40]])
    started = attach_adapters(model, {"experts": 6}).eval()
    with torch.no_grad():
        base, expert = (started.decode(started.encode(pixels), boxes=boxes, adapters=use).logits.flatten()
                        for use in (False, True))
    assert torch.corrcoef(torch.stack([base, expert]))[0, 1] > 0.5
    again = attach_adapters(model, {})
    gate = "mask_decoder.transformer.layers.0.experts.gate"
    assert not torch.equal(again.state_dict()[gate], model.state_dict()[gate])
    assert torch.equal(again.prompt_tokenizer.queries, model.prompt_tokenizer.queries)  # learned with the base
    model.adapters_trained = True
    kept = attach_adapters(model, {})
    assert torch.equal(kept.mask_decoder.expert_tokens.weight, model.mask_decoder.expert_tokens.weight)
