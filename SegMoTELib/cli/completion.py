"""What the shell offers after --model, --target and the names of ``segmote models``; nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from SegMoTELib.errors import SegMoTEError

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def models(wanted: Callable[[bool], bool] = lambda here: True, files: bool = False) -> Completer:
    """Complete names of models.

    Args:
        wanted: told whether a model's weights are on this machine. files: offer files as well.
    """
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from SegMoTELib.zoo.store import held

        try:
            names = [model.name for model in held() if wanted(model.path.is_file())]
        except SegMoTEError:
            names = []
        return _items(names, incomplete) + ([CompletionItem(incomplete, type="file")] if files else [])
    return complete


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the auto targets of the model on the line."""
    from SegMoTELib.zoo import read_card, resolve_model

    try:
        card = read_card(resolve_model(ctx.params.get("model") or "segmote-tiny"))
    except SegMoTEError:
        return []
    return _items([name for name, _ in card.targets], incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    # zsh and fish quote what they insert; bash takes it as it is.
    blank = "\\ " if os.environ.get("_SEGMOTE_COMPLETE", "").startswith("bash") else " "
    return [CompletionItem(name.replace(" ", blank)) for name in names if name.startswith(incomplete)]
