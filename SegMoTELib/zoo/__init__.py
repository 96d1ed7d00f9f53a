"""Where weights come from: bundled with the extension, downloaded on request, or a file of the user's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from SegMoTELib.errors import CheckpointError
from SegMoTELib.zoo.catalogue import find_entry
from SegMoTELib.zoo.store import held, weights_path

BUNDLED = ("segmote-tiny",)
LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the weights file of a model's name, or of a path. Nothing is downloaded.

    Args:
        name_or_path: a name of ``held()`` (bundled, downloaded or the user's own), or a path of a weights file.

    Raises:
        CheckpointError: no such file, or a model that has not been fetched yet.
    """
    if str(name_or_path) in BUNDLED:  # needs no other package: asked before any is installed
        path = weights_path(find_entry(str(name_or_path)))
        if not path.is_file():
            raise CheckpointError(f"{name_or_path}: its weights are not at {path}; is the installation complete?")
        return path
    model = next((one for one in held() if one.name == str(name_or_path)), None)
    if model is not None:
        if model.path.is_file():
            return model.path
        raise CheckpointError(f"{model.name}: its weights are {model.state}; fetch them with: "
                              f"segmote models fetch {model.name}")
    try:
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, not permitted, no such user's home
        raise CheckpointError(f"{name_or_path}: cannot be read ({error}).") from error
    raise CheckpointError(f"{name_or_path}: neither a model ({', '.join(one.name for one in held())}) nor an existing "
                          "weights file.")


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of itself.

    Attributes:
        name: of the architecture. licence: of the weights, or "" where the file does not say.
        targets: (name, modality) of what Auto finds; empty where it was not trained. planes: target -> the plane of
            its training slices, where they had one.
    """

    name: str
    licence: str
    targets: tuple[tuple[str, str], ...]
    planes: dict[str, str] = field(default_factory=dict)


def read_card(path: str | Path) -> ModelCard:
    """Read a safetensors file's own description, without torch; other files have none.

    Raises:
        CheckpointError: a safetensors file that is damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return ModelCard(path.stem, "", ())
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LARGEST_HEADER:
                raise ValueError("its header is too long")
            metadata = json.loads(file.read(length)).get("__metadata__") or {}
        config = json.loads(metadata.get("config", "{}"))
        trained = json.loads(metadata.get("trained", "{}"))
        targets = tuple((str(one["name"]), str(one["modality"])) for one in config.get("auto_targets", ()))
        return ModelCard(str(config.get("name", path.stem)), str(metadata.get("licence", "")),
                         targets if trained.get("auto") else (),
                         {str(one["name"]): str(one.get("plane", "")) for one in config.get("auto_targets", ())})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
