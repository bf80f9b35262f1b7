"""Habits around notebooks: execute the chapters, write their bootstrap cells and Colab badges."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated

import nbformat
import papermill
import typer
from nbformat import NotebookNode
from tqdm.auto import tqdm

ROOT = Path(__file__).parents[1]
BOOTSTRAP = Path(__file__).parent / "bootstrap.py"
# What a chapter's committed outputs come from, where it is not the embedded base: results that speak.
BASES = {"02": "smollm2-135m", "03": "smollm2-135m", "05": "smollm2-135m"}
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repo}/blob/{ref}/{path})"
# How JupyterLab, Colab and MyST hide a cell's source until it is asked for.
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "tags": ["hide-input"]}
TQDM = re.compile(r"\d+%\|.*\||\d+(it|step|s)/(s|it)")
BADGE_LINK = re.compile(r"colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/(?=chapters/|exercises/)")
BADGE_LINE = re.compile(r"^\[!\[Open in Colab\].*$", re.M)

app = typer.Typer(help="Keep the notebooks in order.", no_args_is_help=True, pretty_exceptions_enable=False)


def chapters() -> list[Path]:
    """Return the chapters in their order."""
    return sorted(ROOT.glob("chapters/[0-9][0-9]_*.ipynb"))


def learner_notebooks() -> list[Path]:
    """Return every notebook that a learner opens in Colab, and the solutions that exercises are made from."""
    return [*chapters(), *sorted(ROOT.glob("solutions/*/*.ipynb"))]


def public_path(path: Path) -> str:
    """Return where a learner finds the notebook: a solution stands for the exercise that is generated from it."""
    return path.relative_to(ROOT).as_posix().replace("solutions/", "exercises/", 1)


def cell(notebook: NotebookNode, name: str) -> NotebookNode:
    """Return the cell with the id `name`. Raises `KeyError` if there is none."""
    for candidate in notebook.cells:
        if candidate.id == name:
            return candidate
    raise KeyError(f"no cell with the id {name!r}")


def dressed(notebook: NotebookNode, path: Path, repo: str, ref: str) -> NotebookNode:
    """Return the notebook with its bootstrap cell and its badge for the repository `repo` at `ref`."""
    source = BOOTSTRAP.read_text("utf-8").rstrip("\n")
    bootstrap = cell(notebook, "bootstrap")
    bootstrap.source = source.replace("{repo}", repo).replace("{ref}", ref)
    bootstrap.metadata |= FOLDED
    title = cell(notebook, "title")
    badge = BADGE.format(repo=repo, ref=ref, path=public_path(path))
    if BADGE_LINE.search(title.source):
        title.source = BADGE_LINE.sub(lambda _: badge, title.source)
    else:
        heading, _, rest = title.source.partition("\n")
        title.source = f"{heading}\n\n{badge}\n\n{rest.lstrip()}"
    return notebook


@app.command()
def badges(
    repo: Annotated[str, typer.Option(help="owner/name of the repository on GitHub.")],
    ref: Annotated[str, typer.Option(help="The tag or branch that notebooks install and open.")] = "main",
) -> None:
    """Write the bootstrap cell and the Colab badge of every notebook, and the badges of the README."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise typer.BadParameter(f"{repo!r} is not owner/name")
    if not re.fullmatch(r"[\w.-]+", ref):  # a slash would end the part of the address that Colab takes for it
        raise typer.BadParameter(f"{ref!r} is no tag or branch of letters, digits, dots and dashes, such as v1.0")
    for path in learner_notebooks():
        nbformat.write(dressed(nbformat.read(path, as_version=4), path, repo, ref), path)
        typer.echo(path.relative_to(ROOT))
    readme = ROOT / "README.md"
    link = f"colab.research.google.com/github/{repo}/blob/{ref}/"
    readme.write_text(BADGE_LINK.sub(link, readme.read_text("utf-8")), "utf-8")


@app.command()
def execute(
    names: Annotated[
        list[str] | None, typer.Argument(help="Chapters by the start of their name (default: all).")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base to run on (default: each chapter's own).")] = None,
) -> None:
    """Execute the chapters in place, each in a fresh kernel and an empty folder."""
    chosen = [path for path in chapters() if not names or path.name.startswith(tuple(names))]
    for path in tqdm(chosen, desc="chapters", unit="chapter"):
        own = BASES.get(path.stem[:2], "embedded")
        notebook = run(path, ROOT / "build" / "chapters" / path.stem, base or own)
        nbformat.write(notebook, path)


def run(path: Path, folder: Path, base: str, **parameters: object) -> NotebookNode:
    """Execute a chapter with BASE set, in `folder`, which is emptied, and return it with its outputs and own parameters.

    Raises `papermill.PapermillExecutionError` if a cell fails.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier run left would show in this one's outputs
    folder.mkdir(parents=True)
    done = papermill.execute_notebook(
        path,
        folder / path.name,
        parameters={"BASE": base, **parameters},
        cwd=folder,
        kernel_name="python3",
        language="python",
        progress_bar={"desc": path.stem, "unit": "cell", "leave": False},
    )
    return _published(done)


def _published(notebook: NotebookNode) -> NotebookNode:
    """Return what is committed of a run notebook: no injected cell, timestamps, progress bars or widget state."""
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec",) if name in notebook.metadata}
    notebook.metadata["language_info"] = {"name": "python"}
    for one in notebook.cells:
        for name in ("papermill", "execution"):
            one.metadata.pop(name, None)
        if not one.metadata.get("tags", True):
            one.metadata.pop("tags")
        if one.cell_type == "code":
            one.outputs = [output for output in one.outputs if not _is_progress(output)]
    return notebook


def _is_progress(output: NotebookNode) -> bool:
    """Tell whether an output is a progress bar: tqdm's on stderr, Trainer's HTML table, or tqdm's widget."""
    if output.output_type == "stream":
        return output.name == "stderr" and TQDM.search(output.text) is not None
    data = output.get("data", {})
    return "<progress" in data.get("text/html", "") or "application/vnd.jupyter.widget-view+json" in data


if __name__ == "__main__":
    app()
