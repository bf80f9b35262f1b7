"""Running notebooks."""

import json
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import grader.sandbox.execute
from grader.errors import NotebookFailed, SandboxFailed
from grader.sandbox.execute import empty, execute, execute_in_sandbox
from grader.sandbox.limits import MIB, Limits
from loralab import Base, choose_base
from loralab.fetch import MODELS


def notebook(tmp_path, *cells):
    path = tmp_path / "homework.ipynb"
    parameters = new_code_cell('BASE, SEED, RUNS = "auto", 0, "runs"', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, *map(new_code_cell, cells)]), path)
    return path


def test_parameters_reach_the_notebook_and_runs_are_found(tmp_path):
    path = notebook(tmp_path, "import pathlib; (pathlib.Path(RUNS) / f'{BASE}-{SEED}').touch()")
    execute(path, tmp_path / "out", "embedded", 3, timeout=60)
    assert (tmp_path / "out" / "runs" / "embedded-3").exists()


def test_an_error_is_named_with_its_cell(tmp_path):
    with pytest.raises(NotebookFailed, match=r"homework.ipynb, cell 3: ZeroDivisionError: division by zero"):
        execute(notebook(tmp_path, "1 / 0"), tmp_path / "out", "embedded", 0, timeout=60)


def test_an_error_without_a_message_is_named_too(tmp_path):
    with pytest.raises(NotebookFailed, match=r"homework.ipynb, cell 3: ValueError$"):
        execute(notebook(tmp_path, "raise ValueError"), tmp_path / "out", "embedded", 0, timeout=60)


def test_a_cell_that_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(NotebookFailed, match="a cell ran longer than 2 s"):
        execute(notebook(tmp_path, "import time; time.sleep(60)"), tmp_path / "out", "embedded", 0, timeout=2)


def test_a_kernel_that_ends_itself_is_a_failure(tmp_path):
    with pytest.raises(NotebookFailed, match="the kernel died"):
        execute(notebook(tmp_path, "import os; os._exit(0)"), tmp_path / "out", "embedded", 0, timeout=60)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_a_failure(tmp_path, content):
    path = tmp_path / "homework.ipynb"
    path.write_text(content)
    with pytest.raises(NotebookFailed, match=r"homework.ipynb: cannot be read as a notebook"):
        execute(path, tmp_path / "out", "embedded", 0, timeout=60)


needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def sandboxed(tmp_path, *sources, base=None, **limits):
    """Run a notebook with these cells in the sandbox, as the exercises are; return where it is and where its runs are."""
    parameters = new_code_cell('BASE, SEED, RUNS = "auto", 0, "runs"', metadata={"tags": ["parameters"]})
    cells = [
        new_code_cell(source, metadata={"nbgrader": {"grade_id": f"part-{i}"}}) for i, source in enumerate(sources)
    ]
    whole = new_notebook(cells=[new_markdown_cell("# Homework"), parameters, *cells])
    base = base or choose_base("embedded")
    execute_in_sandbox(whole, tmp_path / "out", "homework", base, 3, Limits(**{"wall": 60, **limits}))
    return tmp_path / "out" / "homework.ipynb", tmp_path / "out" / "runs"


def failure(tmp_path, *sources, **limits) -> str:
    with pytest.raises(NotebookFailed) as failed:
        sandboxed(tmp_path, *sources, **limits)
    return str(failed.value)


@needs_bwrap
def test_in_the_sandbox_too_parameters_reach_the_notebook_and_runs_and_outputs_are_found(tmp_path):
    touch = "import pathlib; (pathlib.Path(RUNS) / f'{BASE}-{SEED}').touch(); print('as told')"
    executed, runs = sandboxed(tmp_path, touch)
    assert [path.name for path in runs.iterdir()] == ["embedded-3"]
    assert "as told" in executed.read_text()


@needs_bwrap
def test_in_the_sandbox_too_an_error_is_named_with_its_cell_and_its_last_lines(tmp_path):
    told = failure(tmp_path, "x = 0", "def share(n):\n    return 1 / n\nshare(x)").splitlines()
    assert told[0] == "homework.ipynb, cell 3 (part-1): ZeroDivisionError: division by zero"
    assert "----> 2     return 1 / n" in [line.rstrip() for line in told]
    assert told[-1] == "ZeroDivisionError: division by zero"


CHECK = """
from loralab.selfcheck import SelfCheck
with SelfCheck("Task 1") as check:
    {task}
    check(False, "", "the rank is 8", "LoraConfig calls it r")
print("not to be told")
"""


@needs_bwrap
def test_a_self_check_that_is_not_met_does_not_stop_what_is_graded(tmp_path):
    touch = "import pathlib; (pathlib.Path(RUNS) / 'later').touch()"
    executed, runs = sandboxed(tmp_path, CHECK.format(task="pass"), touch)
    assert (runs / "later").exists()
    assert "the rank is 8" in executed.read_text()


@needs_bwrap
def test_of_a_self_check_that_stops_its_own_words_are_told_and_not_its_code(tmp_path):
    assert failure(tmp_path, CHECK.format(task="check.call(lambda: {}['labels'])")).splitlines() == [
        "homework.ipynb, cell 2 (part-0): NotYet: Task 1",
        "Task 1",
        "  not yet  your code raised KeyError: 'labels'",
        "           in <lambda>, line 3: check.call(lambda: {}['labels'])",
        "Task 1 is not right yet.",
    ]


@needs_bwrap
def test_a_self_check_names_the_line_of_the_function_that_broke(tmp_path):
    told = failure(tmp_path, "def encode():\n    return {}['labels']", CHECK.format(task="encode()"))
    assert "in encode, line 2: return {}['labels']" in told


@needs_bwrap
def test_what_a_student_is_told_is_short_and_printable(tmp_path):
    text = failure(tmp_path, "raise ValueError('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07\\u202e<b>' + 'x' * 10**6)")
    assert text.startswith("homework.ipynb, cell 2 (part-0): ValueError: red <b>")
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert len(text) < 3000 and len(text.splitlines()) <= 9


@needs_bwrap
@pytest.mark.parametrize(
    ("source", "limits", "reason"),
    [
        ("import os; os._exit(0)", {}, "the kernel died"),
        ("import os; os.kill(os.getppid(), 9)", {}, "its process was killed"),
        (
            "import os\nfor i in range(20): os.system('head -c 1000000 /dev/zero')",
            {"output": MIB},
            "wrote more than 1 MiB",
        ),
    ],
)
def test_a_notebook_that_does_not_reach_its_end_is_told_why_and_where(tmp_path, source, limits, reason):
    assert failure(tmp_path, source, **limits).startswith(f"homework.ipynb, cell 2 (part-0): {reason}")


@needs_bwrap
def test_an_outcome_that_the_student_wrote_is_no_outcome(tmp_path):
    """Of what a notebook says about its end, nothing is believed that the sandbox does not bear out."""
    forged = """
import json, os
os.remove("outcome.json")
os.symlink("/etc/ld.so.cache", "outcome.json")
os.kill(os.getppid(), 9)
"""
    assert failure(tmp_path, forged) == "homework.ipynb: its process was killed (exit status 137)"


@needs_bwrap
def test_a_folder_that_breaks_the_limits_is_not_left_behind(tmp_path):
    files = "for i in range(400): open(str(i), 'w')\nimport time; time.sleep(60)"
    assert "made more than 300 files" in failure(tmp_path, files, files=300)
    assert list((tmp_path / "out").iterdir()) == []


@needs_bwrap
def test_runs_that_were_saved_before_another_limit_was_passed_are_left(tmp_path):
    saved = "import os, time; os.mkdir(f'{RUNS}/first')\nwhile True: print('x' * 10**5); time.sleep(0.01)"
    assert "wrote more than 1 MiB of output" in failure(tmp_path, saved, output=MIB)
    assert (tmp_path / "out" / "runs" / "first").is_dir()


@needs_bwrap
def test_a_notebook_that_cannot_be_begun_is_not_the_students_failure(tmp_path):
    with pytest.raises(SandboxFailed, match="no cell could be run"):
        sandboxed(tmp_path, "1", memory=MIB)
    with pytest.raises(SandboxFailed, match=r"nobody/nothing is not in the hub's cache"):
        sandboxed(tmp_path, "1", base=Base("nothing", "nobody/nothing", 1e-3, "none"))


@needs_bwrap
def test_a_local_model_and_one_of_the_hub_are_shown_and_no_other(tmp_path, monkeypatch):
    cache = tmp_path / "private" / "hub"
    wanted, other, local = (cache / "models--a--one", cache / "models--b--two", tmp_path / "private" / "local")
    for folder in (wanted, other, local):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    monkeypatch.setattr(grader.sandbox.execute, "HF_HUB_CACHE", str(cache))
    look = """
import os, pathlib
found = sorted(str(path) for path in pathlib.Path(os.environ["HF_HUB_CACHE"]).rglob("*.json"))
(pathlib.Path(RUNS) / "seen").write_text(f"{BASE} {found} {os.path.exists(BASE + '/config.json')}")
"""
    _, runs = sandboxed(tmp_path, look, base=Base("one", "a/one", 1e-3, "none"))
    assert (runs / "seen").read_text() == "a/one ['/hub/models--a--one/config.json'] False"
    _, runs = sandboxed(tmp_path, look, base=choose_base(str(local)))
    assert (runs / "seen").read_text() == f"{local} [] True"


@needs_bwrap
def test_a_fetched_base_is_found_by_its_name_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "private"))
    folder, wanted = tmp_path / "private" / "smollm2-135m", MODELS["smollm2-135m"].weights_sha256
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    files = {"model.safetensors": {"bytes": 7, "sha256": wanted}}
    (folder / "origin.json").write_text(json.dumps({"files": files}))
    look = """
import pathlib
from loralab import choose_base
(pathlib.Path(RUNS) / "seen").write_text(str(choose_base(BASE)) + " " + choose_base(BASE).source)
"""
    _, runs = sandboxed(tmp_path, look, base=choose_base("smollm2-135m"))
    seen = (runs / "seen").read_text()
    assert seen == "base: smollm2-135m (Apache-2.0): asked for by name /fetched/smollm2-135m"
    why = failure(tmp_path, "from loralab import choose_base; choose_base('smollm2-135m')")
    assert "smollm2-135m: /fetched cannot be written" in why


def test_whatever_a_notebook_left_can_be_emptied(tmp_path):
    """Locked folders, and links, which are not followed."""
    outside, locked = tmp_path / "outside", tmp_path / "out" / "locked"
    outside.mkdir(mode=0o500)
    (locked / "deep").mkdir(parents=True)
    (locked / "link").symlink_to(outside)
    locked.chmod(0)
    empty(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert outside.stat().st_mode & 0o777 == 0o500
