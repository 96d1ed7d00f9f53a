"""segmote segment: from a file and millimetres to a segmentation, with the bundled model."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

from SegMoTELib.cli.propagate import command as propagate_command
from SegMoTELib.cli.segment import command
from SegMoTELib.errors import SegMoTEError

CENTER = np.array([20.0, -30.0, 12.0])  # RAS


@pytest.fixture
def volume_path(tmp_path):
    """A bright ball of 16 mm radius in a noisy, anisotropic volume with its x axis to the patient's left."""
    rng = np.random.default_rng(0)
    k, j, i = np.mgrid[:12, :96, :96]
    lps = np.stack([i * 0.9, j * 0.9, k * 4.0], axis=-1) - (np.array([95, 95, 11]) / 2 * (0.9, 0.9, 4.0))
    lps += CENTER * (-1, -1, 1)
    array = np.where(np.linalg.norm(lps - CENTER * (-1, -1, 1), axis=-1) < 16, 170, 60) + rng.normal(0, 6, k.shape)
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((0.9, 0.9, 4.0))
    image.SetOrigin(lps[0, 0, 0].tolist())
    path = tmp_path / "ball.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


def run(volume_path, *arguments):
    output = volume_path.with_name("out.seg.nrrd")
    result = CliRunner().invoke(command, [str(volume_path), "-o", str(output), *arguments], catch_exceptions=False)
    return result, output


def disk(volume_path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(volume_path))) > 115


@pytest.mark.parametrize(("plane", "box", "axis"), [
    ("axial", "2,-48,12,38,-12,12", 0), ("coronal", "2,-30,-6,38,-30,30", 1), ("sagittal", "20,-48,-6,20,-12,30", 2)])
def test_a_box_finds_the_ball_on_every_plane(volume_path, plane, box, axis):
    result, output = run(volume_path, f"--box={box}", "--plane", plane, "--name", "ball")
    assert result.exit_code == 0, result.output
    image = sitk.ReadImage(str(output))
    found = sitk.GetArrayFromImage(image) > 0
    layers = np.flatnonzero(found.any(axis=tuple(a for a in range(3) if a != axis)))
    assert len(layers) == 1
    truth = np.zeros_like(found)
    np.moveaxis(truth, axis, 0)[layers[0]] = np.moveaxis(disk(volume_path), axis, 0)[layers[0]]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    assert image.GetMetaData("Segment0_Name") == "ball"
    assert "predicted IoU" in result.output


def test_points_and_exclusions_are_millimetres(volume_path):
    result, output = run(volume_path, "--point=20,-30,12", "--exclude=45,-30,12")
    assert result.exit_code == 0, result.output
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(output))) > 0
    assert found[5:7].any()


def test_two_boxes_find_both_halves_of_the_ball(volume_path):
    one, output = run(volume_path, "--box=2,-48,12,19,-12,12")
    half = sitk.GetArrayFromImage(sitk.ReadImage(str(output))) > 0
    both, output = run(volume_path, "--box=2,-48,12,19,-12,12", "--box=21,-48,12,38,-12,12")
    assert (one.exit_code, both.exit_code) == (0, 0), (one.output, both.output)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(output))) > 0
    assert (found >= half).all()
    assert found.sum() > 1.5 * half.sum()


def test_the_volume_is_not_changed(volume_path):
    before = volume_path.read_bytes()
    run(volume_path, "--point=20,-30,12")
    assert volume_path.read_bytes() == before


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give --point, --box or --auto"),
    (["--point=20,-30,12", "--auto", "polyp"], "Choose either"),
    (["--point=20,-30,900"], "outside the volume"),
    (["--point=20,-30,12", "--exclude=20,-30,40"], "does not lie on the slice|outside the volume"),
    (["--exclude=20,-30,12"], "Only excluded points"),
    (["--box=20,-30,12,20,-30,12"], "box is empty"),
    (["--box=2,-48,12,38,-12,12", "--box=2,-48,18,38,-12,18"], "box does not lie on the slice"),
    (["--auto", "unicorn"], "has no auto target .unicorn.; it offers"),
])
def test_prompts_that_make_no_sense_are_explained(volume_path, arguments, message):
    with pytest.raises(SegMoTEError, match=message):
        run(volume_path, *arguments)
    assert not volume_path.with_name("out.seg.nrrd").exists()


@pytest.mark.parametrize("value", ["1,2", "1,2,x", "1,2,nan"])
def test_numbers_that_are_not_positions_are_refused(volume_path, value):
    result, _ = run(volume_path, f"--point={value}")
    assert result.exit_code == 2
    assert "R,A,S in millimetres" in result.output


@pytest.mark.parametrize("name", ["ball.nii.gz", "link.nii.gz"])
def test_the_volume_itself_is_never_overwritten(volume_path, name):
    before = volume_path.read_bytes()
    output = volume_path.with_name(name)
    if not output.exists():
        output.symlink_to(volume_path)
    with pytest.raises(SegMoTEError, match="is the volume itself"):
        CliRunner().invoke(command, [str(volume_path), "-o", str(output), "--point=20,-30,12"], catch_exceptions=False)
    assert volume_path.read_bytes() == before


@pytest.mark.parametrize(("name", "message"), [("taken.seg.nrrd", "is a folder"),
                                               ("ball.nii.gz/x.seg.nrrd", "no folder that you may write to")])
def test_a_place_that_cannot_be_written_is_said_before_any_work(volume_path, name, message):
    (volume_path.parent / "taken.seg.nrrd").mkdir()
    with pytest.raises(SegMoTEError, match=message):
        CliRunner().invoke(command, [str(volume_path), "-o", str(volume_path.parent / name), "--point=1,2,3"],
                           catch_exceptions=False)


def test_an_empty_name_of_a_volume_is_not_the_current_folder(volume_path, monkeypatch):
    monkeypatch.chdir(volume_path.parent)
    result = CliRunner().invoke(command, ["", "-o", "out.seg.nrrd", "--point=20,-30,12"])
    assert result.exit_code == 2
    assert "'' does not exist" in result.output


@pytest.mark.parametrize("one", [command, propagate_command])
def test_a_name_of_another_encoding_is_refused_before_any_work(volume_path, one):
    """SimpleITK cannot write it, and would say so in the words of a C++ library."""
    output = volume_path.with_name("out.seg.nrrd")
    result = CliRunner().invoke(one, [str(volume_path), "-o", str(output), "--point=20,-30,12", "--name", "caf\udce9"])
    assert result.exit_code == 2
    assert "another encoding" in result.output
    assert not output.exists()
