"""What the command line writes, loaded by Slicer's own storage node: names, colours, terminology, voxels, place."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

from SegMoTELib.imaging.files import NamedMask, write_segmentation  # noqa: E402
from SegMoTELib.mrml.segments import segment_mask  # noqa: E402
from SegMoTELib.mrml.volumes import volume_of  # noqa: E402

TERMINOLOGY = ("Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure~"
               "SCT^64033007^Kidney~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^")


def test_a_seg_nrrd_is_in_slicer_what_it_was(scene, volume, tmp_path):
    own = volume_of(volume)
    rng = np.random.default_rng(0)
    masks = [rng.random(own.array.shape) > 0.6, rng.random(own.array.shape) > 0.6, np.zeros(own.array.shape, bool)]
    names = ["left kidney", "Läsion 腫瘍; a|b", "empty"]
    colors = [(255, 0, 10), (12, 200, 99), (0, 0, 255)]
    path = tmp_path / "s.seg.nrrd"
    write_segmentation(path, own, [NamedMask(*one) for one in
                                   zip(names, colors, masks, (TERMINOLOGY, "", ""), strict=True)])
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    found = node.GetSegmentation()
    assert found.GetNumberOfSegments() == 3
    extent = (0, own.shape[0] - 1, 0, own.shape[1] - 1, 0, own.shape[2] - 1)
    for number in range(3):
        segment = found.GetNthSegment(number)
        assert segment.GetName() == names[number]
        np.testing.assert_allclose(segment.GetColor(), np.array(colors[number]) / 255, atol=1e-3)
        np.testing.assert_array_equal(segment_mask(node, found.GetNthSegmentID(number), volume, extent), masks[number])
    terminology = vtk.reference("")
    assert found.GetNthSegment(0).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    assert str(terminology) == TERMINOLOGY
