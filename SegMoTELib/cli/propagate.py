"""``segmote propagate``: prompts on one or several slices, carried through the volume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from SegMoTELib.cli.segment import SEGMENT_COLOR, Millimetres
from SegMoTELib.cli.volumes import (
    PLANES,
    Bar,
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
    voxels_of,
)

if TYPE_CHECKING:
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.interaction.session import Session


@click.command(cls=PositionsCommand, short_help="Carry a prompted object through the slices of a volume.")
@volume_argument
@click.option("--point", "points", multiple=True, type=Millimetres("R", "A", "S"), help="A point inside the object.")
@click.option("--exclude", "excluded", multiple=True, type=Millimetres("R", "A", "S"), help="A point outside of it.")
@click.option("--box", "boxes", multiple=True, type=Millimetres("R1", "A1", "S1", "R2", "A2", "S2"),
              help="Two opposite corners around it, on one slice; a box for each separate piece.")
@click.option("--plane", "orientation", type=click.Choice(PLANES), default="axial", show_default=True,
              help="Plane of the prompts and direction of the slices.")
@click.option("--until", "limits", multiple=True, type=Millimetres("R", "A", "S"),
              help="A point of the last slice to reach on its side of the prompts; once for each side.")
@click.option("--name", type=SegmentName(), default="Segment", show_default=True, help="Name of the segment.")
@common_options
@series_option
@json_option
@output_option
def command(volume_path: Path, points: tuple, excluded: tuple, boxes: tuple, orientation: str, limits: tuple,
            name: str, intensity: str, model: str, device: str, keep_embeddings: bool,
            series: str, as_json: bool, output: Path) -> None:
    """Segment an object on the slices of the prompts, and carry it to both ends of the object or the range.

    VOLUME is an image file (NIfTI, NRRD, ...), a DICOM file, or a folder with a DICOM series.

    Positions are RAS millimetres, as Slicer shows them: --point -12.5,-40,30; several may follow one another. Prompts
    of several slices may be given; in between, the slices meet in the middle.
    """
    from SegMoTELib.errors import PromptError
    from SegMoTELib.imaging.files import NamedMask, write_segmentation
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.interaction.propagation import propagate

    if not points and not boxes:
        raise PromptError("Nothing to go by: give --point or --box.")
    session = open_session(volume_path, intensity, load_predictor(model, device, keep_embeddings), series, output)
    stack = PlaneStack.along(session.volume, orientation)
    masks, prompted = _prompted_masks(session, stack, points, excluded, boxes)
    first, last = _span(stack, masks, limits)
    with Bar("Propagating") as bar:
        found = propagate(session, stack, masks, first, last, bar)
    mask = voxels_of(found.masks, stack)
    write_segmentation(output, session.volume, [NamedMask(name, SEGMENT_COLOR, mask)])
    result = measured(output, name, mask, session.volume) | {"prompted": prompted} | _story(found)
    tell(result, f"{output}: {result['millilitres']:.1f} ml on {found.in_words()}", as_json)


def _prompted_masks(session: Session, stack: PlaneStack, points: tuple, excluded: tuple,
                    boxes: tuple) -> tuple[dict[int, np.ndarray], list[dict]]:
    """Slice index -> what the model answers to the prompts on it; and what to tell of each."""
    from SegMoTELib.errors import PromptError

    prompts: dict[int, tuple[list, list, list]] = {}
    corners = [np.reshape(box, (2, 3)) for box in boxes]
    for kind, given, places in ((0, points, points), (1, excluded, excluded),
                                (2, corners, [box.mean(axis=0) for box in corners])):
        for prompt, place in zip(given, places, strict=True):
            prompts.setdefault(stack.nearest(np.array(place)), ([], [], []))[kind].append(prompt)
    masks, prompted = {}, []
    for index, (positives, negatives, around) in sorted(prompts.items()):
        where = f"Slice {index + 1}: "
        try:
            answer = session.predict(stack.planes[index], np.array(positives), np.array(negatives), np.array(around))
        except PromptError as error:
            raise PromptError(f"{where}{str(error)[0].lower()}{str(error)[1:]}") from None
        masks[index] = answer.mask
        prompted.append({"slice": int(index) + 1, "predicted_iou": round(answer.iou, 4)})
    if not any(mask.any() for mask in masks.values()):
        raise PromptError("The model sees no object at these prompts: try a box around it, or another --intensity.")
    return masks, prompted


def _span(stack: PlaneStack, masks: dict[int, np.ndarray], limits: tuple) -> tuple[int, int]:
    """First and last slice to carry to."""
    from SegMoTELib.errors import PromptError

    first, last = 0, len(stack) - 1
    for limit in (stack.nearest(np.array(place)) for place in limits):
        if min(masks) < limit < max(masks):
            raise PromptError("--until lies between prompted slices; give a point beyond them.")
        first, last = (limit, last) if limit <= min(masks) else (first, limit)
    return first, last


def _story(found) -> dict:
    """Slices are counted from 1, as in words."""
    least = min(found.confidence, key=found.confidence.get, default=None)
    return {"slices": [int(index) + 1 for index in found.masks],
            "ends": {"first" if sign < 0 else "last": {"slice": int(index) + 1, "because": reason}
                     for sign, (index, reason) in sorted(found.ends.items())},
            "least_sure": None if least is None else {"slice": int(least) + 1,
                                                      "confidence": round(found.confidence[least], 4)}}
