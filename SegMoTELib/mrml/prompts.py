"""Prompts as ordinary markups: points and boxes of one segment, told apart by the slice plane they were placed on.

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

from SegMoTELib.errors import PromptError, SegMoTEError
from SegMoTELib.imaging.planes import SlicePlane
from SegMoTELib.imaging.volume import Volume
from SegMoTELib.mrml.volumes import to_own_ras, volume_of, world_to_volume

OWNER = "SegMoTE.Segment"  # node attribute: the segment that the prompts belong to
KIND = "SegMoTE.Prompt"  # node attribute: one of POSITIVE, NEGATIVE, BOX
SEGMENTATION = "SegMoTE.Segmentation"  # role of the reference to the segmentation
POSITIVE, NEGATIVE, BOX, DRAWING = "positive", "negative", "box", "drawing"
COLORS = {POSITIVE: (0.10, 0.75, 0.25), NEGATIVE: (0.90, 0.15, 0.15), BOX: (0.95, 0.75, 0.10),
          DRAWING: (0.95, 0.75, 0.10)}
SUFFIX = {POSITIVE: "points", NEGATIVE: "excluded", BOX: "box", DRAWING: "box being drawn"}
REDRAWN = 0.3  # overlap (intersection over union) from which a new box takes the place of the one there
BOX_DEPTH = 1.0  # slices: thickness of the ROI along its view's normal
EVENTS = {POSITIVE: ("PointPositionDefinedEvent", "PointEndInteractionEvent", "PointRemovedEvent"),
          BOX: ("PointEndInteractionEvent",), DRAWING: ()}
EVENTS[NEGATIVE] = EVENTS[POSITIVE]
ORIENTED = "placed in a slice view"  # description of a control point whose orientation is that of its view


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


class PromptSet:
    """The markups of one segment. The module's own; no other markups are ever touched.

    Args:
        scene: vtkMRMLScene. segmentation: vtkMRMLSegmentationNode. segment_id: of an existing segment.
    """

    def __init__(self, scene: Any, segmentation: Any, segment_id: str) -> None:
        self.scene, self.segmentation, self.segment_id = scene, segmentation, segment_id
        self._changed: Callable[[], None] | None = None
        self._observed: list[tuple[Any, int]] = []
        self._made: list[Any] = []  # still to be found when the segmentation is gone
        self._quiet = 0

    def node(self, kind: str) -> Any:
        """The fiducial list of ``POSITIVE`` or ``NEGATIVE`` points, made when first asked for."""
        found = self._nodes(kind)
        return found[0] if found else self._create("vtkMRMLMarkupsFiducialNode", kind)

    def boxes(self) -> list[Any]:
        """The ROI nodes: on each plane one for every separate piece of the object."""
        return self._nodes(BOX)

    def follow(self, volume_node: Any) -> None:
        """Put the markups under the volume's transform."""
        for node in self._all():
            if node.GetTransformNodeID() != volume_node.GetTransformNodeID():
                node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())

    def add_point(self, volume_node: Any, world: np.ndarray, positive: bool, orientation: np.ndarray) -> None:
        """Place a point.

        Args:
            volume_node: what it is placed on. world: (3,) world RAS millimetres.
            orientation: (3, 3) or (4, 4), columns right, up and normal of the view, world RAS.

        Raises:
            PromptError: a position that is not finite.
        """
        world = np.asarray(world, np.float64)
        if world.shape != (3,) or not np.isfinite(world).all():
            raise PromptError("A point needs three finite coordinates: R, A and S in millimetres.")
        node = self.node(POSITIVE if positive else NEGATIVE)
        self.follow(volume_node)
        with self.quiet():
            index = node.AddControlPoint(to_own_ras(volume_node, world).tolist())
            _set_orientation(node, index, _own_rotation(volume_node, orientation))
        self.changed()

    def orient_new(self, volume_node: Any, view_at: Callable[[np.ndarray], np.ndarray]) -> None:
        """Tell the points that the user has just placed which view that was in; older ones keep theirs.

        Args:
            view_at: (3,) world RAS -> orientation of the view, see ``add_point``.
        """
        self.follow(volume_node)
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    for index in _defined(node):
                        if node.GetNthControlPointDescription(index) != ORIENTED:
                            world = [0.0] * 3
                            node.GetNthControlPointPositionWorld(index, world)
                            _set_orientation(node, index, _own_rotation(volume_node, view_at(np.array(world))))

    def start_box(self, volume_node: Any) -> Any:
        """An empty ROI node for the user to draw in a slice view; ``finish_box`` takes it when both corners are set."""
        for node in self._nodes(DRAWING):
            self.scene.RemoveNode(node)
        node = self._create("vtkMRMLMarkupsROINode", DRAWING)
        self.follow(volume_node)
        return node

    def finish_box(self, volume_node: Any, node: Any, first: np.ndarray, orientation: np.ndarray) -> Any:
        """Make a box of a drawn ROI; arguments, result and errors as in ``add_box``.

        Args:
            first: (3,) world RAS of the corner set first; Slicer's ROI itself only knows extents along R, A and S.
        """
        center = [0.0] * 3
        node.GetCenterWorld(center)
        self.scene.RemoveNode(node)
        return self.add_box(volume_node, np.array([first, 2 * np.array(center) - first]), orientation)

    def add_box(self, volume_node: Any, corners: np.ndarray, orientation: np.ndarray) -> Any:
        """Place a box on a plane, beside those there; one drawn anew, which mostly covers the same, takes its place.

        Args:
            corners: (2, 3) opposite corners, world RAS millimetres. volume_node, orientation: see ``add_point``.

        Returns:
            The ROI node.

        Raises:
            PromptError: corners that are not finite or span nothing. VolumeError: outside the volume.
        """
        corners = np.asarray(corners, np.float64)
        if corners.shape != (2, 3) or not np.isfinite(corners).all():
            raise PromptError("A box needs two opposite corners: R, A and S in millimetres.")
        rotation, own = _own_rotation(volume_node, orientation), to_own_ras(volume_node, corners)
        size = np.abs((own[1] - own[0]) @ rotation)
        if (size[:2] <= 0).any():
            raise PromptError("The box is empty; draw it around the object.")
        volume = volume_of(volume_node)
        center = own.mean(axis=0)
        plane = _plane(volume, rotation, center)
        with self.quiet():
            for other in self.boxes():
                frame = _box_frame(other)
                away, extent = np.abs((frame[1] - center) @ rotation)[:2], np.array(other.GetSize())[:2]
                if _belongs(plane, volume, *frame) and _overlap(away, size[:2], extent) > REDRAWN:
                    self.scene.RemoveNode(other)
            node = self._create("vtkMRMLMarkupsROINode", BOX)
            self.follow(volume_node)
            _set_box(node, rotation, center, (*size[:2], BOX_DEPTH * plane.thickness(volume)))
        self.changed()
        return node

    def on_planes(self, volume_node: Any) -> tuple[list[PlanePrompts], list[str]]:
        """The prompts by plane, and sentences about those that cannot be used.

        Raises:
            VolumeError: the volume cannot be segmented.
        """
        volume = volume_of(volume_node)
        self.follow(volume_node)
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
        return [_plane_prompts(plane, entries) for plane, entries in groups], problems

    def snapshot(self) -> dict:
        """Everything needed to come back to these prompts."""
        points = {kind: [(_position(node, i), _orientation(node, i)) for node in self._nodes(kind)
                         for i in _defined(node)] for kind in (POSITIVE, NEGATIVE)}
        return {**points, BOX: [(*_box_frame(node), list(node.GetSize())) for node in self.boxes()]}

    def restore(self, snapshot: dict) -> None:
        """Come back to a snapshot."""
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    node.RemoveAllControlPoints()
                for position, rotation in snapshot[kind]:
                    node = self.node(kind)
                    _set_orientation(node, node.AddControlPoint(position.tolist()), rotation)
            transform = self.node(POSITIVE).GetTransformNodeID()
            for node in self.boxes():
                self.scene.RemoveNode(node)
            for rotation, center, size in snapshot[BOX]:
                node = self._create("vtkMRMLMarkupsROINode", BOX)
                node.SetAndObserveTransformNodeID(transform)
                _set_box(node, rotation, center, size)

    def clear(self) -> None:
        """Remove all prompts; the empty lists stay."""
        with self.quiet():
            for kind in (POSITIVE, NEGATIVE):
                for node in self._nodes(kind):
                    node.RemoveAllControlPoints()
            for node in self.boxes():
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
        """Show or hide the markups."""
        for node in self._all():
            node.SetDisplayVisibility(visible)

    def segment_exists(self) -> bool:
        """False once the segment or its segmentation was deleted."""
        return (self.segmentation.GetScene() is not None
                and self.segmentation.GetSegmentation().GetSegment(self.segment_id) is not None)

    def is_empty(self) -> bool:
        """True without any placed point or box."""
        return not self.boxes() and not any(_defined(node) for node in self._nodes(POSITIVE) + self._nodes(NEGATIVE))

    def observe(self, changed: Callable[[], None] | None) -> None:
        """Call back whenever the user adds, moves or deletes a prompt; None stops that."""
        self._changed = changed
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []
        if changed is not None:
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

    def _create(self, class_name: str, kind: str) -> Any:
        segment = self.segmentation.GetSegmentation().GetSegment(self.segment_id)
        node = self.scene.CreateNodeByClass(class_name)
        node.UnRegister(None)
        node.SetName(f"{segment.GetName()} {SUFFIX[kind]}")
        node.SetAttribute(OWNER, self.segment_id)
        node.SetAttribute(KIND, kind)
        node = self.scene.AddNode(node)
        self._made.append(node)
        node.SetNodeReferenceID(SEGMENTATION, self.segmentation.GetID())
        node.CreateDefaultDisplayNodes()
        _style(node.GetDisplayNode(), kind)
        if kind not in (BOX, DRAWING):
            node.SetControlPointLabelFormat("")
        if self._changed is not None:
            self._watch(node)
        return node

    def _nodes(self, kind: str) -> list[Any]:
        return [node for node in self._all() if node.GetAttribute(KIND) == kind]

    def _all(self) -> list[Any]:
        found = self.scene.GetNodesByClass("vtkMRMLMarkupsNode")
        found.UnRegister(None)
        nodes = [found.GetItemAsObject(i) for i in range(found.GetNumberOfItems())]
        return [node for node in nodes if node.GetAttribute(OWNER) == self.segment_id
                and node.GetNodeReferenceID(SEGMENTATION) == self.segmentation.GetID()]

    def _entries(self):
        """Every prompt: kind, (3, 3) rotation, (3,) centre, and what ``PlanePrompts`` holds of it."""
        for kind in (POSITIVE, NEGATIVE):
            for node in self._nodes(kind):
                for index in _defined(node):
                    position = _position(node, index)
                    yield kind, _orientation(node, index), position, position
        for node in self.boxes():
            rotation, center = _box_frame(node)
            half = rotation[:, :2] @ np.array(node.GetSize())[:2] / 2
            yield BOX, rotation, center, np.array([center - half, center + half])


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


def _plane_prompts(plane: SlicePlane, entries: list[tuple[str, np.ndarray]]) -> PlanePrompts:
    def those(wanted: str) -> np.ndarray:
        return np.array([content for kind, content in entries if kind == wanted])

    return PlanePrompts(plane, those(POSITIVE).reshape(-1, 3), those(NEGATIVE).reshape(-1, 3),
                        those(BOX).reshape(-1, 2, 3))


def _own_rotation(volume_node: Any, orientation: np.ndarray) -> np.ndarray:
    """(3, 3) unit columns of a view in the volume's own RAS."""
    axes = world_to_volume(volume_node)[:3, :3] @ np.asarray(orientation, np.float64)[:3, :3]
    right = axes[:, 0] / np.linalg.norm(axes[:, 0])
    normal = np.cross(right, axes[:, 1])
    normal /= np.linalg.norm(normal)
    return np.column_stack([right, np.cross(normal, right), normal])


def _defined(node: Any) -> list[int]:
    status = slicer.vtkMRMLMarkupsNode.PositionDefined
    return [i for i in range(node.GetNumberOfControlPoints()) if node.GetNthControlPointPositionStatus(i) == status]


def _position(node: Any, index: int) -> np.ndarray:
    return np.array(node.GetNthControlPointPosition(index))


def _orientation(node: Any, index: int) -> np.ndarray:
    wxyz, matrix = [0.0] * 4, [0.0] * 9
    node.GetNthControlPointOrientation(index, wxyz)
    slicer.vtkMRMLMarkupsNode.ConvertOrientationWXYZToMatrix(wxyz, matrix)
    return np.array(matrix).reshape(3, 3)


def _set_orientation(node: Any, index: int, rotation: np.ndarray) -> None:
    wxyz = [0.0] * 4
    slicer.vtkMRMLMarkupsNode.ConvertOrientationMatrixToWXYZ(rotation.ravel().tolist(), wxyz)
    node.SetNthControlPointOrientation(index, *wxyz)
    node.SetNthControlPointDescription(index, ORIENTED)


def _box_frame(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) rotation and (3,) centre of an ROI, own RAS."""
    matrix = slicer.util.arrayFromVTKMatrix(node.GetObjectToNodeMatrix())
    return matrix[:3, :3], matrix[:3, 3]


def _set_box(node: Any, rotation: np.ndarray, center: np.ndarray, size: tuple) -> None:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, center
    node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.SetSize(*(float(value) for value in size))


def _style(display: Any, kind: str) -> None:
    display.SetSelectedColor(*COLORS[kind])
    display.SetColor(*COLORS[kind])
    display.SetActiveColor(*COLORS[kind])
    if kind in (BOX, DRAWING):
        display.SetFillOpacity(0.1)
        display.SetPropertiesLabelVisibility(False)
        display.SetHandlesInteractive(False)
        display.SetGlyphScale(0.5)  # its centre is no prompt
    else:
        display.SetGlyphScale(2.0)
        display.SetPointLabelsVisibility(False)
