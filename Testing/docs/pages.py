"""The documentation as the tests see it: pages, fenced blocks, links and commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```\s*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
INLINE = re.compile(r"`(?P<text>[^`\n]+)`")
LANGUAGES = {"sh", "python", "yaml", "json", "text"}
DIRECTIVE = re.compile(r"\{[\w-]+\}")  # of MyST


def pages() -> list[Path]:
    """Every page a reader meets: those in the root, and docs."""
    return sorted(ROOT.glob("*.md")) + sorted(page for page in (ROOT / "docs").rglob("*.md")
                                              if "_build" not in page.parts and "_api" not in page.parts)


def figures() -> list[Path]:
    """The pages of measured figures, which take hours: nothing on them is run."""
    return sorted((ROOT / "Testing" / "benchmarks").glob("*.md"))


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the other words of its info string, and what is in it."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether the test runs it: all but those that say "not-run"."""
        return "not-run" not in self.words

    @property
    def file(self) -> str:
        """The name that the reader is told to save it under; "" for none."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")

    def commands(self) -> list[str]:
        """The commands of a shell block: comments gone, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in (re.sub(r"(^|\s)#.*$", "", line) for line in lines) if line.strip()]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, tuple(words), match["text"]))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
