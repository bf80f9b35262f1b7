"""Running notebooks."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from grader.execute import Execution, NotebookFailed, execute, execute_all


def notebook(tmp_path, *cells):
    path = tmp_path / "homework.ipynb"
    parameters = new_code_cell('BASE, SEED, RUNS = "auto", 0, "runs"', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, *map(new_code_cell, cells)]), path)
    return path


def test_parameters_reach_the_notebook_and_runs_are_found(tmp_path):
    path = notebook(tmp_path, "import pathlib; (pathlib.Path(RUNS) / f'{BASE}-{SEED}').touch()")
    done = execute(path, tmp_path / "out", "embedded", 3, progress=False)
    assert (done.runs / "embedded-3").exists()


def test_an_error_is_named_with_its_cell(tmp_path):
    with pytest.raises(NotebookFailed, match=r"homework.ipynb, cell 3: ZeroDivisionError: division by zero"):
        execute(notebook(tmp_path, "1 / 0"), tmp_path / "out", "embedded", 0, progress=False)


def test_a_cell_that_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(NotebookFailed, match="a cell ran longer than 2 s"):
        execute(notebook(tmp_path, "import time; time.sleep(60)"), tmp_path / "out", "embedded", 0, 2, progress=False)


def test_a_kernel_that_ends_itself_is_a_failure(tmp_path):
    with pytest.raises(NotebookFailed, match="the kernel died"):
        execute(notebook(tmp_path, "import os; os._exit(0)"), tmp_path / "out", "embedded", 0, progress=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_a_failure(tmp_path, content):
    path = tmp_path / "homework.ipynb"
    path.write_text(content)
    with pytest.raises(NotebookFailed, match=r"homework.ipynb: cannot be read as a notebook"):
        execute(path, tmp_path / "out", "embedded", 0, progress=False)


def test_notebooks_that_run_side_by_side_keep_to_their_own_folders(tmp_path):
    good = notebook(tmp_path, "import pathlib; pathlib.Path('here').write_text(RUNS)")
    bad = tmp_path / "bad.ipynb"
    bad.write_text("[]")
    tasks = [(good, tmp_path / name) for name in "abcd"] + [(bad, tmp_path / "e")]
    *ran, failed = execute_all(tasks, "embedded", 0, workers=4)
    assert all(isinstance(one, Execution) for one in ran)
    assert [(tmp_path / name / "here").read_text() for name in "abcd"] == [str(one.runs) for one in ran]
    assert "bad.ipynb: cannot be read" in str(failed)
