"""Rebuilding a notebook from what was submitted."""

import json
from copy import deepcopy

import nbformat
import pytest

from grader.errors import NotebookFailed
from grader.exercises import ABOUT, EXERCISES
from grader.submission import rebuild as module
from grader.submission.rebuild import MAX_SOURCE, other_version, rebuild, solution_sources

EX1, EX5 = EXERCISES["ex1_first_adapter"], EXERCISES["ex5_low_rank_limits"]


@pytest.fixture
def notebook():
    """Exercise 1 as plain JSON, to be filled in and spoilt."""
    return json.loads(nbformat.writes(EX1.released()))


def cell(notebook, name):
    return next(cell for cell in notebook["cells"] if cell["id"] == name)


def rebuilt(notebook, exercise=EX1):
    return rebuild(exercise, json.dumps(notebook).encode())


def refused(notebook, *parts):
    """The message, which is one line of text that holds these parts."""
    with pytest.raises(NotebookFailed) as problem:
        rebuild(EX1, notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode())
    message = str(problem.value)
    assert message.startswith("ex1_first_adapter.ipynb: ") and message.isprintable() and len(message) < 1000
    for part in parts:
        assert part in message
    return message


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_the_solved_notebook_gives_the_released_one_with_its_solutions(exercise):
    solved = nbformat.read(exercise.solution, as_version=4)
    again = rebuild(exercise, nbformat.writes(solved).encode())
    given = exercise.released()
    sources = {
        c.metadata.nbgrader.grade_id: c.source for c in solved.cells if c.metadata.get("nbgrader", {}).get("solution")
    }
    assert sources == {c.metadata.nbgrader.grade_id: c.source for c in again.cells if module._is_solution(c)}
    for mine, theirs in zip(given.cells, again.cells, strict=True):
        if module._is_solution(mine):
            assert mine.source != theirs.source
            theirs.source = mine.source
    assert again == given


def test_an_unsolved_notebook_stays_unsolved(notebook):
    assert rebuilt(notebook) == EX1.released()


def test_nothing_of_the_students_but_the_source_of_solution_cells_is_kept(notebook):
    honest = deepcopy(notebook)
    cell(honest, "task1")["source"] = cell(notebook, "task1")["source"] = ["answer = 1\n", "answer"]
    for index, one in enumerate(notebook["cells"]):
        one["metadata"]["tags"] = ["skip-execution", "raises-exception", "papermill-error-cell-tag", "parameters"]
        one["metadata"]["__reduce__"] = ["os.system", ["false"]]
        one["id"] = f"other-{index}"
        if one["cell_type"] == "code":
            one["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "100 of 100 points"}]
        if not one["metadata"].get("nbgrader", {}).get("solution"):
            one["source"] = "import sys; sys.exit(0)"
    notebook["metadata"] = {"kernelspec": {"name": "evil", "display_name": ""}, "papermill": {"status": "completed"}}
    notebook["cells"].insert(0, {"cell_type": "code", "source": "BASE = 'mine'", "metadata": {"tags": ["parameters"]}})
    notebook["cells"].reverse()
    assert rebuilt(notebook) == rebuilt(honest)
    assert next(one for one in rebuilt(notebook).cells if one.id == "task1").source == "answer = 1\nanswer"


def test_an_essay_is_kept():
    notebook = json.loads(nbformat.writes(EX5.released()))
    cell(notebook, "essay")["source"] = "A low rank ends where <b>codes</b> begin."
    assert next(one for one in rebuilt(notebook, EX5).cells if one.id == "essay").source.startswith("A low rank ends")


def test_solution_cells_that_are_missing_twice_there_or_renamed_are_named_in_one_message(notebook):
    cell(notebook, "task1")["metadata"]["nbgrader"]["grade_id"] = "task\u202e9"
    notebook["cells"].append(deepcopy(cell(notebook, "task2")))
    cell(notebook, "task3").update(cell_type="markdown")
    cell(notebook, "task4")["metadata"]["nbgrader"]["solution"] = False
    message = refused(notebook, "cell task1 is missing", "cell task4 is missing", "cell task2 is there 2 times")
    assert "cell task\\u202e9 does not belong to this exercise" in message
    assert "cell task3 is a markdown cell, and was a code cell" in message


def test_the_check_cell_cannot_be_replaced_by_calling_another_one_it(notebook):
    cell(notebook, "check1")["metadata"]["nbgrader"]["solution"] = True
    refused(notebook, "cell check1 does not belong to this exercise")


def test_a_message_about_very_many_cells_is_short(notebook):
    odd = {
        "cell_type": "x" * 10**5,
        "source": "",
        "metadata": {"nbgrader": {"solution": True, "grade_id": "y" * 10**5}},
    }
    notebook["cells"] += [odd] * 20
    refused(notebook, "and 12 more")


def test_a_cell_that_lost_its_metadata_is_known_by_its_id(notebook):
    cell(notebook, "task1")["source"] = "answer = 1"
    honest = rebuilt(notebook)
    for one in notebook["cells"]:
        one["metadata"].pop("nbgrader", None)
    assert rebuilt(notebook) == honest
    del cell(notebook, "task2")["id"]
    refused(notebook, "solution cell task2 is missing")


def test_an_id_counts_only_where_no_cell_has_the_grade_id(notebook):
    cell(notebook, "task1")["source"] = "answer = 1"
    honest = rebuilt(notebook)
    cell(notebook, "task1")["id"] = "moved"
    notebook["cells"].append({"cell_type": "code", "id": "task1", "metadata": {}, "source": "answer = 2"})
    assert rebuilt(notebook) == honest


def split(notebook, first, second):
    """What JupyterLab makes of a solution cell that is split: two with the same metadata."""
    whole = cell(notebook, "task1")
    rest = deepcopy(whole) | {"id": "new", "source": second}
    whole["source"] = first
    notebook["cells"].insert(notebook["cells"].index(whole) + 1, rest)


def test_a_split_cell_is_put_together(notebook):
    split(notebook, "import math\n\ndef helper():\n    x = 1", "def encode_pair(a):\n    x = 2\n    return helper()")
    sources = solution_sources(json.dumps(notebook).encode())
    again = next(one for one in rebuilt(notebook).cells if one.id == "task1")
    assert (
        again.source
        == sources["task1"]
        == ("import math\n\ndef helper():\n    x = 1\n\ndef encode_pair(a):\n    x = 2\n    return helper()")
    )


@pytest.mark.parametrize("second", ["answer = 2", "def answer(): pass", "class answer: pass", "answer: int = 2"])
def test_two_cells_that_define_the_same_or_are_apart_are_no_halves(notebook, second):
    before = deepcopy(notebook)
    split(notebook, "answer = 1", second)
    refused(notebook, "solution cell task1 is there 2 times")
    split(before, "answer = 1", "other = 2")
    before["cells"].append(before["cells"].pop(before["cells"].index(cell(before, "new"))))
    refused(before, "solution cell task1 is there 2 times")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_a_notebook_in_another_form_of_unicode_is_read(notebook, encoding):
    cell(notebook, "task1")["source"] = "name = 'Jürgen 김'"
    assert rebuild(EX1, json.dumps(notebook, ensure_ascii=False).encode(encoding)) == rebuilt(notebook)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"\x80\x04\x95", "not UTF-8"),
        ("{}".encode("utf-16"), "no nbformat"),
        ("{}".encode("utf-16") + b"\x00", "not UTF-16 text"),
        (b'{"cells": [], "nbformat": 4', "not JSON"),
        (b"[" * 10**6 + b"]" * 10**6, "nested too deep"),
        (b'{"nbformat": ' + b"[" * 900 + b"]" * 900 + b"}", "nbformat ["),
        (b'{"nbformat": 4, "cells": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "no nbformat"),
        (b'{"cells": 3, "metadata": [], "nbformat": "4"}', "nbformat '4', and 4 is read"),
        (b'{"cells": [], "nbformat": 3, "worksheets": []}', "nbformat 3"),
        (b'{"nbformat": 4}', "no list of cells"),
        (b'{"nbformat": 4, "cells": {}}', "no list of cells"),
        (b'{"nbformat": 4, "cells": [1]}', "no list of cells"),
        (b" " * 10_000_001, "10,000,001 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_notebook_is_a_message(content, why):
    refused(content, "cannot be read as a notebook", why)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ([1, 2], "is not text"),
        (None, "is not text"),
        ({"a": []}, "is not text"),
        ("x" * (MAX_SOURCE + 1), "100,001 characters"),
        ("name = '\ud800'", "holds \\ud800"),
        ("a\0b", "holds \\x00"),
    ],
    ids=["numbers", "nothing", "an object", "too long", "half a character", "NUL"],
)
def test_a_source_that_is_no_sound_text_is_named_with_its_cell(notebook, source, why):
    cell(notebook, "task2")["source"] = source
    refused(notebook, "solution cell task2", why)


@pytest.mark.parametrize(
    "metadata", [None, [], {"nbgrader": None}, {"nbgrader": [1]}, {"nbgrader": {"solution": "yes"}}]
)
def test_a_cell_with_metadata_of_any_kind_is_just_another_cell(notebook, metadata):
    notebook["cells"].append({"cell_type": "code", "metadata": metadata, "source": 3})
    assert rebuilt(notebook) == EX1.released()


def test_what_a_windows_editor_puts_before_the_text_does_no_harm(notebook):
    assert rebuild(EX1, b"\xef\xbb\xbf" + json.dumps(notebook).encode()) == EX1.released()


def test_the_sources_of_solution_cells_are_found_by_their_id(notebook):
    cell(notebook, "task1")["source"] = ["a\n", "b"]
    sources = solution_sources(json.dumps(notebook).encode())
    assert list(sources) == ["task1", "task2", "task3", "task4", "task5"]
    assert sources["task1"] == "a\nb"
    with pytest.raises(NotebookFailed, match="the notebook: cannot be read"):
        solution_sources(b"{")


def of_version(notebook, version):
    notebook["metadata"][ABOUT] = {"exercise": EX1.id, "version": version}
    return notebook


def test_a_notebook_of_the_current_version_is_not_remarked_on(notebook):
    assert other_version(EX1, json.dumps(notebook).encode()) == ""
    del cell(notebook, "task2")["metadata"]
    assert other_version(EX1, json.dumps(notebook).encode()) == ""


def test_of_another_version_what_both_have_is_graded_and_the_rest_is_named(notebook):
    cell(notebook, "task1")["source"] = "answer = 1"
    cell(notebook, "task2")["metadata"]["nbgrader"]["grade_id"] = "task2b"
    refused(notebook, "solution cell task2 is missing", "solution cell task2b")
    again = rebuilt(of_version(notebook, 1))
    assert {c.id: c.source for c in again.cells} == {c.id: c.source for c in EX1.released().cells} | {
        "task1": "answer = 1"
    }
    assert other_version(EX1, json.dumps(notebook).encode()) == (
        f"made from version 1 of the exercise, graded by the current version {EX1.version}; "
        "missing and left empty: task2; no longer asked for and ignored: task2b"
    )


@pytest.mark.parametrize("version", [None, True, "2", 0, -1, 10**30, [2], {"version": 2}])
def test_a_version_that_is_none_is_an_unknown_one(notebook, version):
    line = other_version(EX1, json.dumps(of_version(notebook, version)).encode())
    assert line == f"made from an unknown version of the exercise, graded by the current version {EX1.version}"
    for about in (None, [], "2", {}):
        notebook["metadata"][ABOUT] = about
        assert other_version(EX1, json.dumps(notebook).encode()) == line
    assert rebuilt(notebook) == EX1.released()


def test_a_cell_twice_is_refused_whatever_the_version(notebook):
    notebook["cells"] += [cell(notebook, "hand-in"), cell(notebook, "task1")]
    refused(of_version(notebook, 1), "solution cell task1 is there 2 times")


def test_a_notebook_with_none_of_the_solution_cells_is_refused_whatever_the_version(notebook):
    notebook["cells"] = [one for one in notebook["cells"] if "nbgrader" not in one["metadata"]]
    refused(of_version(notebook, 1), "solution cell task1 is missing")
