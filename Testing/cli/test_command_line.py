"""The command line as people expect it: help, exit status, --debug, Ctrl+C, pipes, completion, bars."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from SegMoTELib.cli import COMMANDS, explain, group, run
from SegMoTELib.cli.packages import PACKAGES, how_to_get
from SegMoTELib.cli.volumes import Bar
from SegMoTELib.errors import PromptError

ROOT = Path(__file__).parents[2]


def segmote(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "SegMoTELib.cli", *arguments], capture_output=True, text=True,
                          env={**os.environ, **environment})


def all_commands(command=group, path=("segmote",)):
    """(path, command) of every command and subcommand."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from all_commands(command.get_command(context, name), (*path, name))


def test_segmote_alone_shows_its_help():
    alone, asked = (CliRunner().invoke(group, arguments) for arguments in ([], ["--help"]))
    assert alone.exit_code == asked.exit_code == 0
    assert alone.output == asked.output
    assert all(re.search(rf"^  {name} +[A-Z]", alone.output, re.M) for name in COMMANDS)
    assert "..." not in alone.output.partition("Commands:")[2]  # no sentence is cut


EVERY = list(all_commands())


@pytest.mark.parametrize(("path", "command"), EVERY, ids=[" ".join(path) for path, _ in EVERY])
def test_every_command_explains_itself_and_its_options(path, command):
    text = CliRunner().invoke(group, [*path[1:], "--help"]).output
    assert text.startswith("Usage: ")
    assert command.get_short_help_str(200).endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.name == "split", parameter.name


@pytest.mark.parametrize(("arguments", "status"), [
    (["--version"], 0), (["unknown"], 2), (["segment"], 2), (["segment", "x.nii", "-o", "x.seg.nrrd", "--nope"], 2),
    (["models"], 2), (["models", "verify", "nothing"], 1), (["train", "missing.yaml", "-o", "x"], 1)])
def test_the_exit_status_tells_wrong_usage_from_failure(arguments, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert (status != 1) or (said.err.startswith("segmote: ") and said.err.count("\n") == 1 and said.out == "")


@pytest.mark.parametrize("arguments", [("--debug", "models", "verify", "x"), ("models", "--debug", "verify", "x"),
                                       ("models", "verify", "x", "--debug")])
def test_debug_is_understood_anywhere(arguments):
    result = segmote(*arguments)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_after_two_dashes_debug_is_a_name():
    result = segmote("models", "verify", "--", "--debug")
    assert result.returncode == 1
    assert result.stderr.startswith("segmote: --debug: no such model")


@pytest.mark.parametrize(("error", "words"), [
    (PromptError("Nothing to go by."), "Nothing to go by."),
    (FileNotFoundError(2, "No such file or directory", "a.nii"), "a.nii: No such file or directory."),
    (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied."),
    (OSError(28, "No space left on device"), "No space left on device."),
    (MemoryError(), "not enough memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory"),
    (ModuleNotFoundError("No module named 'cv2'", name="cv2"), r"pip install 'segmote\[research\]'"),
    (ModuleNotFoundError("No module named 'distributed.x'", name="distributed.x"), r"segmote\[cluster\]"),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install torch"),
    (ModuleNotFoundError("No module named 'SegMoTELib.x'", name="SegMoTELib.x"), "should not happen"),
    (KeyError("x\ny"), r"should not happen \(KeyError: .*--debug"), (ValueError(), "ValueError")])
def test_every_error_is_one_sentence_that_says_what_to_do(error, words):
    assert re.search(words, explain(error))
    assert "\n" not in explain(error)


def test_a_strangers_text_does_not_steer_the_terminal(capsys):
    assert run(["models", "verify", "\x1b[2Jnothing\nhere\u202e"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("segmote:  [2Jnothing here : no such model")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("error", "status"), [(KeyError("odd"), 1), (MemoryError(), 1), (KeyboardInterrupt(), 130),
                                               (OSError(13, "Permission denied", "x"), 1)])
def test_whatever_a_command_raises_there_is_no_traceback_unless_asked(monkeypatch, capsys, error, status):
    def fail(name):
        raise error

    monkeypatch.setattr("SegMoTELib.cli.import_module", fail)
    assert run(["info"]) == status
    said = capsys.readouterr().err.strip()
    assert said.startswith("segmote: ")
    assert "\n" not in said
    if status == 1:
        assert run(["info"], debug=True) == 1
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_real_ctrl_c_ends_with_130():
    # A shell starts background jobs with this signal ignored, and so would be its children.
    code = ("import os, signal, sys, SegMoTELib.cli as cli\nsys.argv = ['segmote', 'info']\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "cli.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)\ncli.main()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == "segmote: interrupted."


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
@pytest.mark.parametrize("arguments", [["models", "list", "--json"], ["--help"]])
def test_a_reader_that_stops_reading_gets_no_complaint(arguments):
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-m", "SegMoTELib.cli", *arguments], stdout=writing,
                               stderr=subprocess.PIPE, text=True)
    os.close(writing)
    os.close(reading)
    said = process.communicate()[1]
    assert "Traceback" not in said
    assert "Broken" not in said
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["segment", "--help"], ["models", "list"],
                                       ["models", "verify", "segmote-tiny"], ["cache", "--help"]])
def test_what_needs_no_model_does_not_load_torch(arguments):
    code = f"import sys; from SegMoTELib.cli import run; sys.exit(run({arguments!r}) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(("line", "offered", "not_offered"), [
    ("segmote d", ["plain,doctor"], ["plain,segment"]),
    ("segmote info seg", ["plain,segmote-tiny", "file,seg"], ["plain,sam-vit-b"]),
    ("segmote segment x.nii --model ", ["plain,segmote-tiny", "file,"], []),
    ("segmote models fetch s", ["plain,sam-vit-b", "plain,segmote-published"], ["plain,segmote-tiny"]),
    ("segmote models verify ", ["plain,segmote-tiny"], ["plain,sam-vit-b"]),
    ("segmote auto x.nii --target fet", ["plain,fetal\\ head"], []),
    ("segmote auto x.nii --model nothing-here --target fet", [], ["plain,fetal\\ head"]),
    ("segmote propagate x.nii --plane s", ["plain,sagittal"], ["plain,axial"]),
    ("segmote segment sc", ["file,sc"], [])])
def test_the_shell_is_offered_what_fits(tmp_path, line, offered, not_offered):
    words = line.split(" ")
    result = segmote(_SEGMOTE_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1),
                     SEGMOTE_MODEL_DIR=str(tmp_path))
    lines = result.stdout.splitlines()
    assert set(offered) <= set(lines)
    assert not set(not_offered) & set(lines)
    assert result.stderr == ""


def test_other_shells_quote_blanks_themselves():
    result = segmote(_SEGMOTE_COMPLETE="zsh_complete", COMP_WORDS="segmote auto x --target fet", COMP_CWORD="4")
    assert "fetal head" in result.stdout.splitlines()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_line_that_switches_completion_on_prints_a_script(shell):
    assert "_SEGMOTE_COMPLETE" in segmote(_SEGMOTE_COMPLETE=f"{shell}_source").stdout


def test_a_bar_is_not_drawn_into_a_pipe(capsys):
    with Bar("Propagating") as bar:
        assert bar(0.5, 3, None)
    assert capsys.readouterr().err == ""


def test_the_table_of_packages_is_pyproject_s():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        return sorted(re.split(r"[<>=\[; ]", one)[0] for one in requirements if not one.startswith("segmote["))

    assert sorted(PACKAGES[""]) == names(project["dependencies"])
    for extra in PACKAGES.keys() - {""}:
        assert sorted(PACKAGES[extra]) == names(project["optional-dependencies"][extra])


@pytest.mark.parametrize(("module", "line"), [("PIL", "pip install pillow"), ("highdicom", "segmote[dicom]"),
    ("skimage", "segmote[research]"),
                                              ("jinja2", "segmote[research]"), ("numpy", "pip install numpy")])
def test_a_missing_module_has_its_pip_line(module, line):
    assert line in how_to_get(module)
