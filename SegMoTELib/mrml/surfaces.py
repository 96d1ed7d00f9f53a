"""Segments as STL or OBJ surfaces, by Slicer's own conversion."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import slicer
import vtk

from SegMoTELib.errors import SegmentError

FORMATS = ("STL", "OBJ")


def export_surfaces(segmentation: Any, folder: str | Path, file_format: str = "STL", lps: bool = True) -> list[Path]:
    """Write the surface of every segment that is not empty, where the segmentation stands in the world.

    Transforms above the segmentation are applied. The segmentation is left as it is: a copy is converted, with its
    own conversion parameters (smoothing). STL is one file a segment, called after the segmentation and the segment;
    OBJ is one file for all with their colours in a .mtl file. Files of the same name are replaced.

    Args:
        segmentation: vtkMRMLSegmentationNode in a scene. folder: made if need be. file_format: one of ``FORMATS``.
        lps: write millimetres in LPS, as Slicer and other programs expect of these files; otherwise in RAS.

    Returns:
        The files written.

    Raises:
        SegmentError: no segmentation, another format, nothing to write, or a folder that cannot be written.
    """
    if segmentation is None or segmentation.GetScene() is None:
        raise SegmentError("Choose a segmentation first.")
    if file_format not in FORMATS:
        raise SegmentError(f"{file_format!r} is no surface format; choose one of {', '.join(FORMATS)}.")
    folder = Path(folder)
    copy = _copy(segmentation)
    try:
        if not copy.GetSegmentation().GetNumberOfSegments():
            raise SegmentError(f"{segmentation.GetName()} has no segment with voxels to write.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as part:
            slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
                part, copy, None, file_format, lps, 1.0, False)
            files = sorted(Path(part).iterdir())
            # Slicer reports success whatever its writers say.
            if len(files) != (copy.GetSegmentation().GetNumberOfSegments() if file_format == "STL" else 2):
                raise SegmentError(f"{folder}: the surfaces could not be written; is there space on the disk?")
            for file in files:
                os.replace(file, folder / file.name)
        return [folder / file.name for file in files]
    except OSError as error:
        raise SegmentError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    finally:
        segmentation.GetScene().RemoveNode(copy)


def _copy(segmentation: Any) -> Any:
    """A hidden node with those segments that have a surface, under names that can be file names."""
    copy = slicer.vtkMRMLSegmentationNode()
    ascii_name = (segmentation.GetName() or "").encode("ascii", "ignore").decode()  # Slicer leaves out the rest itself
    copy.SetName(_file_name(ascii_name, "Segmentation", set()))
    copy.SetHideFromEditors(True)
    copy.SetSaveWithScene(False)
    copy = segmentation.GetScene().AddNode(copy)
    copy.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    own, source = copy.GetSegmentation(), segmentation.GetSegmentation()
    own.SetSourceRepresentationName(source.GetSourceRepresentationName())
    own.CopyConversionParameters(source)
    for segment_id in source.GetSegmentIDs():
        own.CopySegmentFromSegmentation(source, segment_id)
    copy.CreateClosedSurfaceRepresentation()
    taken: set[str] = set()
    for segment_id in own.GetSegmentIDs():
        surface = vtk.vtkPolyData()
        copy.GetClosedSurfaceRepresentation(segment_id, surface)
        if not surface.GetNumberOfPoints():
            own.RemoveSegment(segment_id)
            continue
        segment = own.GetSegment(segment_id)
        segment.SetName(_file_name(segment.GetName(), "Segment", taken))
    return copy


def _file_name(name: str, otherwise: str, taken: set[str]) -> str:
    """A name without what no file name may have on some system, and not one that is taken."""
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name or "").strip(" .")
    plain = plain.encode()[:80].decode(errors="ignore").strip(" .") or otherwise  # disks count bytes
    found, number = plain, 1
    while found.lower() in taken:
        number += 1
        found = f"{plain} {number}"
    taken.add(found.lower())
    return found
