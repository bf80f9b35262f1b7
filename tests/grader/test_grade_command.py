"""The grader's command line: what it grades, and the one line it says where it cannot."""

import shutil

import pytest
from typer.testing import CliRunner

from grader.cli import app
from grader.exercises import EXERCISES
from grader.intake import HandIn
from grader.judging import Setting, measure_bases
from grader.ledger import Ledger
from grader.sandbox import available
from grader.watch import Limits
from loralab import Base

EX1 = EXERCISES["ex1_first_adapter"]


def call(*arguments):
    done = CliRunner().invoke(app, ["grade", EX1.id, *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def course(tmp_path):
    (tmp_path / "submitted").mkdir()
    return tmp_path


@pytest.mark.parametrize("options", [("--artifacts-only",), ("--no-sandbox",)])
def test_a_class_without_hand_ins_is_told_where_they_belong_and_nothing_else_is_graded(course, options):
    (course / "submitted" / "ann" / "ex1").mkdir(parents=True)
    status, said = call("--course", course, "--out", course / "out", *options)
    assert status == 2
    assert "submitted/ann/ex1: no exercise has this name" in said
    assert not (course / "out" / "results.json").exists()


def test_options_that_contradict_each_other_are_one_line(course):
    (course / "submitted" / "ann" / EX1.id).mkdir(parents=True)
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only", "--no-sandbox")
    assert status == 2 and "there is nothing for --no-sandbox to do" in said


def test_without_a_sandbox_student_code_does_not_run(course, monkeypatch):
    (course / "submitted" / "ann" / EX1.id).mkdir(parents=True)
    available.cache_clear()
    monkeypatch.setenv("PATH", str(course))
    try:
        status, said = call("--course", course, "--out", course / "out")
    finally:
        available.cache_clear()
    assert status == 2
    assert "bubblewrap" in said and "--artifacts-only" in said and "--no-sandbox" in said


def test_a_ledger_in_use_is_one_line(course):
    (course / "submitted" / "ann" / EX1.id).mkdir(parents=True)
    (course / "out").mkdir()
    with Ledger(course / "out" / "ledger.db"):
        status, said = call("--course", course, "--out", course / "out", "--artifacts-only")
    assert status == 2 and "another grading run has this ledger" in said


def test_a_longer_limit_is_another_verdict_and_the_same_one_is_not(base):
    hand_in = HandIn("ann", EX1.id, None, {}, ())
    keys = [Setting(base, 1, "sandbox", limits=Limits(wall=wall)).key(hand_in) for wall in (60, 60, 900)]
    assert keys[0] == keys[1] != keys[2]


def test_a_small_class_is_graded_handed_back_and_not_graded_again(course, honest):
    good = course / "submitted" / "ann" / EX1.id
    shutil.copytree(honest, good / honest.name)
    (course / "submitted" / "ben" / EX1.id).mkdir(parents=True)
    options = ("--course", course, "--out", course / "out", "--artifacts-only", "--heldout-seed", "123")
    status, said = call(*options)
    assert status == 0, said
    assert "100 of 100 points, passed" in said
    out = course / "out"
    assert {path.name for path in out.iterdir()} >= {
        "report.html",
        "grades.csv",
        "results.json",
        "feedback",
        "ledger.db",
    }
    assert (course / "gradebook.db").exists()
    first = (out / "results.json").read_text()
    assert call(*options)[0] == 0
    assert (out / "results.json").read_text() == first  # the seconds, too: it was looked up
    (good / honest.name / "run.json").write_text("{}")
    assert call(*options)[0] == 0
    assert (out / "results.json").read_text().count("submission failed") == 2


def test_a_base_that_cannot_be_had_is_one_line():
    nowhere = Setting(Base("nothing", "nobody/nothing", 1e-3, "none"), heldout_seed=1)
    with pytest.raises(ValueError, match=r"^the base nothing cannot be measured: OSError: [^\n]+$"):
        measure_bases(nowhere, {EX1.id}, workers=1)
