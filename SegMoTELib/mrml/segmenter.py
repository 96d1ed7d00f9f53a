"""SceneSegmenter: prompts in a scene become segments; computing is for the job thread, the scene stays on this one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from SegMoTELib.errors import PromptError, SegMoTEError
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.interaction.jobs import Job, Jobs
from SegMoTELib.interaction.session import PlaneMask, Session
from SegMoTELib.mrml.prompts import BOX, NEGATIVE, POSITIVE, PlanePrompts, PromptSet
from SegMoTELib.mrml.segments import Change, SegmentWriter, Written, prepare_segmentation
from SegMoTELib.mrml.target import Target
from SegMoTELib.mrml.volumes import volume_of, window_of

log = logging.getLogger(__name__)

SESSIONS_KEPT = 2  # volumes, or mappings of one, whose encoded slices are kept
HISTORY = 50  # undo steps
NO_PROMPTS: dict = {POSITIVE: [], NEGATIVE: [], BOX: []}


@dataclass(frozen=True)
class Answer:
    """What stands in the segment for one plane.

    Attributes:
        prompts: it answers; None for an auto target. logits: for the next correction. written: in the segment.
    """

    prompts: PlanePrompts | None = field(repr=False)
    logits: np.ndarray = field(repr=False)
    written: Written | None = field(repr=False)


@dataclass(frozen=True)
class Step:
    """One undo step: a segment's prompts and answers before and after."""

    target: Target
    before: tuple[dict, dict[tuple, Answer]]
    after: tuple[dict, dict[tuple, Answer]]


class SceneSegmenter:
    """Connects prompts, the model and segments; one per scene. Main thread only.

    Everything that takes time is a job: call ``jobs.deliver()`` now and then, or ``jobs.finish()``.

    Args:
        scene: vtkMRMLScene. told: called with a sentence for the status line, and whether it is an error.

    Attributes:
        predictor: the model, a ``Predictor``; set before the first request.
        mapping: intensity mapping, see ``SegMoTELib.imaging.intensity``. smoothing: of outlines, millimetres.
    """

    def __init__(self, scene: Any, told: Callable[[str, bool], None] = lambda text, error: None) -> None:
        self.scene, self.told = scene, told
        self.jobs = Jobs()
        self.predictor: Any = None
        self.mapping = "window"
        self.smoothing = 0.0
        self.seconds: dict[str, float] = {}  # stages of the latest answer
        self._writer: SegmentWriter | None = None
        self._sessions: OrderedDict[tuple, Session] = OrderedDict()
        self._limits: tuple = (None, None)  # volume and mapping -> (black, white); percentiles take long
        self._prompts: dict[tuple, PromptSet] = {}
        self._answers: dict[tuple, dict[tuple, Answer]] = {}
        self._known: dict[tuple, dict] = {}  # prompts as of the latest step
        self._done: list[Step] = []
        self._undone: list[Step] = []

    @property
    def writer(self) -> SegmentWriter:
        """Writes to segments; its hidden node is made when first needed."""
        if self._writer is None:
            self._writer = SegmentWriter(self.scene)
        return self._writer

    # --- prompts ---------------------------------------------------------------------------------------------------

    def prompts(self, segmentation: Any, segment_id: str) -> PromptSet:
        """The markups of a segment."""
        key = (segmentation.GetID(), segment_id)
        if key not in self._prompts:
            self._prompts[key] = PromptSet(self.scene, segmentation, segment_id)
        return self._prompts[key]

    def update(self, target: Target) -> None:
        """Bring the segment up to date with its prompts: a job for the planes on which they changed.

        Raises:
            SegMoTEError: the volume, or the segment, cannot be used; the scene is unchanged then.
        """
        SegmentWriter.check(target.segmentation, target.segment_id)
        prompts = self.prompts(target.segmentation, target.segment_id)
        planes, problems = prompts.on_planes(target.volume)
        for problem in problems:
            self.told(problem, True)
        answers = self._answers.get(target.key, {})
        wanted = {plane.plane.key(): plane for plane in planes}
        changed = [plane for key, plane in wanted.items()
                   if key not in answers or _content(answers[key]) != plane.content()]
        dropped = [key for key, answer in answers.items() if key not in wanted and answer.prompts is not None]
        snapshot = prompts.snapshot()
        if not changed and not dropped:
            self.jobs.cancel(("prompts", *target.key))
            return
        session = self._session(target.volume)
        asked = [(plane, _previous(answers.get(plane.plane.key()), plane)) for plane in changed]

        def work(job: Job) -> tuple[list[PlaneMask | None], list[str]]:
            return _answer_all(session, asked, job)

        def done(result: tuple[list[PlaneMask | None], list[str]]) -> None:
            found, refused = result
            for sentence in refused:
                self.told(sentence, True)
            self._apply(target, snapshot, changed, found, dropped)

        self.jobs.submit(("prompts", *target.key), work, done, self._failed, label="Segmenting")

    def auto(self, target: Target, name: str, planes: list[SlicePlane]) -> Job:
        """Segment a structure without prompts on some planes; one undo step, nothing is written when cancelled.

        A job per slice, so that a click meanwhile is answered between two slices.

        Raises:
            SegMoTEError: the volume, the segment or the name cannot be used.
        """
        SegmentWriter.check(target.segmentation, target.segment_id)
        session = self._session(target.volume)
        if name not in [offered.name for offered in self.predictor.auto_targets]:
            offered = ", ".join(one.name for one in self.predictor.auto_targets)
            raise PromptError(f"The model has no auto target {name!r}; it offers: {offered or 'none'}.")
        key, found = ("auto", *target.key), []

        def submit() -> Job:
            index = len(found)
            return self.jobs.submit(
                key, lambda job: session.predict(planes[index], auto=name), done, self._failed, urgent=False,
                label=f"Auto: {name}, slice {index + 1} of {len(planes)}", progress=index / len(planes))

        def done(answer: PlaneMask) -> None:
            found.append(answer)
            if len(found) < len(planes):
                submit()
                return
            snapshot = self.prompts(target.segmentation, target.segment_id).snapshot()
            self._apply(target, snapshot, [None] * len(found), found, [])
            count = sum(bool(one.mask.any()) for one in found)
            self.told(f"{name}: found on {count} of {len(found)} slices." if count else
                      f"{name}: nothing found here. It was trained on {self._modality(name)}.", False)

        return submit()

    def prefetch(self, volume_node: Any, plane: SlicePlane) -> None:
        """Encode a plane that a prompt may soon be placed on; never before other work."""
        session = self._session(volume_node)
        if not session.is_encoded(plane):
            self.jobs.submit("prefetch", lambda job: session.encode([plane], job.cancelled), lambda _: None,
                             self._failed, urgent=False, label="Preparing the slice")

    # --- undo ------------------------------------------------------------------------------------------------------

    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._done)

    def can_redo(self) -> bool:
        """Whether there is a step to repeat."""
        return bool(self._undone)

    def undo(self) -> bool:
        """Take the latest prompt back, and what it changed; False where there is none."""
        return self._travel(self._done, self._undone, lambda step: (step.after, step.before))

    def redo(self) -> bool:
        """Repeat what was taken back; False where there is nothing."""
        return self._travel(self._undone, self._done, lambda step: (step.before, step.after))

    def accept(self, segmentation: Any, segment_id: str) -> None:
        """Remove the segment's prompts and keep its mask as it is, e.g. before the next object."""
        self._forget((segmentation.GetID(), segment_id))

    def _forget(self, key: tuple) -> None:
        self.jobs.cancel(("prompts", *key))
        if key in self._prompts:
            self._prompts.pop(key).remove()
        self._answers.pop(key, None)
        self._known.pop(key, None)
        self._done = [step for step in self._done if step.target.key != key]
        self._undone = [step for step in self._undone if step.target.key != key]

    # --- the end ---------------------------------------------------------------------------------------------------

    def forget_deleted(self) -> None:
        """Remove the prompts of segments and segmentations that were deleted."""
        for key, prompts in list(self._prompts.items()):
            if not prompts.segment_exists():
                self._forget(key)

    def reset(self) -> None:
        """Forget everything computed and everything in flight, e.g. for another model or when the scene closes."""
        self.jobs.cancel()
        self._sessions.clear()
        self._answers.clear()
        self._known.clear()
        self._done, self._undone = [], []

    def scene_closing(self) -> None:
        """Let go of all nodes."""
        self.reset()
        for prompts in self._prompts.values():
            prompts.observe(None)
        self._prompts.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """End the job thread and remove the hidden node; the prompts stay in the scene."""
        self.scene_closing()
        self.jobs.stop()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        if isinstance(error, SegMoTEError):
            self.told(str(error), True)
        else:
            log.error("a job failed", exc_info=error)
            self.told(f"Something went wrong ({error}); details are in the log.", True)

    def _session(self, node: Any) -> Session:
        """The session of a volume node as it is now; another one after its voxels, geometry or window changed."""
        volume = volume_of(node)
        content = (node.GetID(), node.GetImageData().GetMTime())
        mapping = (*content, *self._mapping(node))
        if self._limits[0] != mapping:
            self._limits = (mapping, range_of(volume, *mapping[2:]))
        limits = self._limits[1]
        key = (*content, volume.ijk_to_ras.tobytes(), limits, id(self.predictor))
        if key not in self._sessions:
            self._sessions[key] = Session(self.predictor, volume, limits)
            while len(self._sessions) > SESSIONS_KEPT:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _mapping(self, node: Any) -> tuple[str, tuple[float, float] | None]:
        window = window_of(node)
        usable = self.mapping != "window" or (window is not None and window[0] > 0)
        return (self.mapping if usable else "percentiles"), window

    def _modality(self, name: str) -> str:
        return next((one.modality for one in self.predictor.auto_targets if one.name == name), "") or "other images"

    def _apply(self, target: Target, snapshot: dict, asked: list[PlanePrompts | None], found: list[PlaneMask | None],
               dropped: list[tuple]) -> None:
        """Write answers to the scene as one step; harmless where the target is gone by now."""
        if not target.exists():
            return
        volume = volume_of(target.volume)
        answers = dict(self._answers.get(target.key, {}))
        keys = [answer.plane.key() if answer is not None else prompts.plane.key()
                for prompts, answer in zip(asked, found, strict=True)]
        solid = len(found) == 1 or any(prompts is not None for prompts in asked)  # else parallel slices of Auto
        changes = [Change(None if answer is None else answer.plane.insert(self._smooth(answer), volume, solid),
                          answers[key].written if key in answers else None)
                   for key, answer in zip(keys, found, strict=True)]
        changes += [Change(None, answers[key].written) for key in dropped]
        prepare_segmentation(target.segmentation, target.volume)
        try:
            written = self.writer.write(target.segmentation, target.segment_id, target.volume, changes)
        except SegMoTEError as error:
            self.told(str(error), True)
            return
        for key in dropped:
            del answers[key]
        for key, prompts, answer, put in zip(keys, asked, found, written, strict=False):
            answers.pop(key, None)
            if answer is not None:
                answers[key] = Answer(prompts, answer.logits, put)
                self.seconds = answer.seconds
        before = (self._known.get(target.key, NO_PROMPTS), self._answers.get(target.key, {}))
        self._answers[target.key], self._known[target.key] = answers, snapshot
        self._done = [*self._done, Step(target, before, (snapshot, answers))][-HISTORY:]
        self._undone = []

    def _smooth(self, answer: PlaneMask) -> np.ndarray:
        if self.smoothing <= 0:
            return answer.mask
        return ndimage.gaussian_filter(answer.mask.astype(np.float32), self.smoothing / answer.plane.spacing) > 0.5

    def _travel(self, taken: list[Step], kept: list[Step], ends: Callable[[Step], tuple]) -> bool:
        """Go from one end of the latest step to the other."""
        while taken and not taken[-1].target.exists():
            taken.pop()
        if not taken:
            return False
        step = taken[-1]
        (_, leaving), (snapshot, coming) = ends(step)
        self.jobs.cancel(("prompts", *step.target.key))
        back = [answer.written for key, answer in leaving.items() if coming.get(key) is not answer]
        again = [answer.written for key, answer in coming.items() if leaving.get(key) is not answer]
        self.writer.exchange(step.target.segmentation, step.target.segment_id, step.target.volume, back, again)
        self._answers[step.target.key], self._known[step.target.key] = coming, snapshot
        self.prompts(step.target.segmentation, step.target.segment_id).restore(snapshot)
        kept.append(taken.pop())
        return True


def _content(answer: Answer) -> frozenset:
    return frozenset() if answer.prompts is None else answer.prompts.content()


def _previous(answer: Answer | None, prompts: PlanePrompts) -> np.ndarray | None:
    """Logits to correct, where prompts were only added since."""
    return answer.logits if answer is not None and _content(answer) <= prompts.content() else None


def _answer_all(session: Session, asked: list[tuple[PlanePrompts, np.ndarray | None]],
                job: Job) -> tuple[list[PlaneMask | None], list[str]]:
    """Answers in order, None where the prompts of a plane cannot be used, and why."""
    found: list[PlaneMask | None] = []
    refused = []
    for index, (prompts, previous) in enumerate(asked):
        if job.cancelled():
            break
        try:
            found.append(session.predict(prompts.plane, prompts.positives, prompts.negatives, prompts.box,
                                         previous=previous))
        except PromptError as error:
            found.append(None)
            refused.append(str(error))
        job.progress = (index + 1) / len(asked)
    return found, refused
