"""``segmote auto``: a target through a whole volume, without prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from SegMoTELib.cli.volumes import (
    PLANES,
    Bar,
    common_options,
    load_predictor,
    millilitres,
    open_session,
    output_option,
    series_option,
    voxels_of,
)

if TYPE_CHECKING:
    from SegMoTELib.interaction.propagation import Watcher


@click.command(short_help="Find a target in a whole volume, without prompts.")
@click.argument("volume_path", metavar="VOLUME", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="What to find (segmote info NAME lists a model's targets).")
@click.option("--plane", "orientation", type=click.Choice(PLANES),
              help="Default: the target's own, or the one with the finest pixels.")
@common_options
@series_option
@output_option
def command(volume_path: Path, target: str, orientation: str | None, intensity: str, model: str, device: str,
            keep_embeddings: bool, series: str, output: Path) -> None:
    """Find TARGET on every slice of VOLUME, agree between slices, and write a segmentation that Slicer opens."""
    predictor = load_predictor(model, device, keep_embeddings)
    with Bar(target) as bar:
        told = auto_file(volume_path, target, orientation, intensity, predictor, output, bar, series)
    click.echo(told)


def auto_file(volume_path: Path, target: str, orientation: str | None, intensity: str, predictor, output: Path,
              watch: Watcher = lambda progress, index, mask: True, series: str = "") -> str:
    """Segment one file; returns what to tell, raises what ``read_volume`` and ``segment_slices`` raise."""
    from SegMoTELib.imaging.files import NamedMask, write_segmentation
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.interaction.auto import segment_slices
    from SegMoTELib.interaction.targets import best_orientation, modality_note

    session = open_session(volume_path, intensity, predictor, series)
    session.check_target(target)
    known = next(one for one in predictor.auto_targets if one.name == target)
    orientation = orientation or best_orientation(session.volume, known.plane)
    stack = PlaneStack.along(session.volume, orientation)
    found = segment_slices(session, stack, target, 0, len(stack) - 1, watch)
    mask = voxels_of(found.masks, stack)
    write_segmentation(output, session.volume, [NamedMask(target, known.color, mask, known.terminology)])
    note = modality_note(session.volume, target, predictor.auto_targets)
    if not found.masks:
        return (f"{output}: {target}: nothing found on {found.slices} {orientation} slices; the segment is empty. "
                f"{note}").rstrip()
    return (f"{output}: {target} on {len(found.masks)} of {found.slices} {orientation} slices, "
            f"{millilitres(mask, session.volume):.1f} ml, {found.removed} small pieces left out. {note}").rstrip()
