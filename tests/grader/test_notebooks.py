"""The exercise notebooks: generated, clean, and gradable."""

import itertools
import shutil
from dataclasses import replace

import nbformat
import pytest

from grader.errors import NotebookFailed
from grader.exercises import ABOUT, EXERCISES, ROOT, Exercise
from grader.release import generate, stamp
from grader.sandbox.execute import execute

NOTEBOOKS = sorted([*ROOT.glob("solutions/*/*.ipynb"), *ROOT.glob("exercises/*/*.ipynb")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_notebook_has_stable_ids_parameters_and_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert all(name in parameters.source for name in ("BASE", "SEED", "RUNS"))


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_the_student_version_is_what_nbgrader_generates(exercise, tmp_path):
    fresh = generate(exercise, tmp_path)
    committed = ROOT / "exercises" / exercise.id / fresh.name
    assert fresh.read_text() == committed.read_text(), "exercises/ is stale: run `make generate`"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_every_notebook_says_from_which_version_of_the_exercise_it_is(exercise):
    for notebook in (nbformat.read(exercise.solution, as_version=4), exercise.released()):
        assert notebook.metadata[ABOUT] == {"exercise": exercise.id, "version": exercise.version}


def test_making_the_exercises_writes_a_new_version(monkeypatch, tmp_path):
    old = EXERCISES["ex1_first_adapter"]
    exercise = replace(old, version=old.version + 1)
    monkeypatch.setattr(Exercise, "solution", tmp_path / old.solution.name)
    shutil.copy(ROOT / "solutions" / old.id / old.solution.name, tmp_path)
    stamp(exercise)
    assert nbformat.read(tmp_path / old.solution.name, as_version=4).metadata[ABOUT]["version"] == exercise.version


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_the_student_version_holds_no_solution(exercise):
    solution = nbformat.read(exercise.solution, as_version=4)
    student = nbformat.read(ROOT / "exercises" / exercise.id / exercise.solution.name, as_version=4)
    for solved, empty in zip(solution.cells, student.cells, strict=True):
        if solved.metadata.get("nbgrader", {}).get("solution"):
            stub = "raise NotImplementedError" if solved.cell_type == "code" else "Write your answer here"
            assert "BEGIN SOLUTION" in solved.source
            assert stub in empty.source
            assert "SOLUTION" not in empty.source
        else:
            assert solved.source == empty.source


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_every_task_has_a_self_check_right_below_it(exercise):
    cells = nbformat.read(exercise.solution, as_version=4).cells
    for task, check in itertools.pairwise(cells):
        if task.cell_type == "code" and task.metadata.get("nbgrader", {}).get("solution"):
            assert check.metadata["nbgrader"]["points"] > 0
            assert "check." in check.source or "SelfCheck" in check.source


@pytest.mark.slow
@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.id)
def test_a_student_who_runs_it_unsolved_is_told_where_to_begin(exercise, tmp_path):
    unsolved = ROOT / "exercises" / exercise.id / exercise.solution.name
    with pytest.raises(NotebookFailed, match="Task 1 is still empty"):
        execute(unsolved, tmp_path, "embedded", 0, timeout=600)
