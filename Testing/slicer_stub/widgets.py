"""qMRML and CTK widgets, as far as the module uses them, on the real scene.

``REACHABLE`` are the methods that the real headers declare as slots or ``Q_INVOKABLE``: PythonQt shows no others.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets


class qMRMLWidget(QtWidgets.QWidget):  # noqa: N801
    """Hands its scene to the widgets in it, as the .ui file's connections do in Slicer."""

    REACHABLE = ("setMRMLScene",)
    mrmlSceneChanged = QtCore.Signal("vtkMRMLScene*")  # noqa: N815

    def setMRMLScene(self, scene: Any) -> None:  # noqa: N802
        for child in self.findChildren(QtWidgets.QWidget):
            if child is not self and hasattr(child, "setMRMLScene"):
                child.setMRMLScene(scene)


class qMRMLNodeComboBox(QtWidgets.QComboBox):  # noqa: N801
    """Nodes of ``nodeTypes``; follows the scene."""

    REACHABLE = ("setMRMLScene", "currentNode", "setCurrentNode")
    currentNodeChanged = QtCore.Signal(object)  # noqa: N815

    def setMRMLScene(self, scene: Any) -> None:  # noqa: N802
        self.scene, self.nodes = scene, []
        for event in (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent,
                      slicer.vtkMRMLScene.EndCloseEvent):
            scene.AddObserver(event, lambda *_: self.refresh())
        self.currentIndexChanged.connect(lambda index: self.currentNodeChanged.emit(self.currentNode()))
        self.refresh()

    def refresh(self) -> None:
        """List the scene's nodes, keeping the current one."""
        current = self.currentNode()
        hidden = self.property("hideChildNodeTypes") or []
        found = [node for kind in self.property("nodeTypes") for node in slicer.util.getNodesByClass(kind)
                 if not any(node.IsA(name) for name in hidden)]
        self.nodes = list(dict.fromkeys(found))
        self.blockSignals(True)
        self.clear()
        self.addItem("None")
        self.addItems([node.GetName() for node in self.nodes])
        self.blockSignals(False)
        if current in self.nodes:
            self.blockSignals(True)
            self.setCurrentIndex(self.nodes.index(current) + 1)
            self.blockSignals(False)
        elif current is not None:
            self.currentNodeChanged.emit(None)

    def currentNode(self) -> Any:  # noqa: N802
        index = self.currentIndex() - 1
        return self.nodes[index] if 0 <= index < len(getattr(self, "nodes", [])) else None

    def setCurrentNode(self, node: Any) -> None:  # noqa: N802
        self.setCurrentIndex(0 if node is None else self.nodes.index(node) + 1)


class qMRMLSegmentsTableView(QtWidgets.QWidget):  # noqa: N801
    """Names and colours of a segmentation's segments."""

    REACHABLE = ("setMRMLScene", "setSegmentationNode", "selectedSegmentIDs", "setSelectedSegmentIDs")
    selectionChanged = QtCore.Signal(object, object)  # noqa: N815

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.table = QtWidgets.QTableWidget(0, 2)
        self.table.setHorizontalHeaderLabels(["Colour", "Name"])
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setMaximumHeight(120)
        QtWidgets.QVBoxLayout(self).addWidget(self.table)
        self.table.itemSelectionChanged.connect(lambda: self.selectionChanged.emit(None, None))
        self.node, self.ids, self.observed = None, [], []

    def setMRMLScene(self, scene: Any) -> None:  # noqa: N802
        """The nodes know their scene."""

    def setSegmentationNode(self, node: Any) -> None:  # noqa: N802
        for one, tag in self.observed:
            one.RemoveObserver(tag)
        self.observed, self.node = [], node
        if node is not None:
            kind = slicer.vtkSegmentation
            for event in (kind.SegmentAdded, kind.SegmentRemoved, kind.SegmentModified):
                segmentation = node.GetSegmentation()
                self.observed.append((segmentation, segmentation.AddObserver(event, lambda *_: self.refresh())))
        self.refresh()

    def refresh(self) -> None:
        """List the segments, keeping the selection."""
        chosen = self.selectedSegmentIDs()
        self.ids = list(self.node.GetSegmentation().GetSegmentIDs()) if self.node is not None else []
        self.table.blockSignals(True)
        self.table.setRowCount(len(self.ids))
        for row, one in enumerate(self.ids):
            segment = self.node.GetSegmentation().GetSegment(one)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            self.table.setItem(row, 0, color)
            self.table.setItem(row, 1, QtWidgets.QTableWidgetItem(segment.GetName()))
        self.table.blockSignals(False)
        self._select(chosen)

    def selectedSegmentIDs(self) -> list[str]:  # noqa: N802
        rows = sorted({index.row() for index in self.table.selectedIndexes()})
        return [self.ids[row] for row in rows if row < len(self.ids)]

    def setSelectedSegmentIDs(self, ids: list[str]) -> None:  # noqa: N802
        self._select(ids)
        self.selectionChanged.emit(None, None)

    def _select(self, ids: list[str]) -> None:
        self.table.blockSignals(True)
        self.table.clearSelection()
        for one in ids:
            if one in self.ids:
                self.table.selectRow(self.ids.index(one))
        self.table.blockSignals(False)


class ctkCollapsibleButton(QtWidgets.QGroupBox):  # noqa: N801
    """A titled group that can be folded."""

    REACHABLE = ()
    contentsCollapsed = QtCore.Signal(bool)  # noqa: N815

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._collapsed = False

    def getText(self) -> str:  # noqa: N802
        return self.title()

    def setText(self, text: str) -> None:  # noqa: N802
        self.setTitle(text)

    def getCollapsed(self) -> bool:  # noqa: N802
        return self._collapsed

    def setCollapsed(self, collapsed: bool) -> None:  # noqa: N802
        changed, self._collapsed = collapsed != self._collapsed, collapsed
        self._fold()
        if changed:
            self.contentsCollapsed.emit(collapsed)

    def _fold(self) -> None:
        for child in self.findChildren(QtWidgets.QWidget):
            child.setVisible(not self._collapsed)

    def showEvent(self, event: Any) -> None:  # noqa: N802
        self._fold()
        super().showEvent(event)

    text = QtCore.Property(str, getText, setText)
    collapsed = QtCore.Property(bool, getCollapsed, setCollapsed)


class ctkRangeWidget(QtWidgets.QWidget):  # noqa: N801
    """Two values within a range; two spin boxes here, a slider between them in CTK."""

    REACHABLE = ("setRange", "setValues")
    valuesChanged = QtCore.Signal(float, float)  # noqa: N815

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.boxes = [QtWidgets.QSpinBox(), QtWidgets.QSpinBox()]
        for box in self.boxes:
            layout.addWidget(box)
            box.valueChanged.connect(lambda value: self.valuesChanged.emit(*(one.value() for one in self.boxes)))

    def setRange(self, low: float, high: float) -> None:  # noqa: N802
        for box in self.boxes:
            box.setRange(int(low), int(high))

    def setValues(self, low: float, high: float) -> None:  # noqa: N802
        for box, value in zip(self.boxes, (low, high), strict=True):
            box.setValue(int(value))

    decimals = QtCore.Property(int, lambda self: 0, lambda self, value: None)
    singleStep = QtCore.Property(float, lambda self: 1.0, lambda self, value: None)  # noqa: N815
    minimumValue = QtCore.Property(float, lambda self: float(self.boxes[0].value()))  # noqa: N815
    maximumValue = QtCore.Property(float, lambda self: float(self.boxes[1].value()))  # noqa: N815


WIDGETS = [ctkRangeWidget, qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView, ctkCollapsibleButton]
