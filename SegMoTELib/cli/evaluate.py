"""``segmote evaluate``: how well a model segments labelled images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from SegMoTELib.cli import completion
from SegMoTELib.errors import DataError


def _result_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a place that cannot be written before the work, not after it; missing folders are made."""
    from SegMoTELib.imaging.files import find_obstacle

    obstacle = None if path is None else find_obstacle(path)
    if obstacle is not None:
        raise click.BadParameter(f"{path} cannot be written ({obstacle}).")
    return path


RESULT_FILE: dict[str, Any] = {"type": click.Path(dir_okay=False, writable=True, path_type=Path), "metavar": "FILE",
                               "callback": _result_file}


@click.command(short_help="Measure a model on labelled images, against baselines.")
@click.option("--data", "first_data", multiple=True, required=True, metavar="DIR...", type=click.Path(path_type=Path),
              help="Data sets in the pack's layout, or folders of such data sets.")
@click.argument("more_data", nargs=-1, metavar="", type=click.Path(path_type=Path))
@click.option("--model", default="segmote-tiny", show_default=True, metavar="NAME|PATH",
              shell_complete=completion.models(bool, files=True), help="Model to evaluate.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N images per data set, drawn by seed.")
@click.option("--no-baselines", is_flag=True, help="Leave out the frozen base and the classical tools.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Processes that share the images; as many as cores is fastest on a CPU.")
@click.option("--json", "json_file", **RESULT_FILE, help="Write the summary with intervals.")
@click.option("--csv", "csv_file", **RESULT_FILE, help="Write one line per target, method and mode.")
@click.option("--sheet", **RESULT_FILE, help="Draw best, median and worst cases of every mode into a PNG.")
def command(first_data: tuple[Path, ...], more_data: tuple[Path, ...], model: str, split: str, limit: int | None,
            no_baselines: bool, workers: int, json_file: Path | None, csv_file: Path | None,
            sheet: Path | None) -> None:
    """Measure a model on labelled images: box, simulated clicks and prompt-free, against baselines."""
    import monai.metrics  # noqa: F401  (surface Dice; better missed now than at every image)
    from tqdm import tqdm

    from SegMoTELib.data.pack import open_packs
    from SegMoTELib.evaluation.evaluate import evaluate
    from SegMoTELib.evaluation.sheet import write_sheet
    from SegMoTELib.evaluation.table import format_evaluation

    packs = open_packs([*first_data, *more_data])
    predictor = load_predictor(model)
    with tqdm(desc="evaluate", unit="image", disable=None) as bar:
        def show(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        result = evaluate(packs, predictor, split, baselines=not no_baselines, limit=limit, progress=show,
                          workers=workers, load=partial(load_predictor, model))
    result.settings["model"] = model
    click.echo(format_evaluation(result), nl=False)
    _write([(json_file, result.write_json), (csv_file, result.write_csv),
            (sheet, partial(write_sheet, pictures=result.pictures))])


def _write(files: list[tuple[Path | None, Callable[[Path], None]]]) -> None:
    """Write what was asked for; one file that fails does not cost the others.

    Raises:
        DataError: what could not be written, and why.
    """
    failed = []
    for path, write in files:
        try:
            if path is not None:
                write(path)
        except OSError as error:
            failed.append(f"{path}: cannot be written ({error.strerror or error}).")
        except DataError as error:
            failed.append(str(error))
    if failed:
        raise DataError(" ".join(failed))


def load_predictor(model: str) -> Any:
    """Return a ``Predictor`` for a model's name or path.

    Raises:
        CheckpointError: no such model, or weights that cannot be used.
    """
    from SegMoTELib.interaction.predictor import Predictor
    from SegMoTELib.network import load_checkpoint
    from SegMoTELib.zoo import resolve_model

    return Predictor(load_checkpoint(resolve_model(model)))
