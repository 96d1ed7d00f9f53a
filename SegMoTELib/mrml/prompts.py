"""Prompts as ordinary markups: points and boxes of one segment on one volume, told apart by the slice plane they were
placed on.

The markups sit under the volume's parent transform, so their own coordinates are the volume's own RAS millimetres. A
point remembers the orientation of the view it was placed in as its control point orientation, a box as that of the ROI.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import slicer.util

from SegMoTELib.errors import PromptError, SegMoTEError, VolumeError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.mrml.markups import (
    BOX,
    DRAWING,
    KIND,
    NEGATIVE,
    ORIENTED,
    OWNER,
    POSITIVE,
    SEGMENTATION,
    SUFFIX,
    VOLUME,
    box_frame,
    defined,
    has_prompts,
    holds_prompts,
    markups_of,
    placing_kept,
    point_orientation,
    point_position,
    set_box,
    set_orientation,
    style,
)
from SegMoTELib.mrml.target import Target
from SegMoTELib.mrml.volumes import to_own_ras, volume_of, world_to_volume

FRAME = "frame"  # of a snapshot
REDRAWN = 0.3  # overlap (intersection over union) from which a new box takes the place of the one there
BOX_DEPTH = 1.0  # slices: thickness of the ROI along its view's normal
EVENTS = {POSITIVE: ("PointPositionDefinedEvent", "PointEndInteractionEvent", "PointRemovedEvent"),
          BOX: ("PointEndInteractionEvent", "PointRemovedEvent"), DRAWING: ()}
EVENTS[NEGATIVE] = EVENTS[POSITIVE]


@dataclass(frozen=True)
class PlanePrompts:
    """What the user says about one plane.

    Attributes:
        plane: in the volume's own RAS. positives, negatives: (N, 3) own RAS millimetres.
        boxes: (N, 2, 3) opposite corners, one box around each separate piece of the object.
    """

    plane: SlicePlane
    positives: np.ndarray = field(repr=False)
    negatives: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)

    def content(self) -> frozenset:
        """The prompts as a set; equal for equal prompts, larger where some were added."""
        rows = [(POSITIVE, *point) for point in np.round(self.positives, 4).tolist()]
        rows += [(NEGATIVE, *point) for point in np.round(self.negatives, 4).tolist()]
        rows += [(BOX, *box.ravel()) for box in np.round(self.boxes, 4)]
        return frozenset(rows)

    def says_where(self) -> bool:
        """Whether there is a point inside, or a box; excluded points alone do not say where the object is."""
        return len(self.positives) > 0 or len(self.boxes) > 0


class PromptSet:
    """The markups of one segment on one volume. The module's own; no other markups are ever touched.

    Args:
        scene: vtkMRMLScene. target: a volume and an existing segment.

    Attributes:
        inherited: planes with prompts that were there before this object, as in a loaded scene. found: their snapshot.
    """

    def __init__(self, scene: Any, target: Target) -> None:
        self.scene, self.target = scene, target
        self._changed: Callable[[], None] | None = None
        self._observed: list[tuple[Any, int]] = []
        self._made: list[Any] = []  # still to be found when the segmentation is gone
        self._quiet = 0
        self._visible = True
        self._frame: np.ndarray | None = None  # the volume's IJK to RAS that the markups' coordinates are of
        try:
            self.inherited = self.on_planes()[0] if has_prompts(scene, target) else []
        except VolumeError:  # to be told when prompts are answered
            self.inherited = []
        self.found = self.snapshot()

    def node(self, kind: str) -> Any:
        """The fiducial list of ``POSITIVE`` or ``NEGATIVE`` points, made when first asked for."""
        found = self._nodes(kind)
        return found[0] if found else self._create("vtkMRMLMarkupsFiducialNode", kind)

    def boxes(self) -> list[Any]:
        """The ROI nodes: on each plane one for every separate piece; not those whose centre was deleted."""
        return [node for node in self._nodes(BOX) if holds_prompts(node)]

    def follow(self) -> None:
        """Keep the markups on the image: under the volume's transform, or moved with it once that was hardened.

        Raises:
            VolumeError: the volume cannot be segmented.
        """
        frame, transform = volume_of(self.target.volume).ijk_to_ras, self.target.volume.GetTransformNodeID()
        if self._frame is not None and not np.array_equal(self._frame, frame):
            self._place(_moved(self.snapshot(), frame @ np.linalg.inv(self._frame)))
        self._frame = frame.copy()
        for node in self._all():
            if node.GetTransformNodeID() != transform:
                node.SetAndObserveTransformNodeID(transform)

    def add_point(self, world: np.ndarray, positive: bool, orientation: np.ndarray) -> None:
        """Place a point.

        Args:
            world: (3,) world RAS millimetres.
            orientation: (3, 3) or (4, 4), columns right, up and normal of the view, world RAS.

        Raises:
            PromptError: a position that is not finite.
        """
        world = np.asarray(world, np.float64)
        if world.shape != (3,) or not np.isfinite(world).all():
            raise PromptError("A point needs three finite coordinates: R, A and S in millimetres.")
        node = self.node(POSITIVE if positive else NEGATIVE)
        self.follow()
        with self.quiet():
            index = node.AddControlPoint(to_own_ras(self.target.volume, world).tolist())
            set_orientation(node, index, _own_rotation(self.target.volume, orientation))
        self.changed()

    def orient_new(self, view_at: Callable[[np.ndarray], np.ndarray]) -> None:
        """Tell the points that the user has just placed which view that was in; older ones keep theirs.

        Args:
            view_at: (3,) world RAS -> orientation of the view, see ``add_point``.
        """
        self.follow()
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    for index in defined(node):
                        if node.GetNthControlPointDescription(index) != ORIENTED:
                            world = [0.0] * 3
                            node.GetNthControlPointPositionWorld(index, world)
                            set_orientation(node, index, _own_rotation(self.target.volume, view_at(np.array(world))))

    def start_box(self) -> Any:
        """An empty ROI node for the user to draw in a slice view; ``finish_box`` takes it when both corners are set."""
        for node in self._nodes(DRAWING):
            self.scene.RemoveNode(node)
        node = self._create("vtkMRMLMarkupsROINode", DRAWING)
        self.follow()
        return node

    def finish_box(self, node: Any, first: np.ndarray, orientation: np.ndarray) -> Any:
        """Make a box of a drawn ROI; arguments, result and errors as in ``add_box``.

        Args:
            first: (3,) world RAS of the corner set first; Slicer's ROI itself only knows extents along R, A and S.
        """
        center = [0.0] * 3
        node.GetCenterWorld(center)
        self.scene.RemoveNode(node)
        return self.add_box(np.array([first, 2 * np.array(center) - first]), orientation)

    def add_box(self, corners: np.ndarray, orientation: np.ndarray) -> Any:
        """Place a box on a plane, beside those there; one drawn anew, which mostly covers the same, takes its place.

        Args:
            corners: (2, 3) opposite corners, world RAS millimetres. orientation: see ``add_point``.

        Returns:
            The ROI node.

        Raises:
            PromptError: corners that are not finite or span nothing. VolumeError: outside the volume.
        """
        corners = np.asarray(corners, np.float64)
        if corners.shape != (2, 3) or not np.isfinite(corners).all():
            raise PromptError("A box needs two opposite corners: R, A and S in millimetres.")
        self.follow()
        rotation = _own_rotation(self.target.volume, orientation)
        own = to_own_ras(self.target.volume, corners)
        size = np.abs((own[1] - own[0]) @ rotation)
        if (size[:2] <= 0).any():
            raise PromptError("The box is empty; draw it around the object.")
        volume = volume_of(self.target.volume)
        center = own.mean(axis=0)
        plane = _plane(volume, rotation, center)
        with self.quiet():
            for other in self.boxes():
                frame = box_frame(other)
                away, extent = np.abs((frame[1] - center) @ rotation)[:2], np.array(other.GetSize())[:2]
                if _belongs(plane, volume, *frame) and _overlap(away, size[:2], extent) > REDRAWN:
                    self.scene.RemoveNode(other)
            node = self._create("vtkMRMLMarkupsROINode", BOX)
            self.follow()
            set_box(node, rotation, center, (*size[:2], BOX_DEPTH * plane.thickness(volume)))
        self.changed()
        return node

    def on_planes(self) -> tuple[list[PlanePrompts], list[str]]:
        """The prompts by plane, and sentences about those that cannot be used.

        Raises:
            VolumeError: the volume cannot be segmented.
        """
        volume = volume_of(self.target.volume)
        self.follow()
        groups: list[tuple[SlicePlane, list[tuple[str, np.ndarray]]]] = []
        problems = []
        for kind, rotation, center, content in self._entries():
            if not volume.contains(center):
                problems.append("A prompt lies outside the volume; move it onto the image.")
                continue
            group = next((group for group in groups if _belongs(group[0], volume, rotation, center)), None)
            try:
                if group is None:
                    group = (_plane(volume, rotation, center), [])
                    groups.append(group)
            except SegMoTEError as error:
                problems.append(str(error))
                continue
            group[1].append((kind, content))
        return [plane_prompts(plane, entries) for plane, entries in groups], problems

    def snapshot(self) -> dict:
        """Everything needed to come back to these prompts, in own RAS, and the volume's IJK to RAS that this is of."""
        points = {kind: [(point_position(node, i), point_orientation(node, i)) for node in self._nodes(kind)
                         for i in defined(node)] for kind in (POSITIVE, NEGATIVE)}
        return {**points, BOX: [(*box_frame(node), list(node.GetSize())) for node in self.boxes()], FRAME: self._frame}

    def restore(self, snapshot: dict) -> None:
        """Come back to a snapshot; where the volume's geometry is another by now, to the same places of the image."""
        frame = volume_of(self.target.volume).ijk_to_ras
        if snapshot[FRAME] is not None and not np.array_equal(snapshot[FRAME], frame):
            snapshot = _moved(snapshot, frame @ np.linalg.inv(snapshot[FRAME]))
        self._place(snapshot)
        self._frame = frame.copy()
        self.follow()

    def _place(self, snapshot: dict) -> None:
        """Put markups at the places of a snapshot; nodes that are there are used again: one may be placed into now."""
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    node.RemoveAllControlPoints()
                for position, rotation in snapshot[kind]:
                    node = self.node(kind)
                    set_orientation(node, node.AddControlPoint(position.tolist()), rotation)
            there = self.boxes()
            for node in self._nodes(BOX):
                if node not in there[:len(snapshot[BOX])]:
                    self.scene.RemoveNode(node)
            for index, (rotation, center, size) in enumerate(snapshot[BOX]):
                node = there[index] if index < len(there) else self._create("vtkMRMLMarkupsROINode", BOX)
                set_box(node, rotation, center, size)

    def clear(self) -> None:
        """Remove all prompts; the empty lists stay."""
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    node.RemoveAllControlPoints()
            for node in self._nodes(BOX):
                self.scene.RemoveNode(node)
        self.changed()

    def remove(self) -> None:
        """Remove the nodes from the scene."""
        self.observe(None)
        for node in {*self._all(), *self._made}:
            if node.GetScene() is not None:
                self.scene.RemoveNode(node)
        self._made = []

    def set_visible(self, visible: bool) -> None:
        """Show or hide the markups, those to come as well."""
        self._visible = visible
        for node in self._all():
            node.SetDisplayVisibility(visible)

    def differ(self, snapshot: dict) -> bool:
        """Whether prompts were added, moved or deleted since a snapshot; not where the volume took them along."""
        now = self.snapshot()
        if snapshot[FRAME] is not None and now[FRAME] is not None:
            snapshot = _moved(snapshot, now[FRAME] @ np.linalg.inv(snapshot[FRAME]))
        return any(len(now[kind]) != len(snapshot[kind]) or not all(
            np.allclose(one[at], other[at], atol=1e-3) for one, other in zip(now[kind], snapshot[kind], strict=True))
            for kind, at in ((POSITIVE, 0), (NEGATIVE, 0), (BOX, slice(1, None))))

    def observe(self, changed: Callable[[], None] | None) -> None:
        """Call back whenever the user adds, moves or deletes a prompt; None stops that."""
        self._changed = changed
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []
        if changed is not None:
            removed = slicer.vtkMRMLScene.NodeRemovedEvent
            self._observed.append((self.scene, self.scene.AddObserver(removed, lambda *_: self._node_removed())))
            for node in self._all():
                self._watch(node)

    def changed(self) -> None:
        """Tell the observer."""
        if self._changed is not None and not self._quiet:
            self._changed()

    @contextmanager
    def quiet(self):
        """Within it, changes are not told."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def _watch(self, node: Any) -> None:
        for name in EVENTS[node.GetAttribute(KIND)]:
            event = getattr(slicer.vtkMRMLMarkupsNode, name)
            self._observed.append((node, node.AddObserver(event, lambda *_: self.changed())))

    def _node_removed(self) -> None:
        """A markups node may have been deleted by its menu in a view, or in the Data module."""
        gone = [node for node, _ in self._observed if node is not self.scene and node.GetScene() is None]
        self._observed = [(node, tag) for node, tag in self._observed if node not in gone]
        if gone:
            self.changed()

    def _create(self, class_name: str, kind: str) -> Any:
        segmentation, segment_id = self.target.segmentation, self.target.segment_id
        node = self.scene.CreateNodeByClass(class_name)
        node.UnRegister(None)
        node.SetName(f"{segmentation.GetSegmentation().GetSegment(segment_id).GetName()} {SUFFIX[kind]}")
        node.SetAttribute(OWNER, segment_id)
        node.SetAttribute(KIND, kind)
        node.SetSaveWithScene(kind != DRAWING)
        with placing_kept(self.scene):
            node = self.scene.AddNode(node)
        self._made.append(node)
        node.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
        node.SetNodeReferenceID(VOLUME, self.target.volume.GetID())
        node.CreateDefaultDisplayNodes()
        node.SetDisplayVisibility(self._visible)
        style(node.GetDisplayNode(), kind)
        if kind not in (BOX, DRAWING):
            node.SetControlPointLabelFormat("")
        if self._changed is not None:
            self._watch(node)
        return node

    def _nodes(self, kind: str) -> list[Any]:
        return [node for node in self._all() if node.GetAttribute(KIND) == kind]

    def _all(self) -> list[Any]:
        return markups_of(self.scene, self.target)

    def _entries(self):
        """Every prompt: kind, (3, 3) rotation, (3,) centre, and what ``PlanePrompts`` holds of it."""
        for kind in (POSITIVE, NEGATIVE):
            for node in self._nodes(kind):
                for index in defined(node):
                    position = point_position(node, index)
                    yield kind, point_orientation(node, index), position, position
        for node in self.boxes():
            rotation, center = box_frame(node)
            half = rotation[:, :2] @ np.array(node.GetSize())[:2] / 2
            yield BOX, rotation, center, np.array([center - half, center + half])


def _moved(snapshot: dict, matrix: np.ndarray) -> dict:
    """A snapshot with all places moved by (4, 4), orientations kept orthonormal."""
    def place(position: np.ndarray) -> np.ndarray:
        return matrix[:3, :3] @ position + matrix[:3, 3]

    return {**snapshot, **{kind: [(place(position), _turned(matrix, rotation)) for position, rotation in snapshot[kind]]
                           for kind in (POSITIVE, NEGATIVE)},
            BOX: [(_turned(matrix, rotation), place(center),
                   [length * float(np.linalg.norm(matrix[:3, :3] @ axis))
                    for length, axis in zip(size, rotation.T, strict=True)])
                  for rotation, center, size in snapshot[BOX]]}


def _plane(volume: Volume, rotation: np.ndarray, center: np.ndarray) -> SlicePlane:
    """The volume's plane through a prompt, pixels along the view's own directions."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, center
    return SlicePlane.from_slice_to_ras(volume, matrix)


def _belongs(plane: SlicePlane, volume: Volume, rotation: np.ndarray, center: np.ndarray) -> bool:
    parallel = abs(rotation[:, 2] @ plane.normal) > 1 - 1e-5
    return bool(parallel and abs(plane.distance(center)) <= 0.5 * plane.thickness(volume) + 1e-6)


def _overlap(away: np.ndarray, size: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two rectangles of (2,) sizes whose middles are (2,) apart."""
    common = np.clip(np.minimum((size + other) / 2 - away, np.minimum(size, other)), 0, None).prod()
    return float(common / (size.prod() + other.prod() - common))


def plane_prompts(plane: SlicePlane, entries: list[tuple[str, np.ndarray]]) -> PlanePrompts:
    """What is said about a plane, of entries each with its kind: (3,) of a point, (2, 3) of a box; or nothing."""
    def those(wanted: str) -> np.ndarray:
        return np.array([content for kind, content in entries if kind == wanted])

    return PlanePrompts(plane, those(POSITIVE).reshape(-1, 3), those(NEGATIVE).reshape(-1, 3),
                        those(BOX).reshape(-1, 2, 3))


def _own_rotation(volume_node: Any, orientation: np.ndarray) -> np.ndarray:
    """(3, 3) unit columns of a view in the volume's own RAS."""
    return _turned(world_to_volume(volume_node), np.asarray(orientation, np.float64)[:3, :3])


def _turned(matrix: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(3, 3) unit columns right, up and normal, seen through a (4, 4) matrix."""
    axes = matrix[:3, :3] @ rotation
    right = axes[:, 0] / np.linalg.norm(axes[:, 0])
    normal = np.cross(right, axes[:, 1])
    normal /= np.linalg.norm(normal)
    return np.column_stack([right, np.cross(normal, right), normal])
