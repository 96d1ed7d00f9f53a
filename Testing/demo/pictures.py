"""All pictures of the documentation, from the module's panel at work and Slicer's own views.

    make screenshots

The window's widgets are drawn by the stand-in for Slicer's; slice and 3D views, segments and prompts are Slicer's own.
The head is the T1-weighted MNI152 template of the nilearn package; the ultrasound is a phantom (``phantoms.py``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from Testing.demo.demo import package_data  # noqa: E402
from Testing.demo.phantoms import write_ultrasound  # noqa: E402
from Testing.demo.studio import Studio, save, stacked  # noqa: E402

ORANGE, BLUE, GREEN = (0.95, 0.6, 0.2), (0.35, 0.65, 0.95), (0.45, 0.8, 0.45)
HINDBRAIN = (130.0, (0.0, -48.0, -28.0))  # field of view in mm, middle
CEREBELLUM = (150.0, (0.0, -45.0, -10.0))
VENTRICLES = (110.0, (0.0, -8.0, 22.0))
SAGITTAL = 1  # in the panel's list of views
BRAINSTEM_SLICES = (88, 111)
PANEL_GREY = "#efefef"


def first_clicks(studio: Studio, folder: Path) -> None:
    """One click, another where it is incomplete, and one more: the brainstem on a sagittal slice."""
    studio.look((0, -30, -30), *HINDBRAIN)
    frames = []
    for position in ((0, -26, -30), (0, -40, -50), (0, -31, -12)):
        studio.click("addPoint", "Yellow", position)
        studio.rename("brainstem", ORANGE)
        frames.append(studio.image("Yellow"))
    save(stacked([frames]), folder / "clicks.png")
    studio.panel.ui.viewComboBox.setCurrentIndex(SAGITTAL)
    studio.panel.ui.rangeWidget.real.setValues(*BRAINSTEM_SLICES)
    studio.press("bothWays", "nextObject")


def exclude(studio: Studio, folder: Path) -> None:
    """A click that leaks, and where to exclude."""
    studio.look((0, -50, -20), *CEREBELLUM)
    studio.click("addPoint", "Yellow", (0, -62, -36))
    studio.rename("posterior lobe", BLUE)
    studio.only("posterior lobe")
    before = studio.image("Yellow")
    studio.click("excludePoint", "Yellow", (0, -46, -18))
    save(stacked([[before, studio.image("Yellow")]]), folder / "exclude.png")
    studio.press("removeSegment")


def boxes(studio: Studio, folder: Path) -> None:
    """One box around both lateral ventricles, and one around each."""
    studio.look((0, -8, 22), *VENTRICLES)
    frames = []
    for drawn in ((((-26, -40, 22), (26, 16, 22)),), (((-26, -40, 22), (-3, 16, 22)), ((3, -40, 22), (26, 16, 22)))):
        studio.press("addSegment")
        for corners in drawn:
            studio.click("box", "Red", *corners)
        studio.rename("ventricles", BLUE)
        studio.only("ventricles")
        frames.append(studio.image("Red"))
        studio.press("removeSegment")
    save(stacked([frames]), folder / "boxes.png")


def propagate(studio: Studio, folder: Path) -> None:
    """A box on one sagittal slice becomes the whole cerebellum; on the way, a run that is stopped."""
    studio.panel.ui.rangeWidget.real.setValues(1, studio.panel.ui.rangeWidget.real.boxes[1].maximum())
    studio.press("addSegment")
    studio.look((12, -62, -36))
    studio.click("box", "Yellow", (12, -100, -58), (12, -40, -12))
    studio.rename("cerebellum", BLUE)
    studio.only("cerebellum")
    box = studio.image("Yellow")
    studio.panel.ui.bothWaysButton.click()
    studio.until(lambda: studio.panel.logic.progress()[1] and studio.panel.logic.progress()[1] > 0.3)
    studio.panel.ui.cancelButton.click()
    studio.wait()
    save(stacked([[studio.panel_image("volumeGroup", "discardButton"), studio.image("Green")]], PANEL_GREY),
         folder / "preview.png")
    studio.press("discard", "bothWays")
    save(stacked([[box, studio.image("3D")], [studio.image("Green"), studio.image("Red")]]), folder / "propagate.png")


def objects(studio: Studio, folder: Path) -> None:
    """A third segment beside the two, and the whole window."""
    studio.press("nextObject")
    studio.look((0, -30, 8))
    studio.click("box", "Yellow", (0, -45, -6), (0, 38, 32))
    studio.click("excludePoint", "Yellow", (0, -8, 6))
    studio.rename("corpus callosum", GREEN)
    studio.only()
    views = stacked([[studio.image("Red"), studio.image("3D")], [studio.image("Yellow"), studio.image("Green")]])
    save(stacked([[studio.panel_image(), views]], PANEL_GREY), folder / "panel.png")


def everything(studio: Studio, folder: Path) -> None:
    """Candidates of a slice, and one of them picked."""
    studio.look((0, -20, 0), *HINDBRAIN)
    studio.press("nextObject")
    studio.only("nothing")
    studio.press("everything")
    before = studio.image("Yellow")
    studio.click("pick", "Yellow", (0, -26, -30))
    studio.press("discard")
    save(stacked([[before, studio.image("Yellow")]]), folder / "everything.png")


def auto(folder: Path) -> None:
    """Auto on one slice of the phantom, and the sections for weights and experts."""
    with tempfile.TemporaryDirectory() as made:
        studio = Studio(write_ultrasound(Path(made) / "ultrasound.nrrd"), "Ultrasound", (360, 300))
    studio.press("auto")
    save(stacked([[studio.panel_image("autoSectionButton", "autoSectionButton"), studio.image("Red")]], PANEL_GREY),
         folder / "auto.png")
    studio.panel.ui.modelButton.collapsed = False
    save(studio.panel_image("modelButton", "modelButton"), folder / "model.png")
    studio.panel.ui.modelButton.collapsed = True
    studio.panel.ui.expertsButton.collapsed = False
    studio.press("addSegment")
    studio.look(studio.middle)
    studio.click("addPoint", "Red", studio.middle)
    save(studio.panel_image("expertsButton", "expertsButton"), folder / "experts.png")
    studio.close()


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "Resources" / "Screenshots",
                        help="folder for the pictures")
    folder = parser.parse_args().output
    studio = Studio(package_data()[0], "Head MR", (360, 340))
    for part in (first_clicks, exclude, boxes, propagate, objects, everything):
        part(studio, folder)
    studio.close()
    auto(folder)


if __name__ == "__main__":
    main()
