"""The GitHub workflows: what they call exists, and what they use is pinned. They run only on GitHub."""

from __future__ import annotations

import re

import pytest
import yaml

from Testing.module.test_extension_files import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
REPOSITORY_PATH = re.compile(r"(?<![\w/.-])((?:SegMoTE|SegMoTELib|Testing)/[\w./-]+|[\w-]+\.(?:json|txt|toml))")
FETCHED = {"scripts/requirements.txt", "requirements.txt"}  # of other repositories


def steps_of(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [step for job in content["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_purpose():
    assert {path.stem for path in WORKFLOWS} == {"unit", "slicer", "extension"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_only_and_cannot_hide_a_failure(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in content[True]  # YAML reads "on" as true
    assert "continue-on-error" not in path.read_text(encoding="utf-8")
    assert "|| true" not in path.read_text(encoding="utf-8")
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 60


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_foreign_actions_are_pinned_to_a_commit_and_say_which_version_it_is(path):
    uses = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert len(uses) == len([step for step in steps_of(path) if "uses" in step]) > 0
    for one in uses:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_path_that_a_command_names_exists(path):
    commands = " ".join(step.get("run", "") for step in steps_of(path))
    named = set(REPOSITORY_PATH.findall(re.sub(r"https://\S+", "", commands)))
    assert named
    assert [one for one in named - FETCHED if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_text_from_outside_reaches_a_shell(path):
    for step in steps_of(path):
        for expression in re.findall(r"\$\{\{(.*?)\}\}", step.get("run", "")):
            assert expression.strip().startswith("matrix."), expression


def test_the_unit_tests_run_on_three_systems_and_the_supported_pythons():
    job = yaml.safe_load((ROOT / ".github/workflows/unit.yml").read_text(encoding="utf-8"))["jobs"]["tests"]
    matrix = job["strategy"]["matrix"]
    assert [one.split("-")[0] for one in matrix["os"]] == ["ubuntu", "macos", "windows"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert matrix["python"][0] == re.search(r'requires-python = ">=(.*?)"', project).group(1)
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert re.search(r"^dev = ", project, re.M)
    assert '".[dev]"' in commands
    for tool in ("ruff check .", "mypy", "pytest"):
        assert tool in commands
        assert tool in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_module_runs_in_the_oldest_the_stable_and_the_preview_slicer_as_ctest_would_run_it():
    job = yaml.safe_load((ROOT / ".github/workflows/slicer.yml").read_text(encoding="utf-8"))["jobs"]["self-test"]
    queries = [one["query"] for one in job["strategy"]["matrix"]["slicer"]]
    assert queries == ["stability=release&version=5.10.0", "stability=release", "stability=nightly"]
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert "slicer.testing.runUnitTest(['$PWD/SegMoTE'], 'SegMoTE')" in commands
    assert commands.count("xvfb-run") == 2
    assert commands.count("--testing") == 2
