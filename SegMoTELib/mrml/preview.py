"""Preview: results that are not in the user's segment yet, shown in a segmentation of their own."""

from __future__ import annotations

from typing import Any

import slicer

from SegMoTELib.imaging.planes import MaskPatch
from SegMoTELib.mrml.segments import SegmentWriter, prepare_segmentation

NAME = "SegMoTE preview"
OPACITY = 0.35


class Preview:
    """A segmentation node that is neither saved nor offered for editing; one per run.

    Args:
        scene: vtkMRMLScene. writer: puts masks in. volume: node whose geometry it has.
    """

    def __init__(self, scene: Any, writer: SegmentWriter, volume: Any) -> None:
        self.scene, self.writer, self.volume = scene, writer, volume
        node = slicer.vtkMRMLSegmentationNode()
        node.SetName(NAME)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        self.node = scene.AddNode(node)
        prepare_segmentation(self.node, volume)
        display = self.node.GetDisplayNode()
        display.SetOpacity2DFill(OPACITY)
        display.SetSaveWithScene(False)

    def add(self, name: str, color: tuple[float, float, float], patches: list[MaskPatch]) -> None:
        """Show masks under a name, together with what it showed before."""
        segmentation = self.node.GetSegmentation()
        segment_id = segmentation.GetSegmentIdBySegmentName(name)
        if not segment_id:
            segment_id = segmentation.AddEmptySegment("", name, color)
        self.writer.show(self.node, segment_id, self.volume, patches)

    def remove(self) -> None:
        """Take the node out of the scene."""
        if self.node.GetScene() is not None:
            self.scene.RemoveNode(self.node)
