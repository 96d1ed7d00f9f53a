"""SegMoTE: interactive segmentation with points, boxes and Auto, in any slice view.

This file is the panel: widgets and wiring. ``SegMoTELogic`` does everything without it and is meant for scripts, too;
results enter segments through ``SegMoTELib.mrml``. Nothing is installed or loaded before the first prompt, or the first
call of the logic, asks for it.
"""

import logging
import sys
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

from SegMoTEModule.expertpanel import ExpertPanel
from SegMoTEModule.logic import SegMoTELogic
from SegMoTEModule.modelpanel import ModelPanel
from SegMoTEModule.selftest import SegMoTETest  # noqa: F401 - Slicer looks for it here
from SegMoTEModule.volumepanel import VolumePanel

TIMER_MS = 15  # how often finished jobs are looked for while some run
WORKER_SECONDS = 0.01  # of every look that the job thread has the interpreter to itself
HOVER_MS = 200  # how long the cursor rests before the slice under it is prepared
TESTING_DATA = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
SAMPLES = (  # what Slicer itself offers: name, file, SHA-256
    ("SegMoTEHead", "MR-head.nrrd", "cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93"),
    ("SegMoTELiver", "CTLiver.nrrd", "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"))


class SegMoTE(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SegMoTE"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Markups"]
        self.parent.contributors = ["SegMoTE contributors"]
        self.parent.helpText = _(
            "Click inside an object, draw a box around it, or choose a target and press Auto: the mask goes into the "
            "selected segment. Keys while this module is open: P add point, X exclude point, D box, A Auto, "
            "C propagate, E everything, Return apply, N next object, Z undo, Y redo, Esc stop placing or cancel. "
            "Points stay with the slice plane of the view they were placed in. Not for diagnosis.")
        self.parent.acknowledgementText = _(
            "Method: SegMoTE, token-level mixture of experts for medical image segmentation (arXiv 2602.19213), "
            "on segment-anything (Apache-2.0).")
        source = Path(__file__).parents[1]
        if (source / "SegMoTELib").is_dir() and str(source) not in sys.path:
            sys.path.append(str(source))  # the source tree; installed, SegMoTELib lies beside this file
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the tutorial's volumes in Slicer's Sample Data module; nothing is downloaded before one is asked for."""
    import SampleData

    for name, fileName, sha256 in SAMPLES:
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="SegMoTE", sampleName=name, uris=TESTING_DATA + sha256, fileNames=fileName,
            checksums=f"SHA256:{sha256}", nodeNames=fileName.split(".")[0],
            thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "SegMoTE.png"))


class SegMoTEWidget(ModelPanel, ExpertPanel, VolumePanel, ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        self.logic = None
        self.target = None  # what the active tool and the table's selection refer to
        self.message = ""  # the latest sentence for the status line
        self.placing = False  # this module switched Slicer to placing
        self.persistence = 0  # of the user's own placing, before that
        self.creating = False  # nodes are being made for a tool, which stays on
        self.shortcuts = []  # (shortcut, its button or None) while the module is entered
        self.drawnBox = None  # (ROI node, first corner or None)
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)  # without a parent, this calls setup

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SegMoTE.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SegMoTELogic()
        self.logic.onStatus = self.showStatus
        self.logic.onBusy = self.startTimer
        self.timer = qt.QTimer()
        self.timer.setInterval(TIMER_MS)
        self.timer.connect("timeout()", self.onTimer)
        self.hoverTimer = qt.QTimer()
        self.hoverTimer.setSingleShot(True)
        self.hoverTimer.setInterval(HOVER_MS)
        self.hoverTimer.connect("timeout()", self.onHover)
        self.connectWidgets()
        for event, method in ((slicer.vtkMRMLScene.StartCloseEvent, self.onSceneStartClose),
                              (slicer.vtkMRMLScene.EndCloseEvent, self.onSceneChanged),
                              (slicer.vtkMRMLScene.NodeRemovedEvent, self.onSceneChanged)):
            self.addObserver(slicer.mrmlScene, event, method)
        self.fillModels()
        self.updateControls()

    def connectWidgets(self):
        ui = self.ui
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        ui.segmentsTable.connect("selectionChanged(QItemSelection,QItemSelection)", self.onSegmentSelected)
        ui.addSegmentButton.connect("clicked()", self.guarded(self.onAddSegment))
        ui.removeSegmentButton.connect("clicked()", self.guarded(self.onRemoveSegment))
        for button, kind in self.tools():
            button.connect("toggled(bool)", lambda checked, kind=kind: self.onTool(kind, checked))
        for button, method in ((ui.undoButton, self.onUndo), (ui.redoButton, self.onRedo),
                               (ui.clearButton, self.onClear), (ui.nextObjectButton, self.onNextObject)):
            button.connect("clicked()", self.guarded(method))
        self.connectVolumeWidgets()
        ui.cancelButton.connect("clicked()", self.onCancel)
        ui.targetComboBox.connect("currentIndexChanged(int)", lambda index: self.updateControls())
        self.connectModelWidgets()
        self.connectExpertWidgets()
        ui.mappingComboBox.connect("currentIndexChanged(int)", self.onAdvancedChanged)
        ui.smoothingSpinBox.connect("valueChanged(double)", self.onAdvancedChanged)
        ui.keepEmbeddingsCheckBox.connect("toggled(bool)", self.logic.keepEmbeddings)

    def tools(self):
        return ((self.ui.addPointButton, "positive"), (self.ui.excludePointButton, "negative"),
                (self.ui.boxButton, "box"), (self.ui.pickButton, "pick"))

    def checkedTool(self):
        return next((kind for button, kind in self.tools() if button.checked), None)

    # --- module life -----------------------------------------------------------------------------------------------

    def enter(self):
        parent = slicer.util.mainWindow() or self.parent
        ui = self.ui
        keys = {"P": ui.addPointButton, "X": ui.excludePointButton, "D": ui.boxButton, "Z": ui.undoButton,
                "Y": ui.redoButton, "N": ui.nextObjectButton, "A": ui.autoButton, "C": ui.bothWaysButton,
                "E": ui.everythingButton, "Return": ui.applyButton, "Esc": None}
        for key, button in keys.items():  # none that slice views or the Segment Editor use for something else
            shortcut = qt.QShortcut(qt.QKeySequence(key), parent)
            shortcut.connect("activated()", self.onEscape if button is None else button.click)
            self.shortcuts.append((shortcut, button))
        applicationLogic = slicer.app.applicationLogic()
        self.addObserver(applicationLogic.GetInteractionNode(),
                         slicer.vtkMRMLInteractionNode.InteractionModeChangedEvent, self.onInteractionModeChanged)
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            self.addObserver(crosshair, slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, self.onCursorMoved)
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.NodeAddedEvent, self.onNodeAdded)
        self.fillViews()
        self.updateControls()

    def exit(self):
        self.stopPlacing()
        self.hoverTimer.stop()
        for shortcut, _button in self.shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self.shortcuts = []
        self.removeObservers(self.onInteractionModeChanged)
        self.removeObservers(self.onCursorMoved)
        self.removeObservers(self.onViewModified)
        self.removeObservers(self.onNodeAdded)

    def cleanup(self):
        self.exit()
        self.timer.stop()
        self.removeObservers()
        self.logic.close()

    def onSceneStartClose(self, caller=None, event=None):
        self.stopPlacing()
        self.target = None
        self.logic.sceneClosing()
        self.clearExperts()

    def onSceneChanged(self, caller=None, event=None):
        self.logic.forgetDeleted()
        if self.target is not None and not self.target.exists():
            self.target = None
            self.stopPlacing()
        active = slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID() if self.placing else None
        if self.placing and slicer.mrmlScene.GetNodeByID(active or "") is None:
            self.stopPlacing()  # the list that clicks went to was deleted: they would start one of the user's own
        self.updateControls()

    # --- inputs ----------------------------------------------------------------------------------------------------

    def selectedSegmentId(self):
        ids = self.ui.segmentsTable.selectedSegmentIDs()
        return ids[0] if ids else ""

    def onInputChanged(self, node=None):
        if not self.creating:
            self.stopPlacing()
        self.ui.segmentsTable.setSegmentationNode(self.ui.segmentationSelector.currentNode())
        self.updateRange()
        self.onSegmentSelected()

    def onSegmentSelected(self, *unused):
        placing = None if self.creating else self.checkedTool()
        self.target = None
        self.logic.forgetDeleted()  # a segment that was deleted elsewhere takes its prompts with it
        if self.ui.volumeSelector.currentNode() and self.selectedSegmentId():
            self.takeTarget()
        if placing and self.target is not None:
            self.guarded(self.startPlacing)(placing)
        elif placing not in (None, "pick"):  # the segment is gone
            self.stopPlacing()
        self.updateControls()

    def takeTarget(self):
        """Make the selected segment the one that prompts are for; its prompts are shown, those of others hidden."""
        self.target = self.logic.target(self.ui.volumeSelector.currentNode(),
                                        self.ui.segmentationSelector.currentNode(), self.selectedSegmentId())
        self.logic.showPromptsOf(self.target, self.onPromptsChanged)

    def ensureSegmentation(self):
        """The selected volume and segmentation, which is created if there is none."""
        volumeNode = self.ui.volumeSelector.currentNode()
        self.logic.checkVolume(volumeNode)
        if self.ui.segmentationSelector.currentNode() is None:
            self.ui.segmentationSelector.setCurrentNode(self.logic.addSegmentation(volumeNode))
        return volumeNode, self.ui.segmentationSelector.currentNode()

    def ensureTarget(self):
        """The selected segment; without one, a segmentation and a segment are created."""
        self.creating = True
        try:
            volumeNode, segmentationNode = self.ensureSegmentation()
            if not self.selectedSegmentId():
                self.selectSegment(self.logic.addSegment(segmentationNode, volumeNode))
        finally:
            self.creating = False
        self.takeTarget()
        return self.target

    def selectSegment(self, segmentId):
        self.ui.segmentsTable.setSelectedSegmentIDs([segmentId])
        self.onSegmentSelected()

    def onAddSegment(self):
        volumeNode, segmentationNode = self.ensureSegmentation()
        self.selectSegment(self.logic.addSegment(segmentationNode, volumeNode))

    def onRemoveSegment(self):
        self.stopPlacing()
        self.ui.segmentationSelector.currentNode().GetSegmentation().RemoveSegment(self.selectedSegmentId())
        self.onSceneChanged()

    # --- prompts ---------------------------------------------------------------------------------------------------

    def onTool(self, kind, checked):
        if checked:
            self.guarded(self.startPlacing)(kind)
        else:
            self.stopPlacing()

    def startPlacing(self, kind):
        self.stopPlacing()
        if kind == "pick":
            node = self.logic.pickNode()
            self.addObserver(node, slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent, self.onPicked)
        else:
            self.ensureTarget()
            self.logic.prepare()
            self.takeTarget()  # once more: with the packages there, its prompts can be shown
            node = self.logic.promptNode(self.target, kind)
        self.checkTool(kind)
        if kind == "box":
            self.drawnBox = [node, None]
            self.addObserver(node, slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent, self.onBoxCorner)
            # An ROI drops its second point while it is placed, and may not tell that it was.
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onBoxCorner)
        applicationLogic = slicer.app.applicationLogic()
        applicationLogic.GetSelectionNode().SetReferenceActivePlaceNodeClassName(node.GetClassName())
        applicationLogic.GetSelectionNode().SetActivePlaceNodeID(node.GetID())
        interaction = applicationLogic.GetInteractionNode()
        self.persistence = interaction.GetPlaceModePersistence()
        interaction.SetPlaceModePersistence(kind != "box")
        interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)
        self.placing = True

    def checkTool(self, kind):
        """Press one tool's button in, release the others; None releases all."""
        for button, other in self.tools():
            wasBlocked = button.blockSignals(True)
            button.setChecked(other == kind)
            button.blockSignals(wasBlocked)

    def stopPlacing(self):
        self.checkTool(None)
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if self.placing and interaction is not None:
            self.placing = False
            interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
            interaction.SetPlaceModePersistence(self.persistence)
        self.removeObservers(self.onPicked)
        self.logic.removePickNode()
        if self.drawnBox is not None:
            node, _first = self.drawnBox
            self.drawnBox = None
            self.removeObservers(self.onBoxCorner)
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)

    def onInteractionModeChanged(self, caller, event):
        ended = self.placing and caller.GetCurrentInteractionMode() != slicer.vtkMRMLInteractionNode.Place
        drawn = self.drawnBox is not None and self.drawnBox[0].GetControlPointPlacementComplete()
        if ended and not drawn:  # by a right click or another tool; a box that is complete is being taken
            self.stopPlacing()

    def onBoxCorner(self, caller, event):
        node, first = self.drawnBox
        if not node.GetNumberOfDefinedControlPoints():
            return
        if first is None:
            first = [0.0] * 3
            node.GetNthControlPointPositionWorld(0, first)
            self.drawnBox[1] = np.array(first)
        elif node.GetControlPointPlacementComplete():
            qt.QTimer.singleShot(0, self.guarded(self.finishBox))  # not within the node's own event

    def finishBox(self):
        if self.drawnBox is None or self.drawnBox[1] is None:
            return
        node, first = self.drawnBox
        self.drawnBox = None
        self.removeObservers(self.onBoxCorner)
        try:
            self.logic.finishBox(self.target, node, first)
        finally:
            self.stopPlacing()

    def onPromptsChanged(self):
        self.guarded(self.logic.promptsChanged)(self.target)

    def onUndo(self):
        if not self.logic.undo():
            self.showStatus(_("Nothing to undo."), False)
        self.updateControls()

    def onRedo(self):
        if not self.logic.redo():
            self.showStatus(_("Nothing to redo."), False)
        self.updateControls()

    def onClear(self):
        self.logic.clearPrompts(self.target)

    def onNextObject(self):
        tool = self.checkedTool()  # its list of points is removed
        self.selectSegment(self.logic.nextObject(self.target))
        if tool:
            self.startPlacing(tool)

    def onEscape(self):
        if self.placing:
            self.stopPlacing()
        elif self.logic.busy():
            self.onCancel()

    def onCancel(self):
        self.logic.cancel()
        self.refreshModels()  # loading weights was stopped, too
        self.showStatus(_("Stopped. Apply keeps the finished slices, Discard leaves the scene as it was.")
                        if self.logic.hasPending() else _("Cancelled; the scene is as it was."), False)
        self.onSceneChanged()  # a segment that was made for it is gone

    # --- settings --------------------------------------------------------------------------------------------------

    def onAdvancedChanged(self, *unused):
        from SegMoTELib.imaging.intensity import MAPPINGS

        self.logic.mapping = MAPPINGS[self.ui.mappingComboBox.currentIndex]
        self.logic.smoothing = self.ui.smoothingSpinBox.value

    @staticmethod
    def viewName(node):
        return f"{node.GetLayoutName()} ({node.GetOrientation()})"

    def onViewModified(self, caller, event):
        """Follow the orientation in the view's name."""
        index, name = self.ui.viewComboBox.findData(caller.GetID()), self.viewName(caller)
        if index >= 0 and self.ui.viewComboBox.itemText(index) != name:
            self.ui.viewComboBox.setItemText(index, name)

    def onNodeAdded(self, caller, event):
        """List the views of another layout."""
        if caller.GetNumberOfNodesByClass("vtkMRMLSliceNode") != self.ui.viewComboBox.count:
            self.fillViews()

    def fillViews(self):
        """List the slice views, keeping the chosen one, and the range with it."""
        views, chosen = self.ui.viewComboBox, self.ui.viewComboBox.currentData
        wasBlocked = views.blockSignals(True)
        views.clear()
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            views.addItem(self.viewName(node), node.GetID())
            if not self.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self.onViewModified):
                self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onViewModified)
        found = views.findData(chosen) if chosen else -1
        views.setCurrentIndex(max(0, found))
        views.blockSignals(wasBlocked)
        if found < 0:
            self.updateRange()

    # --- jobs and status -------------------------------------------------------------------------------------------

    def startTimer(self):
        if not self.timer.active:
            self.timer.start()
        self.updateControls()

    def onTimer(self):
        self.logic.deliver(WORKER_SECONDS)
        label, progress = self.logic.progress()
        if label:
            self.ui.statusLabel.setText(label)
        self.ui.progressBar.setMaximum(0 if label and progress is None else 100)
        self.ui.progressBar.setValue(round(100 * (progress or 0)))
        self.showDownload()
        self.refreshExperts()
        if not self.logic.busy():
            if not self.logic.downloading():
                self.timer.stop()
                self.showState()
            self.updateControls()

    def onCursorMoved(self, caller, event):
        self.hoverTimer.start()

    def onHover(self):
        sliceNode = self.logic.sliceUnderCursor()
        if sliceNode is not None and self.target is not None:
            self.logic.prefetch(self.target.volume, sliceNode)

    def showStatus(self, text, isError):
        self.message = ("⚠ " if isError else "") + text
        self.ui.statusLabel.setText(self.message)

    def guarded(self, method):
        """The method, with every error as a sentence in the status line."""
        def call(*arguments):
            self.message = ""
            try:
                return method(*arguments)
            except Exception as error:
                if not self.logic.isExpected(error):
                    logging.exception("SegMoTE")
                self.showStatus(str(error), True)
                self.updateControls()
        return call

    def updateControls(self):
        """Enable what can be used; what cannot says why in its tool tip."""
        ui = self.ui
        noVolume = None if ui.volumeSelector.currentNode() else _("Choose a volume first.")
        noSegment = noVolume or (None if self.target is not None else _("Select a segment first."))
        noPrompts = noSegment or (None if self.logic.hasPrompts(self.target) else _("There are no prompts yet."))
        noTarget = noVolume or (None if self.logic.targets() else _("The loaded model was not trained for Auto."))
        noSource = None if noSegment is None and self.logic.hasPicks(self.target) else noPrompts
        idle = None if self.logic.busy() else _("Nothing is running.")
        notPending = None if self.logic.hasPending() else _("There is no preview.")
        noCandidates = None if self.logic.hasCandidates() else _("Press Everything first.")
        noRemains = None if notPending is None or noCandidates is None else notPending
        for widgets, reason in (
                ((ui.addPointButton, ui.excludePointButton, ui.boxButton, ui.addSegmentButton), noVolume),
                ((ui.removeSegmentButton, ui.nextObjectButton), noSegment), ((ui.clearButton,), noPrompts),
                ((ui.undoButton,), None if self.logic.canUndo() else _("Nothing to undo.")),
                ((ui.redoButton,), None if self.logic.canRedo() else _("Nothing to redo.")),
                ((ui.autoButton, ui.targetComboBox, ui.scopeComboBox), noTarget), ((ui.cancelButton,), idle),
                ((ui.towardsFirstButton, ui.bothWaysButton, ui.towardsLastButton), noSource),
                ((ui.everythingButton, ui.rangeWidget), noVolume), ((ui.pickButton,), noCandidates),
                ((ui.applyButton,), notPending), ((ui.discardButton,), noRemains), *self.modelControls()):
            for widget in widgets:
                tip = widget.property("SegMoTE.help") or widget.toolTip
                widget.setProperty("SegMoTE.help", tip)
                widget.setEnabled(reason is None)
                widget.setToolTip(tip if reason is None else f"{reason} {tip}")
        for shortcut, button in self.shortcuts:  # a key that would do nothing is left to whoever else wants it
            shortcut.setEnabled(button is None or button.enabled)
        if not self.logic.busy():
            if not self.message.startswith("⚠") and (noVolume or self.message == _("Choose a volume first.")):
                self.message = noVolume or ""
            ui.statusLabel.setText(self.message or _("Ready."))
