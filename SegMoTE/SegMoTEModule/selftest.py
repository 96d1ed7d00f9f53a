"""SegMoTETest: the module tested from inside, in Slicer or under pytest on the slicer-core wheel."""

import numpy as np
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from SegMoTEModule.logic import SegMoTELogic


class SegMoTETest(ScriptedLoadableModuleTest):
    """Self-test with the bundled model; runs in Slicer and, on the slicer-core wheel, under pytest."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_points_box_undo, self.test_oblique_view, self.test_propagate, self.test_bad_input,
                     self.test_real_image):
            self.setUp()
            test()
        self.delayDisplay("Test passed")

    def makeVolume(self):
        """A bright ellipsoid in noise on an anisotropic grid; returns the node, its truth and its centre in RAS."""
        k, j, i = np.mgrid[:20, :64, :64]
        truth = ((i - 30) / 14) ** 2 + ((j - 26) / 10) ** 2 + ((k - 10) / 6) ** 2 <= 1
        noise = np.random.default_rng(0).normal(0, 10, truth.shape)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ellipsoid")
        slicer.util.updateVolumeFromArray(node, (80 + 120 * truth + noise).astype(np.int16))
        node.SetSpacing(1.0, 1.0, 2.5)
        node.SetOrigin(-30, -26, -25)
        node.CreateDefaultDisplayNodes()
        return node, truth, np.zeros(3)

    def segmentMask(self, segmentationNode, segmentId, volumeNode):
        from SegMoTELib.mrml.segments import segment_mask

        size = volumeNode.GetImageData().GetDimensions()
        return segment_mask(segmentationNode, segmentId, volumeNode, (0, size[0] - 1, 0, size[1] - 1, 0, size[2] - 1))

    def begin(self, volumeNode):
        logic = SegMoTELogic()
        logic.mapping = "percentiles"
        segmentationNode = logic.addSegmentation(volumeNode)
        return logic, segmentationNode, logic.addSegment(segmentationNode, volumeNode, "object")

    def test_points_box_undo(self):
        volumeNode, truth, center = self.makeVolume()
        logic, segmentationNode, segmentId = self.begin(volumeNode)
        logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [center])
        logic.segmentInBox(volumeNode, segmentationNode, segmentId,
                           [center + (-15, 0, -16), center + (15, 0, 16)], view="coronal")
        mask = self.segmentMask(segmentationNode, segmentId, volumeNode)
        for found, expected in ((mask[10], truth[10]), (mask[:, 26], truth[:, 26])):
            dice = 2 * (found & expected).sum() / (found.sum() + expected.sum())
            self.assertGreater(dice, 0.8)
        self.assertTrue(logic.undo())
        self.assertTrue(logic.undo())
        self.assertFalse(self.segmentMask(segmentationNode, segmentId, volumeNode).any())
        logic.close()

    def test_oblique_view(self):
        volumeNode, truth, center = self.makeVolume()
        logic, segmentationNode, segmentId = self.begin(volumeNode)
        view = np.eye(4)
        view[:3, :3] = [[-1, 0, 0], [0, np.cos(0.6), -np.sin(0.6)], [0, np.sin(0.6), np.cos(0.6)]]
        logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [center], view=view)
        mask = self.segmentMask(segmentationNode, segmentId, volumeNode)
        self.assertGreater((mask & truth).sum() / mask.sum(), 0.8)
        self.assertGreater(np.count_nonzero(mask.any(axis=(1, 2))), 4)
        logic.close()

    def test_propagate(self):
        volumeNode, truth, center = self.makeVolume()
        logic, segmentationNode, segmentId = self.begin(volumeNode)
        logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [center])
        logic.propagate(volumeNode, segmentationNode, segmentId)
        mask = self.segmentMask(segmentationNode, segmentId, volumeNode)
        self.assertGreater(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), 0.8)
        self.assertTrue(logic.undo())
        mask = self.segmentMask(segmentationNode, segmentId, volumeNode)
        self.assertEqual(np.count_nonzero(mask.any(axis=(1, 2))), 1)
        self.assertGreaterEqual(logic.findEverything(volumeNode), 1)
        self.assertTrue(logic.pickCandidate(logic.target(volumeNode, segmentationNode, segmentId), center))
        logic.close()

    def test_bad_input(self):
        volumeNode, _truth, center = self.makeVolume()
        logic, segmentationNode, segmentId = self.begin(volumeNode)
        for call in (lambda: logic.segmentAtPoints(None, segmentationNode, segmentId, [center]),
                     lambda: logic.segmentAtPoints(volumeNode, segmentationNode, "none", [center]),
                     lambda: logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [center + 500]),
                     lambda: logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [], [center]),
                     lambda: logic.segmentInBox(volumeNode, segmentationNode, segmentId, [center, center]),
                     lambda: logic.autoSegment(volumeNode, segmentationNode, "unicorn"),
                     lambda: logic.setModel("missing.safetensors")):
            with self.assertRaises(Exception) as raised:
                call()
            self.assertTrue(logic.isExpected(raised.exception), repr(raised.exception))
        self.assertFalse(self.segmentMask(segmentationNode, segmentId, volumeNode).any())
        logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [center])
        self.assertTrue(self.segmentMask(segmentationNode, segmentId, volumeNode).any())
        logic.close()

    def test_real_image(self):
        import SampleData

        volumeNode = SampleData.SampleDataLogic().downloadMRHead()
        logic, segmentationNode, segmentId = self.begin(volumeNode)
        bounds = [0.0] * 6
        volumeNode.GetRASBounds(bounds)
        center = np.array(bounds).reshape(3, 2).mean(axis=1)
        half = np.diff(np.array(bounds).reshape(3, 2), axis=1)[:, 0] / 2
        logic.segmentInBox(volumeNode, segmentationNode, segmentId, [center - half * 0.95, center + half * 0.95])
        mask = self.segmentMask(segmentationNode, segmentId, volumeNode)
        voxels = slicer.util.arrayFromVolume(volumeNode)
        axis = int(np.argmin([np.count_nonzero(mask.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]))
        plane = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        self.assertEqual(len(plane), 1)  # one slice of the volume's own grid
        found, shown = (array.take(plane[0], axis=axis) for array in (mask, voxels))
        self.assertGreater(found.mean(), 0.15)  # a head fills much of its slice
        self.assertGreater(np.median(shown[found]), np.median(shown[~found]))
        logic.close()
