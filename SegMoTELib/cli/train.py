"""``segmote train``: run a training config, alone or under torchrun."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command(short_help="Train or adapt a model from a config file.")
@click.argument("config_file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Folder of the run: checkpoint, log, curves and the finished model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps; the next call goes on.")
def command(config_file: Path, output: Path, device: str, steps: int | None) -> None:
    """Train the model that CONFIG_FILE describes; call again to resume.

    Several processes: torchrun --nproc-per-node 2 -m SegMoTELib.cli train CONFIG_FILE -o RUN
    """
    import torch

    from SegMoTELib.interaction.devices import choose_device
    from SegMoTELib.training.config import load_training_config
    from SegMoTELib.training.trainer import Trainer

    config = load_training_config(config_file)
    if device == "auto":
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    choose_device(device)
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if distributed:
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        trainer = Trainer(config, output, device)
        trainer.run(stop_after=steps)
        if trainer.rank == 0:
            click.echo(output / "model.safetensors")
    finally:
        if distributed:
            torch.distributed.destroy_process_group()
