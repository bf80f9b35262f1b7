"""Plain nbgrader works on these exercises, through its own command line and in JupyterLab, beside the grader."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from grader.exercises import EXERCISES, ROOT
from grader.records.autograded import write_autograded
from grader.records.gradebook import default_url, write_gradebook
from grader.submission.sanitize import harmless
from grader.verdict import Check, Verdict

FIRST, LAST = EXERCISES["ex1_first_adapter"], EXERCISES["ex5_low_rank_limits"]
BINARIES = Path(sys.executable).parent
CELLS = {  # what a gradebook knows of an exercise's cells
    "grade_cells": ("name", "max_score", "cell_type"),
    "solution_cells": ("name",),
    "source_cells": ("name", "cell_type", "locked", "source", "checksum"),
}


def environment(home):
    """The program's own surroundings, with no settings of whoever runs this."""
    return os.environ | {
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        **{f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
        "IPYTHONDIR": str(home / "ipython"),
        "OMP_NUM_THREADS": "1",
    }


def nbgrader(course, *arguments):
    """Call nbgrader in the course's folder; what it said."""
    done = subprocess.run([BINARIES / "nbgrader", *arguments], cwd=course, env=environment(course.parent), check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def new_course(folder, *exercises):
    """A course with these exercises, set up with nbgrader alone, in which ann has submitted what she was given."""
    course = folder / "course"
    course.mkdir()
    shutil.copy(ROOT / "nbgrader_config.py", course)
    for exercise in exercises:
        shutil.copytree(exercise.solution.parent, course / "solutions" / exercise.id)
        nbgrader(course, "generate_assignment", exercise.id)
        shutil.copytree(course / "exercises" / exercise.id, course / "submitted" / "ann" / exercise.id)
    return course


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    course = new_course(tmp_path_factory.mktemp("nbgrader"), LAST)
    nbgrader(course, "autograde", LAST.id, "--no-execute")
    return course


def cells(course, exercise):
    with Gradebook(default_url(course)) as gradebook:
        notebook = gradebook.find_notebook(exercise.id, exercise.id)
        return {
            kind: sorted(tuple(getattr(cell, name) for name in names) for cell in getattr(notebook, kind))
            for kind, names in CELLS.items()
        }


def verdict(student, points):
    lost = Check(name="lost", expected="", found="", points=100 - points, passed=False, message="</code><script>evil()")
    kept = Check(name="kept", expected="", found="", points=points, passed=True)
    return Verdict(exercise=LAST.id, student=student, base="embedded", state="graded", checks=[kept, lost])


def grade_with_ours(course, student, points):
    """What `make grade` does at its end, for one student whose notebook is hostile."""
    notebook = LAST.released()
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "essay":
            cell.source = "Low rank, <script>evil()</script>"
    write_autograded(student, LAST, harmless(LAST, notebook, "a submission"), course)
    assert write_gradebook([verdict(student, points)], default_url(course)) == []


def test_the_grader_enters_the_cells_that_nbgrader_enters(course, tmp_path):
    write_gradebook([verdict("ann", 50)], default_url(tmp_path))
    assert cells(tmp_path, LAST) == cells(course, LAST)
    assert len(cells(course, LAST)["grade_cells"]) == 6


def test_what_nbgrader_graded_gets_the_graders_points_and_feedback_without_scripts(course):
    with Gradebook(default_url(course)) as gradebook:  # the notebook was not run, so no check had failed
        assert gradebook.find_submission(LAST.id, "ann").score == 10
    grade_with_ours(course, "ann", 50)
    with Gradebook(default_url(course)) as gradebook:
        assert gradebook.find_submission(LAST.id, "ann").score == 5
    nbgrader(course, "generate_feedback", LAST.id, "--force")
    page = (course / "feedback" / "ann" / LAST.id / f"{LAST.id}.html").read_text()
    assert "(Score: 5.0 / 16.0)" in page
    assert "50 of 100 points" in page
    assert page.count("&lt;script&gt;evil()") == 2
    assert "<script>evil" not in page


@pytest.fixture
def lab(course):
    """Starts JupyterLab in the course's folder; a function that gets a page from it."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    options = ("--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0")
    with (course.parent / "lab.log").open("w+") as log:
        server = subprocess.Popen([BINARIES / "jupyter", "lab", *options, "--IdentityProvider.token=known"], cwd=course,
                                  env=environment(course.parent), stdout=log, stderr=log)  # fmt: skip

        def get(path):
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": "token known"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read().decode()

        try:
            deadline = time.monotonic() + 90
            while True:
                try:
                    get("/api")
                    break
                except urllib.error.URLError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        pytest.fail(f"JupyterLab did not start:\n{log.read()[-3000:]}")
                    time.sleep(0.2)
            yield get
        finally:
            server.terminate()
            server.wait(30)


def test_formgrader_in_jupyterlab_shows_the_graders_points(course, lab):
    grade_with_ours(course, "bob", 75)
    assert "@jupyter/nbgrader" in lab("/lab")
    assert "Manage Assignments" in lab("/formgrader/manage_assignments")
    (assignment,) = json.loads(lab("/formgrader/api/assignments"))
    assert (assignment["name"], assignment["max_score"], assignment["max_written_score"]) == (LAST.id, 16, 6)
    submitted = {
        one["student"]: one for one in json.loads(lab(f"/formgrader/api/submitted_notebooks/{LAST.id}/{LAST.id}"))
    }
    assert (submitted["bob"]["code_score"], submitted["bob"]["needs_manual_grade"]) == (7.5, True)
    page = lab(f"/formgrader/submissions/{submitted['bob']['id']}/")
    assert "Low rank, &lt;script&gt;evil()" in page
    assert "<script>evil" not in page
    comments = json.loads(lab(f"/formgrader/api/comments?submission_id={submitted['bob']['id']}"))
    assert ["75 of 100 points" in (c["auto_comment"] or "") for c in comments if c["name"] == "task5"] == [True]


@pytest.mark.slow
def test_nbgrader_validates_and_autogrades_a_solved_and_an_unsolved_exercise(tmp_path):
    course = new_course(tmp_path, FIRST)
    shutil.copytree(FIRST.solution.parent, course / "submitted" / "bob" / FIRST.id)
    ann, bob = (course / "submitted" / name / FIRST.id / FIRST.solution.name for name in ("ann", "bob"))
    assert "Task 1 is still empty" in nbgrader(course, "validate", str(ann))
    assert "Success! Your notebook passes all the tests." in nbgrader(course, "validate", str(bob))
    nbgrader(course, "autograde", FIRST.id)
    with Gradebook(default_url(course)) as gradebook:
        scores = {one["student"]: one["score"] for one in gradebook.submission_dicts(FIRST.id)}
    assert scores == {"ann": 0, "bob": 10}
