"""The ``segmote`` command: one small file per subcommand, each imported only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from SegMoTELib import __version__
from SegMoTELib.errors import SegMoTEError

# name -> module of this package that defines a click command called ``command``; --help shows them in this order.
COMMANDS = ("segment", "propagate", "auto", "batch", "models", "cache", "info", "curate", "train", "evaluate", "bench")


class LazyGroup(click.Group):
    """A group that imports a subcommand (and with it torch) only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one subcommand, or None for a name that does not exist."""
        return import_module(f"SegMoTELib.cli.{name}").command if name in COMMANDS else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="segmote")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """Interactive medical image segmentation: segment, curate data, train, evaluate, measure."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command line; errors meant for the user print as one sentence and exit with status 1."""
    try:
        group(prog_name="segmote")
    except SegMoTEError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"segmote: {error}", err=True)
        sys.exit(1)
