"""The import order of the layers, held by a test: a layer imports only from those to its right."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "SegMoTELib"
MAY_IMPORT = {
    "errors": set(),
    "network": {"errors"},
    "imaging": {"errors"},
    "zoo": {"errors"},
    "data": {"imaging", "errors"},
    "interaction": {"network", "imaging", "errors"},
    "mrml": {"interaction", "imaging", "errors"},
    "training": {"interaction", "data", "imaging", "network", "errors"},
    "evaluation": {"interaction", "data", "imaging", "network", "zoo", "errors"},
    "benchmarks": {"mrml", "interaction", "imaging", "network", "evaluation", "zoo", "errors"},
    "cli": {"interaction", "data", "imaging", "network", "training", "evaluation", "benchmarks", "zoo", "errors"},
}
FILES = sorted(path for path in LIBRARY.rglob("*.py") if path.parent != LIBRARY)


def imported(path: Path) -> set[str]:
    """Top-level layers of SegMoTELib that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("SegMoTELib.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_layer_imports_only_what_it_may(path):
    layer = path.relative_to(LIBRARY).parts[0]
    assert imported(path) - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize("module", ["SegMoTELib", "SegMoTELib.cli", "SegMoTELib.data", "SegMoTELib.evaluation",
                                    "SegMoTELib.zoo"])
def test_importing_does_not_pull_in_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'qt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
