"""The trainer: phases, optimiser, averaging, validation, atomic checkpoints, exact resume, one or many processes."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from SegMoTELib import __version__
from SegMoTELib.data.pack import Pack, check_names, licence_of, open_packs
from SegMoTELib.errors import CheckpointError, DataError, reason
from SegMoTELib.interaction.transforms import SquareTransform, to_rgb8
from SegMoTELib.network import SegMoTE, build_model, load_checkpoint, save_checkpoint
from SegMoTELib.network.checkpoints import attach_adapters, read_tensors
from SegMoTELib.network.domains import image_statistics
from SegMoTELib.network.model import LEARNED_WITH_BASE
from SegMoTELib.training.batches import Batch, StepBatches, beginning
from SegMoTELib.training.config import Phase, TrainingConfig
from SegMoTELib.training.curves import draw_curves
from SegMoTELib.training.dataset import MIN_TARGET_PIXELS, TrainingData
from SegMoTELib.training.dense import ClassList, DenseHead
from SegMoTELib.training.step import InteractiveStep

log = logging.getLogger(__name__)

VALIDATION_ITEMS = 96
ROUTER_IMAGES, ROUTER_BATCH = 60, 8  # of every data set, at most, that teach the router of domains; encoded at once


class Trainer:
    """Runs a :class:`TrainingConfig` in a folder; calling ``run`` again continues where the last checkpoint stood.

    Args:
        config: what to do. folder: receives ``last.pt``, ``log.csv`` and, at the end, the model.
        device: torch device; gradients are averaged over processes when ``torch.distributed`` is initialised.

    Raises:
        DataError: no data, two data sets of one name, or a batch that the backward passes cannot share.
        CheckpointError: an unusable ``start``.
    """

    def __init__(self, config: TrainingConfig, folder: str | Path, device: str = "cpu") -> None:
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self.world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        _check_shares(config, self.world)
        opened = open_packs(list(config.data))
        check_names(opened)
        self.packs = [pack for pack in opened if config.emphasis.get(pack.code, 1.0)]
        if self.rank == 0:
            _warn_of_unlearned(config, self.packs)
            _warn_of_unknown(config, opened)
        torch.manual_seed(config.seed)
        self.model = _starting_model(config, self.packs).to(self.device).to(memory_format=torch.channels_last)
        self.step = 0
        self.data: dict[str, TrainingData] = {}
        self.coming: Iterator[list[tuple[int, Batch]]] | None = None  # the batches of the next steps
        self.told_of_unseen = False
        if config.stage == "adapt" and self.model.compact:
            self._teach_router()
        self._choose_parameters()
        self.learned = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.learned.items()}
        self.dense = DenseHead(self.model.config, ClassList(self.packs)).to(self.device) \
            if config.stage == "base" and config.dense_weight else None
        self.optimised = [*self.learned.values(), *(self.dense.parameters() if self.dense else ())]
        self.optimizer = torch.optim.AdamW(_decay_groups(self.optimised, config.weight_decay),
                                           lr=config.learning_rate, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def run(self, stop_after: int | None = None, progress: bool = True) -> SegMoTE:
        """Train to the end of the phases (or ``stop_after`` steps from now) and return the averaged model.

        Raises:
            CheckpointError: the folder holds another config's run. DataError: no data, or the loss diverged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        last = self.config.steps if stop_after is None else min(self.config.steps, self.step + stop_after)
        started, first = time.monotonic(), self.step
        while self.step < last:
            phase = self.config.phase_at(self.step)
            values = self._train_step(phase)
            self.step += 1
            if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                values.update(self.validate(phase))
            if self.rank == 0:
                self._log(values)
                if progress:
                    self._print_progress(values, (time.monotonic() - started) / (self.step - first), last)
            if self.step % self.config.checkpoint_every == 0 or self.step == last:
                self.save()
        self.coming = None  # ends the processes that prepare batches
        model = self.averaged_model()
        if self.rank == 0:
            save_checkpoint(model, self.folder / "model.safetensors", self._metadata())
            draw_curves(self.folder / "log.csv", self.folder / "curves.png")
        return model

    def averaged_model(self) -> SegMoTE:
        """A copy of the model, in eval mode, with the averaged weights, at the last phase's image size."""
        model = build_model(replace(self.model.config, image_size=self.config.phases[-1].size))
        model.load_state_dict({**self.model.state_dict(), **self.average})
        model.adapters_trained = self.config.stage == "adapt" and self.model.adapters_trained
        model.metadata = dict(self.model.metadata)
        return model.eval()

    def _metadata(self) -> dict[str, str]:
        """What must travel with the weights: config, step, versions, data and their licences."""
        data = {**_known_data(self.model.metadata),
                **{pack.code: licence_of(pack.info) for pack in self.packs}}
        stage = "targets" if self.config.targets_only else self.config.stage
        return {f"training_{stage}": json.dumps(self.config.to_dict()), f"training_{stage}_steps": str(self.step),
                "versions": f"segmote {__version__}, torch {torch.__version__}, numpy {np.__version__}",
                "training_data": json.dumps(data)}

    def validate(self, phase: Phase) -> dict[str, float]:
        """IoU of the averaged weights on a fixed draw of validation items; empty where there is nothing to find."""
        data = self._data("val", phase.size)
        drawn = [data.item(np.random.default_rng([7, index]), augment=False)
                 for index in range(VALIDATION_ITEMS)] if len(data) else []
        items = [(index, item) for index, item in enumerate(drawn) if item.found]
        if not items:
            return {}
        model = build_model(replace(self.model.config, image_size=phase.size)).to(self.device)
        model.load_state_dict({**self.model.state_dict(), **self.average})
        step = InteractiveStep(model.eval(), self.config)
        collected: dict[str, list[float]] = {}
        with torch.no_grad():
            for start in range(0, len(items), 16):
                part = items[start:start + 16]
                _, log = step(Batch.of([item for _, item in part], [index for index, _ in part], self.config), 2)
                for name, value in log.items():
                    collected.setdefault(f"val/{name}", []).append(float(value))
        return {name: float(np.mean(values)) for name, values in collected.items()}

    def save(self) -> None:
        """Write ``last.pt`` atomically: a kill at any moment leaves the previous or the new file, never half of one."""
        if self.rank != 0:
            return
        state = {"step": self.step, "config": repr(self.config), "model": self.model.state_dict(),
                 "optimizer": self.optimizer.state_dict(),
                 "dense": self.dense.state_dict() if self.dense else {}, "average": self.average}
        temporary = self.folder / "last.pt.part"
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / "last.pt")

    def resume(self) -> None:
        """Load ``last.pt`` if there is one and drop log lines written after it, or all where there is none.

        Raises:
            CheckpointError: it is damaged or belongs to another config.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            if self.rank == 0:
                _truncate_log(self.folder / "log.csv", self.step)
            return
        try:
            state = read_tensors(path, self.device)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Delete it to start over.") from error
        if not isinstance(state, dict) or state.get("config") != repr(self.config):
            raise CheckpointError(f"{path}: was made by another config; use another folder or delete it.")
        self.model.load_state_dict(state["model"])
        if self.dense is not None:
            self.dense.load_state_dict(state["dense"])
        self.average = {name: value.clone() for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.coming = state["step"], None
        if self.rank == 0:
            _truncate_log(self.folder / "log.csv", self.step)

    @torch.no_grad()
    def _teach_router(self) -> None:
        """Show the router of fresh domain experts whole images of every data set, as prediction sees them."""
        domains = self.model.mask_decoder.expert_domains
        if domains is None or domains.center.any() or len(self.packs) < 2 or (self.folder / "last.pt").exists():
            return
        size = self.config.phases[-1].size
        _set_image_size(self.model, size)
        squares: list[torch.Tensor] = []
        truth: list[int] = []
        for loaded in self._data("train", size).sets:
            for _, image, _, _ in loaded[::-(-len(loaded) // ROUTER_IMAGES)]:
                pixels = to_rgb8(image, None)
                squares.append(SquareTransform(self.model.config, *pixels.shape[:2]).apply_image(pixels))
            code = loaded[0][0].dataset
            truth += [self.model.config.domains.index(code)] * (len(squares) - len(truth))
        statistics = [image_statistics(self.model.encode(torch.cat(squares[i:i + ROUTER_BATCH]).to(self.device)))
                      for i in range(0, len(squares), ROUTER_BATCH)]
        domains.fit(torch.cat(statistics), torch.tensor(truth, device=self.device))

    def _train_step(self, phase: Phase) -> dict[str, float]:
        """One optimiser step at ``self.step``; everything random depends on (seed, step, item)."""
        _set_image_size(self.model, phase.size)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        _, before = beginning(self.config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        log: dict[str, float] = {}
        for seed, batch in self._next_batches():
            torch.manual_seed(seed % 2 ** 64)  # routing noise; torch takes no larger seed
            self._set_mode()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss, values = self._wrapped()(batch, phase.rounds, before)
            (loss / self.config.accumulate).backward()
            log["loss"] = log.get("loss", 0.0) + float(loss.detach()) / self.config.accumulate
            log.update({name: float(value) for name, value in values.items()})
        log["gradient"] = float(nn.utils.clip_grad_norm_(self.optimised, self.config.clip_norm))
        if not math.isfinite(log["loss"]) or not math.isfinite(log["gradient"]):
            raise DataError(f"training diverged at step {self.step}: loss {log['loss']}; lower the learning rate.")
        if log["gradient"]:
            self.optimizer.step()
        elif self.rank == 0 and not self.told_of_unseen:
            self.told_of_unseen = True
            _warn_of_unseen(phase)
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.learned.values()), 1 - decay)
        return log

    def _next_batches(self) -> list[tuple[int, Batch]]:
        """Seed and batch of every backward pass of the present step."""
        if self.coming is None:
            data = self._data("train", self.config.phase_at(self.step).size)
            batches = StepBatches(data, self.config, self.world, self.rank)
            self.coming = batches.from_step(self.step, self.config.steps, self.device)
        return next(self.coming)

    def _wrapped(self) -> nn.Module:
        if not hasattr(self, "_step_module"):
            module: nn.Module = InteractiveStep(self.model, self.config, self.dense)
            if self.world > 1:
                module = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
            self._step_module = module
        return self._step_module

    def _data(self, split: str, size: int) -> TrainingData:
        """The images of a split, decoded once, for items of a size."""
        if split not in self.data:
            train = split == "train"
            self.data[split] = TrainingData(
                self.packs, split, self.model.config.auto_targets, size, self.config.masks_per_image,
                mask_fraction=self.config.image_share if train else 1.0, seed=self.config.seed,
                pseudo_share=self.config.pseudo_share if train else 0.0, emphasis=self.config.emphasis,
                targets_only=self.config.targets_only)
            if train and len(self.data[split]) == 0:
                raise DataError(self._nothing_to_learn())
        return self.data[split].at_size(size)

    def _nothing_to_learn(self) -> str:
        folders = ", ".join(self.config.data)
        if not any(pack.info["splits"].get("train") for pack in self.packs):
            return f"no training images in {folders}."
        what = "one of the auto targets" if self.config.targets_only else "a label: their masks are all empty"
        return f"none of the training images in {folders} shows {what}."

    def _choose_parameters(self) -> None:
        adapters = self.model.adapter_parameters()
        for name, parameter in self.model.named_parameters():
            if self.config.stage == "base":
                learns = name not in adapters or name.startswith(LEARNED_WITH_BASE)
            elif self.config.targets_only:
                learns = name.startswith(LEARNED_WITH_BASE)
            else:
                learns = name in adapters or (self.config.train_decoder and name.startswith("mask_decoder."))
            parameter.requires_grad_(learns)

    def _set_mode(self) -> None:
        self.model.train(not self.config.targets_only)
        if self.config.stage == "adapt":
            self.model.image_encoder.eval()

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        done = self.step / max(1, self.config.steps)
        return self.config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _log(self, values: dict[str, float]) -> None:
        """Append (step, name, value) rows: names differ from step to step, so one long table serves all."""
        with open(self.folder / "log.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.step, name, f"{value:.6g}"] for name, value in values.items())

    def _print_progress(self, values: dict[str, float], seconds: float, last: int) -> None:
        remaining = (last - self.step) * seconds
        line = (f"step {self.step}/{self.config.steps}  loss {values['loss']:.3f}  {seconds:.2f} s/step  "
                f"{int(remaining // 3600)}:{int(remaining % 3600 // 60):02d}:{int(remaining % 60):02d} left")
        validated = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name.startswith("val/"))
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="\n" if validated else "", file=sys.stderr, flush=True)
        elif self.step % 50 == 0 or validated:
            print(line, file=sys.stderr, flush=True)
        if validated:
            print(f"  {validated}", file=sys.stderr, flush=True)


def _check_shares(config: TrainingConfig, world: int) -> None:
    """Refuse batches that processes and backward passes cannot share alike: images would be left out unsaid.

    Raises:
        DataError: what ``batch`` must be.
    """
    shares = world * config.accumulate
    for phase in config.phases:
        if phase.batch % shares:
            raise DataError(f"'batch' must be a multiple of {shares}, the processes times 'accumulate', not "
                            f"{phase.batch}.")


def _starting_model(config: TrainingConfig, packs: list[Pack]) -> SegMoTE:
    """The model to begin with.

    Raises:
        CheckpointError: an unusable ``start``. DataError: fields of ``model`` or sizes that do not fit together.
    """
    try:
        if config.start is None:
            model = build_model(config.model_config())
        else:
            start = load_checkpoint(config.start)
            overrides = dict(config.model)
            if config.targets_only:
                _check_nothing_else_changes(config, start)
            elif config.stage == "adapt" and start.compact:
                overrides = {"domains": tuple(pack.code for pack in packs), **overrides}
            model = attach_adapters(start, overrides, config.auto_targets)
            model.adapters_trained = start.adapters_trained or not config.targets_only
        for phase in config.phases:
            replace(model.config, image_size=phase.size)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the config's 'model' or the sizes of its phases cannot be used ({reason(error)}).") from error
    return model


def _check_nothing_else_changes(config: TrainingConfig, start: SegMoTE) -> None:
    """Refuse what would let a model answer boxes and clicks differently though only auto targets are to be learned.

    Raises:
        DataError: what stands in the way.
    """
    size = config.phases[-1].size
    if set(config.model) - {"prompt_tokens"}:
        raise DataError("with targets_only, 'model' can change prompt_tokens alone.")
    if size != start.config.image_size:
        raise DataError(f"with targets_only, the last phase must have the size of the start, {start.config.image_size}"
                        f", not {size}.")
    if not (config.auto_targets or start.config.auto_targets):
        raise DataError("targets_only needs 'auto_targets': what is to be found.")


def _known_data(metadata: dict[str, str]) -> dict[str, str]:
    """Data set code -> licence of what the start learned from; empty where it does not say so in our words."""
    try:
        known = json.loads(metadata.get("training_data", "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _warn_of_unlearned(config: TrainingConfig, packs: list[Pack]) -> None:
    """Say which target no image teaches: most likely a source is misspelt."""
    known = {f"{pack.code}:{index}" for pack in packs for index in pack.labels}
    for target in config.auto_targets:
        if target.sources and not known & set(target.sources):
            log.warning("%s: Auto will not learn it, for the data has none of its sources %s", target.name,
                        ", ".join(target.sources))


def _warn_of_unknown(config: TrainingConfig, packs: list[Pack]) -> None:
    """Say which emphasis changes nothing: most likely a data set is misspelt."""
    known = {pack.code for pack in packs}
    for code in config.emphasis:
        if code not in known:
            log.warning("%s: its emphasis changes nothing, for the data has no set of this name", code)


def _warn_of_unseen(phase: Phase) -> None:
    """Say that there are steps without anything to learn: most likely the images are made too small for the targets."""
    log.warning("none of a step's targets has %d pixels at size %d, so it taught nothing; train at a larger size, or "
                "with augment: true, which looks closer", MIN_TARGET_PIXELS, phase.size)


def _set_image_size(model: SegMoTE, size: int) -> None:
    """Let a convolutional model work at another input size; its weights do not depend on it."""
    if model.config.image_size == size:
        return
    model.config = replace(model.config, image_size=size)
    model.mask_decoder.side = model.config.embedding_size
    model.prompt_encoder.input_image_size = (size, size)
    model.prompt_encoder.image_embedding_size = (model.config.embedding_size,) * 2


def _decay_groups(learned: list[nn.Parameter], weight_decay: float) -> list[dict]:
    """Weight decay for matrices and kernels, none for biases, norms and tokens."""
    decayed = [p for p in learned if p.ndim > 1]
    plain = [p for p in learned if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _truncate_log(path: Path, step: int) -> None:
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3 and int(row[0]) <= step]
    temporary = path.with_suffix(".part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    os.replace(temporary, path)
