"""The extension's description: every file listed, and the same words everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = ("", "network", "imaging", "interaction", "mrml", "zoo")  # parts of the library that the module uses


def listed(path, name):
    """The entries of a CMake list."""
    text = (ROOT / path).read_text(encoding="utf-8")
    entries = re.search(rf"set\({name}\s(.*?)\)", text, re.S).group(1).split()
    return {entry.replace("${MODULE_NAME}", "SegMoTE") for entry in entries}


def cmake(name):
    """A quoted variable of the top CMakeLists.txt."""
    return re.search(rf'set\({name} "(.*?)"\)', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")).group(1)


def s4ext():
    """The key-value lines of the .s4ext file."""
    lines = (ROOT / "SegMoTE.s4ext").read_text(encoding="utf-8").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines if not line.startswith("#"))}


def test_every_file_of_the_module_is_listed():
    folder = ROOT / "SegMoTE"
    scripts = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    resources = {str(path.relative_to(folder)) for path in (folder / "Resources").rglob("*") if path.is_file()}
    assert listed("SegMoTE/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS") == scripts
    assert listed("SegMoTE/CMakeLists.txt", "MODULE_PYTHON_RESOURCES") == resources


def test_every_file_of_the_library_that_the_module_needs_is_listed():
    files = {str(path.relative_to(ROOT)) for part in INSTALLED for path in (ROOT / "SegMoTELib" / part).glob("*.py")}
    assert listed("CMakeLists.txt", "SEGMOTELIB_SCRIPTS") == files
    assert all((ROOT / path).is_file() for path in listed("CMakeLists.txt", "SEGMOTELIB_RESOURCES"))


def test_what_is_installed_works_by_itself(tmp_path):
    for path in listed("CMakeLists.txt", "SEGMOTELIB_SCRIPTS") | listed("CMakeLists.txt", "SEGMOTELIB_RESOURCES"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(ROOT / path)
    code = ("import SegMoTELib.mrml.segmenter, SegMoTELib.interaction.predictor as p\n"
            "from SegMoTELib.network import load_checkpoint\nfrom SegMoTELib.zoo import resolve_model\n"
            "import SegMoTELib, sys\nassert SegMoTELib.__file__.startswith(sys.argv[1])\n"
            "p.Predictor(load_checkpoint(resolve_model('segmote-tiny')), 'cpu')\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("variable", "key"), [
    ("EXTENSION_HOMEPAGE", "homepage"), ("EXTENSION_CONTRIBUTORS", "contributors"), ("EXTENSION_ICONURL", "iconurl"),
    ("EXTENSION_DESCRIPTION", "description"), ("EXTENSION_SCREENSHOTURLS", "screenshoturls"),
    ("EXTENSION_DEPENDS", "depends")])
def test_cmake_and_s4ext_say_the_same(variable, key):
    assert cmake(variable) == s4ext()[key]
