"""The part of the panel that works on whole volumes: range, Propagate, Auto, Everything, preview."""

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

THIS_SLICE, RANGE, VOLUME = 0, 1, 2  # scopes of Auto


class VolumePanel:
    """Mixed into the module's widget."""

    offered = (None, None, 1)  # volume, view and number of the slices that the range can be chosen from

    def connectVolumeWidgets(self):
        ui = self.ui
        ui.viewComboBox.connect("currentIndexChanged(int)", lambda index: self.updateRange())
        for button, direction in ((ui.towardsFirstButton, -1), (ui.bothWaysButton, 0), (ui.towardsLastButton, 1)):
            button.connect("clicked()", self.guarded(lambda direction=direction: self.onPropagate(direction)))
        ui.autoButton.connect("clicked()", self.guarded(self.onAuto))
        ui.everythingButton.connect("clicked()", self.guarded(self.onEverything))
        ui.applyButton.connect("clicked()", self.guarded(self.onApply))
        ui.discardButton.connect("clicked()", self.guarded(self.onDiscard))

    def chosenView(self):
        """The slice node of the view that runs work in, or "axial"."""
        return slicer.mrmlScene.GetNodeByID(self.ui.viewComboBox.currentData or "") or "axial"

    def updateRange(self):
        """All slices of the chosen volume and view; a range stays as it was set while these are the same."""
        volumeNode = self.ui.volumeSelector.currentNode()
        try:
            count = self.logic.sliceCount(volumeNode, self.chosenView())
        except Exception as error:
            if volumeNode is not None and not self.logic.isExpected(error):
                raise
            count = 1
        offered = (volumeNode and volumeNode.GetID(), self.ui.viewComboBox.currentData, count)
        if offered == self.offered:
            return
        self.offered = offered
        self.ui.rangeWidget.setRange(1, count)
        self.ui.rangeWidget.setValues(1, count)

    def chosenRange(self):
        """(first, last), counted from 0.

        Where the view was turned since, and has another number of slices, all of them: a range that someone set means
        nothing any more, which is an error.
        """
        from SegMoTELib.errors import SegMoTEError

        ui = self.ui
        first, last = (round(value) - 1 for value in (ui.rangeWidget.minimumValue, ui.rangeWidget.maximumValue))
        count, offered = self.logic.sliceCount(ui.volumeSelector.currentNode(), self.chosenView()), self.offered[2]
        if count == offered:
            return first, last
        self.updateRange()
        if (first, last) != (0, offered - 1):
            raise SegMoTEError(_("The view shows other slices than those that the range was set for; it holds all of "
                                 "them now. Set it anew and start again."))
        return 0, count - 1

    def onPropagate(self, direction):
        self.stopPlacing()
        self.logic.startPropagate(self.target, self.chosenView(), self.chosenRange(), direction)

    def onAuto(self):
        self.stopPlacing()
        volumeNode, segmentationNode = self.ensureSegmentation()
        name = self.logic.targets()[self.ui.targetComboBox.currentIndex][0]
        scope = self.ui.scopeComboBox.currentIndex
        # A range is of the chosen view; for the whole volume the best direction is taken.
        view = self.logic.bestView(volumeNode, name) if scope == VOLUME else self.chosenView()
        sliceRange = (self.logic.sliceIndex(volumeNode, view) if scope == THIS_SLICE else
                      self.chosenRange() if scope == RANGE else None)
        self.selectSegment(self.logic.startAuto(volumeNode, segmentationNode, name, view, sliceRange,
                                                preview=scope != THIS_SLICE))

    def onEverything(self):
        self.logic.startEverything(self.ui.volumeSelector.currentNode(), self.chosenView())

    def onPicked(self, caller, event):
        """A click on a candidate: it becomes a segment of its own."""
        position = [0.0] * 3
        caller.GetNthControlPointPositionWorld(caller.GetNumberOfDefinedControlPoints() - 1, position)
        qt.QTimer.singleShot(0, self.guarded(lambda: self.pickAt(np.array(position))))  # not within the node's event

    def pickAt(self, position):
        self.creating = True  # the tool stays on for the next one
        try:
            volumeNode, segmentationNode = self.ensureSegmentation()
            segmentId = self.logic.addSegment(segmentationNode, volumeNode, self.newName(segmentationNode))
            if self.pickInto(self.logic.target(volumeNode, segmentationNode, segmentId), position):
                self.selectSegment(segmentId)
        finally:
            self.creating = False
        self.updateControls()

    def pickInto(self, target, position):
        """Write the candidate at a position into a new segment, which is removed again where that fails."""
        picked = False
        try:
            picked = self.logic.pickCandidate(target, position)
        finally:
            if not picked:
                target.segmentation.GetSegmentation().RemoveSegment(target.segment_id)
        if not picked and not self.message:  # else it says why it could not be written
            self.showStatus(_("There is no candidate here."), False)
        return picked

    def newName(self, segmentationNode):
        """A name for what is picked that no segment has."""
        segmentation, number = segmentationNode.GetSegmentation(), 1
        while segmentation.GetSegmentIdBySegmentName(_("Object {number}").format(number=number)):
            number += 1
        return _("Object {number}").format(number=number)

    def onApply(self):
        if self.logic.applyRun():
            self.showStatus(_("Applied."), False)
        self.updateControls()

    def onDiscard(self):
        self.stopPlacing()
        self.logic.discardRun()
        self.showStatus(_("Discarded; the scene is as it was."), False)
        self.onSceneChanged()  # a segment that was made for it is gone
