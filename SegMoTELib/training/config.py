"""TrainingConfig: one readable YAML file says everything about a run."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from SegMoTELib.errors import DataError
from SegMoTELib.network import AutoTarget, ModelConfig

MAY_BE_ZERO = ("seed", "warmup_steps")  # other whole numbers count something and start at 1
NEVER_ZERO = ("learning_rate", "clip_norm", "image_share")  # other numbers with a point may be 0
LATER = ("data", "phases")  # asked for with the reason, by the config itself


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one image size.

    Attributes:
        size: side of the square input, pixels. steps: optimiser steps.
        batch: images per step, shared alike by all processes and their backward passes.
        rounds: prompts per target learned from; with 1, late rounds are learned in some steps, more clicks in others.
    """

    size: int
    steps: int
    batch: int
    rounds: int = 2


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Attributes:
        stage: "base" (everything learns, prompts through the base's mask token) or "adapt" (what SegMoTE adds learns).
        data: pack folders, or folders of packs. phases: run one after the other.
        start: checkpoint to start from (required for "adapt"), or None for fresh weights.
        model: overrides of ``ModelConfig.tiny`` for fresh weights; in the adapt stage, of the adapter fields.
        auto_targets: structures PPT learns to segment without prompts.
        augment: adapt stage: encode new views in every step, crops too, where prediction looks closer; by default whole
            images are encoded once and kept.
        train_decoder: adapt stage: let the mask decoder learn, too (the paper's second table).
        targets_only: adapt stage: only what finds auto targets (PPT) learns, from whole images; boxes and clicks are
            answered as by the start, bit for bit.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with cosine decay to 2 %.
        average: decay of the exponential moving average of the weights that is kept as the result.
        masks_per_image: targets per encoded image.
        pseudo_share: how often a target is a region of the image itself instead of a label, where labels are few.
        box_share, auto_share: how often the first prompt is a box, or nothing (where the target allows auto).
        dense_weight: base stage: weight of the encoder's dense class supervision; 0 = none.
        emphasis: data set code -> factor on how often it is drawn, default 1: more for what is learned slowly, 0 leaves
            the set out.
        balance_weight: weight of the load-balance loss. accumulate: backward passes per optimiser step.
        precision: "fp32", or "bf16": the forward pass in mixed precision, which needs no loss scaling.
        image_share: fraction of every set's images used. seed: of weights, data and prompts.
        validate_every, checkpoint_every: in steps.
    """

    stage: str
    data: tuple[str, ...]
    phases: tuple[Phase, ...]
    start: str | None = None
    model: dict = field(default_factory=dict)
    auto_targets: tuple[AutoTarget, ...] = ()
    augment: bool = False
    train_decoder: bool = False
    targets_only: bool = False
    learning_rate: float = 4e-4
    warmup_steps: int = 200
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    average: float = 0.998
    masks_per_image: int = 3
    pseudo_share: float = 0.0
    box_share: float = 0.45
    auto_share: float = 0.3
    dense_weight: float = 0.0
    emphasis: dict[str, float] = field(default_factory=dict)
    balance_weight: float = 0.01
    accumulate: int = 1
    precision: str = "fp32"
    image_share: float = 1.0
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Refuse contradictory values with the field's name."""
        if self.stage not in ("base", "adapt"):
            raise DataError(f"stage must be 'base' or 'adapt', not {self.stage!r}.")
        if self.stage == "adapt" and not self.start:
            raise DataError("stage 'adapt' needs 'start': the checkpoint whose base stays frozen.")
        if self.targets_only and (self.stage != "adapt" or self.train_decoder):
            raise DataError("targets_only is for the adapt stage, and not together with train_decoder.")
        if self.precision not in ("fp32", "bf16"):
            raise DataError(f"precision must be 'fp32' or 'bf16', not {self.precision!r}.")
        if not self.data or not self.phases:
            raise DataError("a training config needs 'data' (folders) and 'phases' (size, steps, batch).")

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def augmented(self) -> bool:
        """Whether training items are augmented views, as they always are in the base stage."""
        return self.stage == "base" or self.augment

    def phase_at(self, step: int) -> Phase:
        """The phase a step belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def model_config(self) -> ModelConfig:
        """Architecture of a fresh model."""
        return replace(ModelConfig.tiny(self.auto_targets), **self.model)

    def to_dict(self) -> dict:
        """Plain dict for checkpoints and metadata."""
        return asdict(self)


def load_training_config(path: str | Path) -> TrainingConfig:
    """Read a YAML file; relative paths in it are relative to the working directory.

    Raises:
        DataError: missing file, broken YAML, unknown or contradictory fields.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such training config.") from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable YAML file ({error}).") from error
    settings = _checked(path, TrainingConfig, values)
    data = settings.get("data") or ()
    settings["data"] = (data,) if isinstance(data, str) else data
    if not isinstance(data, (str, list, tuple)) or not all(isinstance(folder, str) for folder in settings["data"]):
        raise DataError(f"{path}: data must name folders, not {data!r}.")
    settings["data"] = tuple(settings["data"])
    settings["phases"] = tuple(Phase(**_checked(path, Phase, phase)) for phase in _listed(path, settings, "phases"))
    settings["emphasis"] = {code: _number(f"{path}: emphasis of {code}", "emphasis", "float", factor)
                            for code, factor in settings.get("emphasis", {}).items()}
    targets = [_checked(path, AutoTarget, target) for target in _listed(path, settings, "auto_targets")]
    settings["auto_targets"] = tuple(
        AutoTarget(**{**target, "color": _color(f"{path}: color", target.get("color", (128, 174, 128))),
                      "sources": _sources(f"{path}: sources", target.get("sources", ()))}) for target in targets)
    return TrainingConfig(**settings)


def _listed(path: str | Path, settings: dict, name: str) -> list:
    values = settings.get(name) or []
    if not isinstance(values, list):
        raise DataError(f"{path}: {name} must be a list, not {values!r}.")
    return values


def _checked(path: str | Path, owner: type, values: Any) -> dict:
    """The values by name, none of them unknown and none missing, with those of plain types checked."""
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected 'name: value' pairs where {values!r} stands.")
    known = {item.name: item for item in fields(owner)}
    where = {Phase: "of a phase", AutoTarget: "of an auto target"}.get(owner, "")
    unknown = sorted(map(str, set(values) - set(known)))
    if unknown:
        raise DataError(f"{path}: unknown settings {', '.join(unknown)} {where}".rstrip() + ".")
    missing = [name for name, item in known.items() if name not in (*values, *LATER)
               and item.default is MISSING and item.default_factory is MISSING]
    if missing:
        raise DataError(f"{path}: {', '.join(missing)} {where}".rstrip() + " must be given.")
    return {name: _number(f"{path}: {name}", name, str(known[name].type), value)  # types as written, not evaluated
            for name, value in values.items()}


def _color(where: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != 3 \
            or not all(type(part) is int and 0 <= part <= 255 for part in value):
        raise DataError(f"{where} must be [red, green, blue] of 0-255, not {value!r}.")
    return tuple(value)


def _sources(where: str, value: Any) -> tuple[str, ...]:
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, (list, tuple)) \
            or not all(isinstance(source, str) and re.fullmatch(r".+:[0-9]+", source) for source in sources):
        raise DataError(f'{where} must be like ["data set:label number"], not {value!r}.')
    return tuple(sources)


def _number(where: str, name: str, kind: str, value: Any) -> Any:
    """A value of a plain type, checked; "4e-4", which YAML takes for a word, is a number."""
    if kind.removesuffix(" | None") == "str" and not isinstance(value, str) and not (value is None and "None" in kind):
        raise DataError(f"{where} must be a text, not {value!r}.")
    if kind == "bool" and not isinstance(value, bool):
        raise DataError(f"{where} must be true or false, not {value!r}.")
    if kind.startswith("dict"):
        if not isinstance(value, dict | None):
            raise DataError(f"{where} must be 'name: value' pairs, not {value!r}.")
        return value or {}
    if kind == "int":
        least = 0 if name in MAY_BE_ZERO else 1
        if type(value) is not int or not least <= value < 2 ** 63:
            raise DataError(f"{where} must be a whole number of at least {least}, not {value!r}.")
    if kind == "float":
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        most = 1.0 if name == "average" or name.endswith("_share") else math.inf
        if not 0 <= number <= most or math.isinf(number):
            raise DataError(f"{where} must be a number from 0{' to 1' if most == 1 else ''}, not {value!r}.")
        if number == 0 and name in NEVER_ZERO:
            raise DataError(f"{where} must be greater than 0, else nothing is learned.")
        return number if isinstance(value, str) else value  # an earlier run is known by its numbers as written
    return value
