"""What the documentation names exists: links, pictures, commands, options, keys, settings, messages."""

from __future__ import annotations

import ast
import re
import shlex

import click
import pytest
import yaml

from SegMoTELib import __version__
from SegMoTELib.cli import COMMANDS, group
from Testing.docs.pages import INLINE, LINK, ROOT, blocks, figures, pages, prose, slug

PICTURES = ROOT / "Resources" / "Screenshots"
LARGEST, LARGEST_TOGETHER = 200_000, 1_500_000  # bytes
NAMES = [str(page.relative_to(ROOT)) for page in pages() + figures()]


def anchors(page):
    """The anchors of a page's headings."""
    return {slug(line.lstrip("#")) for line in prose(page).splitlines() if line.startswith("#")}


def resolve(words):
    """The click command that words such as ["models", "list", "--json"] call, and the words left; None if none."""
    command = group
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(click.Context(command), words[0])
        words = words[1:]
        if command is None:
            return None, words
    return command, words


def options_of(command):
    """All options of a command, those of every command too."""
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}


def every_command(command=group):
    """The leaves of the command line."""
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    below = [command.get_command(context, name) for name in command.list_commands(context)]
    return [leaf for one in below for leaf in every_command(one)]


def segmote_lines():
    """(page, words) of every ``segmote ...`` in a shell block or between backticks."""
    for page in pages():
        lines = [line for block in blocks(page) if block.language == "sh" for line in block.commands()]
        lines += [match["text"] for match in INLINE.finditer(prose(page))]
        for line in lines:
            if line.startswith("segmote "):
                yield page, shlex.split(line)[1:]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_picture_leads_somewhere(name):
    page = ROOT / name
    for match in LINK.finditer(prose(page)):
        target = match["target"]
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{name}: {target}"


def test_every_picture_is_shown_somewhere_and_small():
    shown = {(page.parent / match["target"]).resolve() for page in pages() for match in LINK.finditer(prose(page))}
    pictures = sorted(PICTURES.glob("*.png"))
    assert not [picture.name for picture in pictures if picture not in shown]
    assert max(picture.stat().st_size for picture in pictures) < LARGEST
    assert sum(picture.stat().st_size for picture in pictures) < LARGEST_TOGETHER


def test_every_command_and_option_that_is_named_exists():
    for page, words in segmote_lines():
        words = [word for word in words if word not in ("COMMAND", "...")]
        if words and words[0] in ("--debug", "--version", "--help"):
            words = words[1:] if words[0] == "--debug" else []
        command, rest = resolve(words)
        assert command is not None, f"{page.name}: segmote {' '.join(words)}"
        for word in rest:
            if re.match(r"--?[A-Za-z]", word):
                assert word.split("=")[0] in options_of(command), f"{page.name}: segmote {' '.join(words)}"


def test_every_option_between_backticks_exists_in_some_command():
    known = set().union(*(options_of(command) for command in (*every_command(), group)))
    known |= {"--nproc-per-node", "--fail-on-warning"}
    for page in pages():
        for match in INLINE.finditer(prose(page)):
            if re.match(r"--[a-z]", match["text"]):
                assert re.split(r"[= ]", match["text"])[0] in known, f"{page.name}: {match['text']}"


def test_every_command_is_documented():
    named = {" ".join(words) for _page, words in segmote_lines()}
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in named), f"segmote {name} is nowhere in the documentation"
        command = group.get_command(click.Context(group), name)
        for sub in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
            assert any(line.split()[:2] == [name, sub] for line in named), f"segmote {name} {sub}"


def test_the_table_of_keys_is_that_of_the_panel():
    source = (ROOT / "SegMoTE" / "SegMoTE.py").read_text(encoding="utf-8")
    keys = next({key.value for key in node.value.keys} for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
                and getattr(node.targets[0], "id", "") == "keys")
    text = (ROOT / "docs" / "clinician.md").read_text(encoding="utf-8").split("## Keys")[1].split("\n## ")[0]
    table = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")} - {"key", "---"}
    assert table == keys


def test_words_in_italics_that_look_like_controls_are_in_the_panel():
    interface = (ROOT / "SegMoTE" / "Resources" / "UI" / "SegMoTE.ui").read_text(encoding="utf-8")
    controls = set(re.findall(r"<string>([^<]+)</string>", interface))
    controls = {text.replace("&lt;", "<").replace("&gt;", ">") for text in controls}
    text = (ROOT / "docs" / "clinician.md").read_text(encoding="utf-8")
    for name in ("Add point (+)", "Exclude point (−)", "Undo", "Redo", "Clear prompts", "Propagate", "< Propagate",
                 "Propagate >", "Cancel", "Apply", "Discard", "Auto", "This slice", "Range", "Whole volume",
                 "Everything", "Pick", "Next object", "Download"):
        assert f"*{name}*" in text, name
        assert name in controls, name


def test_sentences_of_the_troubleshooting_page_are_those_of_the_code():
    code = "".join(_strings(path) for folder in ("SegMoTELib", "SegMoTE") for path in (ROOT / folder).rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r'^\*\*"(.+?)"\*\*$', page, re.MULTILINE)
    assert len(quoted) > 20
    for sentence in quoted:
        for part in re.split(r"\.\.\. | \.\.\.|\.\.\.", sentence):
            part = part.strip(" .")
            assert part in code, f"no message of the code has {part!r}"


def _strings(path) -> str:
    """The string constants of a file, values left out, so that a sentence can be found in them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {one["url"].rsplit("/", 1)[1] for one in citation["references"]} == {"2602.19213", "2304.02643"}
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
