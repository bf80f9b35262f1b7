"""The habits around notebooks."""

import ast
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from tools.colab import PREINSTALLED, frozen
from tools.notebooks import BOOTSTRAP, ROOT, app, badges, cell, dressed, learner_notebooks, public_path, run

REPO = "owner/some.course"
GITHUB = r"https://colab\.research\.google\.com/github"


def notebook():
    return new_notebook(
        cells=[new_markdown_cell("# Title\n\nText.", id="title"), new_code_cell("old", id="bootstrap")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )


def test_a_notebook_is_dressed_once_and_can_be_dressed_anew():
    path = ROOT / "solutions" / "ex" / "ex.ipynb"
    once = dressed(notebook(), path, REPO, "v1")
    again = dressed(dressed(notebook(), path, "other/name", "main"), path, REPO, "v1")
    assert once.cells[0].source == again.cells[0].source
    assert once.cells[0].source.count("colab-badge.svg") == 1
    assert "github/owner/some.course/blob/v1/exercises/ex/ex.ipynb" in once.cells[0].source
    assert once.cells[0].source.endswith("Text.")
    assert 'git+https://github.com/owner/some.course@v1"' in once.cells[1].source


def test_the_bootstrap_cell_is_plain_python_and_does_nothing_outside_colab():
    source = BOOTSTRAP.read_text()
    ast.parse(source)
    names: dict = {}
    exec(compile(source, "bootstrap", "exec"), names)
    assert "pip" not in names


@pytest.mark.parametrize("path", learner_notebooks(), ids=lambda path: path.stem)
def test_every_notebook_wears_its_own_badge_and_the_common_bootstrap(path):
    stored = nbformat.read(path, as_version=4)
    assert f"/{public_path(path)})" in cell(stored, "title").source
    own = cell(stored, "bootstrap").source
    assert re.sub(r"github\.com/[^@]+@[^\"]+", "github.com/{repo}@{ref}", own) == BOOTSTRAP.read_text().strip()


@pytest.mark.parametrize("path", learner_notebooks(), ids=lambda path: path.stem)
def test_the_readme_opens_every_notebook(path):
    readme = (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"{GITHUB}/[\w.-]+/[\w.-]+/blob/[\w.-]+/{re.escape(public_path(path))}\)", readme)


def test_badges_moves_every_link_to_another_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.notebooks.ROOT", tmp_path)
    monkeypatch.setattr("tools.notebooks.BOOTSTRAP", BOOTSTRAP)
    path = tmp_path / "chapters" / "01_x.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook(), path)
    link = "https://colab.research.google.com/github/{}/chapters/01_x.ipynb"
    (tmp_path / "README.md").write_text(f"[open]({link.format('old/name/blob/main')})")
    badges(repo="owner/course", ref="v2")
    assert (tmp_path / "README.md").read_text() == f"[open]({link.format('owner/course/blob/v2')})"
    assert link.format("owner/course/blob/v2") in nbformat.read(path, as_version=4).cells[0].source


@pytest.mark.parametrize(
    ("repo", "ref", "message"),
    [("course", "v1", "'course' is not owner/name"), (REPO, "feature/x", "'feature/x' is no tag"), (REPO, "", "'' is")],
)
def test_badges_that_would_lead_nowhere_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, repo, ref, message
):
    monkeypatch.setattr("tools.notebooks.ROOT", tmp_path)
    (tmp_path / "README.md").write_text("as it was")
    result = CliRunner().invoke(app, ["badges", "--repo", repo, "--ref", ref])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert (tmp_path / "README.md").read_text() == "as it was"


def test_an_executed_notebook_keeps_outputs_and_loses_noise(tmp_path):
    source = new_notebook(
        cells=[
            new_code_cell('BASE, RUNS = "auto", "runs"', id="parameters", metadata={"tags": ["parameters"]}),
            new_code_cell("import sys; print(BASE); print('50%|#####     | 1/2', file=sys.stderr)", id="say"),
            new_code_cell("print('Warning: look out', file=sys.stderr)", id="warn"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    source.cells[1].outputs = [new_output("stream", text="stale")]
    path = tmp_path / "01_x.ipynb"
    nbformat.write(source, path)
    done = run(path, tmp_path / "out", "embedded")
    assert [one.id for one in done.cells] == ["parameters", "say", "warn"]
    assert [output.text for output in done.cells[1].outputs] == ["embedded\n"]
    assert [output.text for output in done.cells[2].outputs] == ["Warning: look out\n"]  # a reader would see it, too
    assert "papermill" not in done.metadata
    assert not any("papermill" in one.metadata for one in done.cells)


def test_the_versions_of_colabs_own_freeze_are_taken(tmp_path):
    listing = tmp_path / "freeze.txt"
    listing.write_text("torch==2.11.0+cu128\nnumpy==2.0.2\nsome @ file:///x\nPeft==0.21.0\nother==1\n")
    found = frozen(listing)
    assert (found["torch"], found["numpy"], found["peft"]) == ("2.11.0", "2.0.2", "0.21.0")
    assert found.keys() == PREINSTALLED.keys()
