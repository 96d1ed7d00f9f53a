"""Every fenced command and Python block of the documentation runs, or is on the list of those that cannot run here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from SegMoTELib import cli
from SegMoTELib.interaction import embeddings
from Testing.docs.pages import DIRECTIVE, LANGUAGES, ROOT, blocks, figures, pages

# What stands under "not-run", and why. A command that is not here must run.
NOT_RUN = {
    "git clone https://github.com/SegMoTE/SlicerSegMoTE.git && cd SlicerSegMoTE": "needs the network",
    'make test && export PATH="$PWD/.venv/bin:$PATH"': "is what runs this test",
    "make demo": "Testing/demo/test_demo.py runs its script",
    "make test": "is what runs this test",
    ".venv/bin/python -m pytest Testing/imaging": "is a part of the suite",
    ".venv/bin/ruff check .": "make test runs it before the suite",
    ".venv/bin/mypy": "make test runs it before the suite",
    "make docs": "Testing/docs/test_build.py runs its command",
    "make screenshots": "Testing/demo/test_pictures.py runs a part of its script",
    "pip install '.[research]'": "installs packages",
    "segmote models fetch medsam-vit-b": "downloads 375 MB; Testing/zoo fetches from a server of its own",
    "segmote models fetch sam-vit-b": "downloads 375 MB",
    "segmote models fetch segmote-published --accept-licence": "downloads",
    'segmote batch scans --auto "fetal head" --cluster tcp://node1:8786 -o results': "needs a Dask cluster",
    "torchrun --nproc-per-node 2 -m SegMoTELib.cli train configs/segmote-tiny-base.yaml -o runs/tiny-base":
        "takes hours; Testing/training runs torchrun on a small config",
    "torchrun --nproc-per-node 2 -m SegMoTELib.cli train configs/segmote-tiny-adapt.yaml -o runs/tiny-adapt":
        "takes hours",
    "segmote bench model --repeats 3": "takes minutes",
    "segmote bench click": "takes a minute; Testing/cli/test_bench_click.py runs it smaller",
}
RUNNABLE = ("sh", "python")


def with_runnable_blocks():
    """Pages that have something to run."""
    return [page for page in pages() if any(block.language in RUNNABLE and block.runs for block in blocks(page))]


@pytest.fixture
def workspace(materials, tmp_path, monkeypatch):
    """A copy of the materials as working directory, with the user's folders in it and ``segmote`` on the path."""
    folder = tmp_path / "work"
    shutil.copytree(materials, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(embeddings, "default_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    program = tmp_path / "bin" / "segmote"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).as_posix()}" -m SegMoTELib.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    return folder


@pytest.fixture
def namespace(monkeypatch):
    """What the Python blocks of a page share; ``SegMoTELogic`` in it works on a scene without the application."""
    slicer = pytest.importorskip("slicer")
    pytest.importorskip("PySide6.QtWidgets")
    from Testing.slicer_stub import install, start_scene
    from Testing.slicer_stub.application import volume_node

    install()
    start_scene()
    monkeypatch.setattr(slicer.util, "loadVolume", lambda path: volume_node(Path(path)), raising=False)
    import SegMoTE

    made = []

    class Logic(SegMoTE.SegMoTELogic):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(SegMoTE, "SegMoTELogic", Logic)
    yield {"__name__": "__docs__"}
    for logic in made:
        logic.close()


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``segmote`` in this process, which saves a start of torch each time; anything else in a shell."""
    words = shlex.split(command)
    if words[0] != "segmote":
        done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return
    monkeypatch.setattr(sys, "argv", words)
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code
    assert not status, f"{command}: exit status {status}"


@pytest.mark.parametrize("page", with_runnable_blocks(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, workspace, namespace, monkeypatch):
    for block in blocks(page):
        if not block.runs or block.language not in RUNNABLE:
            continue
        try:
            if block.language == "python":
                exec(compile(block.text, block.where, "exec"), namespace)
            else:
                for command in block.commands():
                    run_command(command, monkeypatch)
        except Exception as error:
            raise AssertionError(f"{block.where}: {error}") from error
    if page.name == "command-line.md":
        for name in ("box.seg.nrrd", "kidney.seg.nrrd", "kidney.dcm", "kidney.nii.gz", "results/first.seg.nrrd",
                     "results/second.seg.nrrd"):
            assert (workspace / name).stat().st_size > 0
    if page.name == "researcher.md":
        for name in ("pack/report.html", "runs/base/curves.png", "scores.json", "cases.png", "shapes.seg.nrrd"):
            assert (workspace / name).stat().st_size > 0


def test_segmote_runs_as_a_program_of_its_own(workspace):
    done = subprocess.run(["bash", "-c", "segmote models list"], capture_output=True, text=True, check=True)
    assert "segmote-tiny" in done.stdout


def test_every_block_says_what_it_is():
    for page in pages() + figures():
        for block in blocks(page):
            assert block.language in LANGUAGES or DIRECTIVE.fullmatch(block.language), block.where
            assert all(word == "not-run" or word.startswith("file=") for word in block.words), block.where


def test_what_is_not_run_is_on_the_list_with_a_reason(capsys):
    found = {command: block.where for page in pages() for block in blocks(page)
             if block.language in RUNNABLE and not block.runs for command in block.commands()}
    with capsys.disabled():
        print(f"\n{len(found)} commands of the documentation are not run:")
        for command, where in found.items():
            print(f"  {where}: {command} ({NOT_RUN.get(command, 'NO REASON')})")
    assert not set(found) - set(NOT_RUN), "run these, or give the reason in NOT_RUN"
    assert not set(NOT_RUN) - set(found), "these are no longer in the documentation"


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in pages():
        for block in blocks(page):
            for command in block.commands() if block.language == "sh" else ():
                if command.startswith("make "):
                    assert f"\n{command.split()[1]}:" in makefile, block.where
