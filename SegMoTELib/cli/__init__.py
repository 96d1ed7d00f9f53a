"""The ``segmote`` command: one small file per subcommand, each imported only when it is called."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

import click

from SegMoTELib import __version__
from SegMoTELib.errors import SegMoTEError

# name -> module of this package that defines a click command called ``command``; --help shows them in this order.
COMMANDS = ("segment", "propagate", "auto", "batch", "models", "doctor", "cache", "info", "curate", "train", "evaluate",
            "bench")
FAILED, INTERRUPTED = 1, 130  # wrong usage is click's 2


class LazyGroup(click.Group):
    """A group that imports a subcommand (and with it torch) only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one subcommand, or None for a name that does not exist."""
        return import_module(f"SegMoTELib.cli.{name}").command if name in COMMANDS else None


@click.group(cls=LazyGroup, invoke_without_command=True,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
             epilog="Results go to standard output, everything else to standard error. Exit status: 0 done, 1 failed, "
                    "2 wrong usage, 130 interrupted. \"segmote COMMAND --help\" tells more about a command.")
@click.version_option(__version__, prog_name="segmote")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; anywhere on the line.")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """Interactive segmentation of medical images, on this machine. Not for diagnosis."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line. Errors print as one sentence, or with --debug as a traceback; see ``group`` for status."""
    arguments = sys.argv[1:]
    options = arguments[:arguments.index("--")] if "--" in arguments else arguments
    rest = arguments[len(options):]
    sys.exit(run([one for one in options if one != "--debug"] + rest, "--debug" in options))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command; returns the exit status."""
    try:
        status = group.main(arguments, prog_name="segmote", standalone_mode=False)
        if sys.stdout is not None:  # closed by whoever called
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("segmote: interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output wants no more; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"segmote: {plain(explain(error))}", err=True)
        return FAILED


def plain(text: str) -> str:
    """A text of a file's or a stranger's in one line, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def explain(error: Exception) -> str:
    """One sentence: what went wrong and what to do."""
    from SegMoTELib.cli.packages import how_to_get

    if isinstance(error, SegMoTEError):
        return str(error)
    words = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words:
        return "there is not enough memory; close other programs, or take a smaller model or a part of the volume."
    if type(error).__name__ == "BrokenProcessPool":
        return "a worker process was ended from outside; if it took too much memory, try fewer --workers."
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("SegMoTELib"):
        return f"the package {error.name} is missing; get it with: {how_to_get(error.name.partition('.')[0])}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return (f"an error that should not happen ({type(error).__name__}: {words}). Run it again with --debug and report "
            "what it prints.")
