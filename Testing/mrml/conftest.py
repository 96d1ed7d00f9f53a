"""A real MRML scene with a volume, from the slicer-core wheel."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

from SegMoTELib.interaction.embeddings import EmbeddingCache  # noqa: E402
from SegMoTELib.interaction.predictor import Predictor  # noqa: E402
from SegMoTELib.interaction.session import Session  # noqa: E402
from SegMoTELib.mrml.segments import prepare_segmentation  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.network import load_checkpoint  # noqa: E402
from SegMoTELib.zoo import resolve_model  # noqa: E402
from Testing.slicer_stub.application import segmentations_logic  # noqa: E402


@pytest.fixture
def scene():
    """A fresh scene with the logics that segmentations need."""
    scene = slicer.vtkMRMLScene()
    logic = segmentations_logic(scene)  # noqa: F841 - lives as long as the scene
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


@pytest.fixture(scope="package")
def bundled():
    """The bundled model without closer looks; what one test has encoded serves the next."""
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu", cache=EmbeddingCache(1 << 28))
    predictor.focus = False
    return predictor


@pytest.fixture
def bright(monkeypatch):
    """Auto answers with what is bright: the bundled model's own targets are not in these volumes."""
    monkeypatch.setattr(Session, "auto_logits", lambda self, plane, name: (
        (self.image_on(plane)[..., 0].astype(np.float32) - 140) / 10, 0.9))


@pytest.fixture
def ellipsoid(scene):
    """Function: shape (k, j, i) -> an empty segment on a noisy volume with one ellipsoid, and its truth."""
    def make(shape=(12, 40, 40)):
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
        grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
        truth = sum((grid[axis] / (0.3 * shape[axis])) ** 2 for axis in range(3)) <= 1
        noise = np.random.default_rng(0).normal(0, 6, shape)
        slicer.util.updateVolumeFromArray(node, (100 + 80 * truth + noise).astype(np.int16))
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1, 2, 1])))
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
        prepare_segmentation(segmentation, node)
        return Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("", "object")), truth
    return make
