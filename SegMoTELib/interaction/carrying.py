"""From one slice to its neighbour: what the previous mask, the image and the model say about the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from SegMoTELib.imaging.stacks import PlaneStack
from SegMoTELib.interaction.session import Session

MARGIN = 24  # pixels around the object that are looked at
BAND = 8  # pixels around the object whose values are "outside"
SURE = 6.0  # slice thicknesses, or pixels, from the outline beyond which the previous mask decides alone
MODEL_WEIGHT, TISSUE_WEIGHT = 0.25, 0.25
BINS = 64
TELLING = 0.3  # mean log ratio inside an object from which its grey values are its own


@dataclass(frozen=True)
class Crop:
    """A (rows, columns) mask without the empty rest of its slice.

    Attributes:
        row, column: of the first pixel of ``array`` in the slice. array: bool. shape: of the whole slice.
    """

    row: int
    column: int
    array: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> Crop:
        """Cut a (rows, columns) bool mask to its extent; an empty one has no pixels."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return cls(0, 0, np.zeros((0, 0), bool), mask.shape)
        array = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        return cls(int(rows[0]), int(columns[0]), array.copy(), mask.shape)

    def full(self) -> np.ndarray:
        """(rows, columns) bool: the mask on the whole slice."""
        mask = np.zeros(self.shape, bool)
        height, width = self.array.shape
        mask[self.row:self.row + height, self.column:self.column + width] = self.array
        return mask

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.array))

    def window(self, margin: int) -> tuple[slice, slice]:
        """Index of the extent, larger by a margin, in the slice."""
        height, width = self.array.shape
        return (slice(max(0, self.row - margin), min(self.shape[0], self.row + height + margin)),
                slice(max(0, self.column - margin), min(self.shape[1], self.column + width + margin)))


@dataclass(frozen=True)
class Tissue:
    """How much more often grey values occur inside an object than around it, as logarithms, one per bin.

    Attributes:
        ratio: (BINS,) float32. inside: their mean over the object itself, 0 where inside and outside look alike.
        outside: their mean close around it.
    """

    ratio: np.ndarray
    inside: float
    outside: float

    @property
    def tells(self) -> bool:
        """Whether grey values tell the object from what is around it."""
        return self.inside > TELLING

    @classmethod
    def around(cls, mask: np.ndarray, image: np.ndarray) -> Tissue:
        """Learn from a (rows, columns) mask on its uint8 image."""
        values, around = _bins(image), _around(mask)
        counts = [np.bincount(values[chosen], minlength=BINS).astype(float) for chosen in (mask, around)]
        if min(count.sum() for count in counts) < BAND:
            return cls(np.zeros(BINS, np.float32), 0.0, 0.0)
        shares = []
        for count in counts:
            smooth = ndimage.gaussian_filter1d(count, 2.5)
            smooth += 0.002 * smooth.sum()
            shares.append(smooth / smooth.sum())
        ratio = np.clip(np.log(shares[0] / shares[1]), -3, 3).astype(np.float32)
        return cls(ratio, float(ratio[values[mask]].mean()), float(ratio[values[around]].mean()))

    def on(self, image: np.ndarray) -> np.ndarray:
        """(rows, columns) float32 log ratios of a uint8 image."""
        return self.ratio[_bins(image)]


@dataclass(frozen=True)
class Evidence:
    """What speaks for a carried mask.

    Attributes:
        iou: the model's own estimate. agreement: Dice of the model's mask and the carried one.
        likeness: how much its grey values look like the object's, 1 = as on the slice before it, 0 = like what is
            around the object; 1 where inside and outside cannot be told apart. separation: how much its grey values
            differ from those around it, 1 = as much as the object's do, 0 = not at all. growth: area over the previous
            area.
    """

    iou: float
    agreement: float
    likeness: float
    separation: float
    growth: float


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """(rows, columns) float32 pixels from a bool mask's outline, positive inside; very negative if it is empty."""
    if not mask.any():
        return np.full(mask.shape, -1e3, np.float32)
    return (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)).astype(np.float32)


def carry(session: Session, stack: PlaneStack, mask: Crop, here: int, there: int,
          tissue: Tissue) -> tuple[np.ndarray, tuple[slice, slice], Evidence]:
    """Bring a mask from one slice to the next.

    The mask is deformed as the image is (symmetric-forces demons, Vercauteren 2009), and moved where the model, asked
    with the mask and its box, and the grey values say so.

    Args:
        stack: of the session's volume. mask: on slice ``here``. there: a neighbour. tissue: of the object.

    Returns:
        Scores, pixels inside the outline (negative: outside), float32, on a window of slice ``there``; the window;
        the evidence.
    """
    window = mask.window(MARGIN)
    before, after = (session.image_on(stack.planes[index])[window].mean(axis=-1, dtype=np.float32)
                     for index in (here, there))
    moved = _deform(signed_distance(mask.full()[window]), before, after)
    logits, iou = session.refine(stack.planes[there], Crop.of(_placed(moved > 0, window, mask.shape)).full()
                                 if (moved > 0).any() else mask.full())
    # Thick slices: the outline may go further from one to the next.
    reach = max(1.0, stack.step / stack.planes[0].spacing)
    likelihood = tissue.on(after)
    score = (np.clip(moved / reach, -SURE, SURE) + MODEL_WEIGHT * np.clip(logits[window], -4, 4)
             + TISSUE_WEIGHT * likelihood)
    found = _kept(score > 0, moved > 0)
    score = np.where(found == (score > 0), score, -0.5)
    model = logits[window] > 0
    overlap, size = int(np.count_nonzero(model & found)), int(np.count_nonzero(found))
    likeness, separation = _told_by(tissue, likelihood, found)
    evidence = Evidence(
        iou, 2 * overlap / max(1, int(np.count_nonzero(model)) + size),
        likeness, separation, size / max(1, mask.area))
    return score.astype(np.float32), window, evidence


def _told_by(tissue: Tissue, likelihood: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Likeness and separation of a mask, see :class:`Evidence`."""
    around = _around(found)
    if not tissue.tells or not found.any() or not around.any():
        return 1.0, 1.0
    inside = float(likelihood[found].mean())
    return (inside / tissue.inside,
            (inside - float(likelihood[around].mean())) / (tissue.inside - tissue.outside))


def _around(mask: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: close around a mask."""
    distance = signed_distance(mask)
    return (distance < 0) & (distance > -BAND)


def _deform(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Values of one image, moved onto another by non-rigid registration."""
    if min(values.shape) < 8:
        return values
    fixed, moving = (sitk.DiscreteGaussian(sitk.GetImageFromArray(image), [1.0, 1.0]) for image in (after, before))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(30)
    demons.SetStandardDeviations(1.5)
    field = sitk.DisplacementFieldTransform(demons.Execute(fixed, moving))
    moved = sitk.Resample(sitk.GetImageFromArray(values), field, sitk.sitkLinear, float(values.min()))
    return sitk.GetArrayFromImage(moved)


def _kept(found: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The pieces of a mask that continue what was there before."""
    pieces, count = ndimage.label(found)
    if count < 2:
        return found
    overlap = np.bincount(pieces[moved], minlength=count + 1)
    overlap[0] = 0
    return np.isin(pieces, np.flatnonzero(overlap))


def _placed(part: np.ndarray, window: tuple[slice, slice], shape: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(shape, part.dtype)
    whole[window] = part
    return whole


def _bins(image: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), 1.0)
    return np.clip(smooth * (BINS / 256), 0, BINS - 1).astype(int)
