"""The documents: their links lead somewhere, and what they show is what the command prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

import pytest
import typer

from grader import cli as grader_cli
from loralab import cli as loralab_cli

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


COMMANDS = {("loralab",): loralab_cli.app, ("python", "-m", "grader"): grader_cli.app}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def commands(path: Path) -> list[list[str]]:
    """The words of every command in a document's shell blocks, without comments and what is set before the command."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [list(dropwhile(lambda word: re.match(r"\w+=", word), words)) for words in lines if words]


def test_every_command_in_the_documents_exists_with_its_options():
    parsed = 0
    for path in DOCUMENTS:
        for program, *words in commands(path):
            if program == "make":
                assert {word for word in words if "=" not in word} <= TARGETS, path
            for start, app in COMMANDS.items():
                said = (program.removeprefix(".venv/bin/"), *words)
                if said[: len(start)] == start:
                    parse(typer.main.get_command(app), list(said[len(start) :]))
                    parsed += 1
    assert parsed > 20


def parse(command: typer.core.TyperGroup, words: list[str]) -> None:
    """Read the words as the command line would, without running anything. Raises `UsageError` for unknown options."""
    name, *words = words
    assert name in command.commands, f"no command {name!r}"
    chosen = command.commands[name]
    chosen.make_parser(chosen.context_class(chosen)).parse_args(words)
