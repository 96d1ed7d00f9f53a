"""``segmote models``: the weights there are; fetch, verify, remove and add them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from SegMoTELib.cli import completion, plain
from SegMoTELib.errors import ModelError

MISSING, HERE = completion.models(lambda here: not here), completion.models(bool)


@click.group(short_help="List, fetch, verify, remove and add weights.")
def command() -> None:
    """The weights that --model takes by name. Nothing is downloaded unless "fetch" asks for it.

    Downloads go to the user's data folder, or to the folder that SEGMOTE_MODEL_DIR names.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """Show every model, what of it is on this machine, its licence and its size."""
    from SegMoTELib.zoo.catalogue import catalogue
    from SegMoTELib.zoo.store import held, models_folder

    rows: list[dict[str, Any]] = []
    for model in held():
        entry = catalogue().get(model.name)
        rows.append({"name": model.name, "state": model.state, "bytes": model.size, "path": str(model.path),
                     **({"download_bytes": entry.size, "licence": entry.licence, "licence_url": entry.licence_url,
                         "url": entry.url, "hash": entry.hash, "architecture": entry.architecture,
                         "modalities": entry.modalities, "trained_on": entry.trained_on,
                         "remark": entry.remark} if entry else {})})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = row["bytes"] or row.get("download_bytes")
        click.echo(f"{plain(row['name']):<20}{row['state']:<20}{_megabytes(size):>9}  {row.get('licence', 'your own')}")
    click.echo(f"Downloads go to {models_folder()}.", err=True)


@command.command()
@click.argument("name", shell_complete=MISSING)
@click.option("--accept-licence", is_flag=True, help="Agree to a licence that is not permissive.")
def fetch(name: str, accept_licence: bool) -> None:
    """Download the weights of NAME, verify them and print where they are; resumes after an interruption."""
    from tqdm import tqdm

    from SegMoTELib.zoo.catalogue import find_entry
    from SegMoTELib.zoo.download import fetch as download
    from SegMoTELib.zoo.store import find

    entry = find_entry(name)
    click.echo(f"{entry.title}: {entry.licence} ({entry.licence_url})", err=True)
    with tqdm(total=entry.size, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        def progress(here: int, total: int | None) -> None:
            bar.total = total
            bar.update(here - bar.n)

        path = download(entry, accept_licence, progress)
    if find(name).state == "not verified":
        why = (f"it was there already and has not been verified; do so with: segmote models verify {name}" if entry.hash
               else "nobody publishes a hash of it, so it could not be verified.")
        click.echo(f"segmote: {name}: {why}", err=True)
    click.echo(str(path))


@command.command()
@click.argument("names", nargs=-1, shell_complete=HERE)
def verify(names: tuple[str, ...]) -> None:
    """Hash the weights of NAMES again (default: all on this machine) and compare."""
    from SegMoTELib.zoo.store import find, held
    from SegMoTELib.zoo.store import verify as check

    failed = []
    for name in [find(name).name for name in names] or [one.name for one in held() if one.path.is_file()]:
        try:
            click.echo(f"{name}: {check(name)}")
        except ModelError as error:
            failed.append(name)
            click.echo(f"segmote: {plain(str(error))}", err=True)
    if failed:
        raise ModelError(f"not intact: {', '.join(failed)}.")


@command.command()
@click.argument("name", shell_complete=HERE)
def remove(name: str) -> None:
    """Delete the downloaded weights of NAME, or a model of your own."""
    from SegMoTELib.zoo.store import remove as delete

    click.echo(f"{name}: {_megabytes(delete(name))} freed")


@command.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="What --model shall take; default: the file's name.")
def add(path: Path, name: str | None) -> None:
    """Copy the weights file PATH among the models, after trying to load it."""
    from SegMoTELib.network import load_checkpoint
    from SegMoTELib.zoo.store import add as keep

    load_checkpoint(path)
    click.echo(f"added; use it with: --model {keep(path, name)}")


def _megabytes(size: int | None) -> str:
    return "? MB" if size is None else f"{size / 1e6:.1f} MB"
