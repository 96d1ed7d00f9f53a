"""Propagation: from prompted slices through a range, with an honest stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from SegMoTELib.errors import PromptError
from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.interaction.carrying import SURE, Crop, Evidence, Tissue, carry, signed_distance
from SegMoTELib.interaction.session import Session

AGREES = 0.98  # Dice with what a slice held before from which a correction no longer matters
# What ends a propagation. On the volumes of the benchmark grey values tell best where an object ends.
SMALLEST = 4  # pixels
MOST_GROWTH = 1.8  # in area, from one slice to the next
LEAST_LIKENESS, LEAST_SEPARATION = 0.25, 0.5
LEAST_AGREEMENT, LEAST_IOU = 0.1, 0.5
# An object is expected to reach no further beyond a prompted slice than 1.5 of its radii, or than the next prompted
# slice is away. Beyond that it must look more and more like itself; where grey values tell nothing, it ends there.
RADII = 1.5
LIKENESS_BEYOND, MOST_LIKENESS = 0.5, 0.6  # how much more with each such reach, and at most
DOUBTFUL = 0.7  # confidence below which the user is asked to look

Watcher = Callable[[float, int, Crop], bool]


@dataclass
class Propagated:
    """What a propagation has found.

    Attributes:
        masks: slice index -> mask, prompted slices included; slices without the object are left out.
        confidence: slice index -> 0 to 1, of the slices that were carried to.
        ends: for the direction -1 (towards the first slice) and 1: the last slice reached and why it ended there.
        cancelled: the watcher ended it; what is there is finished slices.
    """

    masks: dict[int, Crop] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)
    ends: dict[int, tuple[int, str]] = field(default_factory=dict)
    cancelled: bool = False

    def in_words(self) -> str:
        """A sentence for a status line."""
        reasons = [f"{'first' if sign < 0 else 'last'} slice {index + 1}: {reason}"
                   for sign, (index, reason) in sorted(self.ends.items())]
        doubtful = min(self.confidence, key=lambda index: self.confidence[index], default=None)
        if doubtful is not None and self.confidence[doubtful] < DOUBTFUL:
            reasons.append(f"look at slice {doubtful + 1}, the least sure")
        return f"{len(self.masks)} slices" + (f" ({'; '.join(reasons)})" if reasons else "") + "."


class _CancelledError(Exception):
    """The watcher wants no more."""


def propagate(session: Session, stack: PlaneStack, prompted: dict[int, np.ndarray], first: int, last: int,
              watch: Watcher = lambda progress, index, mask: True, known: Propagated | None = None,
              changed: int | None = None) -> Propagated:
    """Carry masks from prompted slices to the others of a range.

    Between two prompted slices both are carried and meet, the closer one weighing more; outside of them, each step asks
    whether the object is still there, and ends where it is not. Prompted slices stay as they are.

    Args:
        stack: slices of the session's volume. prompted: slice index -> (rows, columns) bool mask, fixed.
        first, last: the range, inclusive. watch: called with the progress (0 to 1) and every mask found; False cancels.
        known, changed: an earlier result, and the prompted slice that was added or corrected since: slices are carried
            anew away from it only until they agree with what they held.

    Raises:
        PromptError: no prompted slice with a mask, or one outside the range.
    """
    seeds = {index: Crop.of(mask) for index, mask in prompted.items() if mask.any()}
    if not seeds:
        raise PromptError("Nothing to propagate: segment the object on one slice first.")
    if not 0 <= first <= min(seeds) or not max(seeds) <= last < len(stack):
        raise PromptError("The range must hold the prompted slices; make it larger.")
    empty = sorted(index for index in prompted if index not in seeds)
    return _Propagation(session, stack, seeds, empty, (first, last), watch, known, changed).run()


class _Propagation:
    """One run of ``propagate``; arguments as there."""

    def __init__(self, session: Session, stack: PlaneStack, seeds: dict[int, Crop], empty: list[int],
                 span: tuple[int, int], watch: Watcher, known: Propagated | None, changed: int | None) -> None:
        self.session, self.stack, self.seeds, self.span, self.watch = session, stack, seeds, span, watch
        self.empty = empty
        self.known = known if changed in seeds else None
        self.changed = changed
        self.found = Propagated(masks=dict(seeds))
        self.tissue = {index: Tissue.around(mask.full(), self._image(index)) for index, mask in seeds.items()}
        self.steps = 0.0
        self._nothing = Crop.of(np.zeros(stack.planes[0].shape, bool))

    def run(self) -> Propagated:
        """Regions one after the other: below the first seed, above the last, and between each two."""
        prompted = sorted(self.seeds)
        try:
            for a, b in itertools.pairwise(prompted):
                walls = [index for index in self.empty if a < index < b]
                if walls:
                    self._outward(a, 1, walls[0] - 1)
                    self._outward(b, -1, walls[-1] + 1)
                else:
                    self._between(a, b)
            for seed, sign in ((prompted[0], -1), (prompted[-1], 1)):
                wall = next((index for index in self.empty[::sign] if sign * (index - seed) > 0), None)
                self.found.ends[sign] = (self._outward(seed, sign, self.span[sign > 0]) if wall is None else
                                         self._outward(seed, sign, wall - sign, f"slice {wall + 1} was left empty"))
        except _CancelledError:
            self.found.cancelled = True
        self.found.masks = {index: mask for index, mask in sorted(self.found.masks.items()) if mask.area}
        return self.found

    def _outward(self, seed: int, sign: int, limit: int, at_limit: str = "the end of the range") -> tuple[int, str]:
        """Away from a seed, to the end of the object or a limit; the last slice, and why it ended there."""
        if self.known is not None and seed != self.changed:
            return self._as_known(seed, sign, limit, (seed, at_limit))
        mask, reach = self.seeds[seed], self._reach(seed)
        for index in range(seed + sign, limit + sign, sign):
            score, window, evidence = carry(self.session, self.stack, mask, index - sign, index, self.tissue[seed])
            new = self._crop(score > 0, window)
            beyond = max(0.0, abs(index - seed) / reach - 1)
            reason = why_it_ends(evidence, new.area, beyond)
            if not reason and not self.tissue[seed].tells and beyond:
                reason = "grey values do not show its end; to go on, prompt a slice further on"
            if reason:
                self._progressed(len(range(index, limit + sign, sign)), index, self._nothing)
                return index - sign, reason
            self._add(index, new, evidence)
            if self._as_before(index, new):
                return self._as_known(index, sign, limit, (index, at_limit))
            mask = new
        return limit if sign * (limit - seed) > 0 else seed, at_limit

    def _reach(self, seed: int) -> float:
        """Slices beyond a seed that an object is expected to go on, see ``RADII``."""
        radius = np.sqrt(self.seeds[seed].area / np.pi) * self.stack.planes[0].spacing / self.stack.step
        return max(1.0, RADII * radius, min((abs(seed - other) for other in self.seeds if other != seed), default=0))

    def _as_known(self, index: int, sign: int, limit: int, otherwise: tuple[int, str]) -> tuple[int, str]:
        """From a slice on, what the earlier result has."""
        assert self.known is not None
        self._take_known(range(index + sign, limit + sign, sign))
        return self.known.ends.get(sign, otherwise)

    def _between(self, a: int, b: int) -> None:
        """Carry both seeds through the slices between them and let them meet."""
        if self.known is not None and self.changed not in (a, b):
            self._take_known(range(a + 1, b))
            return
        if self.known is not None and all(index in self.known.masks for index in range(a + 1, b)):
            self._mend(*((a, b) if self.changed == a else (b, a)))
            return
        up, down = self._chain(a, b), self._chain(b, a)
        shape = [signed_distance(self.seeds[index].full()) for index in (a, b)]
        for index in range(a + 1, b):
            share = (index - a) / (b - a)
            drawn = (1 - share) * shape[0] + share * shape[1]
            score = (1 - share) * up[index][0] + share * down[index][0] + np.clip(drawn, -SURE, SURE)
            self._add(index, Crop.of(score > 0), up[index][1] if share < 0.5 else down[index][1], steps=0)

    def _mend(self, start: int, stop: int) -> None:
        """From a corrected seed towards another; what was there before stands for the other one's opinion."""
        assert self.known is not None
        sign = 1 if stop > start else -1
        mask = self.seeds[start]
        for index in range(start + sign, stop, sign):
            score, window, evidence = carry(self.session, self.stack, mask, index - sign, index, self.tissue[start])
            share = abs(index - start) / abs(stop - start)
            before = np.clip(signed_distance(self.known.masks[index].full()), -SURE, SURE)
            new = Crop.of((1 - share) * self._whole(score, window) + share * before > 0)
            self._add(index, new, evidence)
            if self._as_before(index, new):
                self._take_known(range(index + sign, stop, sign))
                return
            mask = new

    def _chain(self, start: int, stop: int) -> dict[int, tuple[np.ndarray, Evidence]]:
        """Scores of whole slices carried from one seed to just before another."""
        sign, mask, found = (1 if stop > start else -1), self.seeds[start], {}
        for index in range(start + sign, stop, sign):
            score, window, evidence = carry(self.session, self.stack, mask, index - sign, index, self.tissue[start])
            found[index] = self._whole(score, window).astype(np.float16), evidence
            new = self._crop(score > 0, window)
            mask = new if new.area else mask  # an object seen on both sides does not end in between
            self._progressed(0.5, index, self._nothing)
        return found

    def _as_before(self, index: int, new: Crop) -> bool:
        if self.known is None or index not in self.known.masks:
            return False
        old, mask = self.known.masks[index].full(), new.full()
        return bool(2 * np.count_nonzero(old & mask) >= AGREES * (np.count_nonzero(old) + np.count_nonzero(mask)))

    def _take_known(self, indices: range) -> None:
        assert self.known is not None
        for index in indices:
            if index in self.known.masks:
                self.found.masks[index] = self.known.masks[index]
                if index in self.known.confidence:
                    self.found.confidence[index] = self.known.confidence[index]
        if len(indices):
            self._progressed(len(indices), indices[-1], self._nothing)

    def _add(self, index: int, mask: Crop, evidence: Evidence, steps: float = 1) -> None:
        self.found.masks[index] = mask
        self.found.confidence[index] = float(np.clip((evidence.agreement + min(1.0, evidence.likeness)) / 2, 0, 1))
        self._progressed(steps, index, mask)

    def _progressed(self, steps: float, index: int, mask: Crop) -> None:
        self.steps += steps
        total = max(1, self.span[1] - self.span[0] + 1 - len(self.seeds))
        if not self.watch(min(1.0, self.steps / total), index, mask):
            raise _CancelledError

    def _image(self, index: int) -> np.ndarray:
        return self.session.image_on(self.stack.planes[index]).mean(axis=-1, dtype=np.float32)

    def _whole(self, score: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
        whole = np.full(self.stack.planes[0].shape, -SURE, np.float32)
        whole[window] = score
        return whole

    def _crop(self, part: np.ndarray, window: tuple[slice, slice]) -> Crop:
        whole = np.zeros(self.stack.planes[0].shape, bool)
        whole[window] = part
        return Crop.of(whole)


def why_it_ends(evidence: Evidence, area: int, beyond: float = 0.0) -> str:
    """Why a carried mask is not believed; "" where it is.

    Args:
        evidence: of the mask. area: of the mask, pixels. beyond: how far it is past where the object is expected to
            reach, in such reaches.
    """
    if area < SMALLEST:
        return "the object has become too small to follow"
    if evidence.growth > MOST_GROWTH:
        return "the mask would leak into something larger"
    if evidence.likeness < min(MOST_LIKENESS, LEAST_LIKENESS + LIKENESS_BEYOND * beyond):
        return "the tissue is another one from here on"
    if evidence.separation < LEAST_SEPARATION:
        return "the object does not stand out from what is around it from here on"
    if evidence.agreement < LEAST_AGREEMENT and evidence.iou < LEAST_IOU:
        return "the model sees no such object here"
    return ""
