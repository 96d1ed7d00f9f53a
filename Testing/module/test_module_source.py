"""The module's source: what it imports, what it does at import, and that every sentence can be translated."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from Testing.module.test_extension_files import ROOT, listed

MODULE_FILES = sorted(listed("SegMoTE/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"))
LIBRARY_FILES = sorted(listed("CMakeLists.txt", "SEGMOTELIB_SCRIPTS"))
APPLICATION = {"slicer", "qt", "vtk", "numpy", "SimpleITK", "scipy", "SegMoTEModule"}
# Import name -> package, of what is not of the standard library.
PACKAGES = {"PIL": "pillow", "numpy": "numpy", "scipy": "scipy", "SimpleITK": "SimpleITK", "pydicom": "pydicom",
            "requests": "requests", "packaging": "packaging", "torch": "torch", "torchvision": "torchvision",
            "safetensors": "safetensors", "segment_anything": "segment-anything", "psutil": "psutil",
            "platformdirs": "platformdirs", "pooch": "pooch", "filelock": "filelock"}
# Imported within functions that say in a sentence what is missing, or that the module does not call.
OPTIONAL = {"highdicom", "matplotlib"}
SHOWN = {"setText", "setToolTip", "setTitle", "setWindowTitle", "addItem", "showStatus", "_told", "told", "onStatus",
         "confirmOkCancelDisplay", "SegMoTEError", "ModelError", "ValueError", "getOpenFileName"}
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign)


def tree_of(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imported(nodes):
    """Top-level names that import statements among nodes bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (one.name.split(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", MODULE_FILES)
def test_at_file_scope_the_module_imports_only_what_slicer_has(name):
    foreign = {one for one in imported(tree_of(f"SegMoTE/{name}").body)
               if one not in APPLICATION and one not in sys.stdlib_module_names}
    assert not foreign


@pytest.mark.parametrize("name", MODULE_FILES)
def test_at_file_scope_the_module_only_defines(name):
    for node in tree_of(f"SegMoTE/{name}").body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_docstring or isinstance(node, DEFINITIONS), f"{name}:{node.lineno}"
        if isinstance(node, ast.Assign):
            calls = [ast.unparse(call.func) for call in ast.walk(node.value) if isinstance(call, ast.Call)]
            assert set(calls) <= {"Path"}, f"{name}:{node.lineno}"


def test_importing_the_module_reads_and_writes_nothing_and_goes_nowhere(tmp_path):
    code = ("import sys, types; sys.path.insert(0, '.'); sys.dont_write_bytecode = True\n"
            "from Testing.slicer_stub import install, start_scene\n"
            "install(); start_scene(); import numpy, vtk\n"
            "before, done = set(sys.modules), []\n"
            "def watch(event, arguments):\n"
            "    if event in ('socket.connect', 'subprocess.Popen', 'os.mkdir', 'os.remove', 'os.rename') or (\n"
            "            event == 'open' and not str(arguments[0]).endswith(('.py', '.pyc'))):\n"
            "        done.append((event, arguments))\n"
            "sys.addaudithook(watch)\n"
            "import SegMoTE; SegMoTE.SegMoTE(types.SimpleNamespace())\n"
            "new = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
            "assert new == {'SegMoTE', 'SegMoTEModule'}, new\n"
            "assert not done, done\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_package_that_is_imported_is_one_that_somebody_installs():
    from Testing.module.test_extension_index import PYTORCH_BRINGS, SLICER_BRINGS

    lines = (ROOT / "SegMoTE/Resources/requirements.txt").read_text(encoding="utf-8").split()
    installed = SLICER_BRINGS | PYTORCH_BRINGS | {re.split("[<>=]", line)[0] for line in lines}
    own = {"SegMoTELib", "SegMoTE", "SampleData", "PyTorchUtils", *APPLICATION}
    for name in [f"SegMoTE/{one}" for one in MODULE_FILES] + LIBRARY_FILES:
        tree = tree_of(name)
        for one in set(imported(ast.walk(tree))) - sys.stdlib_module_names - own:
            assert one in OPTIONAL or PACKAGES.get(one) in installed, f"{name} imports {one}"
        assert not OPTIONAL & set(imported(tree.body)), name


def untranslated(tree):
    """(line, text) of sentences that reach the user without going through ``_``."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name not in SHOWN:
            continue
        for argument in call.args:
            yield from ((node.lineno, text) for node, text in literals(argument) if re.search(r"[A-Za-z]{2}", text))


def literals(node):
    """String constants within an expression, those that ``_`` gets, dictionary keys and the like left out."""
    if isinstance(node, ast.Call):
        if getattr(node.func, "id", "") == "_":
            return
        parts = node.args if getattr(node.func, "attr", "") not in ("format", "get", "join") else []
        if isinstance(node.func, ast.Attribute):
            parts = [*parts, node.func.value]
        for part in parts:
            yield from literals(part)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node, re.sub(r"<[^>]*>|&\w+;", "", node.value)
    elif not isinstance(node, ast.Subscript | ast.Compare | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from literals(child)


@pytest.mark.parametrize("name", [name for name in MODULE_FILES if not name.endswith("selftest.py")])
def test_every_sentence_for_the_user_goes_through_translation(name):
    assert list(untranslated(tree_of(f"SegMoTE/{name}"))) == []


def test_the_check_for_translation_finds_what_is_missing():
    code = ("label.setText('Hello there')\nbox.addItem(f'A file {x}')\nraise ValueError('It is broken')\n"
            "self.showStatus(_('Fine') + ' not fine', True)\nlabel.setText(_('Well {a}').format(a='fine'))\n")
    assert [line for line, _text in untranslated(ast.parse(code))] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", MODULE_FILES)
def test_translators_get_whole_constant_sentences_with_named_places(name):
    for call in ast.walk(tree_of(f"SegMoTE/{name}")):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_":
            (text,) = call.args
            assert isinstance(text, ast.Constant), f"{name}:{call.lineno}"
            assert isinstance(text.value, str)
            assert "{}" not in text.value
            assert text.value == text.value.strip()


def test_every_text_of_the_panels_file_can_be_translated():
    ui = ElementTree.parse(ROOT / "SegMoTE/Resources/UI/SegMoTE.ui")
    texts = [one for one in ui.iter("string") if one.text]
    assert len(texts) > 60
    assert not [one.text for one in texts if one.get("notr")]


def test_names_of_models_devices_and_targets_are_the_only_texts_that_stay_as_they_are(module):
    from SegMoTEModule.modelpanel import DEVICES, MY_FILE, PRECISIONS

    assert (DEVICES, MY_FILE) == (("auto", "cuda", "mps", "cpu"), "file")
    assert PRECISIONS == ("auto", "fp32", "fp16", "bf16")
