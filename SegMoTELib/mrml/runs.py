"""VolumeRuns: long work on a volume - propagate, Auto, everything - with a preview before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.interaction.auto import AutoResult, segment_slices
from SegMoTELib.interaction.carrying import Crop
from SegMoTELib.interaction.everything import Candidate
from SegMoTELib.interaction.jobs import Job
from SegMoTELib.interaction.propagation import Propagated, propagate
from SegMoTELib.interaction.session import Session
from SegMoTELib.interaction.targets import modality_note
from SegMoTELib.mrml.preview import Preview
from SegMoTELib.mrml.segmenter import PREFETCH, SceneSegmenter
from SegMoTELib.mrml.segments import SegmentWriter
from SegMoTELib.mrml.target import Target
from SegMoTELib.mrml.volumes import to_own_ras, volume_of

KEY = "run"
SHOWN_EVERY = 0.4  # seconds between two updates of the preview
ON_SLICE = 0.75  # slices: how far from the candidates a click is still for them
MOVED = "The volume has another geometry now, and the result was for the old one; start again."
PALETTE = ((0.9, 0.4, 0.3), (0.3, 0.7, 0.9), (0.5, 0.8, 0.4), (0.9, 0.8, 0.3), (0.7, 0.5, 0.9), (0.9, 0.6, 0.8))


@dataclass
class Pending:
    """What a run has found and nobody has applied yet.

    Attributes:
        span: slices that the run has decided about, where it is done: what an earlier run put there is replaced.
    """

    target: Target
    stack: PlaneStack
    masks: dict[int, Crop] = field(default_factory=dict)
    span: range = range(0)


@dataclass
class Before:
    """The latest propagation of a segment, for corrections."""

    session: Session
    stack_key: tuple
    span: tuple[int, int]
    prompted: dict[int, np.ndarray]
    found: Propagated


class VolumeRuns:
    """At most one run at a time; a new one replaces it. Main thread only.

    Finished slices are shown in a :class:`Preview` as they come. ``stop`` ends a run and leaves them there, to
    ``apply`` or ``discard``; nothing reaches the segment before that.

    Args:
        segmenter: does the writing, and owns the jobs.
    """

    def __init__(self, segmenter: SceneSegmenter) -> None:
        self.segmenter = segmenter
        self.pending: Pending | None = None
        self.candidates: tuple[Any, SlicePlane, list[Candidate]] | None = None  # volume node, plane, found
        self._looked_at: Volume | None = None  # that the candidates are in
        self._picked: list[tuple[np.ndarray, Target]] = []  # which of them, and where they went
        self._preview: Preview | None = None
        self._unshown: list[tuple[int, Crop]] = []
        self._shown_at = 0.0
        self._before: dict[tuple, Before] = {}

    # --- runs ------------------------------------------------------------------------------------------------------

    def propagate(self, target: Target, stack: PlaneStack, first: int, last: int, direction: int = 0) -> Job:
        """Carry the segment from its prompted slices through slices ``first`` to ``last``; written once it is done.

        After a correction on one slice, only what depends on it is computed again.

        Args:
            direction: -1 only towards the first slice, 1 only towards the last, 0 both ways.

        Raises:
            SegMoTEError: nothing prompted on slices of this direction, a range without them, an unusable segment.
        """
        SegmentWriter.check(target.segmentation, target.segment_id)
        prompted = self.segmenter.prompted_masks(target, stack)
        held = [index for index, mask in prompted.items() if mask.any()]
        if not held:
            raise PromptError("Nothing to propagate in this view's direction: segment the object on one of its slices "
                              "with a point or a box first.")
        if direction:
            first, last = (first, max(held)) if direction < 0 else (min(held), last)
        if not first <= min(held) <= max(held) <= last:
            raise PromptError("The range must hold the prompted slices; make it larger.")
        session = self.segmenter.session(target.volume)
        known, changed = self._what_changed(target, session, stack, (first, last), prompted)

        def work(job: Job) -> Propagated:
            return propagate(session, stack, prompted, first, last,
                             lambda progress, index, mask: job.step(progress, (index, mask)), known, changed)

        def done(found: Propagated) -> None:
            self.pending = Pending(target, stack, found.masks, range(first, last + 1))
            if self._is_taken_back(target, stack, prompted):
                self._show_all(found.masks)
                self.segmenter.told("What it was carried from was taken back meanwhile; apply or discard the preview.",
                                    False)
            elif self.apply():
                self._before[target.key] = Before(session, _key(stack), (first, last), prompted, found)
                self.segmenter.told(f"Propagated to {found.in_words()}", False)

        return self._start(target, stack, work, done, "Propagating")

    def auto(self, target: Target, name: str, stack: PlaneStack, first: int, last: int, preview: bool = False) -> Job:
        """Find an auto target on slices ``first`` to ``last``.

        Args:
            preview: wait for ``apply`` or ``discard`` before the segment is written.

        Raises:
            SegMoTEError: the segment or the name cannot be used.
        """
        SegmentWriter.check(target.segmentation, target.segment_id)
        session = self.segmenter.session(target.volume)
        session.check_target(name)
        offered = self.segmenter.predictor.auto_targets

        def work(job: Job) -> AutoResult:
            return segment_slices(session, stack, name, first, last,
                                  lambda progress, index, mask: job.step(progress, (index, mask)))

        def done(found: AutoResult) -> None:
            self.pending = Pending(target, stack, found.masks, range(first, last + 1))
            self._show_all(found.masks)
            count = f"{len(found.masks)} of {found.slices} slices"
            text = f"{name}: found on {count}." if found.masks else f"{name}: nothing found here."
            note = modality_note(session.volume, name, offered)
            if preview and found.masks:
                text += " This is a preview: apply or discard it."
            elif not self.apply():
                return
            self.segmenter.told(f"{text} {note}".rstrip(), False)

        return self._start(target, stack, work, done, f"Auto: {name}")

    def everything(self, volume: Any, plane: SlicePlane) -> Job:
        """Find what stands out on a plane and show it in the preview; ``pick`` makes one of it a segment."""
        session = self.segmenter.session(volume)

        def done(found: list[Candidate]) -> None:
            if volume.GetScene() is None:  # deleted meanwhile
                return
            self.candidates, self._looked_at = (volume, plane, found), session.volume
            for number, one in enumerate(found):
                patch = plane.insert(one.mask, volume_of(volume), solid=True)
                self._open_preview(volume).add(f"candidate {number + 1}", PALETTE[number % len(PALETTE)], [patch])
            count = "1 candidate" if len(found) == 1 else f"{len(found)} candidates"
            self.segmenter.told(f"{count}; click on one to make it a segment." if found else
                                "Nothing stands out on this slice; try a point or a box.", False)

        self.discard()
        self.segmenter.jobs.cancel(PREFETCH)
        return self.segmenter.jobs.submit(KEY, lambda job: session.everything(plane, job.step), done,
                                          self.segmenter.failed, urgent=False, label="Looking for everything",
                                          progress=0.0)

    # --- results ---------------------------------------------------------------------------------------------------

    def pick(self, target: Target, world: np.ndarray) -> bool:
        """Write the candidate at a position, world RAS, into a segment; False where there is none.

        Raises:
            SegMoTEError: the candidates are another volume's, or of another geometry, or an unusable segment; or it
                is a segment already.
        """
        if self.candidates is None or self._looked_at is None:
            return False
        SegmentWriter.check(target.segmentation, target.segment_id)
        volume, plane, found = self.candidates
        stack = PlaneStack((plane,), self._looked_at)
        if target.volume.GetID() != volume.GetID():
            raise PromptError(f"The candidates are those of {volume.GetName()}; choose it as volume, or press "
                              "Everything again.")
        if _is_moved(stack, volume):
            raise PromptError(MOVED)
        position = to_own_ras(volume, world)
        column, row = np.round(plane.to_pixels(position)).astype(int)
        if not (0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
                and abs(plane.distance(position)) < ON_SLICE * stack.step):
            return False
        hit = [one.mask for one in found if one.mask[row, column]]
        if not hit:
            return False
        smallest = min(hit, key=np.count_nonzero)  # what lies on top
        for mask, taken in self._picked:
            if mask is smallest and taken.exists() and (mask & self.segmenter.mask_on(taken, plane)).any():
                name = taken.segmentation.GetSegmentation().GetSegment(taken.segment_id).GetName()
                raise PromptError(f"This candidate is the segment {name} already; pick another.")
        self._picked.append((smallest, target))
        return self.segmenter.apply_slices(target, stack, {0: Crop.of(smallest)}, picked=True)

    def stop(self) -> None:
        """End the run; its finished slices stay in the preview."""
        self.segmenter.jobs.cancel(KEY)
        self._flush()

    def model_changed(self) -> None:
        """End the run, as ``stop`` does, and compute everything anew the next time."""
        self.stop()
        self._before.clear()

    def apply(self) -> bool:
        """Write what is pending into its segment, as one undo step.

        Returns:
            False where there is nothing to write or nowhere to, and where it is refused, as by a locked segment: then
            the user has been told why, and it goes on waiting.
        """
        pending = self.pending
        if pending is not None and pending.target.exists():
            if _is_moved(pending.stack, pending.target.volume):
                self.segmenter.told(MOVED, True)
            elif not self.segmenter.apply_slices(pending.target, pending.stack, pending.masks, pending.span):
                self._show_all(pending.masks)
                return False
            else:
                self._forget_pending()
                return True
        elif pending is not None and pending.masks:
            self.segmenter.told("The segment or its volume was deleted, and the result with it.", True)
        self._forget_pending()
        return False

    def discard(self) -> None:
        """Forget what is pending, and the candidates; the scene is as before the run."""
        self.segmenter.jobs.cancel(KEY)
        self.candidates, self._looked_at, self._picked = None, None, []
        self._forget_pending()

    def reset(self) -> None:
        """Forget everything, e.g. when the scene closes."""
        self.discard()
        self._before.clear()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _start(self, target: Target, stack: PlaneStack, work: Callable, done: Callable, label: str) -> Job:
        self.discard()
        self.segmenter.jobs.cancel(PREFETCH)  # what the user asks for goes first
        self.pending = Pending(target, stack)
        return self.segmenter.jobs.submit(KEY, work, done, self._failed, urgent=False, label=label, progress=0.0,
                                          shown=self._show)

    def _failed(self, error: Exception) -> None:
        self.discard()
        self.segmenter.failed(error)

    def _show(self, partial: tuple[int, Crop]) -> None:
        """Take a finished slice; the preview follows a few times a second."""
        index, mask = partial
        if self.pending is None:
            return
        if mask.area:
            self.pending.masks[index] = mask
            self._unshown.append(partial)
        if time.monotonic() - self._shown_at > SHOWN_EVERY:
            self._flush()

    def _flush(self) -> None:
        unshown, self._unshown = self._unshown, []
        pending = self.pending
        if not unshown or pending is None or not pending.target.exists():
            return
        segment = pending.target.segmentation.GetSegmentation().GetSegment(pending.target.segment_id)
        volume = volume_of(pending.target.volume)
        self._open_preview(pending.target.volume).add(
            segment.GetName(), segment.GetColor(),
            [pending.stack.planes[index].insert(mask.full(), volume) for index, mask in unshown])
        self._shown_at = time.monotonic()

    def _show_all(self, masks: dict[int, Crop]) -> None:
        """The preview as the result is, after pieces were removed."""
        self._close_preview()
        self._unshown = list(masks.items())
        self._flush()

    def _open_preview(self, volume: Any) -> Preview:
        if self._preview is None:
            self._preview = Preview(self.segmenter.scene, self.segmenter.writer, volume)
        return self._preview

    def _forget_pending(self) -> None:
        self.pending = None
        self._close_preview()

    def _close_preview(self) -> None:
        self._unshown = []
        if self._preview is not None:
            self._preview.remove()
            self._preview = None

    def _is_taken_back(self, target: Target, stack: PlaneStack, prompted: dict[int, np.ndarray]) -> bool:
        """Whether a slice that a run started from holds nothing of its mask any more, as after an undo."""
        return target.exists() and not _is_moved(stack, target.volume) and any(
            mask.any() and not (mask & self.segmenter.mask_on(target, stack.planes[index])).any()
            for index, mask in prompted.items())

    def _what_changed(self, target: Target, session: Session, stack: PlaneStack, span: tuple[int, int],
                      prompted: dict[int, np.ndarray]) -> tuple[Propagated | None, int | None]:
        """The latest result and the one prompted slice that is new or another since; None where more has changed."""
        before = self._before.get(target.key)
        if before is None or before.session is not session or (before.stack_key, before.span) != (_key(stack), span):
            return None, None
        if set(before.prompted) - set(prompted) or not self.segmenter.holds_run(target, stack):
            return None, None
        changed = [index for index, mask in prompted.items()
                   if index not in before.prompted or not np.array_equal(before.prompted[index], mask)]
        return (before.found, changed[0]) if len(changed) == 1 else (None, None)


def _is_moved(stack: PlaneStack, node: Any) -> bool:
    return _key(stack) != _key(replace(stack, volume=volume_of(node)))


def _key(stack: PlaneStack) -> tuple:
    return stack.planes[0].key(), len(stack), stack.volume.shape, stack.volume.ijk_to_ras.tobytes()
