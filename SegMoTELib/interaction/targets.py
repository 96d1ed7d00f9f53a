"""Auto targets by name: does the model offer it, on which slices is it looked for, was it trained on such images?"""

from __future__ import annotations

from collections.abc import Sequence

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.planes import NORMALS
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume

MODALITIES = {"CT": "CT", "MR": "MR", "US": "ultrasound", "PT": "PET"}  # DICOM's names and the targets' own
LONGEST_PIXEL = 2.0  # sides of a pixel, longer by shorter, up to which a slice is as good as the trained ones


def check_target(name: str, offered: Sequence[str]) -> None:
    """Raise a ``PromptError`` that says what the model offers, if a target is not among it."""
    if name not in offered:
        raise PromptError(f"The model has no auto target {name!r}; it offers: {', '.join(offered) or 'none'}.")


def modality_note(volume: Volume, target: str, offered: tuple) -> str:
    """What to know about a target's modality: "" only where the volume says that it is of the one it was trained on."""
    trained = next((one.modality for one in offered if one.name == target), "")
    own = MODALITIES.get(volume.modality, "")
    if not trained or trained.split()[0] == own:
        return ""
    if not own:
        return f"It was trained on {trained}: on anything else the result means nothing."
    return f"It was trained on {trained}, this volume is {own}: the result means nothing."


def best_orientation(volume: Volume, plane: str = "") -> str:
    """ "axial", "coronal" or "sagittal": the one whose slices a target is best looked for on.

    That is the plane of the target's training slices, unless voxels make pixels there that are more than twice as long
    as wide; otherwise the one whose slices have the finest pixels, axial where all are alike.

    Args:
        plane: ``AutoTarget.plane``.
    """
    steps = {name: PlaneStack.along(volume, name).step for name in NORMALS}
    if plane in steps:
        across = [step for name, step in steps.items() if name != plane]
        if max(across) <= LONGEST_PIXEL * min(across):
            return plane
    return max(NORMALS, key=lambda name: (round(steps[name], 3), name == "axial"))
