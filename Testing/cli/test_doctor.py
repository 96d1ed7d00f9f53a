"""segmote doctor: what is there, what is missing, and whether SegMoTE can be used."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from SegMoTELib.cli import doctor, group


@pytest.fixture
def examined(tmp_path, monkeypatch):
    """Function: arguments -> result, in a machine of its own."""
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))
    return lambda *arguments: CliRunner().invoke(group, ["doctor", *arguments], catch_exceptions=False)


@pytest.fixture
def no_test(monkeypatch):
    """Leave out the test image, where something else is looked at."""
    monkeypatch.setattr(doctor, "_test", lambda: {"model": "segmote-tiny", "dice": 1.0, "seconds_to_load": 0.0,
                                                  "seconds_to_answer": 0.0})


def test_a_working_machine_is_described_for_scripts(examined, tmp_path):
    result = examined("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["usable"] is True
    assert report["problems"] == []
    assert report["test"]["dice"] > 0.8
    assert report["test"]["seconds_to_answer"] > 0
    assert report["packages"]["torch"]
    assert report["weights"]["folder"] == str(tmp_path / "models")
    assert report["weights"]["chosen_by"] == "SEGMOTE_MODEL_DIR"
    assert report["weights"]["free_bytes"] > 0
    assert report["cache"]["limit_bytes"] > 0
    assert report["memory"]["total_bytes"] > report["memory"]["free_bytes"] > 0
    assert report["device"]["threads"] >= 1
    assert {one["name"]: one["state"] for one in report["models"]}["segmote-tiny"] == "bundled"
    assert not (tmp_path / "models").exists()


def test_and_for_people(examined, no_test):
    text = examined().output
    assert "SegMoTE can be used." in text
    for words in ("device", "memory", "packages", "segmote-tiny: bundled, 16 MB", "segmote models fetch sam-vit-b",
                  "GB free", "Dice 1.00"):
        assert words in text


def test_a_missing_package_is_named_with_its_pip_line(examined, no_test, monkeypatch):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "" if name in ("torch", "ImageHash") else real(name))
    result = examined()
    assert result.exit_code == 1
    assert "SegMoTE cannot be used:\n  packages are missing: pip install torch" in result.output
    assert "pip install 'segmote[research]'" in result.output


def test_a_missing_extra_is_no_reason_not_to_use_it(examined, no_test, monkeypatch):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "" if name in ("ImageHash", "slicer-core") else real(name))
    result = examined()
    assert result.exit_code == 0
    assert "missing   ImageHash (for curate" in result.output
    assert "pip install slicer-core" in result.output


def test_damaged_weights_are_found(examined, tmp_path, monkeypatch):
    import SegMoTELib.zoo.store as store

    broken = tmp_path / "installed"
    broken.mkdir()
    content = (store.MODELS_FOLDER / "segmote-tiny.safetensors").read_bytes()
    (broken / "segmote-tiny.safetensors").write_bytes(content[:-1000])
    monkeypatch.setattr(store, "MODELS_FOLDER", broken)
    result = examined()
    assert result.exit_code == 1
    assert "models: segmote-tiny: " in result.output
    assert "test: " in result.output
    assert "Traceback" not in result.output


def test_a_folder_of_models_that_is_a_file_is_named(examined, no_test, tmp_path):
    (tmp_path / "models").write_text("a file")
    assert "CANNOT BE WRITTEN" in examined().output


def test_weights_that_answer_nonsense_are_found(examined, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_DICE", 1.1)
    result = examined()
    assert result.exit_code == 1
    assert "test: the bundled weights found a known ellipse with Dice" in result.output
