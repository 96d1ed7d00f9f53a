"""SceneSegmenter: prompts in a scene become segments; computing is for the job thread, the scene stays on this one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from SegMoTELib.errors import SegMoTEError
from SegMoTELib.imaging.intensity import range_of
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.jobs import Job, Jobs
from SegMoTELib.interaction.session import PlaneMask, Session
from SegMoTELib.mrml.answers import Answer, SliceMask, Step, answer_all, previous_logits
from SegMoTELib.mrml.markups import BOX, NEGATIVE, POSITIVE
from SegMoTELib.mrml.prompts import FRAME, PlanePrompts, PromptSet, plane_prompts
from SegMoTELib.mrml.segments import Change, SegmentWriter, prepare_segmentation, segment_mask
from SegMoTELib.mrml.target import Target
from SegMoTELib.mrml.volumes import volume_of, window_of

log = logging.getLogger(__name__)

SESSIONS_KEPT = 2  # volumes, or mappings of one, whose encoded slices are kept
HISTORY = 50  # undo steps
PREFETCHED = 8  # slices to either side of the one on view
PREFETCH = "prefetch"  # key of its jobs
PARALLEL = 1 - 1e-6  # cosine
NO_PROMPTS: dict = {POSITIVE: [], NEGATIVE: [], BOX: [], FRAME: None}


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
        self._answering: dict[tuple, tuple[Job, list[Callable[[], Any]]]] = {}  # and what waits for it
        self._done: list[Step] = []
        self._undone: list[Step] = []

    @property
    def writer(self) -> SegmentWriter:
        """Writes to segments; its hidden node is made when first needed."""
        if self._writer is None:
            self._writer = SegmentWriter(self.scene)
        return self._writer

    # --- prompts ---------------------------------------------------------------------------------------------------

    def prompts(self, target: Target) -> PromptSet:
        """The markups of a segment on a volume."""
        if target.key not in self._prompts:
            self._prompts[target.key] = PromptSet(self.scene, target)
        return self._prompts[target.key]

    def take_over(self, prompts: PromptSet) -> None:
        """Go on with prompts of a loaded scene that were there, and observed, before this segmenter."""
        self._prompts[prompts.target.key] = prompts

    def when_answered(self, target: Target, then: Callable[[], Any]) -> None:
        """Go on once a segment's prompts are answered: those of a click just made, and those of a loaded scene."""
        if self._is_answering(target):
            self._answering[target.key][1].append(then)
        elif self.prompts(target).inherited:
            self._inherit(target, then)
        else:
            then()

    def update(self, target: Target) -> None:
        """Bring the segment up to date with its prompts: a job for the planes on which they changed.

        Raises:
            SegMoTEError: the volume, or the segment, cannot be used; the scene is unchanged then.
        """
        SegmentWriter.check(target.segmentation, target.segment_id)
        if self.prompts(target).inherited:
            self.when_answered(target, lambda: self._update(target))
        else:
            self._update(target)

    def _inherit(self, target: Target, then: Callable[[], Any]) -> None:
        """Answer prompts that came with a loaded scene, to know what of the segment is theirs."""
        prompts = self.prompts(target)
        planes = prompts.inherited

        def done(result: tuple[list[PlaneMask | None], list[str]]) -> None:
            prompts.inherited = []
            volume = volume_of(target.volume)
            answers = {plane.plane.key(): Answer(plane, found.logits, self.writer.held(
                target.segmentation, target.segment_id, target.volume, plane.plane.insert(found.mask, volume, True)))
                for plane, found in zip(planes, result[0], strict=False) if found is not None}
            self._answers[target.key], self._known[target.key] = answers, prompts.found

        self._answer(target, self.session(target.volume), [(plane, None, None) for plane in planes], done, [then])

    def _is_answering(self, target: Target) -> bool:
        return target.key in self._answering and not self._answering[target.key][0].cancelled()

    def _answer(self, target: Target, session: Session, asked: list[tuple], done: Callable[[Any], None],
                waiting: list[Callable[[], Any]]) -> None:
        """Answer prompts in a job, in place of an older one of the segment; then whatever waits goes on."""
        def finished(result: tuple[list[PlaneMask | None], list[str]]) -> None:
            self._answering.pop(target.key, None)
            done(result)
            for one in waiting:
                self.when_answered(target, one)

        def failed(error: Exception) -> None:
            self._answering.pop(target.key, None)
            self.failed(error)

        self._answering[target.key] = self.jobs.submit(
            ("prompts", *target.key), lambda job: answer_all(session, asked, job), finished, failed,
            label="Segmenting"), waiting

    def _update(self, target: Target) -> None:
        prompts = self.prompts(target)
        planes, problems = prompts.on_planes()
        for problem in problems:
            self.told(problem, True)
        answers = self._answers.get(target.key, {})
        wanted = {plane.plane.key(): plane for plane in planes}
        changed = [plane for key, plane in wanted.items()
                   if key not in answers or answers[key].content() != plane.content()]
        dropped = [key for key, answer in answers.items() if key not in wanted and answer.content()]
        snapshot = prompts.snapshot()
        waiting = self._answering[target.key][1] if self._is_answering(target) else []
        if not changed and not dropped:
            self.jobs.cancel(("prompts", *target.key))
            for one in waiting:
                one()
            return
        session = self.session(target.volume)
        asked = [(self._with_inside(target, answers, plane), previous_logits(answers.get(plane.plane.key()), plane),
                  self._standing(target, answers, plane.plane)) for plane in changed]

        def done(result: tuple[list[PlaneMask | None], list[str]]) -> None:
            if session.predictor is not self.predictor:  # another model was chosen meanwhile
                self.update(target)
                return
            found, refused = result
            for sentence in refused:
                self.told(sentence, True)
            self._apply(target, snapshot, changed, found, dropped)

        self._answer(target, session, asked, done, waiting)

    def session(self, node: Any) -> Session:
        """The session of a volume node as it is now; another one after its voxels, geometry or window changed.

        Raises:
            VolumeError: the volume cannot be segmented.
        """
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

    def apply_slices(self, target: Target, stack: PlaneStack, masks: dict[int, Crop], span: range = range(0),
                     picked: bool = False) -> bool:
        """Write masks on slices of a stack into the segment, in place of what earlier runs put there; one undo step.

        Slices with prompts keep their answer.

        Args:
            span: slices without a mask on which what an earlier run put there is removed: the object is not there.
            picked: by the user, so that they count as prompted from now on.

        Returns:
            False where it could not be written; the user has been told why.
        """
        answers = self._answers.get(target.key, {})
        found = [SliceMask(stack.planes[index], mask) for index, mask in masks.items()
                 if not self._is_prompted(answers.get(stack.planes[index].key()))]
        empty = [stack.planes[index].key() for index in span if index not in masks]
        dropped = [key for key in empty if key in answers and not self._is_prompted(answers[key])]
        snapshot = self.prompts(target).snapshot()
        asked = [plane_prompts(one.plane, []) if picked else None for one in found]
        return self._apply(target, snapshot, asked, found, dropped)

    def holds_run(self, target: Target, stack: PlaneStack) -> bool:
        """Whether slices that an earlier run found are in the segment; not after they were undone."""
        answers = self._answers.get(target.key, {})
        return any(plane.key() in answers and not self._is_prompted(answers[plane.key()]) for plane in stack.planes)

    def prompted_masks(self, target: Target, stack: PlaneStack) -> dict[int, np.ndarray]:
        """Slice index -> what the segment holds there, (rows, columns) bool, where it has prompts or was picked."""
        answers = self._answers.get(target.key, {})
        places = {plane.key(): index for index, plane in enumerate(stack.planes)}
        indices = {places[key] for key, answer in answers.items() if key in places and self._is_prompted(answer)}
        for key, answer in answers.items():  # prompts on an oblique plane, whose rectangle differs from the stack's
            if key not in places and answer.prompts is not None:
                plane = answer.prompts.plane
                if abs(plane.normal @ stack.planes[0].normal) > PARALLEL:
                    indices.add(stack.nearest(plane.to_ras([0, 0])))
        return {index: self.mask_on(target, stack.planes[index]) for index in sorted(indices)}

    def mask_on(self, target: Target, plane: SlicePlane) -> np.ndarray:
        """(rows, columns) bool: the segment as it is on a plane, painted voxels included."""
        volume = volume_of(target.volume)
        extent = plane.insert(np.ones(plane.shape, bool), volume, solid=True).extent
        matrix = volume.ijk_to_ras.copy()
        matrix[:3, 3] = volume.to_ras(np.array(extent[::2]))
        held = segment_mask(target.segmentation, target.segment_id, target.volume, extent)
        return plane.extract(Volume(held, matrix)) > 0.5

    def _standing(self, target: Target, answers: dict[tuple, Answer], plane: SlicePlane) -> np.ndarray | None:
        """What a first prompt on a plane corrects: the mask that an earlier run, or a pick, put there."""
        answer = answers.get(plane.key())
        return None if answer is None or answer.content() else self.mask_on(target, plane)

    def _with_inside(self, target: Target, answers: dict[tuple, Answer], prompts: PlanePrompts) -> PlanePrompts:
        """With a point inside, where excluded ones alone correct what a run, or a pick, put there: its innermost."""
        answer = answers.get(prompts.plane.key())
        if answer is None or prompts.says_where() or (answer.prompts is not None and answer.prompts.says_where()):
            return prompts
        held = np.pad(self.mask_on(target, prompts.plane), 1)
        columns, rows = np.round(prompts.plane.to_pixels(prompts.negatives)).astype(int).T + 1
        held[np.clip(rows, 0, held.shape[0] - 1), np.clip(columns, 0, held.shape[1] - 1)] = False
        if not held.any():
            return prompts
        row, column = np.unravel_index(ndimage.distance_transform_edt(held).argmax(), held.shape)
        return replace(prompts, positives=prompts.plane.to_ras([[column - 1, row - 1]]))

    def has_picks(self, target: Target) -> bool:
        """Whether the segment holds slices that the user picked, or prompted."""
        return any(self._is_prompted(answer) for answer in self._answers.get(target.key, {}).values())

    @staticmethod
    def _is_prompted(answer: Answer | None) -> bool:
        return answer is not None and answer.prompts is not None

    def prefetch(self, volume_node: Any, plane: SlicePlane) -> None:
        """Encode a plane that a prompt may soon be placed on, then outwards from it and from those that have prompts.

        Clicks never wait for it, and a newer call replaces it.
        """
        session = self.session(volume_node)
        slice_to_ras = plane.pixel_to_ras @ np.diag([1.0, -1, 1, 1])
        prompted = {key for answers in self._answers.values() for key, answer in answers.items()
                    if self._is_prompted(answer)}

        def work(job: Job) -> None:
            session.encode([plane], job.cancelled)
            stack = PlaneStack.parallel_to(session.volume, slice_to_ras)
            middle = stack.nearest(plane.to_ras((np.array(plane.shape[::-1]) - 1) / 2))
            starts = [middle, *(index for index, one in enumerate(stack.planes)
                                if index != middle and one.key() in prompted)]
            for offset in range(PREFETCHED + 1):
                for index in (place for start in starts for place in {start - offset, start + offset}):
                    if not job.step():
                        return
                    if 0 <= index < len(stack):
                        session.encode([stack.planes[index]], job.cancelled)

        self.jobs.submit(PREFETCH, work, lambda _: None, self.failed, urgent=False, label="Preparing slices")

    # --- undo ------------------------------------------------------------------------------------------------------

    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._done)

    def can_redo(self) -> bool:
        """Whether there is a step to repeat."""
        return bool(self._undone)

    def has_steps(self, target: Target) -> bool:
        """Whether something was written into a segment that can be undone, or repeated."""
        return any(step.target.key == target.key for step in self._done + self._undone)

    def undo(self) -> bool:
        """Take the latest prompt back, and what it changed; False where there is none.

        Prompts that have no answer, yet or at all, are what is taken back first.
        """
        for key, prompts in self._prompts.items():
            known = self._known.get(key, prompts.found)
            if prompts.target.exists() and prompts.differ(known):
                self.jobs.cancel(("prompts", *key))
                prompts.restore(known)
                return True
        return self._travel(self._done, self._undone, lambda step: (step.after, step.before))

    def redo(self) -> bool:
        """Repeat what was taken back; False where there is nothing."""
        return self._travel(self._undone, self._done, lambda step: (step.before, step.after))

    def accept(self, segmentation: Any, segment_id: str) -> None:
        """Remove the segment's prompts and keep its mask as it is, e.g. before the next object."""
        of_segment = (segmentation.GetID(), segment_id)
        for key in {key for key in (*self._prompts, *self._answers) if key[:2] == of_segment}:
            self._forget(key)

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
        """Remove the prompts of segments, segmentations and volumes that were deleted."""
        for key, prompts in list(self._prompts.items()):
            if not prompts.target.exists():
                self._forget(key)

    def use(self, predictor: Any) -> None:
        """Answer with another model from now on, and stop what is in flight; masks, prompts and undo steps stay.

        What the former model handed on for corrections is dropped: another one cannot read it.
        """
        self.jobs.cancel()
        self._sessions.clear()
        self.predictor = predictor
        bare: dict[int, Answer] = {}  # by identity, which undo goes by

        def strip(answers: dict[tuple, Answer]) -> dict[tuple, Answer]:
            return {key: bare.setdefault(id(answer), replace(answer, logits=None)) for key, answer in answers.items()}

        def strip_step(step: Step) -> Step:
            return Step(step.target, *((prompts, strip(answers)) for prompts, answers in (step.before, step.after)))

        kept = self._answers, self._done, self._undone  # alive until the end: identities must not be given again
        self._answers = {key: strip(answers) for key, answers in kept[0].items()}
        self._done, self._undone = ([strip_step(step) for step in steps] for steps in kept[1:])

    def reset(self) -> None:
        """Forget everything computed and everything in flight, e.g. when the scene closes."""
        self.jobs.cancel()
        self._sessions.clear()
        self._answers.clear()
        self._known.clear()
        self._answering.clear()
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

    def failed(self, error: Exception) -> None:
        """Tell what went wrong."""
        from SegMoTELib.interaction.devices import out_of_memory

        if isinstance(error, SegMoTEError):
            self.told(str(error), True)
        elif sentence := out_of_memory(error):
            log.error("memory ran out", exc_info=error)
            self.told(sentence, True)
        else:
            log.error("a job failed", exc_info=error)
            self.told(f"Something went wrong ({error}); details are in the log.", True)

    def _mapping(self, node: Any) -> tuple[str, tuple[float, float] | None]:
        window = window_of(node)
        usable = self.mapping != "window" or window is not None
        return (self.mapping if usable else "percentiles"), window

    def _apply(self, target: Target, snapshot: dict, asked: Sequence[PlanePrompts | None],
               found: Sequence[PlaneMask | SliceMask | None], dropped: list[tuple]) -> bool:
        """Write answers to the scene as one step; False where the target is gone by now, or refuses."""
        if not target.exists():
            return False
        volume = volume_of(target.volume)
        answers = dict(self._answers.get(target.key, {}))
        keys = [next(one.plane.key() for one in (answer, prompts) if one is not None)
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
            return False
        for key in dropped:
            del answers[key]
        for key, prompts, answer, put in zip(keys, asked, found, written, strict=False):
            answers.pop(key, None)
            if answer is not None:
                answers[key] = Answer(prompts, answer.logits, put)
                self.seconds = answer.seconds
        wrote = any(put is not None and put.added.any() for put in written)
        if self.writer.masked and not wrote and any(answer is not None and answer.mask.any() for answer in found):
            self.told("The Segment Editor's masking left nothing of this mask; change it there, under Masking.", False)
        before = (self._known.get(target.key, NO_PROMPTS), self._answers.get(target.key, {}))
        self._answers[target.key], self._known[target.key] = answers, snapshot
        self._done = [*self._done, Step(target, before, (snapshot, answers))][-HISTORY:]
        self._undone = []
        return True

    def _smooth(self, answer: PlaneMask | SliceMask) -> np.ndarray:
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
        self.prompts(step.target).restore(snapshot)
        kept.append(taken.pop())
        return True
