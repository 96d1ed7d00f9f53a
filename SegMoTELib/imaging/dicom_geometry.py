"""Where the images of a DICOM series lie, and whether they make up a regular volume."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TAGS = ("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
        "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio", "SequenceOfUltrasoundRegions",
        "SpacingBetweenSlices", "SliceThickness", "DetectorInformationSequence", "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence")
UNEVEN = 0.05  # of the spacing: how far a slice may lie from its place in a regular volume
ROUNDING = 0.06  # millimetres: headers are often rounded to 0.1 mm; allowed up to a quarter of the spacing
SHEARED = 0.5  # of a pixel: how far the last slice may lie beside the normal of the first
PARALLEL = 2e-3  # of a unit vector
MOST_FRAMES = 100_000  # more than any scanner makes: a damaged header
CENTIMETRES = 3  # Physical Units X Direction of a calibrated ultrasound region


class NotRegularError(Exception):
    """Why images are no regular volume, in words that follow "it cannot be used:"."""

    def __init__(self, words: str, same_place: bool = False) -> None:
        super().__init__(words)
        self.same_place = same_place


class Place(NamedTuple):
    """One image in LPS millimetres: (3,) centre of its first pixel, (2, 3) directions of i and j, (2,) pixel size
    along i and j, and the distance to the next where images do not say where they lie; position or axes may be None."""

    position: np.ndarray | None
    axes: np.ndarray | None
    pixel: tuple[float, float]
    step: float


def places_of(header: Any) -> list[Place]:
    """The place of each frame that a header describes.

    Raises:
        NotRegularError: places that make no sense.
    """
    count = int(header.get("NumberOfFrames") or 1)
    if not 0 < count <= MOST_FRAMES:
        raise NotRegularError(f"its header claims {count} frames")
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [_place(header, [header, *(header.get("DetectorInformationSequence") or [])], count)] * count
    if len(groups) != count:
        raise NotRegularError(f"its header describes {len(groups)} of {count} frames")
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    return [_place(header, _functional(group, shared), count) for group in groups]


def order_and_matrix(places: list[Place]) -> tuple[list[int], np.ndarray]:
    """The order of images along their normal, and the (4, 4) matrix from voxel index to LPS millimetres.

    Raises:
        NotRegularError: images without a place, not parallel, at the same place, unevenly spaced, or sheared.
    """
    first = places[0]
    if len({np.round(place.pixel, 4).tobytes() for place in places}) > 1:
        raise NotRegularError("its images differ in pixel size")
    count = len(places)
    if all(place is first for place in places):  # one image, or a clip, of which only the beginning has a place
        return list(range(count)), _matrix(first, first.step)
    axes = [place.axes for place in places if place.axes is not None]
    positions = [place.position for place in places if place.position is not None]
    if min(len(axes), len(positions)) < count:
        raise NotRegularError("its images do not say where they lie; choose one of the files")
    if max(np.abs(one - axes[0]).max() for one in axes) > PARALLEL:
        raise NotRegularError("its images are not parallel (a localizer, or rotating views); choose one of the files")
    normal = np.cross(*axes[0])
    along = np.array([position @ normal for position in positions])
    order = [int(index) for index in np.argsort(along, kind="stable")]
    along = along[order]
    step = _even_step(along)
    beside = (np.array(positions)[order] - positions[order[0]]) @ axes[0].T
    if np.abs(beside).max() > SHEARED * min(first.pixel):
        angle = np.degrees(np.arctan2(np.linalg.norm(beside[-1]), along[-1] - along[0]))
        raise NotRegularError(f"its slices are sheared by {angle:.1f} degrees (a tilted gantry); load it in Slicer, "
                              "which resamples it, and save that volume")
    return order, _matrix(places[order[0]], step)


def _even_step(along: np.ndarray) -> float:
    """Millimetres between slices at sorted places along the normal."""
    gaps = np.diff(along)
    step = (along[-1] - along[0]) / (len(along) - 1)
    close = int((gaps < 0.1 * max(step, 0.01)).sum())
    if close:
        raise NotRegularError(f"{close} of its {len(along)} images lie at the same place as another; put one set "
                              "(time, echo, phase) into a folder of its own", same_place=True)
    usual = float(np.median(gaps))
    line = np.polynomial.Polynomial.fit(np.arange(len(along)), along, 1)
    away = np.abs(along - line(np.arange(len(along))))
    if away.max() > max(UNEVEN * step, min(ROUNDING, step / 4)):
        worst = np.argsort(-np.abs(gaps - usual), kind="stable")[:3]
        at = ", ".join(f"{gaps[index]:.2f} mm after slice {index + 1}" for index in sorted(worst)
                       if abs(gaps[index] - usual) > 0.01 * usual)
        raise NotRegularError(f"slices are missing or unevenly spaced: {usual:.2f} mm, but {at}")
    return float(step)


def _matrix(place: Place, step: float) -> np.ndarray:
    axes = np.eye(3)[:2] if place.axes is None else place.axes
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([axes[0] * place.pixel[0], axes[1] * place.pixel[1], np.cross(*axes) * step])
    if place.position is not None:
        matrix[:3, 3] = place.position
    return matrix


def _functional(group: Any, shared: Any) -> list:
    """The items of an enhanced image's functional groups that place a frame; its own before the shared ones."""
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return [item for source in (group, shared) for name in names for item in source.get(name) or []]


def _place(header: Any, items: list, count: int) -> Place:
    position = _numbers(items, "ImagePositionPatient", 3)
    axes = _numbers(items, "ImageOrientationPatient", 6)
    if axes is not None:
        axes = axes.reshape(2, 3)
        lengths = np.linalg.norm(axes, axis=1, keepdims=True)
        if np.abs(lengths - 1).max() > 0.01 or abs(axes[0] @ axes[1]) > 0.01:
            raise NotRegularError("its orientation is no right angle; the header is damaged")
        axes = axes / lengths
        axes[1] -= axes[0] * (axes[0] @ axes[1])
        axes[1] /= np.linalg.norm(axes[1])
    pixel = _pixel_size(header, items)
    if pixel is None and position is not None and axes is not None:
        raise NotRegularError("its header does not say how large its pixels are")
    between = _numbers(items, "SpacingBetweenSlices", 1)
    if between is None and (count == 1 or header.get("PerFrameFunctionalGroupsSequence")):
        between = _numbers(items, "SliceThickness", 1)  # one slice; the frames of a clip are no slices
    step = 1.0 if between is None or not between[0] else float(between[0])
    # Nuclear medicine counts slices against the normal by a negative spacing; elsewhere its sign says nothing.
    return Place(position, axes, pixel or (1.0, 1.0), step if header.get("Modality") == "NM" else abs(step))


def _pixel_size(header: Any, items: list) -> tuple[float, float] | None:
    """Millimetres along i and j; the header gives them the other way round."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = _numbers(items, name, 2)
        if spacing is not None and spacing.min() > 0:
            return float(spacing[1]), float(spacing[0])
    regions = header.get("SequenceOfUltrasoundRegions") or []
    sizes = {(abs(float(one.PhysicalDeltaX)) * 10, abs(float(one.PhysicalDeltaY)) * 10) for one in regions
             if one.get("PhysicalUnitsXDirection") == one.get("PhysicalUnitsYDirection") == CENTIMETRES
             and one.get("PhysicalDeltaX") and one.get("PhysicalDeltaY")}
    if len(sizes) == 1:
        return sizes.pop()
    aspect = _numbers(items, "PixelAspectRatio", 2)
    if aspect is not None and aspect.min() > 0:
        return 1.0, float(aspect[0] / aspect[1])
    return None


def _numbers(items: list, name: str, count: int) -> np.ndarray | None:
    """(count,) float64 from the first item that has them; None where none has."""
    for item in items:
        value = item.get(name)
        if value is None or value == "":
            continue
        found = np.atleast_1d(np.array(value, np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise NotRegularError(f"its {name} is damaged")
        return found
    return None
