"""What a user's hands do with the panel and the views."""

from __future__ import annotations

import time

import numpy as np
import slicer
from PySide6 import QtTest


def until(condition):
    """Let Qt work until something holds."""
    end = time.monotonic() + 300  # a guard against hanging, not a measure of speed
    while not condition():
        assert time.monotonic() < end
        QtTest.QTest.qWait(5)


def wait(panel):
    """Let timers and jobs run until nothing is left."""
    until(lambda: not panel.logic.busy() and not panel.timer.active)


def interaction():
    """Slicer's interaction and selection nodes."""
    application = slicer.app.applicationLogic()
    return application.GetInteractionNode(), application.GetSelectionNode()


def place(panel, ras, view="Red"):
    """Click in a view that shows the position, the others being elsewhere: the active place node gets a point."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*(np.array(ras, float) + (0 if node.GetName() == view else 40)))
    node = slicer.mrmlScene.GetNodeByID(interaction()[1].GetActivePlaceNodeID())
    node.AddControlPointWorld([float(value) for value in ras])
    wait(panel)


def draw_box(panel, low, high):
    """Draw a box between two corners, RAS, in the Red view, and wait for the answer."""
    panel.ui.boxButton.setChecked(True)
    place(panel, low)
    place(panel, high)
    QtTest.QTest.qWait(20)
    wait(panel)
