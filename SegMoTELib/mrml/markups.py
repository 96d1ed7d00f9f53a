"""The markups that hold a segment's prompts: how to find them in a scene, and what a node says of a point or a box."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import slicer
import slicer.util

from SegMoTELib.mrml.target import Target

OWNER = "SegMoTE.Segment"  # node attribute: the segment that the prompts belong to
KIND = "SegMoTE.Prompt"  # node attribute: one of POSITIVE, NEGATIVE, BOX, DRAWING
SEGMENTATION, VOLUME = "SegMoTE.Segmentation", "SegMoTE.Volume"  # roles of references to nodes
POSITIVE, NEGATIVE, BOX, DRAWING = "positive", "negative", "box", "drawing"
COLORS = {POSITIVE: (0.10, 0.75, 0.25), NEGATIVE: (0.90, 0.15, 0.15), BOX: (0.95, 0.75, 0.10),
          DRAWING: (0.95, 0.75, 0.10)}
SUFFIX = {POSITIVE: "points", NEGATIVE: "excluded", BOX: "box", DRAWING: "box being drawn"}
ORIENTED = "placed in a slice view"  # description of a control point whose orientation is that of its view


def prompt_nodes(scene: Any) -> list[tuple[Any, tuple]]:
    """The module's own markups in a scene, of whatever segment, each with its ``Target.key``."""
    found = scene.GetNodesByClass("vtkMRMLMarkupsNode")  # slicer.util's needs slicer.mrmlScene
    found.UnRegister(None)
    nodes = [found.GetItemAsObject(i) for i in range(found.GetNumberOfItems())]
    return [(node, (node.GetNodeReferenceID(SEGMENTATION), node.GetAttribute(OWNER), node.GetNodeReferenceID(VOLUME)))
            for node in nodes if node.GetAttribute(OWNER)]


def has_prompts(scene: Any, target: Target) -> bool:
    """Whether a point or a box is placed for a segment on a volume."""
    return any(holds_prompts(node) for node in markups_of(scene, target))


def remove_prompts(scene: Any, segmentation: Any, segment_id: str) -> None:
    """Remove a segment's prompts on every volume from the scene."""
    for node, key in prompt_nodes(scene):
        if key[:2] == (segmentation.GetID(), segment_id):
            scene.RemoveNode(node)


def markups_of(scene: Any, target: Target) -> list[Any]:
    """The nodes that hold a segment's prompts on a volume, and the box that is being drawn."""
    return [node for node, key in prompt_nodes(scene) if key == target.key]


def holds_prompts(node: Any) -> bool:
    """Whether a node has a placed point, or is a box that has a size; its size goes when its centre is deleted."""
    kind = node.GetAttribute(KIND)
    return bool(all(node.GetSize()[:2]) if kind == BOX else kind != DRAWING and defined(node))


@contextmanager
def placing_kept(scene: Any):
    """Within it, a new markups node does not become the one that the user's clicks go to."""
    selection = scene.GetFirstNodeByClass("vtkMRMLSelectionNode")
    if selection is None:
        yield
        return
    active = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    yield
    selection.SetReferenceActivePlaceNodeClassName(active[0])
    selection.SetActivePlaceNodeID(active[1])


def defined(node: Any) -> list[int]:
    """Indices of the control points that are placed."""
    status = slicer.vtkMRMLMarkupsNode.PositionDefined
    return [i for i in range(node.GetNumberOfControlPoints()) if node.GetNthControlPointPositionStatus(i) == status]


def point_position(node: Any, index: int) -> np.ndarray:
    """(3,) of a control point, RAS millimetres under the node's transform."""
    return np.array(node.GetNthControlPointPosition(index))


def point_orientation(node: Any, index: int) -> np.ndarray:
    """(3, 3) unit columns right, up and normal of the view that a control point was placed in."""
    wxyz, matrix = [0.0] * 4, [0.0] * 9
    node.GetNthControlPointOrientation(index, wxyz)
    slicer.vtkMRMLMarkupsNode.ConvertOrientationWXYZToMatrix(wxyz, matrix)
    return np.array(matrix).reshape(3, 3)


def set_orientation(node: Any, index: int, rotation: np.ndarray) -> None:
    """Note the (3, 3) orientation of the view that a control point was placed in."""
    wxyz = [0.0] * 4
    slicer.vtkMRMLMarkupsNode.ConvertOrientationMatrixToWXYZ(rotation.ravel().tolist(), wxyz)
    node.SetNthControlPointOrientation(index, *wxyz)
    node.SetNthControlPointDescription(index, ORIENTED)


def box_frame(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) rotation and (3,) centre of an ROI, own RAS."""
    matrix = slicer.util.arrayFromVTKMatrix(node.GetObjectToNodeMatrix())
    return matrix[:3, :3], matrix[:3, 3]


def set_box(node: Any, rotation: np.ndarray, center: np.ndarray, size: tuple) -> None:
    """Place an ROI: (3, 3) rotation and (3,) centre under its transform, three side lengths, millimetres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, center
    node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.SetSize(*(float(value) for value in size))


def style(display: Any, kind: str) -> None:
    """Give a display node the look of a kind of prompt."""
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
