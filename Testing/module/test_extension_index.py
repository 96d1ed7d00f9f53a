"""What the Extensions Index checks of an extension, as far as the repository itself can answer.

Its list: the pull request template, scripts/check_description_files.py and scripts/extension_ai_analysis.py.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from Testing.module.test_extension_files import ROOT, cmake, listed, s4ext

# Of slicer-extension-catalog-entry-schema-v1.0.1.json: keys and the type of their values.
SCHEMA_KEYS = {"$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str,
               "build_dependencies": list, "build_subdirectory": str, "enabled": bool, "tier": int}
SCHEMA_REQUIRED = {"$schema", "category", "scm_url"}
# Packages that every supported Slicer brings: SuperBuild/External_python-*.cmake of v5.10.0 and later.
SLICER_BRINGS = {"numpy", "packaging", "pillow", "pydicom", "requests", "scipy", "SimpleITK"}
PYTORCH_BRINGS = {"torch", "torchvision"}  # the PyTorch extension
COMMAND_LINE = {"click", "tqdm"}  # of pyproject's dependencies; the module does without


@pytest.fixture(scope="module")
def entry():
    """The index entry."""
    return json.loads((ROOT / "SegMoTE.json").read_text(encoding="utf-8"))


def tracked():
    """The files of the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs git and a checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_entry_holds_to_the_schema(entry):
    assert SCHEMA_REQUIRED <= set(entry) <= set(SCHEMA_KEYS)
    assert all(type(value) is SCHEMA_KEYS[key] for key, value in entry.items())
    assert entry["$schema"].endswith("/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert all(type(name) is str for name in entry["build_dependencies"])
    assert 1 <= entry["tier"] <= 5


def test_the_entry_ends_its_lines_as_the_index_wants():
    assert b"\r" not in (ROOT / "SegMoTE.json").read_bytes()


def test_names_of_extension_repository_and_project_go_together(entry):
    name = (ROOT / "SegMoTE.json").stem
    assert not name.lower().startswith("slicer")
    assert entry["scm_url"] == s4ext()["scmurl"]
    assert re.fullmatch(rf"https://github\.com/[\w-]+/Slicer{name}\.git", entry["scm_url"])
    top = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.findall(r"project\s*\(\s*([^\s)]+)", top) == [name]


def test_the_revision_is_a_branch_and_the_pictures_come_from_it(entry):
    revision = entry["scm_revision"]
    assert revision == s4ext()["scmrevision"]
    assert not re.fullmatch("[0-9a-f]{7,40}", revision)
    owner = entry["scm_url"].removeprefix("https://github.com/").removesuffix(".git")
    for url in (cmake("EXTENSION_ICONURL"), *cmake("EXTENSION_SCREENSHOTURLS").split()):
        assert url.startswith(f"https://raw.githubusercontent.com/{owner}/{revision}/")


def test_category_subdirectory_and_dependencies_agree(entry):
    assert entry["category"] == s4ext()["category"] == "Segmentation"
    assert entry["build_subdirectory"] == s4ext()["build_subdirectory"] == "."
    assert entry["build_dependencies"] == cmake("EXTENSION_DEPENDS").split() == s4ext()["depends"].split()
    assert entry["build_dependencies"] == ["PyTorch"]


def test_icon_and_screenshots_are_pictures_of_a_fit_size():
    icon, *screenshots = (ROOT / url.split("/main/")[1] for url in
                          (cmake("EXTENSION_ICONURL"), *cmake("EXTENSION_SCREENSHOTURLS").split()))
    assert screenshots
    for path, smallest in ((icon, 128), *((path, 600) for path in screenshots)):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= smallest
    with Image.open(ROOT / "SegMoTE/Resources/Icons/SegMoTE.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))


def test_the_description_is_one_or_two_plain_sentences():
    assert re.fullmatch(r"[A-Z][^.]{20,200}\.( [A-Z][^.]{10,200}\.)?", cmake("EXTENSION_DESCRIPTION"))


def test_the_licence_is_permissive_and_named_on_the_homepage():
    licence = (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0" in licence
    assert "Apache-2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_homepage_shows_the_module_and_links_the_publication():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# SegMoTE\n")
    pictures = re.findall(r"!\[.+?\]\((?!http)(.+?)\)", text)
    assert pictures
    assert all((ROOT / path).is_file() for path in pictures)
    assert "https://arxiv.org/abs/2602.19213" in text
    assert "not for diagnosis" in text.lower()


def test_the_repository_is_small_and_holds_no_executables():
    files, executable = tracked(), {".exe", ".dll", ".so", ".dylib", ".whl", ".pkl", ".pth", ".pt"}
    assert sum(path.stat().st_size for path in files) < 100 * 2**20
    assert not [path for path in files if path.suffix in executable]


def dependencies():
    """Name -> requirement, of pyproject's dependencies."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.findall(r'"(.+?)"', re.search(r"\ndependencies = \[(.*?)\]", text, re.S).group(1))
    return {re.split(r"[<>=]", line)[0]: line for line in lines}


def test_requirements_are_what_the_library_needs_and_neither_slicer_nor_pytorch_brings():
    lines = (ROOT / "SegMoTE/Resources/requirements.txt").read_text(encoding="utf-8").split()
    wanted = {line for name, line in dependencies().items()
              if name not in SLICER_BRINGS | PYTORCH_BRINGS | COMMAND_LINE}
    assert set(lines) == wanted
    assert len(lines) == len(wanted)
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in lines), "no pins, no addresses, no options"


def test_pytorch_is_never_installed_with_pip():
    for name in listed("SegMoTE/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"):
        text = (ROOT / "SegMoTE" / name).read_text(encoding="utf-8")
        assert ("pip_install" in text or "pip_ensure" in text) <= name.endswith("compatibility.py"), name
        assert not re.search(r"pip_(install|ensure)\([^)]*torch", text), name


def test_pytorch_is_asked_for_in_the_versions_that_pyproject_names(module):
    from SegMoTEModule.compatibility import PYTORCH

    assert set(PYTORCH) == {dependencies()[name] for name in PYTORCH_BRINGS}


def test_the_tests_are_registered_with_slicer():
    text = (ROOT / "SegMoTE/CMakeLists.txt").read_text(encoding="utf-8")
    assert "WITH_GENERIC_TESTS" in text
    assert re.search(r"if\(BUILD_TESTING\)\s+slicer_add_python_unittest\(SCRIPT \$\{MODULE_NAME\}\.py\)\s+endif", text)


def test_the_self_test_runs_all_its_tests(module, monkeypatch):
    names = [name for name in dir(module.SegMoTETest) if name.startswith("test_")]
    done = []
    for name in names:
        monkeypatch.setattr(module.SegMoTETest, name, lambda self, name=name: done.append(name))
    module.SegMoTETest().runTest()
    assert sorted(done) == sorted(names)
    assert len(names) >= 5


def test_sample_data_is_offered_after_startup_with_addresses_and_checksums(module, scene, monkeypatch):
    import sys
    import types

    import slicer

    offered = []
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **keywords: offered.append(keywords))
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    module.SegMoTE(types.SimpleNamespace())
    (signal, slot), = slicer.app.started
    assert signal == "startupCompleted()"
    assert offered == []
    slot()
    assert len({one["sampleName"] for one in offered}) == len(offered) >= 2
    for one in offered:
        assert one["category"] == "SegMoTE"
        algorithm, digest = one["checksums"].split(":")
        assert algorithm == "SHA256"
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert one["uris"] == f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{digest}"
        assert Path(one["thumbnailFileName"]).is_file()
