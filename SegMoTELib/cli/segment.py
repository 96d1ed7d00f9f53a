"""``segmote segment``: prompts in millimetres on a volume from a file, a segmentation for Slicer out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from SegMoTELib.cli import completion
from SegMoTELib.cli.volumes import (
    PLANES,
    PositionsCommand,
    SegmentName,
    common_options,
    json_option,
    load_predictor,
    measured,
    open_session,
    output_option,
    series_option,
    tell,
    volume_argument,
)
from SegMoTELib.errors import PromptError

SEGMENT_COLOR = (128, 174, 128)


class Millimetres(click.ParamType):
    """Comma-separated numbers, e.g. ``-12.5,30,4``."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.name = ",".join(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return as many finite floats as there are names."""
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(self.names) or not np.isfinite(numbers).all():
            self.fail(f"{value!r} is not {self.name} in millimetres.", param, ctx)
        return numbers


@click.command(cls=PositionsCommand, short_help="Segment one slice of a volume, from points, boxes or by name.")
@volume_argument
@click.option("--point", "points", multiple=True, type=Millimetres("R", "A", "S"), help="A point inside the object.")
@click.option("--exclude", "excluded", multiple=True, type=Millimetres("R", "A", "S"), help="A point outside of it.")
@click.option("--box", "boxes", multiple=True, type=Millimetres("R1", "A1", "S1", "R2", "A2", "S2"),
              help="Two opposite corners around it; a box for each separate piece.")
@click.option("--auto", metavar="TARGET", shell_complete=completion.targets,
              help="No prompts: segment this structure (segmote info lists a model's).")
@click.option("--plane", "orientation", type=click.Choice(PLANES), default="axial", show_default=True,
              help="Plane of the points and boxes.")
@click.option("--slice", "position", type=Millimetres("R", "A", "S"),
              help="A point of the slice for --auto; default: the middle.")
@click.option("--name", type=SegmentName(), help="Name of the segment; default: the target's, or Segment.")
@common_options
@series_option
@json_option
@output_option
def command(volume_path: Path, points: tuple, excluded: tuple, boxes: tuple, auto: str | None, orientation: str,
            position: tuple | None, name: str | None, intensity: str, model: str, device: str, keep_embeddings: bool,
            series: str, as_json: bool, output: Path) -> None:
    """Segment one slice of VOLUME and write it as a segmentation that Slicer opens.

    VOLUME is an image file (NIfTI, NRRD, ...), a DICOM file, or a folder with a DICOM series.

    Positions are RAS millimetres, as Slicer shows them: --point -12.5,-40,30; several may follow one another.
    """
    from SegMoTELib.imaging.files import NamedMask, write_segmentation
    from SegMoTELib.imaging.planes import SlicePlane

    _refuse_mixture(points, excluded, boxes, auto, position)
    session = open_session(volume_path, intensity, load_predictor(model, device, keep_embeddings), series, output)
    volume = session.volume
    middle = volume.to_ras((np.array(volume.shape) - 1) / 2)
    corners = np.reshape(boxes, (-1, 2, 3))
    aimed = [*points[:1], *corners[:1].mean(axis=1), *excluded[:1]]
    anchor = aimed[0] if aimed else position or middle
    plane = SlicePlane.through(volume, orientation, np.array(anchor))
    answer = session.predict(plane, np.array(points), np.array(excluded), corners, auto=auto)
    patch = plane.insert(answer.mask, volume)
    mask = np.zeros(volume.array.shape[:3], bool)
    mask[patch.slices] = patch.array
    known = next((target for target in session.predictor.auto_targets if target.name == auto), None)
    color, terminology = (known.color, known.terminology) if known else (SEGMENT_COLOR, "")
    name = name or auto or "Segment"
    write_segmentation(output, volume, [NamedMask(name, color, mask, terminology)])
    result = measured(output, name, mask, volume) | {
        "slice_cm2": round(float(answer.mask.sum() * plane.spacing ** 2 / 100), 4),
        "predicted_iou": round(answer.iou, 4), "seconds": {key: round(value, 4) for key, value in
                                                           answer.seconds.items()}}
    if not mask.any():
        result["warnings"].append("nothing was found there: try a box, or another point.")
    tell(result, f"{output}: {mask.sum()} voxels, {result['slice_cm2']:.2f} cm2 on the slice, predicted IoU "
         f"{answer.iou:.2f}; encoded in {answer.seconds['encode']:.2f} s, answered in {answer.seconds['decode']:.2f} s",
         as_json)


def _refuse_mixture(points, excluded, boxes, auto, position) -> None:
    prompted = bool(points or excluded or boxes)
    if auto and prompted:
        raise PromptError("Choose either --auto or points and boxes.")
    if not auto and not prompted:
        raise PromptError("Nothing to go by: give --point, --box or --auto.")
    if position and not auto:
        raise PromptError("--slice is for --auto; points and boxes name their slice themselves.")
