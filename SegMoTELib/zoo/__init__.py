"""Where weights come from: the model bundled with the extension, or a file of the user's."""

from __future__ import annotations

from pathlib import Path

from SegMoTELib.errors import CheckpointError

MODELS_FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Models"
BUNDLED = ("segmote-tiny",)


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the weights file of a bundled model's name, or of a path.

    Args:
        name_or_path: one of ``BUNDLED``, or a path of a weights file.

    Raises:
        CheckpointError: no such file.
    """
    name = str(name_or_path)
    if name in BUNDLED:
        path = MODELS_FOLDER / f"{name}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{name}: its weights are not at {path}; is the installation complete?")
        return path
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{name}: neither a bundled model ({', '.join(BUNDLED)}) nor an existing weights file.")
    return path
