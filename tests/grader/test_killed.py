"""A grader that is killed again and again: the same command goes on, and the end is that of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from grader.exercises import EXERCISES, ROOT

EX1 = EXERCISES["ex1_first_adapter"]
STUDENTS, KILLS = 6, 10


@pytest.fixture
def course(honest, tmp_path):
    """A class whose submissions differ, one of them empty, in two identical courses."""
    for name in ("undisturbed", "killed"):
        for number in range(STUDENTS):
            folder = tmp_path / name / "submitted" / f"student {number}" / EX1.id
            shutil.copytree(honest, folder / honest.name)
            record = json.loads((folder / honest.name / "run.json").read_text())
            record["rank"] = number  # one of them tells the truth
            (folder / honest.name / "run.json").write_text(json.dumps(record))
        (tmp_path / name / "submitted" / "nobody" / EX1.id).mkdir(parents=True)
    return tmp_path


def start(course):
    command = [sys.executable, "-m", "grader", "grade", EX1.id, "--artifacts-only", "--heldout-seed", "5"]
    return subprocess.Popen([*command, "--course", course, "--out", course / "out"], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def scores(course):
    """Everything that the gradebook has of scores and comments."""
    with sqlite3.connect(course / "gradebook.db") as gradebook:
        return [
            sorted(gradebook.execute(query).fetchall(), key=repr)
            for query in (
                "SELECT auto_score, manual_score, needs_manual_grade FROM grade",
                "SELECT auto_comment, manual_comment FROM comment",
                "SELECT id FROM student",
            )
        ]


def verdicts(course):
    found = json.loads((course / "out" / "results.json").read_text())
    return [{name: value for name, value in one.items() if name != "seconds"} for one in found]


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_as_an_undisturbed_run(course):
    started = time.monotonic()
    assert start(course / "undisturbed").wait() == 0
    usual = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(KILLS):
        process = start(course / "killed")
        time.sleep(moments.uniform(0.1, 1.0) * usual)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(course / "killed").wait() == 0
    assert verdicts(course / "killed") == verdicts(course / "undisturbed")
    assert scores(course / "killed") == scores(course / "undisturbed")
    assert len(verdicts(course / "killed")) == STUDENTS + 1
