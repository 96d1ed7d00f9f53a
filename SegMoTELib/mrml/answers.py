"""What prompts on a slice plane were answered with, and how they are answered in a job."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.jobs import Job
from SegMoTELib.interaction.session import PlaneMask, Session
from SegMoTELib.mrml.prompts import PlanePrompts
from SegMoTELib.mrml.segments import Written
from SegMoTELib.mrml.target import Target


@dataclass(frozen=True)
class Answer:
    """What stands in the segment for one plane.

    Attributes:
        prompts: it answers; None for what a run found, none in them for what the user picked.
        logits: for the next correction, or None. written: in the segment.
    """

    prompts: PlanePrompts | None = field(repr=False)
    logits: np.ndarray | None = field(repr=False)
    written: Written | None = field(repr=False)

    def content(self) -> frozenset:
        """The prompts it answers, as a set."""
        return frozenset() if self.prompts is None else self.prompts.content()


@dataclass(frozen=True)
class Step:
    """One undo step: a segment's prompts and answers before and after."""

    target: Target
    before: tuple[dict, dict[tuple, Answer]]
    after: tuple[dict, dict[tuple, Answer]]


@dataclass(frozen=True)
class SliceMask:
    """A mask on a slice, as long runs find it; stands for a ``PlaneMask`` without logits."""

    plane: SlicePlane
    crop: Crop = field(repr=False)
    logits: None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        """(rows, columns) bool."""
        return self.crop.full()


def previous_logits(answer: Answer | None, prompts: PlanePrompts) -> np.ndarray | None:
    """Logits to correct, where prompts were only added since."""
    return answer.logits if answer is not None and answer.content() <= prompts.content() else None


def answer_all(session: Session, asked: list[tuple[PlanePrompts, np.ndarray | None, np.ndarray | None]],
               job: Job) -> tuple[list[PlaneMask | None], list[str]]:
    """Answers in order, None where the prompts of a plane cannot be used, and why."""
    found: list[PlaneMask | None] = []
    refused = []
    for index, (prompts, previous, mask) in enumerate(asked):
        if job.cancelled():
            break
        try:
            found.append(session.predict(prompts.plane, prompts.positives, prompts.negatives, prompts.boxes,
                                         previous=previous, mask=mask))
        except PromptError as error:
            found.append(None)
            refused.append(str(error))
        job.progress = (index + 1) / len(asked)
    return found, refused
