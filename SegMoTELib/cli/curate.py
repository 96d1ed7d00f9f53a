"""``segmote curate``: labelled images of several layouts to reviewed, split data sets in one layout."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from SegMoTELib.errors import DataError


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A range lets "nan" pass, which no border would fail."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number to compare with.")
    return value


@click.command(short_help="Build reviewed data sets from labelled images.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path),
              help="Folder to make; it appears complete or not at all.")
@click.option("--layout", type=click.Choice(["auto", "pack", "nnunet", "imis", "pairs", "dicom"]), default="auto",
              show_default=True, help="Layout of the sources.")
@click.option("--patient", metavar="REGEX", help="What in an image's name tells patients apart, e.g. '^(\\d+)_'. "
              "Default: what the layout tells.")
@click.option("--ct-window", nargs=2, type=float, default=(40.0, 400.0), show_default=True, metavar="CENTRE WIDTH",
              help="HU window for CT that is not 8 bit yet.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split.")
@click.option("--no-review", is_flag=True, help="Keep every mask, unmeasured.")
@click.option("--min-border", type=click.FloatRange(min=0), default=0.25, show_default=True, metavar="NUMBER",
              callback=_finite,
              help="How well a mask's border must follow the image; 0 for objects without a visible edge.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
def command(sources: tuple[Path, ...], output: Path, layout: str, patient: str | None,
            ct_window: tuple[float, float], seed: int, no_review: bool, min_border: float, overwrite: bool) -> None:
    """Build reviewed data sets from SOURCE folders.

    A source is a data set (or a folder of data sets) in the pack's layout, an nnU-Net raw folder, the published
    SegMoTE/IMIS layout, a folder of image-label pairs, or DICOM series with DICOM SEG. Sources are never changed.
    OUT gets one folder a data set, review.csv with every measurement of every mask, and report.html.
    """
    from tqdm import tqdm

    from SegMoTELib.data.curate import REPORT_FILE, curate
    from SegMoTELib.data.review import ReviewThresholds
    from SegMoTELib.data.sources import open_sources

    _refuse_nesting(sources, output)
    found = open_sources(list(sources), layout, ct_window)
    with _ended_like_interrupted(), tqdm(desc="curate", unit="file", disable=None, leave=False) as bar:
        def show(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        result = curate(found, output, seed=seed, review=not no_review, patient_pattern=patient, overwrite=overwrite,
                        thresholds=ReviewThresholds(min_border_plausibility=min_border), progress=show)
    for bad in result.bad_files:
        click.echo(f"skipped {bad.path}: {bad.reason.removeprefix(f'{bad.path}: ')}", err=True)
    for code, label, refused, total in result.faint:
        click.echo(f"{code}, {label}: {refused} of {total} masks rejected, because their border follows nothing that "
                   "can be seen; if they are right, curate with --min-border 0", err=True)
    click.echo(f"{result.summary()} See {output / REPORT_FILE}")


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Let SIGTERM (of ``kill``, or a cluster's time limit) clean up as Ctrl-C does; no temporary folder stays."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_nesting(sources: tuple[Path, ...], output: Path) -> None:
    """An output in a source would change it, and replacing an output with a source in it would delete that source."""
    target = output.resolve()
    for source in sources:
        folder = source.resolve()
        if target == folder or target in folder.parents or folder in target.parents:
            raise DataError(f"{output}: the output must lie outside the source {source}, and not around it.")
