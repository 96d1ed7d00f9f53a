"""``segmote batch``: Auto for every volume of a folder, in several processes or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import click

from SegMoTELib.cli.volumes import PLANES, common_options, load_predictor
from SegMoTELib.errors import SegMoTEError

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
RESULT = ".seg.nrrd"


@click.command(short_help="Auto for every volume of a folder; resumes where it stopped.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--auto", "target", required=True, metavar="TARGET", help="What to find.")
@click.option("--plane", "orientation", type=click.Choice(PLANES),
              help="Default: the target's own, or the one with the finest pixels.")
@common_options
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1),
              help="Processes; with several GPUs, each takes the next one.")
@click.option("--cluster", metavar="ADDRESS", help="Run on a Dask cluster instead, e.g. tcp://node1:8786 "
              "(pip install segmote[cluster]); its workers must see FOLDER and OUTPUT under the same paths.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Where the segmentations go, one for each volume; default: \"segmentations\" in FOLDER.")
def command(folder: Path, target: str, orientation: str | None, intensity: str, model: str, device: str,
            keep_embeddings: bool, workers: int, cluster: str | None, output: Path | None) -> None:
    """Find TARGET in every volume of FOLDER: image files, and sub-folders with one DICOM series each.

    Volumes whose segmentation is in OUTPUT already are left alone: after an interruption, run the same command again.
    A volume that fails is named and does not stop the others.
    """
    from tqdm import tqdm

    output = (output or folder / "segmentations").absolute()
    cases = find_cases(folder, output)
    if not cases:
        raise SegMoTEError(f"{folder}: no volumes here ({', '.join(ENDINGS)}, or folders of DICOM files).")
    _check_target(model, target)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegMoTEError(f"{output}: cannot be made ({error.strerror}); choose another folder with -o.") from None
    todo = {name: path for name, path in cases.items() if not (output / (name + RESULT)).exists()}
    if len(todo) < len(cases):
        click.echo(f"{len(cases) - len(todo)} of {len(cases)} are done already.")
    failed = {}
    threads = 0 if workers == 1 or cluster else max(1, (os.cpu_count() or 1) // workers)
    with _executor(workers, cluster) as executor:
        running = {executor.submit(run_case, str(path.absolute()), target, orientation, intensity, model, device,
                                   keep_embeddings, str(output / (name + RESULT)), threads): name
                   for name, path in todo.items()}
        for future in tqdm(as_completed(running), total=len(running), desc=target, unit="volume", disable=None):
            try:
                tqdm.write(future.result())
            except Exception as error:  # one volume's trouble, whatever it is, must not stop the others
                failed[running[future]] = error
                tqdm.write(f"{running[future]}: FAILED: {error}")
    click.echo(f"{len(todo) - len(failed)} segmented, {len(failed)} failed.")
    if failed:
        raise SegMoTEError("not all volumes could be segmented: " + ", ".join(sorted(failed)) + ".")


def find_cases(folder: Path, output: Path) -> dict[str, Path]:
    """Name -> volume file or DICOM folder, in a folder; segmentations and the output folder are no volumes."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.absolute() == output:
            continue
        if path.is_dir() and any(child.is_file() for child in path.iterdir()):
            found[path.name] = path
        elif path.name.lower().endswith(ENDINGS) and not path.name.lower().endswith(RESULT):
            ending = next(one for one in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(one))
            name = path.name[:-len(ending)]
            if name in found:
                raise SegMoTEError(f"{folder}: two volumes are called {name}; rename one.")
            found[name] = path
    return found


def run_case(path: str, target: str, orientation: str | None, intensity: str, model: str, device: str,
             keep_embeddings: bool, output: str, threads: int = 0) -> str:
    """One volume, in whatever process; returns what to tell.

    Args:
        threads: to compute with, 0 for all: processes of one machine must not each take all of its cores.
    """
    import torch

    from SegMoTELib.cli.auto import auto_file

    if threads:
        torch.set_num_threads(threads)
    return auto_file(Path(path), target, orientation, intensity, _predictor(model, device, keep_embeddings),
                     Path(output))


@lru_cache(maxsize=1)
def _predictor(model: str, device: str, keep_embeddings: bool):
    """Loaded once in each process; the n-th process takes the n-th GPU."""
    import torch

    number = (multiprocessing.current_process()._identity or (1,))[0] - 1
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    return load_predictor(model, device, keep_embeddings)


def _check_target(model: str, target: str) -> None:
    """Say at once, not once for every volume, that the model is not here or does not offer the target."""
    from SegMoTELib.interaction.targets import check_target
    from SegMoTELib.zoo import read_card, resolve_model

    check_target(target, [name for name, _modality in read_card(resolve_model(model)).targets])


def _executor(workers: int, cluster: str | None) -> Executor:
    if cluster is None:
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        from distributed import Client
    except ImportError:
        raise SegMoTEError("--cluster needs Dask: pip install segmote[cluster].") from None
    return Client(cluster, timeout=30).get_executor()
