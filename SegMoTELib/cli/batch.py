"""``segmote batch``: Auto for every volume of a folder, in several processes or on a cluster."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from SegMoTELib.cli import FAILED, completion, explain, plain
from SegMoTELib.cli.volumes import PLANES, common_options, json_option, load_predictor
from SegMoTELib.errors import SegMoTEError
from SegMoTELib.imaging.dicom import find_series, is_dicom

if TYPE_CHECKING:
    from tqdm import tqdm

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
RESULT = ".seg.nrrd"
LONGEST = 240  # bytes of a result's name without its ending; a longer one keeps its beginning and a hash of it all
HEADER = 1 << 20  # bytes of a result that are searched for the names of its segments


@click.command(short_help="Auto for every volume of a folder; resumes where it stopped.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--auto", "target", required=True, metavar="TARGET", shell_complete=completion.targets,
              help="What to find.")
@click.option("--plane", "orientation", type=click.Choice(PLANES),
              help="Default: the target's own, or the one with the finest pixels.")
@common_options
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1),
              help="Processes; with several GPUs, each takes the next one.")
@click.option("--cluster", metavar="ADDRESS", help="Run on a Dask cluster instead, e.g. tcp://node1:8786 "
              "(pip install segmote[cluster]); its workers must see FOLDER and OUTPUT under the same paths.")
@json_option
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Where the segmentations go, one for each volume; default: \"segmentations\" in FOLDER.")
def command(folder: Path, target: str, orientation: str | None, intensity: str, model: str, device: str,
            keep_embeddings: bool, workers: int, cluster: str | None, as_json: bool, output: Path | None) -> None:
    """Find TARGET in every volume of FOLDER: image files, and every DICOM series in it and its sub-folders.

    Volumes whose segmentation is in OUTPUT already are left alone: after an interruption, run the same command again.
    A volume that fails is named and does not stop the others; the exit status is then 1.
    """
    output = (output or folder / "segmentations").absolute()
    cases = find_cases(folder, output)
    if not cases:
        raise SegMoTEError(f"{folder}: no volumes here ({', '.join(ENDINGS)}, or folders of DICOM files).")
    _check_target(model, target)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegMoTEError(f"{output}: cannot be made ({error.strerror}); choose another folder with -o.") from None
    todo = {name: case for name, case in cases.items() if not (output / (name + RESULT)).exists()}
    if len(todo) < len(cases):
        click.echo(f"{len(cases) - len(todo)} of {len(cases)} are done already.", err=True)
    others = [name for name in cases if name not in todo and not _holds(output / (name + RESULT), target)]
    if others:
        click.echo(f"segmote: {output}: {len(others)} of these have no segment {target!r} and are left alone; to find "
                   "it there too, choose another folder with -o.", err=True)
    threads = 0 if workers == 1 or cluster else max(1, (os.cpu_count() or 1) // workers)
    calls = {name: (str(path.absolute()), series, target, orientation, intensity, model, device, keep_embeddings,
                    str(output / (name + RESULT)), threads) for name, (path, series) in todo.items()}
    done, failed = _run_all(calls, target, workers, cluster, quiet=as_json)
    if as_json:
        click.echo(json.dumps({"done_before": len(cases) - len(todo), "segmented": done, "failed": failed}, indent=2))
    else:
        click.echo(f"{len(done)} segmented, {len(failed)} failed.")
    if failed:
        raise SegMoTEError("not all volumes could be segmented: " + ", ".join(sorted(failed)) + ".")


def _run_all(calls: dict[str, tuple], target: str, workers: int, cluster: str | None,
             quiet: bool) -> tuple[dict[str, dict], dict[str, str]]:
    """Name -> result, and name -> why there is none."""
    from tqdm import tqdm

    done: dict[str, dict] = {}
    failed: dict[str, str] = {}
    left = list(calls)
    with tqdm(total=len(left), desc=target, unit="volume", disable=None) as bar:
        while left:
            _run(left, calls, workers, cluster, done, failed, bar, quiet)
            # A process that is ended takes all that were begun or wait along. What was begun goes on alone, or the
            # volume that needs too much memory would keep those after it from ever being done.
            lost = [name for name in left if name not in done and name not in failed]
            for name in lost[:workers]:
                _run([name], calls, 1, cluster, done, failed, bar, quiet)
            left = lost[workers:]
    return done, failed


def _run(names: list[str], calls: dict[str, tuple], workers: int, cluster: str | None, done: dict[str, dict],
         failed: dict[str, str], bar: tqdm, quiet: bool) -> None:
    """Run some of the calls and note how each ended; of several, those that an ended process took along are left."""
    from SegMoTELib.cli.auto import in_words

    with _executor(workers, cluster) as executor:
        running = {executor.submit(run_case, *calls[name]): name for name in names}
        for future in as_completed(running):
            name = running[future]
            try:
                done[name] = future.result()
            except Exception as error:  # one volume's trouble, whatever it is, must not stop the others
                if isinstance(error, BrokenExecutor) and len(names) > 1:
                    continue
                failed[name] = plain(explain(error))
                bar.write(plain(f"{name}: FAILED: {failed[name]}"), file=sys.stderr)
            else:
                if not quiet:
                    bar.write(plain(" ".join((in_words(done[name]), *done[name]["warnings"]))))
            bar.update()


def find_cases(folder: Path, output: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file, "") or (DICOM folder, series UID or "" where it has one); segmentations and output are left out.

    A folder of one series gives its name; where it holds several, their UID is added. Too long a name is shortened.
    """
    found: dict[str, tuple[Path, str]] = {}

    def add(name: str, path: Path, series: str = "") -> None:
        if len(os.fsencode(name)) > LONGEST:
            name = f"{name[:LONGEST // 5]}_{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
        if name in found:
            raise SegMoTEError(f"{folder}: two volumes are called {name}; rename one.")
        found[name] = path, series

    for path in sorted(folder.iterdir()):
        if path.name.startswith("._"):  # macOS leaves one beside each file on a disk of another system
            continue
        if path.is_file() and path.name.lower().endswith(ENDINGS) and not path.name.lower().endswith(RESULT):
            ending = next(one for one in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(one))
            add(path.name[:-len(ending)], path)
    for path in _dicom_folders(folder, output):
        name = "_".join(path.relative_to(folder).parts) or path.absolute().name
        usable = [one.uid for one in find_series(path) if not one.problem and not one.localizer]
        for series in usable if len(usable) > 1 else [""]:
            add(f"{name}_{series}" if series else name, path, series)
    return found


def _dicom_folders(folder: Path, output: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The uppermost folders that hold DICOM files themselves; a folder that may not be read is named and left out."""
    above = (*above, folder.resolve())
    try:
        children = [path for path in sorted(folder.iterdir()) if path.absolute() != output]
    except OSError as error:
        click.echo(plain(f"segmote: {folder}: left out, for it cannot be read ({error.strerror or error})."), err=True)
        return
    if any(path.is_file() and _may_be_dicom(path) for path in children):
        yield folder
        return
    for path in children:
        if path.is_dir() and path.resolve() not in above:  # a link may lead back
            yield from _dicom_folders(path, output, above)


def _holds(result: Path, name: str) -> bool:
    """Whether a segmentation has a segment of this name; one that cannot be read is taken to have it."""
    try:
        with result.open("rb") as file:
            return f"_Name:={name}\n".encode() in file.read(HEADER)
    except OSError:
        return True


def _may_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM, as far as it can be read: one that cannot must not hide the others."""
    try:
        return is_dicom(path)
    except OSError:
        return False


def run_case(path: str, series: str, target: str, orientation: str | None, intensity: str, model: str, device: str,
             keep_embeddings: bool, output: str, threads: int = 0) -> dict:
    """One volume, in whatever process; returns its result.

    Args:
        threads: to compute with, 0 for all: processes of one machine must not each take all of its cores.
    """
    import torch

    from SegMoTELib.cli.auto import auto_file

    if threads:
        torch.set_num_threads(threads)
    return auto_file(Path(path), target, orientation, intensity, _predictor(model, device, keep_embeddings),
                     Path(output), series=series)


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


def _end_quietly() -> None:
    """Ctrl+C reaches every process: without this, each would print a traceback. And none outlives who asked for it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A scheduler ends only the first process, and would leave the others waiting for work, with their memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(FAILED)


@contextmanager
def _executor(workers: int, cluster: str | None) -> Iterator[Executor]:
    """Processes here, or a Dask cluster; what has not begun is dropped when an error or Ctrl+C ends it."""
    if cluster is None:
        executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"),
                                       initializer=_end_quietly)
        try:
            yield executor
        except KeyboardInterrupt:  # of this process only, or while a worker starts: they would end their volumes first
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            executor.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client
    except ImportError:
        raise SegMoTEError("--cluster needs Dask: pip install segmote[cluster].") from None
    try:
        client = Client(cluster, timeout=30)
    except (OSError, ValueError) as error:
        raise SegMoTEError(f"{cluster}: no Dask scheduler answers there ({error}).") from error
    with client:
        yield client.get_executor()
