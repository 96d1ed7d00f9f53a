"""One door for weights: native ``.safetensors``, SAM's ``.pth`` and the published SegMoTE's ``.pth``; checked, safe.

Pickles are read with ``weights_only=True``, in one place (``read_tensors``). A file is used whole or not at all: every
tensor is either loaded, or named in ``DEAD_KEYS`` as known to have no effect on a mask, or the file is refused.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import tarfile
import uuid
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from SegMoTELib.errors import CheckpointError
from SegMoTELib.network.config import SAM_ENCODERS, AutoTarget, ModelConfig
from SegMoTELib.network.model import LEARNED_WITH_BASE, SegMoTE, build_model, is_adapter
from SegMoTELib.network.published import from_published, is_published

FORMAT = "segmote-1"
PER_TARGET = ("prompt_tokenizer.queries", "mask_decoder.target_dense.weight")  # one row for each auto target
log = logging.getLogger(__name__)


def load_checkpoint(path: str | Path) -> SegMoTE:
    """Load weights of any known layout.

    Args:
        path: native ``.safetensors``; SAM (or MedSAM) ``.pth``; published SegMoTE ``.pth``.

    Returns:
        The model in eval mode, float32, on the CPU; ``metadata`` holds what the file says about itself.

    Raises:
        CheckpointError: one sentence with file and cause: missing, damaged, unsafe, unknown layout, wrong or missing
            tensors, NaN. Nothing is half-loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file.")
    with open(path, "rb") as file:
        head = file.read(9)
    # A zip archive (torch.save) or a bare pickle; safetensors starts with eight bytes, the length of its header, which
    # may look like either, and a brace.
    if head[8:] != b"{" and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        return _load_pickle(path)
    return _load_native(path)


def save_checkpoint(model: SegMoTE, path: str | Path, metadata: dict[str, str] | None = None,
                    half: bool = False) -> None:
    """Write a native checkpoint atomically.

    Args:
        model: any SegMoTE. path: ends in ``.safetensors``. metadata: strings that travel with the weights (training
            data, licence, seeds, versions); added to the model's own. half: store float16.

    Raises:
        CheckpointError: wrong suffix, or weights that are not finite (or not in half precision).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: native checkpoints end in .safetensors.")
    dtype = torch.float16 if half else torch.float32
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    _check_finite(tensors, path)
    header = {**model.metadata, **{key: str(value) for key, value in (metadata or {}).items()},
              "format": FORMAT, "config": json.dumps(model.config.to_dict()),
              "trained": json.dumps({"adapters": model.adapters_trained, "auto": model.auto_trained})}
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:  # save_file's would be for nobody else to read
            file.write(save(tensors, header))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def attach_adapters(model: SegMoTE, overrides: dict, auto_targets: tuple[AutoTarget, ...] = ()) -> SegMoTE:
    """Return a model with the same base and, where the configuration differs, fresh adapters.

    Of a compact model, experts that are not trained for this base start from its own mask token and head.

    Args:
        model: its base is kept. overrides: ``ModelConfig`` fields of the adapters (experts, top_k, gating, ...).
        auto_targets: replace the model's own if given; those of the same name keep what was learned.

    Raises:
        CheckpointError: the overrides change the base.
    """
    targets = auto_targets or model.config.auto_targets
    config = replace(model.config, auto_targets=targets, **overrides)
    fresh = build_model(config)
    state, own = fresh.state_dict(), model.state_dict()
    same_domains = config.domains == model.config.domains
    known = [target.name for target in model.config.auto_targets]
    kept = [(new, known.index(target.name)) for new, target in enumerate(targets) if target.name in known]
    for name, value in state.items():
        stale = is_adapter(name) and not model.adapters_trained and not name.startswith(LEARNED_WITH_BASE)
        stale |= name.startswith("mask_decoder.expert_domains.") and not same_domains
        if name in PER_TARGET and name in own and own[name].shape[1:] == value.shape[1:]:
            for new, old in kept:
                value[new] = own[name][old]
        elif name in own and own[name].shape == value.shape and not stale:
            state[name] = own[name].clone()
        elif not is_adapter(name):
            raise CheckpointError(f"overrides {sorted(overrides)} change the frozen base ({name}); "
                                  "only adapter fields can differ.")
    fresh.load_state_dict(state)
    fresh.metadata = dict(model.metadata)
    if fresh.compact and not model.adapters_trained:
        fresh.mask_decoder.start_experts_from_base()
    return fresh


def _load_native(path: Path) -> SegMoTE:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable weights file ({error}).") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not SegMoTE's ({FORMAT}).")
    try:
        config = ModelConfig.from_dict(json.loads(header["config"]))
        trained = json.loads(header["trained"])
        adapters_trained, auto_trained = bool(trained["adapters"]), bool(trained["auto"])
        with torch.device("meta"):  # a description may ask for any size: compare it with the tensors first
            expected = SegMoTE(config).state_dict()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its architecture description is damaged ({error}).") from error
    _check_fit(expected, tensors, config.name, path)
    model = _fill(build_model(config), tensors, path)
    model.adapters_trained, model.auto_trained = adapters_trained, auto_trained
    model.metadata = {k: v for k, v in header.items() if k not in ("format", "config", "trained")}
    return model


def read_tensors(path: Path, device: torch.device | str = "cpu") -> object:
    """Read what ``torch.save`` wrote, without running anything that the file says.

    Raises:
        CheckpointError: it holds more than tensors and plain values, is an archive of another kind, or is damaged.
    """
    try:
        if tarfile.is_tarfile(path):  # torch before 2.6 runs code from those even with weights_only (CVE-2025-32434)
            raise CheckpointError(f"{path}: refused, because it is a tar archive; loading it could run code from the "
                                  "file.")
        return torch.load(path, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error):
            raise CheckpointError(f"{path}: refused, because it holds more than weights; loading it could run code "
                                  "from the file.") from error
        raise CheckpointError(f"{path}: not a readable weights file ({error}).") from error
    except Exception as error:  # a damaged pickle can raise anything: IndexError, struct.error, TypeError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: damaged or cut off ({reason}).") from error


def _load_pickle(path: Path) -> SegMoTE:
    state = _state_dict(read_tensors(path), path)
    if is_published(state):
        config = ModelConfig.published()
        converted, notes = from_published(state, config, path)
        model = _fill(build_model(config), converted, path)
        model.metadata = {"origin": "published SegMoTE", "notes": " ".join(notes)}
        for note in notes:
            log.log(logging.WARNING if "not supported" in note else logging.INFO, "%s: %s", path, note)
        return model
    return _load_sam(state, path)


def _load_sam(state: dict[str, Tensor], path: Path) -> SegMoTE:
    position = state.get("image_encoder.pos_embed")
    if position is None or "mask_decoder.iou_token.weight" not in state:
        raise CheckpointError(f"{path}: neither SAM's nor SegMoTE's layout (first tensor: {next(iter(state))!r}).")
    depth = 1 + max((int(match[1]) for key in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", key))),
                    default=-1)
    names = [name for name, (width, blocks, *_) in SAM_ENCODERS.items()
             if (width, blocks) == (position.shape[-1], depth)]
    if not names:
        raise CheckpointError(f"{path}: a ViT of width {position.shape[-1]} and {depth} blocks is none of SAM's "
                              f"encoders ({', '.join(SAM_ENCODERS)}).")
    model = build_model(ModelConfig.sam(names[0]))
    fresh = {name: value for name, value in model.state_dict().items() if is_adapter(name)}
    model = _fill(model, {**fresh, **state}, path)
    model.adapters_trained = model.auto_trained = False
    model.metadata = {"origin": f"SAM {names[0]}"}
    return model


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Unwrap a state dict from the usual containers and the DataParallel prefix."""
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise CheckpointError(f"{path}: holds no state dict (names with tensors).")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _fill(model: SegMoTE, tensors: dict[str, Tensor], path: Path) -> SegMoTE:
    """Load tensors into a fresh model after checking names, shapes and values."""
    expected = model.state_dict()
    _check_fit(expected, tensors, model.config.name, path)
    _check_finite(tensors, path)
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()})
    return model.eval()


def _check_fit(expected: dict[str, Tensor], tensors: dict[str, Tensor], model: str, path: Path) -> None:
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        parts = [f"{len(names)} {what} (first: {names[0]})"
                 for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise CheckpointError(f"{path}: tensors do not fit {model}: {', '.join(parts)}.")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(value.shape)}, but {model} needs "
                                  f"{tuple(expected[name].shape)}.")


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} contains NaN or infinite values.")
