"""Sphinx: the pages of this folder and the API reference from docstrings. Build with ``make docs``."""

import inspect
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/SegMoTE/SlicerSegMoTE/blob/main"
sys.path.insert(0, str(HERE.parent))

from SegMoTELib import __version__  # noqa: E402
from Testing.slicer_stub import install  # noqa: E402

install()  # SegMoTELogic imports what only the Slicer application has

project = "SegMoTE"
author = "SegMoTE contributors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
myst_heading_anchors = 3


def one_entry_a_line(app, what, name, obj, options, lines):
    """Docstrings may describe several arguments on one line ("rows: pixels. columns: pixels."); napoleon wants one."""
    try:
        names = {*inspect.signature(obj).parameters, *getattr(obj, "__annotations__", {})}
    except (TypeError, ValueError):
        return
    entries = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not entries:
        return
    start = re.compile(rf"(?<=[.;)]) (?=(?:{entries})(?:, (?:{entries}))*: )")
    split, indent = [], ""
    for line in lines:
        if re.match(r" {4}\w[\w, ]*: ", line):
            indent = " " * 4
        elif not line.startswith(" "):
            indent = ""
        first, *rest = start.split(line) if indent else [line]
        split += [first, *(indent + one for one in rest)]
    lines[:] = split


def link_to_the_repository(app, docname, source):
    """Links to files outside of this folder lead to the repository; pictures are copied."""
    def link(match):
        target = ((HERE / docname).parent / match["path"]).resolve()
        outside = target.is_relative_to(HERE.parent) and not target.is_relative_to(HERE)
        place = f"{REPOSITORY}/{target.relative_to(HERE.parent)}" if outside else match["path"]
        return f"[{match['text']}]({place}{match['anchor']})"

    pattern = r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>\.\.[^)#\s]*)(?P<anchor>#?[^)\s]*)\)"
    source[0] = re.sub(pattern, link, source[0])


def setup(app):
    """What is done to docstrings before napoleon, and to pages before MyST."""
    app.connect("autodoc-process-docstring", one_entry_a_line, priority=400)
    app.connect("source-read", link_to_the_repository)
