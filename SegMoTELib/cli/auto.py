"""``segmote auto``: a target through a whole volume, without prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from SegMoTELib.cli import completion
from SegMoTELib.cli.volumes import (
    PLANES,
    Bar,
    common_options,
    json_option,
    load_predictor,
    measured,
    open_session,
    output_option,
    series_option,
    tell,
    volume_argument,
    voxels_of,
)

if TYPE_CHECKING:
    from SegMoTELib.interaction.propagation import Watcher


@click.command(short_help="Find a target in a whole volume, without prompts.")
@volume_argument
@click.option("--target", required=True, shell_complete=completion.targets,
              help="What to find (segmote info NAME lists a model's targets).")
@click.option("--plane", "orientation", type=click.Choice(PLANES),
              help="Default: the target's own, or the one with the finest pixels.")
@common_options
@series_option
@json_option
@output_option
def command(volume_path: Path, target: str, orientation: str | None, intensity: str, model: str, device: str,
            keep_embeddings: bool, series: str, as_json: bool, output: Path) -> None:
    """Find TARGET on every slice of VOLUME, agree between slices, and write a segmentation that Slicer opens.

    VOLUME is an image file (NIfTI, NRRD, ...), a DICOM file, or a folder with a DICOM series.
    """
    predictor = load_predictor(model, device, keep_embeddings)
    with Bar(target) as bar:
        result = auto_file(volume_path, target, orientation, intensity, predictor, output, bar, series)
    tell(result, in_words(result), as_json)


def auto_file(volume_path: Path, target: str, orientation: str | None, intensity: str, predictor, output: Path,
              watch: Watcher = lambda progress, index, mask: True, series: str = "") -> dict:
    """Segment one file; returns the result, raises what ``read_volume`` and ``segment_slices`` raise."""
    from SegMoTELib.imaging.files import NamedMask, write_segmentation
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.interaction.auto import segment_slices
    from SegMoTELib.interaction.targets import best_orientation, modality_note

    session = open_session(volume_path, intensity, predictor, series, output)
    session.check_target(target)
    known = next(one for one in predictor.auto_targets if one.name == target)
    orientation = orientation or best_orientation(session.volume, known.plane)
    stack = PlaneStack.along(session.volume, orientation)
    found = segment_slices(session, stack, target, 0, len(stack) - 1, watch)
    mask = voxels_of(found.masks, stack)
    write_segmentation(output, session.volume, [NamedMask(target, known.color, mask, known.terminology)])
    result = measured(output, target, mask, session.volume) | {
        "plane": orientation, "slices": len(found.masks), "slices_searched": found.slices,
        "pieces_left_out": int(found.removed)}
    note = modality_note(session.volume, target, predictor.auto_targets)
    result["warnings"] += [note] if note else []
    if not found.masks:
        result["warnings"].append(f"{target} was not found; the segment is empty.")
    return result


def in_words(result: dict) -> str:
    """One line for a person."""
    return (f"{result['output']}: {result['segment']} on {result['slices']} of {result['slices_searched']} "
            f"{result['plane']} slices, {result['millilitres']:.1f} ml, {result['pieces_left_out']} small pieces left "
            "out.")
