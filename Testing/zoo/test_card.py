"""What a weights file says of itself, read without torch."""

from __future__ import annotations

import pytest

from SegMoTELib.errors import CheckpointError
from SegMoTELib.zoo import read_card, resolve_model


def test_the_bundled_models_card_names_licence_and_targets():
    card = read_card(resolve_model("segmote-tiny"))
    assert card.name == "segmote_tiny"
    assert card.licence
    assert ("fetal head", "ultrasound") in card.targets


def test_a_pytorch_file_has_no_card(tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    path.write_bytes(b"anything")
    assert read_card(path).targets == ()


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, (5).to_bytes(8, "little") + b"[1,2]",
                                     (4).to_bytes(8, "little") + b"{no}"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        read_card(path)
