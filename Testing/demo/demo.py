"""The whole way, from a volume to segments, on a real Slicer scene, with pictures of real slice views.

    make demo
    make demo VOLUME=path/to/volume.nii.gz LABEL=path/to/label.nii.gz

Without VOLUME the T1-weighted head and the tissue maps that come with the nilearn package are used.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from Testing.slicer_stub import install, start_scene

install()

import slicer  # noqa: E402
from SegMoTEModule.logic import SegMoTELogic  # noqa: E402

from SegMoTELib.evaluation.clicks import corrective_click, tight_box  # noqa: E402
from SegMoTELib.imaging.files import read_volume  # noqa: E402
from SegMoTELib.imaging.planes import SlicePlane  # noqa: E402
from SegMoTELib.imaging.volume import Volume  # noqa: E402
from SegMoTELib.mrml.segments import segment_mask  # noqa: E402
from SegMoTELib.mrml.volumes import plane_of, stack_along, view_along, volume_of  # noqa: E402
from Testing.demo.views import SliceView, ThreeDView  # noqa: E402
from Testing.slicer_stub.application import volume_node  # noqa: E402

CORRECTIONS = 3  # clicks after the box
TILT = np.deg2rad(25)
COLORS = {"axial": (0.95, 0.75, 0.35), "sagittal": (0.45, 0.8, 0.55), "oblique": (0.5, 0.7, 0.95)}
CONTEXT, SMALLEST = 1.8, 70.0  # size of a picture, in sizes of what is shown, and at least, millimetres


def largest(labels: np.ndarray) -> np.ndarray:
    """Where the label with the most voxels is; 0 is background."""
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def package_data() -> tuple[Path, np.ndarray]:
    """The head of the nilearn package and its brain, (k, j, i) bool: grey and white matter with what they enclose."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    name = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    tissue = [read_volume(folder / name.format(kind)).array.astype(int) for kind in ("gm", "wm")]
    brain = largest(ndimage.label(ndimage.binary_opening(sum(tissue) >= 128, iterations=2))[0])
    return folder / name.format("t1"), np.stack([ndimage.binary_fill_holes(part) for part in brain])


def views(node: object, center: np.ndarray) -> dict[str, np.ndarray]:
    """Axial, sagittal and an oblique slice-to-RAS matrix through a point."""
    found = {name: view_along(node, name) for name in ("axial", "sagittal")}
    turn = np.eye(4)
    turn[:3, :3] = [[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]
    found["oblique"] = view_along(node, "coronal") @ turn
    for matrix in found.values():
        matrix[:3, 3] = center
    return found


class Demo:
    """One volume, its known label and the segments made of it."""

    def __init__(self, path: Path, truth: np.ndarray | None, folder: Path) -> None:
        self.folder, self.truth = folder, truth
        self.scene = start_scene()
        self.node = volume_node(path)
        self.logic = SegMoTELogic()
        self.logic.mapping = "percentiles"
        self.logic.onStatus = lambda text, error: print(f"  {text}")
        self.segmentation = self.logic.addSegmentation(self.node)
        self.volume = volume_of(self.node)
        if truth is None:
            values = ndimage.gaussian_filter(self.volume.array.astype(np.float32), 1)
            self.guide = largest(ndimage.label(values > np.percentile(values, 75))[0])
        else:
            self.guide = truth
        deepest = ndimage.distance_transform_edt(self.guide).argmax()
        self.center = self.volume.to_ras(np.array(np.unravel_index(deepest, self.guide.shape))[::-1])

    def run(self) -> None:
        """Segment in three views, propagate, Auto through the volume; save everything."""
        self.red = SliceView(slicer.util.getNode("Red"))
        segments = {}
        for name, matrix in views(self.node, self.center).items():
            segments[name] = segment = self.logic.addSegment(self.segmentation, self.node, f"{name} view", COLORS[name])
            self.prompt(name, matrix, segment)
            target = self.logic.target(self.node, self.segmentation, segment)
            self.logic.showPromptsOf(target, lambda: None)
            self.picture(segment, matrix, name)
        self.propagate(segments["axial"])
        self.auto()
        self.save()

    def auto(self) -> None:
        """The first target that the model offers, through the volume, with what its result is worth here."""
        name, modality = self.logic.targets()[0]
        offered = ", ".join(f"{one} ({kind})" for one, kind in self.logic.targets())
        print(f"Auto: the model finds {offered}, and nothing else. {name}, through the volume:")
        started = time.perf_counter()
        segment = self.logic.autoSegment(self.node, self.segmentation, name, wholeVolume=True)
        print(f"  {time.perf_counter() - started:.1f} s. Only on {modality} images does its result mean anything; "
              "elsewhere this shows how Auto runs.")
        self.pictures_of(segment, "auto", f"Auto: {name}. Trained on {modality}:\nelsewhere its result means nothing.")

    def propagate(self, segment: str) -> None:
        """From the axial slice through the volume; then a box on the worst slice, and once more."""
        stack = stack_along(view_along(self.node, "axial"), self.node)
        for attempt in ("from one slice", "after a correction"):
            started = time.perf_counter()
            self.logic.propagate(self.node, self.segmentation, segment)
            found = self.found(segment)
            print(f"propagated {attempt}: {np.count_nonzero(found.any(axis=(1, 2)))} slices in "
                  f"{time.perf_counter() - started:.1f} s" + ("" if self.truth is None else
                  f", 3D Dice {2 * (found & self.truth).sum() / (found.sum() + self.truth.sum()):.3f}"))
            if attempt == "from one slice":
                self.pictures_of(segment, "propagated")
                errors = [np.count_nonzero(self.on_plane(found ^ self.guide, plane)) for plane in stack.planes]
                worst = stack.planes[int(np.argmax(errors))]
                known = self.on_plane(self.guide, worst)
                if not known.any():
                    return
                x0, y0, x1, y1 = tight_box(known)
                self.logic.segmentInBox(self.node, self.segmentation, segment,
                                        worst.to_ras(np.array([[x0, y0], [x1, y1]])))
        self.pictures_of(segment, "corrected")

    def picture(self, segment: str, matrix: np.ndarray, name: str, caption: str = "") -> None:
        """A slice view with this segment alone."""
        for other in self.segmentation.GetSegmentation().GetSegmentIDs():
            self.segmentation.GetDisplayNode().SetSegmentVisibility(other, other == segment)
        self.red.show(self.node, matrix, self.size_of(self.guide | self.found(segment)))
        self.red.save(self.folder / f"{name}.png", caption)

    def size_of(self, mask: np.ndarray) -> float:
        """Millimetres for a picture that shows a mask and what is around it."""
        voxels = np.argwhere(mask)[:, ::-1]
        return max(SMALLEST, CONTEXT * float(((np.ptp(voxels, axis=0) + 1) * self.volume.spacing).max()))

    def pictures_of(self, segment: str, name: str, caption: str = "") -> None:
        """The segment on slices through its middle, all three planes, and its surface; without its prompts."""
        found = self.found(segment)
        if not found.any():
            return
        for node in slicer.util.getNodesByClass("vtkMRMLMarkupsNode"):
            node.SetDisplayVisibility(False)
        center = self.volume.to_ras(np.array(ndimage.center_of_mass(found))[::-1])
        for orientation in ("axial", "sagittal", "coronal"):
            matrix = view_along(self.node, orientation)
            matrix[:3, 3] = center
            self.picture(segment, matrix, f"{name}-{orientation}", caption)
        self.segmentation.RemoveClosedSurfaceRepresentation()
        self.segmentation.CreateClosedSurfaceRepresentation()
        ThreeDView().save(self.folder / f"{name}-3d.png", caption)

    def prompt(self, name: str, matrix: np.ndarray, segment: str) -> None:
        """A box around the structure, then clicks where the mask is wrong."""
        plane = plane_of(matrix, self.node)
        guide = self.on_plane(self.guide, plane)
        x0, y0, x1, y1 = tight_box(guide)
        self.logic.segmentInBox(self.node, self.segmentation, segment, plane.to_ras(np.array([[x0, y0], [x1, y1]])),
                                matrix)
        print(f"{name}: box{self.score(segment, plane)}")
        self.report_seconds()
        taken = ()
        for _ in range(CORRECTIONS):
            click = corrective_click(guide, self.on_plane(self.found(segment), plane), taken)
            if click is None:
                break
            taken += (click,)
            point = [plane.to_ras(np.array([click.x, click.y], float))]
            positive = bool(click.label)
            self.logic.segmentAtPoints(self.node, self.segmentation, segment, point if positive else [],
                                       [] if positive else point, matrix)
            print(f"{name}: {'+' if positive else '-'} click{self.score(segment, plane)}")
            self.report_seconds()

    def found(self, segment: str) -> np.ndarray:
        """(k, j, i) bool."""
        i, j, k = self.volume.shape
        return segment_mask(self.segmentation, segment, self.node, (0, i - 1, 0, j - 1, 0, k - 1))

    def on_plane(self, mask: np.ndarray, plane: SlicePlane) -> np.ndarray:
        """(rows, columns) bool of a mask of the volume."""
        return plane.extract(Volume(mask.astype(np.float32), self.volume.ijk_to_ras)) >= 0.5

    def score(self, segment: str, plane: SlicePlane) -> str:
        """Dice on the voxels that the plane passes through, where the label is known."""
        if self.truth is None:
            return ""
        everything = plane.insert(np.ones(plane.shape, bool), self.volume)
        claimed = np.zeros_like(self.truth)
        claimed[everything.slices] = everything.claimed
        found, known = self.found(segment) & claimed, self.truth & claimed
        return f", Dice {2 * (found & known).sum() / (found.sum() + known.sum()):.3f}"

    def report_seconds(self) -> None:
        """Time of every stage of the latest answer."""
        print("  " + ", ".join(f"{stage} {value * 1000:.0f} ms" for stage, value in self.logic.seconds.items()))

    def save(self) -> None:
        """3D picture, segmentation and scene."""
        for one in self.segmentation.GetSegmentation().GetSegmentIDs():
            self.segmentation.GetDisplayNode().SetSegmentVisibility(one, True)
        self.segmentation.CreateClosedSurfaceRepresentation()
        ThreeDView().save(self.folder / "3d.png")
        for node, kind, name in ((self.segmentation, "vtkMRMLSegmentationStorageNode", "segmentation.seg.nrrd"),
                                 (self.node, "vtkMRMLVolumeArchetypeStorageNode", "volume.nrrd")):
            storage = self.scene.AddNewNodeByClass(kind)
            storage.SetFileName(str(self.folder / name))
            node.SetAndObserveStorageNodeID(storage.GetID())
            if not storage.WriteData(node):
                raise SystemExit(f"{name} could not be written")
        self.scene.SetRootDirectory(str(self.folder))
        self.scene.Commit(str(self.folder / "scene.mrml"))
        print(f"Saved to {self.folder}: " + ", ".join(sorted(path.name for path in self.folder.iterdir())))
        self.logic.close()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=Path, help="volume file; default: the package's head")
    parser.add_argument("--label", type=Path, help="its label file; the largest piece of its largest label is taken")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder for the results")
    arguments = parser.parse_args()
    if arguments.volume is None:
        path, truth = package_data()
    else:
        path, truth = arguments.volume, None
        if arguments.label is not None:
            # One object: lesions are scattered, and a box around all of them asks for nothing in particular.
            truth = largest(ndimage.label(largest(read_volume(arguments.label).array.astype(int)))[0])
    arguments.output.mkdir(parents=True, exist_ok=True)
    Demo(path, truth, arguments.output.resolve()).run()


if __name__ == "__main__":
    main()
