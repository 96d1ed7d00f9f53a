"""Inside Slicer: open the module, segment with one click, and draw the window. Called by .github/workflows/slicer.yml.

    Slicer --testing --additional-module-paths SegMoTE --python-script Testing/application/open_panel.py PICTURE.png
"""

import sys
import time

import SampleData
import slicer

volume = SampleData.SampleDataLogic().downloadMRHead()
slicer.util.selectModule("SegMoTE")
panel = slicer.modules.SegMoTEWidget
panel.ui.volumeSelector.setCurrentNode(volume)
panel.ui.expertsButton.collapsed = False
panel.ui.addPointButton.click()
selection = slicer.app.applicationLogic().GetSelectionNode()
bounds = [0.0] * 6
volume.GetRASBounds(bounds)
center = [(low + high) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center)
slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID()).AddControlPoint(center)
end = time.monotonic() + 120
while panel.logic.busy() or panel.timer.active:
    assert time.monotonic() < end, "the click was not answered in two minutes"
    slicer.app.processEvents()
assert panel.logic.hasPrompts(panel.target), panel.ui.statusLabel.text
assert panel.logic.canUndo(), panel.ui.statusLabel.text
assert not panel.ui.attentionLabel.pixmap.isNull()
assert slicer.util.mainWindow().grab().save(sys.argv[1])
slicer.util.exit(0)
