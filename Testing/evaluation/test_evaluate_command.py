"""``segmote evaluate`` as typed."""

import errno
import subprocess
import sys

import pytest
from click.testing import CliRunner

from SegMoTELib.cli import evaluate as module
from SegMoTELib.errors import CheckpointError, DataError
from SegMoTELib.evaluation.results import Evaluation
from SegMoTELib.zoo import resolve_model


@pytest.fixture
def run(monkeypatch, predictor):
    monkeypatch.setattr(module, "load_predictor", lambda model: predictor)
    return lambda *words: CliRunner().invoke(module.command, [str(word) for word in words], catch_exceptions=False)


def test_one_data_set_with_all_files(run, tmp_path, make_pack):
    folder = make_pack(tmp_path / "shapes")
    files = [tmp_path / f"out.{suffix}" for suffix in ("json", "csv", "png")]
    result = run("--data", folder, "--json", files[0], "--csv", files[1], "--sheet", files[2])
    assert result.exit_code == 0
    assert "GrabCut" in result.stdout
    assert result.stderr == ""  # no progress bar in a pipe
    assert all(path.stat().st_size > 100 for path in files)
    assert '"model": "segmote-tiny"' in files[0].read_text()


def test_several_folders_after_one_option(run, tmp_path, make_pack):
    make_pack(tmp_path / "many" / "a", images=1)
    make_pack(tmp_path / "many" / "b", images=2)
    result = run("--data", tmp_path / "many", make_pack(tmp_path / "c"), "--no-baselines", "--limit", 1)
    assert result.exit_code == 0
    assert "GrabCut" not in result.stdout
    lines = result.stdout.splitlines()
    assert {"a", "b", "c"} <= {line.split()[0] for line in lines if line.strip()}


def test_data_is_asked_for(run):
    assert "Missing option '--data'" in run().output


def test_a_folder_without_data_is_an_error(run, tmp_path):
    with pytest.raises(DataError, match=r"no dataset\.json"):
        run("--data", tmp_path)


@pytest.mark.parametrize("option", ["--json", "--csv", "--sheet"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, make_pack, option, monkeypatch):
    monkeypatch.setattr(module, "load_predictor", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    result = run("--data", make_pack(tmp_path / "shapes"), option, tmp_path / "file" / "result")
    assert result.exit_code == 2
    assert "cannot be written" in result.output


def test_a_file_that_fails_is_named_and_costs_no_other(run, tmp_path, make_pack, monkeypatch):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Evaluation, "write_json", full)
    with pytest.raises(DataError, match=r"out\.json: cannot be written \(No space left on device\)"):
        run("--data", make_pack(tmp_path / "shapes", images=1), "--no-baselines", "--json", tmp_path / "out.json",
            "--csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("dataset,")


def test_a_model_that_does_not_exist_is_named():
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: neither a model \(segmote-tiny, "):
        resolve_model("nowhere.safetensors")


def test_models_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.setattr("SegMoTELib.zoo.store.MODELS_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="is the installation complete"):
        resolve_model("segmote-tiny")
    path = tmp_path / "segmote-tiny.safetensors"
    path.touch()
    assert resolve_model("segmote-tiny") == resolve_model(path) == path


def test_evaluation_imports_without_torch():
    code = ("import sys, SegMoTELib.evaluation.evaluate, SegMoTELib.evaluation.table, SegMoTELib.cli.evaluate; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_real_checkpoint_is_evaluated(tmp_path, make_pack):
    import torch

    from SegMoTELib.network import AutoTarget, ModelConfig, build_model
    from SegMoTELib.network.checkpoints import save_checkpoint

    torch.manual_seed(0)
    config = ModelConfig.tiny((AutoTarget("blob", "CT", sources=("shapes:1",)),))
    save_checkpoint(build_model(config), tmp_path / "random.safetensors")
    result = CliRunner().invoke(module.command, [
        "--data", str(make_pack(tmp_path / "shapes", images=1)), "--model", str(tmp_path / "random.safetensors"),
        "--csv", str(tmp_path / "out.csv")], catch_exceptions=False)
    assert result.exit_code == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert sum(",SegMoTE,auto," in line for line in lines) == 1
    assert sum(",frozen base,click5," in line for line in lines) == 2


def test_several_processes_find_what_one_finds(tmp_path, make_pack, monkeypatch):
    import torch

    from SegMoTELib.network import ModelConfig, build_model
    from SegMoTELib.network.checkpoints import save_checkpoint

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    save_checkpoint(build_model(ModelConfig.tiny()), tmp_path / "random.safetensors")
    folder = make_pack(tmp_path / "shapes", images=3)
    (folder / "labels" / "case1.png").write_bytes(b"broken")
    for workers in (1, 2):
        result = CliRunner().invoke(module.command, [
            "--data", str(folder), "--model", str(tmp_path / "random.safetensors"), "--workers", str(workers),
            "--no-baselines", "--csv", str(tmp_path / f"{workers}.csv"), "--json", str(tmp_path / f"{workers}.json")],
            catch_exceptions=False)
        assert result.exit_code == 0
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "2.csv").read_text()
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert "case1.png" in (tmp_path / "2.json").read_text()
