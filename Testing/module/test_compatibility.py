"""What differs between Slicer versions: packages and their installation, with stand-ins for pip and the extension."""

from __future__ import annotations

import builtins
import contextlib
import sys
import types
from importlib import metadata
from subprocess import CalledProcessError

import pytest
import slicer
import torch

from SegMoTELib.errors import SegMoTEError


@pytest.fixture
def compatibility(module):
    from SegMoTEModule import compatibility

    return compatibility


@pytest.fixture
def machine(monkeypatch):
    """A machine without our packages: their versions, what was done, what the user answers, whether pip works."""
    held = types.SimpleNamespace(installed={}, calls=[], answer=True, pip_works=True)

    def version(name):
        if name not in held.installed:
            raise metadata.PackageNotFoundError(name)
        return held.installed[name]

    def installTorch(askConfirmation=False, forceComputationBackend=None,  # noqa: N802 - as PyTorchUtils.py has it
                     torchVersionRequirement=None, torchvisionVersionRequirement=None):
        held.calls.append(("installTorch", askConfirmation, torchVersionRequirement, torchvisionVersionRequirement))
        held.installed |= {"torch": "2.9.1+cu128", "torchvision": "0.24.1"}
        return torch

    def pip():
        if held.pip_works:
            held.installed |= dict.fromkeys(("filelock", "platformdirs", "pooch", "psutil", "safetensors",
                                             "segment-anything"), "99")

    def pip_install(requirements):  # of Slicer 5.10
        assert type(requirements) in (str, list)
        held.calls.append(("pip_install", requirements))
        pip()

    def pip_ensure(requirements, constraints=None, skip_packages=None, prompt_install=True, prompt_restart=True,
                   requester=None, skip_in_testing=True, show_progress=True):  # of Slicer 5.12 and 5.13
        held.calls.append(("pip_ensure", requirements, prompt_install, requester))
        pip()

    held.packaging = types.ModuleType("slicer.packaging")
    held.packaging.load_requirements = lambda path: path.read_text().split()
    held.packaging.pip_ensure = pip_ensure
    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = lambda: types.SimpleNamespace(installTorch=installTorch)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setattr(slicer.util, "pip_install", pip_install, raising=False)
    monkeypatch.setattr(slicer.util, "WaitCursor", contextlib.nullcontext)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay",
                        lambda text, *_: held.calls.append(("asked", text)) or held.answer)
    return held


@pytest.fixture
def newer(machine, monkeypatch):
    """The machine with Slicer 5.12 or newer."""
    monkeypatch.setitem(sys.modules, "slicer.packaging", machine.packaging)
    monkeypatch.setattr(slicer, "packaging", machine.packaging, raising=False)
    return machine


def test_here_nothing_is_missing(compatibility):
    assert compatibility.missingPackages() == []
    compatibility.ensurePackages()
    compatibility.checkPyTorch()


@pytest.mark.parametrize(("package", "damage"), [
    ("torch", None), ("torchvision", None), ("torchvision", RuntimeError("operator torchvision::nms does not exist")),
    ("torch", OSError("[WinError 1114] c10.dll or one of its dependencies could not be initialised"))],
    ids=["no torch", "no torchvision", "builds that do not fit", "a damaged library"])
def test_a_pytorch_that_cannot_be_loaded_is_explained(compatibility, monkeypatch, package, damage):
    def load(name, *arguments):
        if name == package and damage is not None:
            raise damage
        return original(name, *arguments)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", load)
    if damage is None:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SegMoTEError, match=r"^PyTorch could not be loaded \(.+\)\. Install it anew") as caught:
        compatibility.ensurePackages()
    assert damage is None or str(damage) in str(caught.value)


def test_slicer_5_12_installs_with_its_packaging_after_asking_once(compatibility, newer):
    told = []
    compatibility.ensurePackages(lambda text, isError: told.append(text))
    (asked, text), pytorch, (ensured, requirements, prompt, requester) = newer.calls
    assert asked == "asked"
    assert "torch>=2.2" in text
    assert "segment-anything" in text
    assert pytorch == ("installTorch", False, ">=2.2", ">=0.17")
    assert (ensured, prompt, requester) == ("pip_ensure", False, "SegMoTE")
    assert "safetensors>=0.4" in requirements
    assert told[0].startswith("Installing torch>=2.2")
    newer.calls.clear()
    compatibility.ensurePackages()
    assert newer.calls == []


def test_slicer_5_10_installs_with_pip(compatibility, machine):
    compatibility.ensurePackages()
    assert machine.calls[-1] == ("pip_install", ["-r", str(compatibility.REQUIREMENTS)])


def test_pytorch_that_is_there_is_left_alone(compatibility, newer):
    newer.installed = {"torch": "2.9.1+cpu", "torchvision": "0.24.1+cpu"}
    compatibility.ensurePackages()
    assert [call[0] for call in newer.calls] == ["asked", "pip_ensure"]


@pytest.mark.parametrize(("version", "missing"), [("2.1.2", True), ("2.2.0", False), ("2.14.1+cu130", False),
                                                  ("2.15.0.dev20261101+cpu", False)])
def test_an_old_pytorch_counts_as_missing_and_a_build_for_testers_does_not(compatibility, newer, version, missing):
    newer.installed["torch"] = version
    assert ("torch>=2.2" in compatibility.missingPackages()) == missing


def test_declining_installs_nothing(compatibility, newer):
    newer.answer = False
    with pytest.raises(SegMoTEError, match="cannot work without torch"):
        compatibility.ensurePackages()
    assert [call[0] for call in newer.calls] == ["asked"]


def test_without_the_pytorch_extension_the_user_is_told_where_it_is(compatibility, newer, monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(SegMoTEError, match="Extensions Manager"):
        compatibility.ensurePackages()


def test_a_pip_that_fails_is_explained(compatibility, newer, monkeypatch):
    def fails(*_arguments, **_keywords):
        raise CalledProcessError(1, "pip install")

    monkeypatch.setattr(newer.packaging, "pip_ensure", fails)
    with pytest.raises(SegMoTEError, match=r"failed .*Python console"):
        compatibility.ensurePackages()


def test_what_slicer_skips_while_it_is_tested_is_not_taken_for_installed(compatibility, newer):
    newer.pip_works = False
    with pytest.raises(SegMoTEError, match=r"safetensors>=0\.4.* could not be installed"):
        compatibility.ensurePackages()


def test_a_slicer_without_the_segment_editors_logic_is_refused(compatibility, newer, monkeypatch):
    monkeypatch.delattr(slicer, "vtkSlicerSegmentEditorLogic")
    with pytest.raises(SegMoTEError, match=r"Slicer 5\.10 or newer"):
        compatibility.ensurePackages()
    assert newer.calls == []


def test_a_pytorch_that_cannot_read_numpys_arrays_is_explained_before_a_click_fails(logic, monkeypatch):
    def unavailable(array):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", unavailable)
    with pytest.raises(SegMoTEError, match=r"cannot work with this Slicer's NumPy .*Numpy is not available"):
        logic.setModel()


def test_the_record_names_every_slicer_that_the_workflow_tries(compatibility):
    for words in ("Slicer 5.10", "Slicer 5.12", "Slicer 5.13 (preview)", "PyTorch", "pip", "macOS", "Qt"):
        assert words in compatibility.__doc__
    assert len(compatibility.__doc__.splitlines()) < 60  # one page
