"""``segmote auto``: a target through a whole volume, without prompts."""

from __future__ import annotations

from pathlib import Path

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


@click.command(short_help="Find a target in a whole volume, without prompts.")
@click.argument("volume_path", metavar="VOLUME", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="What to find (segmote info NAME lists a model's targets).")
@click.option("--plane", "orientation", type=click.Choice(PLANES), help="Default: the one with the finest pixels.")
@common_options
@series_option
@output_option
def command(volume_path: Path, target: str, orientation: str | None, intensity: str, model: str, device: str,
            keep_embeddings: bool, series: str, output: Path) -> None:
    """Find TARGET on every slice of VOLUME, agree between slices, and write a segmentation that Slicer opens.

    VOLUME is an image file (NIfTI, NRRD, ...), a DICOM file, or a folder with a DICOM series.
    """
    click.echo(auto_file(volume_path, target, orientation, intensity,
                         load_predictor(model, device, keep_embeddings), output, Bar(target), series))


def auto_file(volume_path: Path, target: str, orientation: str | None, intensity: str, predictor, output: Path,
              bar: Bar | None, series: str = "") -> str:
    """Segment one file; returns what to tell, raises what ``read_volume`` and ``segment_slices`` raise."""
    from SegMoTELib.imaging.files import NamedMask, write_segmentation
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.interaction.auto import best_orientation, modality_note, segment_slices

    session = open_session(volume_path, intensity, predictor, series, output)
    session.check_target(target)
    stack = PlaneStack.along(session.volume, orientation or best_orientation(session.volume))
    found = segment_slices(session, stack, target, 0, len(stack) - 1, *([bar] if bar else []))
    if bar:
        bar.close()
    mask = voxels_of(found.masks, stack)
    known = next(one for one in predictor.auto_targets if one.name == target)
    write_segmentation(output, session.volume, [NamedMask(target, known.color, mask, known.terminology)])
    note = modality_note(session.volume, target, predictor.auto_targets)
    if not found.masks:
        return f"{output}: {target}: nothing found on {found.slices} slices; the segment is empty. {note}".rstrip()
    return (f"{output}: {target} on {len(found.masks)} of {found.slices} slices, "
            f"{millilitres(mask, session.volume):.1f} ml, {found.removed} small pieces left out. {note}").rstrip()
