"""A real MRML scene with a volume, from the slicer-core wheel."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402


@pytest.fixture
def scene():
    """A fresh scene with the logics that segmentations need."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    yield scene
    scene.Clear(True)


GEOMETRIES = {
    "plain": np.diag([1.0, 1, 1, 1]), "anisotropic": np.diag([0.8, 0.8, 3.0, 1]),
    "LPS": np.diag([-1.0, -1, 2, 1]), "left-handed": np.diag([1.0, 1, -1.5, 1]),
    "oblique": np.array([[0.9, -0.3, 0.1, 5], [0.3, 0.9, -0.2, -7], [-0.05, 0.2, 2.0, 11], [0, 0, 0, 1.0]])}


@pytest.fixture(params=GEOMETRIES)
def volume(scene, request):
    """A scalar volume of 20 x 24 x 12 voxels (i, j, k)."""
    matrix = GEOMETRIES[request.param].copy()
    basis, _ = np.linalg.qr(matrix[:3, :3]) if request.param == "oblique" else (None, None)
    if basis is not None:
        matrix[:3, :3] = basis * (0.9, 0.9, 2.0)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "image")
    slicer.util.updateVolumeFromArray(node, np.random.default_rng(0).integers(0, 500, (12, 24, 20)).astype(np.int16))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return node


@pytest.fixture
def segmentation(scene):
    """An empty segmentation node."""
    return scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")


@pytest.fixture
def move(scene):
    """Function: node, (4, 4) -> the node under a new linear transform."""
    def under(node, matrix):
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.asarray(matrix, float)))
        node.SetAndObserveTransformNodeID(transform.GetID())
        return transform
    return under


@pytest.fixture
def bend(scene):
    """Function: node -> the node under a thin-plate spline."""
    def under(node):
        spline = vtk.vtkThinPlateSplineTransform()
        points = [vtk.vtkPoints(), vtk.vtkPoints()]
        for group, shift in zip(points, (0, 3), strict=True):
            for x, y, z in ((0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10), (10 + shift, 10, 10)):
                group.InsertNextPoint(x, y, z)
        spline.SetSourceLandmarks(points[0])
        spline.SetTargetLandmarks(points[1])
        spline.SetBasisToR()
        transform = scene.AddNewNodeByClass("vtkMRMLTransformNode")
        transform.SetAndObserveTransformToParent(spline)
        node.SetAndObserveTransformNodeID(transform.GetID())
    return under
