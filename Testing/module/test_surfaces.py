"""Surfaces of a segmentation from a script."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")


def test_a_script_exports_stl_and_obj(logic, tmp_path):
    from SegMoTELib.errors import SegMoTEError

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    slicer.util.updateVolumeFromArray(volume, np.zeros((12, 16, 20), np.int16))
    segmentation = logic.addSegmentation(volume)
    segmentation.SetName("scan")
    segment = logic.addSegment(segmentation, volume, "cyst")
    with pytest.raises(SegMoTEError, match="no segment with voxels"):
        logic.exportSurfaces(segmentation, tmp_path)
    mask = np.zeros((12, 16, 20), np.uint8)
    mask[3:9, 4:12, 5:15] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, volume)
    assert logic.exportSurfaces(segmentation, tmp_path) == [str(tmp_path / "scan_cyst.stl")]
    assert logic.exportSurfaces(segmentation, tmp_path, format="OBJ") == [str(tmp_path / "scan.mtl"),
                                                                          str(tmp_path / "scan.obj")]
