"""Propagate, Auto and everything on volumes that break naive code: each works, or ends in one clear sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

slicer = pytest.importorskip("slicer")

from SegMoTELib.cli import group  # noqa: E402
from SegMoTELib.errors import PromptError, SegMoTEError, VolumeError  # noqa: E402
from SegMoTELib.imaging.planes import SlicePlane  # noqa: E402
from SegMoTELib.interaction.predictor import Predictor  # noqa: E402
from SegMoTELib.interaction.session import Session  # noqa: E402
from SegMoTELib.mrml.runs import VolumeRuns  # noqa: E402
from SegMoTELib.mrml.segmenter import SceneSegmenter  # noqa: E402
from SegMoTELib.mrml.segments import prepare_segmentation, segment_mask  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.mrml.volumes import stack_along, view_along, volume_of, world_to_volume  # noqa: E402
from SegMoTELib.network import load_checkpoint  # noqa: E402
from SegMoTELib.zoo import resolve_model  # noqa: E402

SHAPE, CENTER, RADII = (20, 64, 64), (10, 30, 28), (7, 15, 13)  # k, j, i
PLAIN = np.diag([-1.0, -1, 2, 1])


def turned(degrees: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) geometry turned about all three axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about = ([[1, 0, 0], [0, c, -s], [0, s, c]], [[c, 0, s], [0, 1, 0], [-s, 0, c]], [[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.multi_dot(about) * spacing
    matrix[:3, 3] = 40, -25, 300
    return matrix


@dataclass(frozen=True)
class Kind:
    """A volume with one ellipsoid: geometry, orientation of its slices, and what else is odd about it."""

    matrix: np.ndarray
    shape: tuple[int, int, int] = SHAPE
    center: tuple[int, int, int] = CENTER
    radii: tuple[float, float, float] = RADII
    orientation: str = "axial"
    parent: np.ndarray | None = None
    odd: str = ""
    thin: bool = False  # slices of a few voxels' width, on which everything finds nothing

    @property
    def truth(self) -> np.ndarray:
        """(k, j, i) bool."""
        grid = np.indices(self.shape)
        return sum(((grid[axis] - self.center[axis]) / self.radii[axis]) ** 2 for axis in range(3)) <= 1

    def array(self) -> np.ndarray:
        """Voxels."""
        values = 100 + 80 * self.truth + np.random.default_rng(0).normal(0, 6, self.shape)
        if self.odd == "rgb":
            return np.repeat(np.clip(values, 0, 255)[..., None], 3, axis=-1).astype(np.uint8)
        if self.odd == "no numbers":
            values = values.astype(np.float32)
            places = np.random.default_rng(1).random(self.shape)
            values[places < 0.02], values[places > 0.99], values[0] = np.nan, np.inf, -np.inf
            return values
        return values.astype(np.int16)


KINDS = {
    "slices of 0.3 x 0.3 x 8 mm": Kind(np.diag([-0.3, -0.3, 8, 1]), (7, 96, 96), (3, 44, 46), (2.6, 22, 19)),
    "across slices of 8 mm": Kind(np.diag([-0.3, -0.3, 8, 1]), (7, 96, 96), (3, 44, 46), (2.6, 22, 19), "coronal",
                                   thin=True),
    "a single slice": Kind(PLAIN, (1, 64, 64), (0, 30, 28)),
    "left-handed": Kind(np.diag([1.0, 1, -2, 1])),
    "oblique": Kind(turned(20, (1, 1, 2))),
    "oblique and left-handed": Kind(turned(20, (1, 1, -2))),
    "under a linear transform": Kind(PLAIN, parent=turned(35, (1, 1, 1))),
    "under a mirror that scales": Kind(PLAIN, parent=np.diag([-1.5, 1.5, 1.5, 1])),
    "NaN and infinite voxels": Kind(PLAIN, odd="no numbers"),
    "colour": Kind(PLAIN, odd="rgb"),
    "one voxel wide, along its width": Kind(PLAIN, (20, 64, 1), (10, 30, 0), (7, 15, 1), "sagittal"),
    "one voxel wide, across": Kind(PLAIN, (20, 64, 1), (10, 30, 0), (7, 15, 1), thin=True),
}


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor(load_checkpoint(resolve_model("segmote-tiny")), "cpu")
    predictor.focus = False
    return predictor


@pytest.fixture
def told():
    return []


@pytest.fixture
def segmenter(scene, predictor, told):
    segmenter = SceneSegmenter(scene, lambda text, error: told.append((text, error)))
    segmenter.predictor, segmenter.mapping = predictor, "percentiles"
    yield segmenter
    segmenter.close()


@pytest.fixture
def runs(segmenter):
    return VolumeRuns(segmenter)


@pytest.fixture
def load(scene, move):
    """Function: voxels, geometry, parent transform -> an empty segment on a new volume."""
    def make(array, matrix=PLAIN, parent=None) -> Target:
        node = scene.AddNewNodeByClass(f"vtkMRML{'Vector' if array.ndim == 4 else 'Scalar'}VolumeNode", "scan")
        slicer.util.updateVolumeFromArray(node, array)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
        if parent is not None:
            move(node, parent)
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
        prepare_segmentation(segmentation, node)
        return Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("", "object"))
    return make


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def target(load, kind):
    return load(kind.array(), kind.matrix, kind.parent)


def world(node, k, j, i) -> np.ndarray:
    to_world = np.linalg.inv(world_to_volume(node))
    return to_world[:3, :3] @ volume_of(node).to_ras(np.array([i, j, k], float)) + to_world[:3, 3]


def box(segmenter, target, kind):
    """A box around the ellipsoid on the slice through its middle, as a user draws it."""
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[kind.orientation]
    low, high = (np.array(kind.center, float) + sign * (np.array(kind.radii) + 0.9) for sign in (-1, 1))
    low[axis] = high[axis] = kind.center[axis]
    segmenter.prompts(target.segmentation, target.segment_id).add_box(
        target.volume, [world(target.volume, *low), world(target.volume, *high)],
        view_along(target.volume, kind.orientation))
    segmenter.update(target)
    segmenter.jobs.finish()


def stack_of(target, kind):
    return stack_along(view_along(target.volume, kind.orientation), target.volume)


def mask(target) -> np.ndarray:
    i, j, k = volume_of(target.volume).shape
    return segment_mask(target.segmentation, target.segment_id, target.volume, (0, i - 1, 0, j - 1, 0, k - 1))


def dice(one, other) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_a_box_is_propagated_through_the_object_and_undone(segmenter, runs, target, kind, told):
    box(segmenter, target, kind)
    prompted, stack = mask(target), stack_of(target, kind)
    assert prompted.any(), told
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert not any(error for _, error in told), told
    assert dice(mask(target), kind.truth) > 0.8
    assert segmenter.undo()
    np.testing.assert_array_equal(mask(target), prompted)


def test_auto_puts_what_it_finds_where_it_is(segmenter, runs, target, kind, predictor, told, monkeypatch):
    def bright(session, plane, name):
        values = session.image_on(plane).mean(axis=-1)
        return np.where(values > 128, 5.0, -5.0).astype(np.float32), 0.9

    monkeypatch.setattr(Session, "auto_logits", bright)
    stack = stack_of(target, kind)
    runs.auto(target, predictor.auto_targets[0].name, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert not any(error for _, error in told), told
    assert dice(mask(target), kind.truth) > 0.95
    assert segmenter.undo()
    assert not mask(target).any()


def test_the_models_own_auto_ends_in_a_sentence(segmenter, runs, target, kind, predictor, told):
    stack, name = stack_of(target, kind), predictor.auto_targets[0].name
    middle = len(stack) // 2
    runs.auto(target, name, stack, max(0, middle - 2), min(len(stack) - 1, middle + 2))
    segmenter.jobs.finish()
    assert len(told) == 1
    assert told[0][0].startswith(f"{name}: ")
    assert not told[0][1]


def test_a_candidate_of_everything_becomes_the_segment(segmenter, runs, target, kind, told):
    volume = volume_of(target.volume)
    plane = SlicePlane.through(volume, kind.orientation, volume.to_ras(np.array(kind.center[::-1], float)))
    runs.everything(target.volume, plane)
    segmenter.jobs.finish()
    if kind.thin:
        assert told == [("Nothing stands out on this slice; try a point or a box.", False)]
        return
    assert runs.pick(target, world(target.volume, *kind.center)), told
    patch = plane.insert(np.ones(plane.shape, bool), volume, solid=True)
    on_plane = np.zeros(kind.shape, bool)
    on_plane[patch.slices] = patch.claimed
    found = mask(target)
    assert not found[~on_plane].any()
    assert dice(found, kind.truth & on_plane) > 0.9
    assert segmenter.undo()
    assert not mask(target).any()


def everything_on(runs, target):
    volume = volume_of(target.volume)
    runs.everything(target.volume, SlicePlane.through(volume, "axial", volume.to_ras((np.array(volume.shape) - 1) / 2)))


@pytest.mark.parametrize("value", [0, -1000])
def test_a_volume_of_one_value_is_said_to_hold_nothing(segmenter, runs, load, predictor, told, value):
    target = load(np.full(SHAPE, value, np.int16))
    everything_on(runs, target)
    segmenter.jobs.finish()
    assert told.pop() == ("Nothing stands out on this slice; try a point or a box.", False)
    stack, name = stack_along(view_along(target.volume, "axial"), target.volume), predictor.auto_targets[0].name
    runs.auto(target, name, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    print(told)
    box(segmenter, target, Kind(PLAIN))
    print(told, mask(target).sum())
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    print(told, mask(target).sum())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_without_a_number_is_refused_by_all_three(segmenter, runs, load, predictor, told, value):
    target = load(np.full(SHAPE, value, np.float32))
    stack = stack_along(view_along(target.volume, "axial"), target.volume)
    for ask in (lambda: box(segmenter, target, Kind(PLAIN)), lambda: everything_on(runs, target),
                lambda: runs.auto(target, predictor.auto_targets[0].name, stack, 0, 19)):
        with pytest.raises(VolumeError, match="no finite value"):
            ask()
    assert not mask(target).any()


def test_a_slice_without_a_number_ends_the_object_there(segmenter, runs, load, told):
    array = Kind(PLAIN).array().astype(np.float32)
    array[14] = np.nan
    target = load(array)
    box(segmenter, target, Kind(PLAIN))
    stack = stack_along(view_along(target.volume, "axial"), target.volume)
    runs.propagate(target, stack, 0, len(stack) - 1)
    segmenter.jobs.finish()
    assert not mask(target)[14:].any(), told
    assert mask(target)[5].any()


@pytest.mark.parametrize("components", [2, 4, 5])
def test_several_frames_are_refused_with_words(segmenter, runs, load, predictor, scene, components):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "a cine loop")
    slicer.util.updateVolumeFromArray(node, np.zeros((*SHAPE, components), np.int16))
    with pytest.raises(VolumeError, match="'a cine loop' has the shape"):
        runs.everything(node, SlicePlane(np.eye(4), (4, 4)))


@pytest.mark.parametrize("command", ["auto", "propagate", "batch"])
def test_four_dimensions_are_refused_by_every_command(tmp_path, predictor, command):
    path = tmp_path / "in" / "loop.nii.gz"
    path.parent.mkdir()
    sitk.WriteImage(sitk.JoinSeries([sitk.Image(8, 8, 4, sitk.sitkInt16)] * 3), str(path))
    arguments = {"auto": [path, "--target", predictor.auto_targets[0].name, "-o", tmp_path / "out.seg.nrrd"],
                 "propagate": [path, "--point=1,1,1", "-o", tmp_path / "out.seg.nrrd"],
                 "batch": [path.parent, "--auto", predictor.auto_targets[0].name]}[command]
    result = CliRunner().invoke(group, [command, *map(str, arguments)])
    assert isinstance(result.exception, SegMoTEError), result.output
    assert "loop.nii.gz: has 4 dimensions; save one frame as a 3D volume." in str(result.exception)
    assert not list(tmp_path.rglob("*.seg.nrrd"))


def test_prompts_outside_of_the_volume_are_refused_and_change_nothing(segmenter, runs, target, kind, told):
    outside = np.array(kind.center, float) + np.array(kind.shape) * 3
    view = view_along(target.volume, kind.orientation)
    prompts = segmenter.prompts(target.segmentation, target.segment_id)
    prompts.add_point(target.volume, world(target.volume, *outside), True, view)
    segmenter.update(target)
    segmenter.jobs.finish()
    assert told == [("A prompt lies outside the volume; move it onto the image.", True)]
    with pytest.raises(VolumeError, match="volume"):
        prompts.add_box(target.volume, [world(target.volume, *(outside + corner)) for corner in (-3, 3)], view)
    stack = stack_of(target, kind)
    with pytest.raises(PromptError, match="Nothing to propagate"):
        runs.propagate(target, stack, 0, len(stack) - 1)
    assert not mask(target).any()
    assert not segmenter.undo()


@pytest.mark.parametrize("span", [(-5, 19), (0, 20), (12, 3)])
def test_a_range_beyond_the_volume_is_refused(segmenter, runs, load, predictor, told, span):
    target = load(Kind(PLAIN).array())
    box(segmenter, target, Kind(PLAIN))
    before, stack = mask(target), stack_along(view_along(target.volume, "axial"), target.volume)
    for ask in (lambda: runs.propagate(target, stack, *span),
                lambda: runs.auto(target, predictor.auto_targets[0].name, stack, *span)):
        told.clear()
        try:
            ask()
            segmenter.jobs.finish()
        except PromptError as error:
            told.append((str(error), True))
        assert [one for one in told if one[1] and "range must" in one[0]] == told
        assert len(told) == 1
    np.testing.assert_array_equal(mask(target), before)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.parent is None])
def test_the_commands_do_the_same_with_files(tmp_path, name, predictor):
    kind = KINDS[name]
    path, out = tmp_path / "scan.nrrd", tmp_path / "out.seg.nrrd"
    lps = np.diag([-1.0, -1, 1, 1]) @ kind.matrix
    image = sitk.GetImageFromArray(kind.array(), isVector=kind.odd == "rgb")
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[kind.orientation]
    low, high = (np.array(kind.center, float) + sign * (np.array(kind.radii) + 0.9) for sign in (-1, 1))
    low[axis] = high[axis] = kind.center[axis]
    corners = np.concatenate([kind.matrix[:3, :3] @ one[::-1] + kind.matrix[:3, 3] for one in (low, high)])
    result = CliRunner().invoke(group, ["propagate", str(path), f"--box={','.join(map(str, corners))}", "--plane",
                                        kind.orientation, "-o", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert dice(sitk.GetArrayFromImage(sitk.ReadImage(str(out))) > 0, kind.truth) > 0.8
    result = CliRunner().invoke(group, ["auto", str(path), "--target", predictor.auto_targets[0].name, "-o", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out))).shape == kind.shape
