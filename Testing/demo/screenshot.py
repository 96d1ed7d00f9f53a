"""Resources/Screenshots/panel.png: the module's panel at work beside real slice views.

    python Testing/demo/screenshot.py

The window is drawn by the stand-in for Slicer's widgets; the views are Slicer's own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from Testing.demo.demo import package_data, views  # noqa: E402
from Testing.demo.views import SliceView  # noqa: E402
from Testing.slicer_stub import start_scene  # noqa: E402
from Testing.slicer_stub.application import volume_node  # noqa: E402


def main() -> None:
    """Click as a user would, then draw everything into one picture."""
    import slicer
    from PySide6 import QtGui, QtTest

    start_scene()
    path, _brain = package_data()
    node = volume_node(path, "Head MR")
    import SegMoTE

    panel = SegMoTE.SegMoTEWidget()
    panel.setup()
    panel.enter()
    panel.ui.volumeSelector.setCurrentNode(node)
    center = np.array([0.0, -20.0, 12.0])
    red = slicer.util.getNode("Red")
    for name in ("Yellow", "Green"):
        slicer.util.getNode(name).JumpSliceByOffsetting(60, 60, 60)
    views_of = views(node, center)

    def wait() -> None:
        while panel.logic.busy() or panel.timer.active:
            QtTest.QTest.qWait(10)

    view = SliceView(red, (560, 500))
    folder = Path(tempfile.mkdtemp())
    panel.ui.addPointButton.click()
    matrix = views_of["axial"]
    view.show(node, matrix)
    for right, up in ((0, 5), (30, 20), (-30, 20), (25, -45), (-25, -45)):
        active = slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID()
        world = matrix[:3, 3] + matrix[:3, :3] @ (right, up, 0)
        slicer.mrmlScene.GetNodeByID(active).AddControlPoint(world.tolist())
        wait()
    view.save(folder / "clicks.png")
    panel.ui.bothWaysButton.click()
    wait()
    view.show(node, views_of["sagittal"])
    view.save(folder / "propagated.png")
    pictures = [QtGui.QImage(str(folder / name)) for name in ("clicks.png", "propagated.png")]
    window = panel.parent.real
    window.resize(440, 1000)
    window.show()
    QtTest.QTest.qWait(50)
    grabbed = window.grab().toImage()
    canvas = QtGui.QImage(440 + 560, 1000, QtGui.QImage.Format.Format_RGB32)
    canvas.fill(QtGui.QColor("black"))
    painter = QtGui.QPainter(canvas)
    painter.drawImage(0, 0, grabbed)
    for row, picture in enumerate(pictures):
        painter.drawImage(440, 500 * row, picture)
    painter.end()
    output = ROOT / "Resources" / "Screenshots" / "panel.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(str(output))
    panel.cleanup()
    print(output)


if __name__ == "__main__":
    main()
