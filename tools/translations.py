"""Translations of the notebooks: Markdown alone is translated, cell by cell; code, ids and outputs stay those of the original.

`ko/chapters/01_concept.md` holds the translated cells of `chapters/01_concept.ipynb`. Above each stands the id of its cell and
the hash of the English text that it renders, so that a translation whose original has changed is known to be stale.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbformat import NotebookNode

from tools.notebooks import ROOT, chapters

LANGUAGES = {"ko": "한국어"}
MARK = re.compile(r"^<!-- cell: (?P<id>[\w-]+) of: (?P<hash>\w+) -->\n", re.M)
UNTRANSLATED = "untranslated"

app = typer.Typer(help="Keep the translations in step.", no_args_is_help=True, pretty_exceptions_enable=False)


def originals() -> list[Path]:
    """Return the notebooks that are translated: chapters, and exercises as students get them."""
    return [*chapters(), *sorted(ROOT.glob("exercises/*/*.ipynb"))]


def translation_of(path: Path, language: str) -> Path:
    """Return the Markdown file with the translated cells of a notebook."""
    return (ROOT / language / path.relative_to(ROOT)).with_suffix(".md")


def fingerprint(text: str) -> str:
    """Return a short hash of the English text of a cell; Colab's badge and trailing spaces do not count."""
    words = "\n".join(line.rstrip() for line in text.splitlines() if "colab-badge.svg" not in line)
    return hashlib.sha256(words.strip().encode()).hexdigest()[:12]


def read_cells(path: Path) -> dict[str, tuple[str, str]]:
    """Return the translated cells by id: the hash of the English text, and the translation."""
    parts = MARK.split(path.read_text("utf-8")) if path.exists() else [""]
    return {name: (of, text.strip()) for name, of, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def translatable(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells to translate: Markdown, but not the answers to write, which a grader knows by their first text."""
    return [cell for cell in notebook.cells if cell.cell_type == "markdown" and "nbgrader" not in cell.metadata]


def stale_cells(path: Path, language: str) -> list[str]:
    """Return the ids of Markdown cells whose translation is missing or renders an older text."""
    known = read_cells(translation_of(path, language))
    texts = {cell.id: cell.source for cell in translatable(nbformat.read(path, as_version=4))}
    return [name for name, text in texts.items() if known.get(name, ("", ""))[0] != fingerprint(text)]


def translated(path: Path, language: str) -> NotebookNode:
    """Return the notebook with its Markdown translated; cells without a translation stay English."""
    notebook = nbformat.read(path, as_version=4)
    known = read_cells(translation_of(path, language))
    for cell in translatable(notebook):
        if cell.id in known:
            cell.source = _moved(known[cell.id][1], path, language)
    return notebook


def _moved(text: str, path: Path, language: str) -> str:
    """Let links of a notebook lead to the same places from the language's folder, which is one folder deeper."""
    inside = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")

    def link(match: re.Match[str]) -> str:
        target = (path.parent / match[1]).resolve()
        if translation_of(target, language).exists():
            return match[0]
        return f"]({os.path.relpath(target, translation_of(path, language).parent)}{match[2] or ''})"

    return inside.sub(link, text).replace("/blob/main/", f"/blob/main/{language}/")


@app.command()
def status() -> None:
    """List the cells whose translation is missing or stale; exit status 1 if there are any."""
    found = [
        f"{translation_of(path, language).relative_to(ROOT)}: {', '.join(stale)}"
        for language in LANGUAGES
        for path in originals()
        if (stale := stale_cells(path, language))
    ]
    typer.echo("\n".join(found) or "every translation is in step")
    raise typer.Exit(int(bool(found)))


@app.command()
def draft(language: str, names: Annotated[list[str], typer.Argument(help="Notebooks, such as 01_concept.")]) -> None:
    """Write the translation files with a place for every cell; what is translated and in step stays as it is."""
    for path in originals():
        if path.stem not in names:
            continue
        target = translation_of(path, language)
        known, stale = read_cells(target), stale_cells(path, language)
        target.parent.mkdir(parents=True, exist_ok=True)
        cells = translatable(nbformat.read(path, as_version=4))
        parts = [_part(cell, known.get(cell.id), cell.id in stale) for cell in cells]
        target.write_text("\n\n".join(parts) + "\n", "utf-8")
        typer.echo(f"{target.relative_to(ROOT)}: {len(stale)} of {len(cells)} cells to translate")


def _part(cell: NotebookNode, known: tuple[str, str] | None, stale: bool) -> str:
    if known and not stale:
        return f"<!-- cell: {cell.id} of: {known[0]} -->\n{known[1]}"
    return f"<!-- cell: {cell.id} of: {UNTRANSLATED} -->\n{cell.source}"


@app.command()
def build() -> None:
    """Write the translated notebooks beside their translations."""
    for language in LANGUAGES:
        for path in originals():
            target = translation_of(path, language)
            if target.exists():
                nbformat.write(translated(path, language), target.with_suffix(".ipynb"))
                typer.echo(target.with_suffix(".ipynb").relative_to(ROOT))


if __name__ == "__main__":
    app()
