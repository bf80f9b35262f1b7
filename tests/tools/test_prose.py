"""Turns of phrase that readers stumbled over and that should not come back. Add one when you remove it everywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    r"hand-ins?|handed in": "submission, submitted",
    r"whoever": "anyone who, or the person by name",
    r"anew": "again, or a verb with re-",
    r"by heart": "memorised",
    r"cannot be had": "is unavailable",
    r"besides": "also, or in addition",
    r"in place of": "instead of",
    r"none of this|so is each|what is asked for|as it lies": "say it directly",
    r"helps? nobody|nobody is told|nobody be told": "silently, or say what happens",
    r"a training(?! (run|pair|example|set|text|batch|step|loss|message|data|file|row|record|answer|part))": "a training run",
    r"errands?|strays?": "task, unexpected file",
}
FORBIDDEN = {re.compile(rf"\b({words})\b", re.I): better for words, better in INSTEAD.items()}
TREES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs",
    "loralab",
    "tools",
    "benchmarks",
    "chapters",
]
TREES += ["data/recipes", "data/README.md", "solutions", "grader"]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *TREES], cwd=ROOT, capture_output=True, text=True, check=True)
    suffixes = {".md", ".py", ".pyi", ".ipynb", ".toml", ".j2", ".jinja", ".html"}
    return [ROOT / name for name in listed.stdout.split("\0") if Path(name).suffix in suffixes]


def written(path: Path) -> str:
    """What an author wrote: of a notebook its cells without their outputs."""
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", tracked(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_is_written_in_everyday_english(path):
    found = {
        match.group(): better for pattern, better in FORBIDDEN.items() for match in pattern.finditer(written(path))
    }
    assert found == {}
