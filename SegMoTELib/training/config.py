"""TrainingConfig: one readable YAML file says everything about a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from SegMoTELib.errors import DataError
from SegMoTELib.network import AutoTarget, ModelConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one image size.

    Attributes:
        size: side of the square input, pixels. steps: optimiser steps. batch: images per step, over all processes.
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
        stage: "base" (everything learns, prompts through the base's mask token) or "adapt" (MoTE and PPT learn).
        data: pack folders, or folders of packs. phases: run one after the other.
        start: checkpoint to start from (required for "adapt"), or None for fresh weights.
        model: overrides of ``ModelConfig.tiny`` for fresh weights; in the adapt stage, of the adapter fields.
        auto_targets: structures PPT learns to segment without prompts.
        augment: adapt stage: encode new views in every step, crops too, where prediction looks closer; by default whole
            images are encoded once and kept.
        train_decoder: adapt stage: let the mask decoder learn, too (the paper's second table).
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with cosine decay to 2 %.
        average: decay of the exponential moving average of the weights that is kept as the result.
        masks_per_image: targets per encoded image.
        pseudo_share: how often a target is a region of the image itself instead of a label, where labels are few.
        box_share, auto_share: how often the first prompt is a box, or nothing (where the target allows auto).
        dense_weight: base stage: weight of the encoder's dense class supervision; 0 = none.
        emphasis: data set code -> factor on how often it is drawn (default 1): more for what is learned slowly.
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
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected 'name: value' lines.")
    unknown = sorted(set(values) - {item.name for item in fields(TrainingConfig)})
    if unknown:
        raise DataError(f"{path}: unknown settings {', '.join(unknown)}.")
    try:
        values["data"] = tuple(values.get("data") or ())
        values["phases"] = tuple(Phase(**phase) for phase in values.get("phases") or ())
        values["auto_targets"] = tuple(
            AutoTarget(**{**target, "color": tuple(target.get("color", (128, 174, 128))),
                          "sources": tuple(target.get("sources", ()))})
            for target in values.get("auto_targets") or ())
        return TrainingConfig(**values)
    except TypeError as error:
        raise DataError(f"{path}: {error}.") from error
