"""No weights file runs code, whatever it is called and however it is packed, and none takes the machine's memory."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from SegMoTELib.cli import group
from SegMoTELib.errors import CheckpointError
from SegMoTELib.network import ModelConfig, load_checkpoint
from SegMoTELib.network.checkpoints import FORMAT
from SegMoTELib.training.trainer import Trainer


class Evil:
    """Pickles into a call that makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def tar_named(name: bytes, content: bytes) -> bytes:
    """A tar archive that begins with these bytes, as its first member's name."""
    member = tarfile.TarInfo(name.decode("latin-1"))
    member.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


PACKED = {
    "a bare pickle": lambda evil: pickle.dumps(evil, protocol=2),
    "a pickle among tensors": lambda evil: pickle.dumps({"image_encoder.pos_embed": evil}, protocol=4),
    "torch's archive": lambda evil: saved({"model": evil}),
    "torch's old format": lambda evil: saved({"model": evil}, _use_new_zipfile_serialization=False),
    "a state dict with one odd value": lambda evil: saved({"a": torch.zeros(2), "b": evil}),
    "a tar that looks like a pickle": lambda evil: tar_named(b"\x80\x02", pickle.dumps(evil)),
    "a tar that looks like a zip": lambda evil: tar_named(b"PK", pickle.dumps(evil)),
    "a tar that looks more like a zip": lambda evil: tar_named(b"PK\x03\x04", pickle.dumps(evil)),
}


def test_the_bait_works(tmp_path):
    """Else none of the tests below would mean anything."""
    pickle.loads(PACKED["a bare pickle"](Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("kind", PACKED)
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, kind, name):
    (tmp_path / name).write_bytes(PACKED[kind](Evil(tmp_path / "mark")))
    with pytest.raises(CheckpointError, match=r"model\.") as error:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mark").exists()


def test_such_a_file_is_not_added_to_the_models(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))
    (tmp_path / "model.pth").write_bytes(PACKED["torch's archive"](Evil(tmp_path / "mark")))
    result = CliRunner().invoke(group, ["models", "add", str(tmp_path / "model.pth")])
    assert isinstance(result.exception, CheckpointError)
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("kind", PACKED)
def test_a_training_run_does_not_resume_from_such_a_file(tmp_path, kind):
    (tmp_path / "last.pt").write_bytes(PACKED[kind](Evil(tmp_path / "mark")))
    trainer = Trainer.__new__(Trainer)
    trainer.folder, trainer.device, trainer.config = tmp_path, torch.device("cpu"), None
    with pytest.raises(CheckpointError, match=r"Delete it to start over|another config"):
        trainer.resume()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("header", [
    (2**62).to_bytes(8, "little") + b"{}",
    (2**63 + 5).to_bytes(8, "little") + b"{}", (90_000_000).to_bytes(8, "little"),
    (2).to_bytes(8, "little") + b"{}", b"\x10" + bytes(7) + b"{" * 16,
    (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4'.ljust(60, b" "),
    (75).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'],
    ids=["huge", "beyond 63 bits", "longer than the file", "empty", "no json", "cut", "tensor beyond the file"])
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("change", [
    {"image_size": 10**9}, {"image_size": 1 << 15}, {"embed_dim": 10**7}, {"embed_dim": 16384, "decoder_mlp": 16384},
    {"compact_depths": [10**6] * 5}, {"compact_widths": [32] * 10**5}, {"experts": 10**8}, {"prompt_tokens": 10**9},
    {"encoder": "sam_vit", "encoder_depth": 10**9}, {"encoder_stride": 0}, {"embed_dim": -8}, {"embed_dim": "8"},
    {"encoder": "../../etc/passwd"}, {"name": ["x"]}, {"auto_targets": "x"}, {"unknown": 1}])
def test_a_description_that_asks_for_the_whole_memory_is_refused_before_it_gets_any(tmp_path, change):
    config = {**ModelConfig.tiny().to_dict(), **change}
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": FORMAT, "config": json.dumps(config),
                                            "trained": '{"adapters": true, "auto": true}'})
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)


def test_a_description_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": FORMAT, "config": "[" * 100_000, "trained": "{}"})
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
