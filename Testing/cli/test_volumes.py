"""segmote auto, propagate, batch and cache on real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from SegMoTELib.cli import batch, group
from SegMoTELib.cli.batch import find_cases
from SegMoTELib.errors import PromptError, SegMoTEError
from SegMoTELib.interaction.embeddings import SUFFIX
from SegMoTELib.interaction.session import Session

TARGET = "fetal head"
SHAPE = (8, 48, 56)
GRID = np.indices(SHAPE)
TRUTH = sum(((GRID[axis] - center) / radius) ** 2 for axis, (center, radius) in
            enumerate(((4, 3.2), (24, 13), (26, 12)))) <= 1


@pytest.fixture
def scan(tmp_path):
    """Function: name -> a NIfTI file with one ellipsoid, 1 x 1 x 2 mm."""
    def write(name="scan.nii.gz"):
        noise = np.random.default_rng(0).normal(0, 6, SHAPE)
        image = sitk.GetImageFromArray((100 + 80 * TRUTH + noise).astype(np.int16))
        image.SetSpacing((1.0, 1.0, 2.0))
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path
    return write


def run(*arguments):
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=True)


def segment_of(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0


def test_propagate_carries_one_point_through_the_object(scan, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    result = run("propagate", scan(), "--point=-26,-24,8", "--box=-13,-10,8,-39,-38,8", "-o", out)
    assert result.exit_code == 0, result.output
    found = segment_of(out)
    assert 2 * (found & TRUTH).sum() / (found.sum() + TRUTH.sum()) > 0.8
    assert "ml on" in result.output
    assert "slice" in result.output


def test_propagate_stays_within_the_range_and_refuses_one_between_prompts(scan, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    result = run("propagate", scan(), "--box=-13,-10,8,-39,-38,8", "--until=-26,-24,6", "--until=-26,-24,10", "-o",
                 out)
    assert result.exit_code == 0, result.output
    assert set(np.flatnonzero(segment_of(out).any(axis=(1, 2)))) <= {3, 4, 5}
    result = run("propagate", scan(), "--box=-13,-10,4,-39,-38,4", "--box=-13,-10,10,-39,-38,10",
                 "--until=-26,-24,8", "-o", out)
    assert isinstance(result.exception, PromptError)


@pytest.mark.parametrize("spelled", [
    ["--point", "-26,-24,6", "-26,-24,8", "--exclude", "-5,-5,8", "-50,-40,8"],
    ["--point=-26,-24,6", "--point", "-26,-24,8", "--exclude=-5,-5,8", "--exclude", "-50,-40,8"],
    ["--point", "-2.6e1,-24,6e0", "-2.6e+01,-2.4E1,8", "--exclude", "-5,-5,8", "-5e1,-40,800e-2"]])
def test_positions_are_read_as_people_type_them(scan, tmp_path, monkeypatch, spelled):
    asked = {}
    predict = Session.predict
    monkeypatch.setattr(Session, "predict", lambda self, plane, positives, negatives, box: asked.update(
        {round(float(plane.pixel_to_ras[2, 3])): (positives.tolist(), negatives.tolist())}) or predict(
            self, plane, positives, negatives, box))
    result = run("propagate", scan(), *spelled, "-o", tmp_path / "out.seg.nrrd")
    assert result.exit_code == 0, (result.output, result.exception)
    assert asked == {6: ([[-26, -24, 6]], []), 8: ([[-26, -24, 8]], [[-5, -5, 8], [-50, -40, 8]])}


def test_boxes_on_one_slice_are_pieces_and_on_several_slices_prompts_of_their_own(scan, tmp_path, monkeypatch):
    asked = {}
    predict = Session.predict
    monkeypatch.setattr(Session, "predict", lambda self, plane, positives, negatives, box: asked.update(
        {round(float(plane.pixel_to_ras[2, 3])): len(box)}) or predict(self, plane, positives, negatives, box))
    result = run("propagate", scan(), "--box=-13,-10,8,-25,-38,8", "--box=-27,-10,8,-39,-38,8",
                 "--box=-13,-10,10,-39,-38,10", "-o", tmp_path / "out.seg.nrrd")
    assert result.exit_code == 0, (result.output, result.exception)
    assert asked == {8: 2, 10: 1}


def test_an_excluded_point_alone_on_a_slice_is_named_by_its_slice(scan, tmp_path):
    result = run("propagate", scan(), "--point", "-26,-24,6", "--exclude", "-5,-5,10", "-o", tmp_path / "o.seg.nrrd")
    assert isinstance(result.exception, PromptError)
    assert str(result.exception).startswith("Slice 3: only excluded points")  # counted from above


def test_propagate_needs_a_prompt(scan, tmp_path):
    result = run("propagate", scan(), "-o", tmp_path / "out.seg.nrrd")
    assert isinstance(result.exception, PromptError)


def test_auto_writes_a_segment_and_says_what_was_found(scan, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    result = run("auto", scan(), "--target", TARGET, "-o", out)
    assert result.exit_code == 0, result.output
    assert out.exists()
    assert f"{TARGET}" in result.output
    assert "8" in result.output


def test_auto_refuses_a_target_that_the_model_lacks(scan, tmp_path):
    result = run("auto", scan(), "--target", "unicorn", "-o", tmp_path / "out.seg.nrrd")
    assert isinstance(result.exception, PromptError)
    assert TARGET in str(result.exception)


def test_batch_goes_on_after_a_failure_and_resumes(scan, tmp_path):
    for name in ("in/a.nii.gz", "in/b.nrrd"):
        scan(name)
    (tmp_path / "in" / "broken.nii.gz").write_bytes((tmp_path / "in" / "a.nii.gz").read_bytes()[:500])
    (tmp_path / "in" / "notes.txt").write_text("not a volume", encoding="utf-8")
    arguments = ("batch", tmp_path / "in", "--auto", TARGET)
    result = run(*arguments)
    assert "2 segmented, 1 failed" in result.output
    assert isinstance(result.exception, SegMoTEError)
    assert "broken" in str(result.exception)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "in" / "segmentations").iterdir()}
    assert set(first) == {"a.seg.nrrd", "b.seg.nrrd"}
    (tmp_path / "in" / "segmentations" / "b.seg.nrrd").unlink()
    (tmp_path / "in" / "broken.nii.gz").unlink()
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 2 are done already" in result.output
    assert (tmp_path / "in" / "segmentations" / "a.seg.nrrd").stat().st_mtime_ns == first["a.seg.nrrd"]
    assert (tmp_path / "in" / "segmentations" / "b.seg.nrrd").exists()


def test_a_volume_that_ends_its_process_does_not_stop_the_others(scan, tmp_path, monkeypatch):
    """As one does that takes too much memory; here Python itself is told to end where such a volume is opened."""
    for name in ("in/a.nii.gz", "in/b.nii.gz", "in/c.nii.gz"):
        scan(name)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\nsys.addaudithook(lambda event, arguments: event == 'open' and "
        "str(arguments[0]).endswith('b.nii.gz') and os._exit(9))\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    result = run("batch", tmp_path / "in", "--auto", TARGET, "--json")
    report = json.loads(result.stdout)
    assert set(report["segmented"]) == {"a", "c"}
    assert "ended from outside" in report["failed"]["b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal for one process of several")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_neither_a_batch_that_is_ended_nor_its_processes_go_on(scan, tmp_path, how):
    first = scan("in/0.nii.gz")
    for number in range(1, 60):
        shutil.copy(first, first.with_name(f"{number}.nii.gz"))
    with subprocess.Popen([sys.executable, "-m", "SegMoTELib.cli", "batch", str(first.parent), "--auto", TARGET],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while not list(first.parent.glob("segmentations/*.seg.nrrd")):  # until its worker is at work
            assert running.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(running.pid).children()
        done = len(list(first.parent.glob("segmentations/*.seg.nrrd")))
        running.send_signal(how)
        running.wait(20)
    assert workers
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert len(list(first.parent.glob("segmentations/*.seg.nrrd"))) <= done + 1


def test_a_link_that_leads_back_and_a_macs_shadow_files_are_no_volumes(scan, tmp_path):
    scan("in/a.nii.gz")
    (tmp_path / "in" / "._a.nii.gz").write_bytes(bytes(82))
    (tmp_path / "in" / "ct").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "in" / "ct")
    (tmp_path / "in" / "ct up").symlink_to(tmp_path / "in")
    assert set(find_cases(tmp_path / "in", tmp_path / "out")) == {"a", "ct"}


def test_a_folder_that_may_not_be_read_is_named_and_hides_no_other(tmp_path, monkeypatch, capsys):
    for name in ("ct", "lost+found"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "in" / name)
    (tmp_path / "in" / "letter").write_text("locked", encoding="utf-8")
    look, is_dicom = Path.iterdir, batch.is_dicom

    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", lambda path: (forbid if path.name == "lost+found" else look)(path))
    monkeypatch.setattr(batch, "is_dicom", lambda path: (forbid if path.name == "letter" else is_dicom)(path))
    assert set(find_cases(tmp_path / "in", tmp_path / "out")) == {"ct"}
    assert "lost+found: left out, for it cannot be read (Permission denied)" in capsys.readouterr().err


def test_results_for_another_target_are_not_passed_off_as_done(scan, tmp_path):
    scan("in/a.nii.gz")
    arguments = ("batch", tmp_path / "in", "--auto")
    assert run(*arguments, TARGET).exit_code == 0
    assert "no segment" not in run(*arguments, TARGET).stderr
    result = run(*arguments, "common carotid artery")
    assert "1 of these have no segment 'common carotid artery'" in result.stderr
    assert "choose another folder with -o" in result.stderr


def test_a_cluster_of_two_workers_gives_the_same_as_one_process(scan, tmp_path):
    distributed = pytest.importorskip("distributed")
    for name in ("in/a.nii.gz", "in/b.nii.gz"):
        scan(name)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        result = run("batch", tmp_path / "in", "--auto", TARGET, "-o", tmp_path / "two", "--cluster",
                     cluster.scheduler_address)
    assert result.exit_code == 0, (result.output, result.exception)
    assert run("batch", tmp_path / "in", "--auto", TARGET, "-o", tmp_path / "one").exit_code == 0
    for name in ("a.seg.nrrd", "b.seg.nrrd"):
        np.testing.assert_array_equal(segment_of(tmp_path / "one" / name), segment_of(tmp_path / "two" / name))


def test_a_target_that_is_not_offered_is_said_before_anything_is_made(scan, tmp_path):
    scan("in/a.nii.gz")
    result = run("batch", tmp_path / "in", "--auto", "unicorn")
    assert isinstance(result.exception, PromptError)
    assert TARGET in str(result.exception)
    assert not (tmp_path / "in" / "segmentations").exists()


def test_two_volumes_of_one_name_are_refused(scan, tmp_path):
    for name in ("in/a.nii.gz", "in/a.nrrd"):
        scan(name)
    with pytest.raises(SegMoTEError, match="two volumes are called a"):
        find_cases(tmp_path / "in", tmp_path)


def test_a_folder_without_volumes_says_what_it_looks_for(tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("batch", tmp_path / "empty", "--auto", TARGET, "-o", tmp_path / "in" / "segmentations")
    assert isinstance(result.exception, SegMoTEError)
    assert ".nii.gz" in str(result.exception)


def test_the_cache_is_shown_and_cleared(tmp_path):
    (tmp_path / ("a" * 40 + SUFFIX)).write_bytes(b"x" * 2**20)
    assert "1 embeddings, 1.0 of at most" in run("cache", "info", "--folder", tmp_path).output
    assert "1.0 MiB freed" in run("cache", "clear", "--folder", tmp_path).output
    assert "0 embeddings" in run("cache", "info", "--folder", tmp_path).output


def test_results_can_be_read_by_scripts(scan, tmp_path):
    volume, out = scan(), tmp_path / "out.seg.nrrd"
    box = "--box=-13,-10,8,-39,-38,8"
    results = {}
    for name, arguments in {"segment": (box,), "propagate": (box, "--until=-26,-24,6", "--until=-26,-24,10"),
                            "auto": ("--target", TARGET)}.items():
        done = run(name, volume, *arguments, "--json", "-o", out)
        assert done.exit_code == 0, (done.output, done.exception)
        results[name] = result = json.loads(done.stdout)
        found = segment_of(out)
        assert result["output"] == str(out)
        assert result["voxels"] == found.sum()
        assert result["millilitres"] == pytest.approx(found.sum() * 2 / 1000, abs=1e-3)
    assert 0 < results["segment"]["predicted_iou"] <= 1
    assert set(results["segment"]["seconds"]) >= {"encode", "decode"}
    assert results["propagate"]["slices"] == [3, 4, 5]  # counted along the stack, from the head down
    assert results["propagate"]["prompted"][0]["slice"] == 4
    assert results["propagate"]["ends"]["last"]["because"]
    assert results["auto"]["slices_searched"] == 8
    assert any("trained on" in warning for warning in results["auto"]["warnings"])


def test_the_cache_tells_scripts_its_size(tmp_path):
    (tmp_path / ("a" * 40 + SUFFIX)).write_bytes(b"x" * 1000)
    report = json.loads(run("cache", "info", "--json", "--folder", tmp_path).stdout)
    assert (report["embeddings"], report["bytes"], report["folder"]) == (1, 1000, str(tmp_path))
