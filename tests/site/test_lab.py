"""JupyterLab as a student uses it: a chapter runs and shows its plots, an exercise shows its self-check."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
EXERCISE = "ex1_first_adapter"
OUTPUTS = ".jp-OutputArea-output"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A student's folder: a chapter and an exercise, without outputs of an earlier run."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "exercises" / EXERCISE / f"{EXERCISE}.ipynb", folder)
    chapter = nbformat.read(ROOT / "chapters" / "01_concept.ipynb", as_version=4)
    for cell in chapter.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(chapter, folder / "01_concept.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder) -> Iterator[str]:
    """The address of a JupyterLab over `folder`, which lets a page call its commands."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["lab", "--no-browser", "--allow-root", "--IdentityProvider.token=", f"--port={port}"]
    words += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    server = subprocess.Popen([sys.executable, "-m", "jupyter", *words], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def open_notebook(browser, lab: str, name: str):
    page = browser.new_page(viewport={"width": 1400, "height": 20_000})  # tall: cells out of sight are not rendered
    page.goto(f"{lab}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000)
    return page


def test_a_chapter_runs_and_shows_its_plots(browser, lab):
    page = open_notebook(browser, lab, "01_concept.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    last = "[...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code').at(-1)"
    page.wait_for_function(f"{last}.executionCount", timeout=900_000)
    assert page.locator(f"{OUTPUTS}[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-RenderedImage img").count() >= 5
    page.close()


def test_an_exercise_says_that_its_task_is_still_empty(browser, lab):
    page = open_notebook(browser, lab, f"{EXERCISE}.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector("text=is still empty", timeout=180_000)
    page.close()
