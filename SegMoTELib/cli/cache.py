"""``segmote cache``: the embeddings that are kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.option("--folder", type=click.Path(file_okay=False, path_type=Path),
                      help="Default: the user's cache folder.")


@click.group(short_help="Show or clear the embeddings kept on disk.")
def command() -> None:
    """Embeddings that --keep-embeddings leaves on disk, so that a volume seen before is answered at once."""


@command.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(folder: Path | None, as_json: bool) -> None:
    """Where the embeddings are, how many, and how large."""
    kept = _folder(folder)
    files = kept.files()
    size = sum(size for _, size, _ in files)
    if as_json:
        click.echo(json.dumps({"folder": str(kept.path), "embeddings": len(files), "bytes": size,
                               "limit_bytes": kept.limit}, indent=2))
        return
    click.echo(f"{kept.path}: {len(files)} embeddings, {size / 2**20:.1f} of at most {kept.limit / 2**20:.0f} MiB")


@command.command()
@FOLDER
def clear(folder: Path | None) -> None:
    """Remove all of them."""
    kept = _folder(folder)
    click.echo(f"{kept.path}: {kept.clear() / 2**20:.1f} MiB freed")


def _folder(path: Path | None):
    from SegMoTELib.interaction.embeddings import EmbeddingFolder, default_folder

    return EmbeddingFolder(path or default_folder())
