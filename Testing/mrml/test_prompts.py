"""Prompts as markups in a real scene."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from SegMoTELib.errors import PromptError, VolumeError  # noqa: E402
from SegMoTELib.imaging.planes import SlicePlane  # noqa: E402
from SegMoTELib.mrml.markups import NEGATIVE, POSITIVE, has_prompts  # noqa: E402
from SegMoTELib.mrml.prompts import PromptSet  # noqa: E402
from SegMoTELib.mrml.target import Target  # noqa: E402
from SegMoTELib.mrml.volumes import volume_of, world_to_volume  # noqa: E402

AXIAL = np.column_stack([(-1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)])
SAGITTAL = np.column_stack([(0, -1.0, 0), (0, 0, 1.0), (-1.0, 0, 0)])
TILTED = AXIAL @ np.array([[1, 0, 0], [0, np.cos(0.4), -np.sin(0.4)], [0, np.sin(0.4), np.cos(0.4)]])


@pytest.fixture
def prompts(scene, volume, segmentation):
    """The prompts of a new segment."""
    return PromptSet(scene, Target(volume, segmentation,
                                   segmentation.GetSegmentation().AddEmptySegment("Segment_1", "kidney")))


def world(volume, ijk):
    """World position of a voxel."""
    own = volume_of(volume).to_ras(np.array(ijk, float))
    to_world = np.linalg.inv(world_to_volume(volume))
    return to_world[:3, :3] @ own + to_world[:3, 3]


def grid_view(volume, orientation="axial"):
    """Columns right, up and normal of a view along the voxel grid, world RAS."""
    own = volume_of(volume)
    plane = SlicePlane.through(own, orientation, own.to_ras((np.array(own.shape) - 1) / 2))
    axes = plane.pixel_to_ras[:3, :3] / np.linalg.norm(plane.pixel_to_ras[:3, :3], axis=0) * (1, -1, 1)
    return np.linalg.inv(world_to_volume(volume))[:3, :3] @ axes


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal"])
def test_points_of_one_slice_come_back_together_in_the_volumes_own_millimetres(prompts, volume, move, orientation):
    move(volume, [[0, -1, 0, 30], [1, 0, 0, -8], [0, 0, 1, 4], [0, 0, 0, 1]])
    view = grid_view(volume, orientation)
    axis = {"axial": 2, "sagittal": 0, "coronal": 1}[orientation]
    first, second = [8, 8, 5], [12, 9, 6]
    second[axis] = first[axis]
    prompts.add_point(world(volume, first), True, view)
    prompts.add_point(world(volume, second), False, view)
    (found,), problems = prompts.on_planes()
    assert problems == []
    np.testing.assert_allclose(found.positives, [volume_of(volume).to_ras(np.array(first, float))], atol=1e-6)
    np.testing.assert_allclose(found.negatives, [volume_of(volume).to_ras(np.array(second, float))], atol=1e-6)
    np.testing.assert_allclose(found.plane.distance(found.positives), 0, atol=1e-4)
    assert abs(found.plane.normal @ volume_of(volume).directions[:, axis]) > 0.999


def test_points_on_several_slices_and_views_are_kept_apart(prompts, volume):
    for ijk, view in (((8, 8, 5), grid_view(volume)), ((9, 9, 6), grid_view(volume)),
                      ((9, 9, 6), grid_view(volume, "sagittal")), ((10, 8, 5), grid_view(volume)),
                      ((9, 10, 6), TILTED)):
        prompts.add_point(world(volume, ijk), True, view)
    found, _ = prompts.on_planes()
    assert sorted(len(plane.positives) for plane in found) == [1, 1, 1, 2]


def test_points_dragged_within_an_oblique_view_stay_on_its_plane(prompts, volume):
    start = world(volume, (10, 10, 6))
    prompts.add_point(start, True, TILTED)
    prompts.add_point(start + TILTED @ (2.0, 1.5, 0), False, TILTED)
    (found,), _ = prompts.on_planes()
    assert abs(found.plane.normal @ TILTED[:, 2]) > 1 - 1e-6
    assert len(found.positives) == len(found.negatives) == 1


@pytest.mark.parametrize("view", [AXIAL, SAGITTAL, TILTED], ids=["axial", "sagittal", "tilted"])
def test_a_box_comes_back_as_the_corners_it_was_drawn_with(prompts, volume, view):
    center = world(volume, (10, 10, 6))
    corners = np.array([center + view @ (-2, -1.5, 0), center + view @ (2, 1.5, 0)])
    prompts.add_box(corners, view)
    (found,), _ = prompts.on_planes()
    in_view = np.sort((found.boxes[0] - center) @ view, axis=0)
    np.testing.assert_allclose(in_view[:, :2], [[-2, -1.5], [2, 1.5]], atol=1e-6)


def test_a_box_drawn_anew_replaces_the_first_and_one_on_another_plane_does_not(prompts, volume):
    view = grid_view(volume)
    for k, size in ((5, 2), (5, 3), (7, 2)):
        center = world(volume, (10, 10, k))
        prompts.add_box([center - view @ (size, size, 0), center + view @ (size, size, 0)], view)
    found, _ = prompts.on_planes()
    assert len(prompts.boxes()) == len(found) == 2


@pytest.mark.parametrize("view", [AXIAL, SAGITTAL, TILTED], ids=["axial", "sagittal", "tilted"])
@pytest.mark.parametrize(("offset", "half", "left"), [
    ((5, 0, 0), 2, 2), ((1, 1, 0), 2, 1), ((3, 0, 0), 2, 2), ((0.5, 0.5, 0), 1, 2), ((0, 0, 0), 2, 1)],
    ids=["elsewhere", "shifted", "overlapping", "inside", "equal"])
def test_a_box_beside_another_on_a_plane_adds_a_piece(prompts, volume, view, offset, half, left):
    center = world(volume, (10, 10, 6))
    prompts.add_box([center - view @ (2, 2, 0), center + view @ (2, 2, 0)], view)
    middle = center + view @ offset
    added = [middle - view @ (half, half, 0), middle + view @ (half, half, 0)]
    prompts.add_box(added, view)
    (found,), problems = prompts.on_planes()
    assert (len(found.boxes), len(found.content()), problems) == (left, left, [])
    np.testing.assert_allclose(np.sort((found.boxes[-1] - center) @ view, axis=0),
                               np.sort((np.array(added) - center) @ view, axis=0), atol=1e-5)


def test_a_point_outside_the_volume_is_told_and_the_others_are_used(prompts, volume):
    prompts.add_point(world(volume, (10, 10, 6)), True, AXIAL)
    prompts.add_point(world(volume, (500, 10, 6)), True, AXIAL)
    found, problems = prompts.on_planes()
    assert len(found) == 1
    assert problems == ["A prompt lies outside the volume; move it onto the image."]


def test_points_without_a_position_do_not_count(prompts, volume):
    node = prompts.node(POSITIVE)
    node.AddControlPoint(world(volume, (10, 10, 6)).tolist())
    node.UnsetNthControlPointPosition(0)
    assert not has_prompts(prompts.scene, prompts.target)
    assert prompts.on_planes() == ([], [])


@pytest.mark.parametrize("corners", [[(0, 0, 0), (0, 0, 0)], [(0, 0, 0), (5, 0, 0)], [(np.nan, 0, 0), (1, 1, 0)],
                                     [(0, 0, 0)]])
def test_a_box_that_spans_nothing_is_refused(prompts, volume, corners):
    with pytest.raises(PromptError):
        prompts.add_box(corners, AXIAL)
    assert prompts.boxes() == []


def test_a_position_that_is_no_number_is_refused(prompts, volume):
    with pytest.raises(PromptError, match="finite"):
        prompts.add_point((np.nan, 0, 0), True, AXIAL)


def test_a_bent_volume_is_refused(prompts, volume, bend):
    bend(volume)
    with pytest.raises(VolumeError, match="non-linear"):
        prompts.add_point((0, 0, 0), True, AXIAL)


def test_a_snapshot_brings_every_prompt_back(prompts, volume):
    view = grid_view(volume)
    center = world(volume, (10, 10, 6))
    prompts.add_point(center, True, view)
    prompts.add_point(world(volume, (10, 10, 3)), False, TILTED)
    prompts.add_box([center - view @ (2, 2, 0), center + view @ (2, 2, 0)], view)
    before = {plane.content() for plane in prompts.on_planes()[0]}
    snapshot = prompts.snapshot()
    prompts.clear()
    assert not has_prompts(prompts.scene, prompts.target)
    prompts.restore(snapshot)
    assert {plane.content() for plane in prompts.on_planes()[0]} == before


def test_the_observer_hears_of_placing_deleting_and_clearing_once_each(prompts, volume):
    heard = []
    prompts.node(POSITIVE)
    prompts.observe(lambda: heard.append(1))
    prompts.add_point(world(volume, (10, 10, 6)), True, AXIAL)
    assert len(heard) == 1
    prompts.node(POSITIVE).AddControlPoint(world(volume, (11, 10, 6)).tolist())  # as a click in a view does
    assert len(heard) == 2
    prompts.node(POSITIVE).RemoveNthControlPoint(0)
    assert len(heard) == 3
    prompts.clear()
    assert len(heard) == 4
    prompts.observe(None)
    prompts.add_point(world(volume, (10, 10, 6)), True, AXIAL)
    assert len(heard) == 4


def test_only_the_modules_own_markups_are_touched(scene, prompts, volume):
    users = [scene.AddNewNodeByClass(name) for name in ("vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode")]
    users[0].AddControlPoint([1.0, 2, 3])
    prompts.add_point(world(volume, (10, 10, 6)), True, AXIAL)
    prompts.clear()
    prompts.remove()
    assert users[0].GetNumberOfControlPoints() == 1
    assert all(node.GetScene() is scene for node in users)
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 1


def test_prompts_of_two_segments_are_two_sets(scene, segmentation, prompts, volume):
    other = PromptSet(scene, Target(volume, segmentation, segmentation.GetSegmentation().AddEmptySegment("Segment_2")))
    prompts.add_point(world(volume, (10, 10, 6)), True, AXIAL)
    other.add_point(world(volume, (10, 10, 6)), False, AXIAL)
    other.clear()
    assert len(prompts.on_planes()[0]) == 1
    assert not has_prompts(other.scene, other.target)
    assert prompts.node(POSITIVE).GetName() == "kidney points"
    assert prompts.node(NEGATIVE) is not other.node(NEGATIVE)


def test_a_point_placed_by_the_user_gets_the_orientation_of_its_view_once(prompts, volume):
    asked = []

    def view_at(position):
        asked.append(position)
        return TILTED

    place = world(volume, (10, 10, 6))
    prompts.follow()
    prompts.node(POSITIVE).AddControlPoint(place.tolist())
    prompts.orient_new(view_at)
    prompts.orient_new(view_at)
    assert len(asked) == 1
    np.testing.assert_allclose(asked[0], place, atol=1e-6)
    assert abs(prompts.on_planes()[0][0].plane.normal @ TILTED[:, 2]) > 1 - 1e-6


def test_a_box_drawn_in_a_turned_view_has_the_corners_that_were_clicked(prompts, volume):
    first, second = (world(volume, (10, 10, 6)) + TILTED @ offset for offset in ((-3.0, 1, 0), (1.0, -2, 0)))
    drawn = prompts.start_box()
    drawn.AddControlPoint(first.tolist())
    drawn.AddControlPoint(second.tolist())
    assert prompts.on_planes() == ([], [])
    prompts.finish_box(drawn, first, TILTED)
    (found,), _ = prompts.on_planes()
    in_view = np.sort((found.boxes[0] - first) @ TILTED, axis=0)
    np.testing.assert_allclose(in_view[:, :2], [[0, -3], [4, 0]], atol=1e-6)
    assert drawn.GetScene() is None
