"""A stage for pictures: the module's panel on a volume, real slice and 3D views, and a hand that clicks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from PySide6 import QtCore, QtGui, QtTest

from Testing.demo.views import SliceView, ThreeDView
from Testing.slicer_stub import start_scene
from Testing.slicer_stub.application import volume_node

BARS = {"Red": "#d94c42", "Yellow": "#d9b53c", "Green": "#5d9a4c", "3D": "#5a62b8"}  # as Slicer colours its views
ORIENTATIONS = {"Red": "axial", "Yellow": "sagittal", "Green": "coronal"}
BAR_HEIGHT, GAP, MARGIN, PANEL_WIDTH = 20, 4, 4, 400  # pixels
LONG_MS = 1_800_000  # no step of a picture takes longer, whatever else the machine does


class Studio:
    """One volume, the entered panel and the four views of Slicer's conventional layout.

    Args:
        path: volume file. name: of its node. size: (width, height) pixels of every view.
    """

    def __init__(self, path: Path, name: str, size: tuple[int, int] = (400, 400)) -> None:
        self.size = size
        start_scene()
        self.node = volume_node(path, name)
        import SegMoTE

        self.panel = SegMoTE.SegMoTEWidget()
        self.panel.setup()
        self.panel.enter()
        self.panel.ui.mappingComboBox.setCurrentIndex(1)
        self.panel.ui.volumeSelector.setCurrentNode(self.node)
        self.nodes = {name: slicer.util.getNode(name) for name in ORIENTATIONS}
        bounds = [0.0] * 6
        self.node.GetRASBounds(bounds)
        self.middle = np.array(bounds).reshape(3, 2).mean(axis=1)
        self.look(self.middle)

    def look(self, ras: np.ndarray, field: float | None = None, middle: np.ndarray | None = None) -> None:
        """Bring all slices to a position; ``field`` millimetres wide around ``middle``, by default the whole volume."""
        self.field = field
        for name, node in self.nodes.items():
            node.SetOrientation(ORIENTATIONS[name].capitalize())
            matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
            normal = matrix[:3, 2]
            center = np.array(self.middle if middle is None else middle, float)
            matrix[:3, 3] = center + normal * (normal @ (np.asarray(ras, float) - center))
            node.GetSliceToRAS().DeepCopy(matrix.ravel().tolist())
            node.UpdateMatrices()

    def wait(self) -> None:
        """Until nothing runs."""
        self.until(lambda: not self.panel.logic.busy() and not self.panel.timer.active)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let Qt work until something holds."""
        clock = QtCore.QElapsedTimer()
        clock.start()
        while not condition():
            if clock.elapsed() > LONG_MS:
                raise TimeoutError("a step of the pictures did not end")
            QtTest.QTest.qWait(10)

    def press(self, *buttons: str) -> None:
        """Press buttons of the panel, waiting for each."""
        for button in buttons:
            getattr(self.panel.ui, f"{button}Button").click()
            self.wait()

    def click(self, tool: str, view: str, *positions: tuple[float, float, float]) -> None:
        """Choose a tool and click at RAS positions that a view shows."""
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        crosshair.SetCursorPositionXYZ([0.0] * 3, self.nodes[view])
        getattr(self.panel.ui, f"{tool}Button").click()
        for position in positions:
            active = slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID()
            slicer.mrmlScene.GetNodeByID(active).AddControlPoint(list(map(float, position)))
            QtTest.QTest.qWait(30)  # a finished box is taken once its own event is over
            self.wait()
        self.panel.stopPlacing()

    def rename(self, name: str, color: tuple[float, float, float]) -> None:
        """Name and colour of the selected segment, as a double click in the table would set them."""
        target = self.panel.target
        segment = target.segmentation.GetSegmentation().GetSegment(target.segment_id)
        segment.SetName(name)
        segment.SetColor(*color)

    def surfaces(self) -> None:
        """Make the 3D surfaces anew."""
        node = self.panel.ui.segmentationSelector.currentNode()
        node.RemoveClosedSurfaceRepresentation()
        node.CreateClosedSurfaceRepresentation()

    def image(self, view: str) -> QtGui.QImage:
        """One view under its coloured bar; "3D" is drawn from behind, the right and above."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "view.png"
            if view == "3D":
                self.surfaces()
                ThreeDView(self.size).save(file, direction=(0.9, -0.9, 0.4))
            else:
                shown = SliceView(self.nodes[view], self.size)
                shown.show(self.node, slicer.util.arrayFromVTKMatrix(self.nodes[view].GetSliceToRAS()), self.field)
                shown.save(file)
            drawn = QtGui.QImage(str(file))
        width, height = self.size
        picture = _canvas(width, height + BAR_HEIGHT)
        painter = QtGui.QPainter(picture)
        painter.fillRect(0, 0, width, BAR_HEIGHT, QtGui.QColor(BARS[view]))
        painter.setPen(QtGui.QColor("white"))
        label = "3D" if view == "3D" else f"{view[0]}   {ORIENTATIONS[view]}"
        painter.drawText(QtCore.QRect(8, 0, width, BAR_HEIGHT), QtCore.Qt.AlignmentFlag.AlignVCenter, label)
        painter.drawImage(0, BAR_HEIGHT, drawn)
        painter.end()
        return picture

    def panel_image(self, first: str = "", last: str = "") -> QtGui.QImage:
        """The panel, cut below its last control; or only from one widget to another, whole rows."""
        window = self.panel.parent.real
        window.hide()
        window.resize(PANEL_WIDTH, 100)
        window.show()
        QtTest.QTest.qWait(50)
        window.resize(PANEL_WIDTH, window.layout().sizeHint().height())
        QtTest.QTest.qWait(50)
        picture = window.grab().toImage()
        if not first:
            return picture
        top, bottom = (getattr(self.panel.ui, name).real for name in (first, last))
        above = top.mapTo(window, QtCore.QPoint(0, 0)).y() - MARGIN
        below = bottom.mapTo(window, QtCore.QPoint(0, bottom.height())).y() + MARGIN
        return picture.copy(0, above, picture.width(), below - above)

    def only(self, *names: str) -> None:
        """Show the segments of these names alone, as the eyes in the table do; without names, all."""
        node = self.panel.ui.segmentationSelector.currentNode()
        for one in node.GetSegmentation().GetSegmentIDs():
            name = node.GetSegmentation().GetSegment(one).GetName()
            node.GetDisplayNode().SetSegmentVisibility(one, not names or name in names)

    def close(self) -> None:
        """End the panel's threads."""
        self.panel.cleanup()
        self.panel.parent.real.close()


def stacked(rows: list[list[QtGui.QImage]], background: str = "black") -> QtGui.QImage:
    """Pictures in rows, with a gap between them."""
    width = max(sum(one.width() for one in row) + GAP * (len(row) - 1) for row in rows)
    height = sum(max(one.height() for one in row) for row in rows) + GAP * (len(rows) - 1)
    picture = _canvas(width, height, background)
    painter = QtGui.QPainter(picture)
    top = 0
    for row in rows:
        left = 0
        for one in row:
            painter.drawImage(left, top, one)
            left += one.width() + GAP
        top += max(one.height() for one in row) + GAP
    painter.end()
    return picture


def save(picture: QtGui.QImage, path: Path, colors: int = 256) -> None:
    """Write a PNG with a palette, which keeps it small."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = picture.convertToFormat(QtGui.QImage.Format.Format_RGB888)
    pixels = np.frombuffer(plain.constBits(), np.uint8).reshape(plain.height(), -1)[:, :3 * plain.width()]
    image = Image.fromarray(pixels.reshape(plain.height(), plain.width(), 3))
    image.quantize(colors, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _canvas(width: int, height: int, background: str = "black") -> Any:
    picture = QtGui.QImage(width, height, QtGui.QImage.Format.Format_RGB32)
    picture.fill(QtGui.QColor(background))
    return picture
