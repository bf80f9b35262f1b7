"""The documents: their links lead somewhere, and what they show is what the command prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
NAMES = [name for name in LISTED.split("\0") if name and not name.startswith(("ko/chapters/", "ko/exercises/"))]
DOCUMENTS = [ROOT / name for name in NAMES]  # without the texts of translated notebooks, whose links are rewritten
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path):
    lost = []
    for place, anchor in LINK.findall(path.read_text("utf-8")):
        target = path.parent / place if place else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            lost.append(f"{place}#{anchor}")
    assert lost == []


def test_the_estimate_is_shown_as_the_command_prints_it():
    text = (ROOT / "docs" / "will-it-fit.md").read_text("utf-8")
    command, shown = re.findall(r"```(?:sh|text)\n(.*?)```", text, re.S)[:2]
    words = [sys.executable, "-c", "from loralab.cli import app; app()", *shlex.split(command)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, env={"COLUMNS": "120", "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.strip() == shown.strip()
