"""What a verdict looks like in the terminal and on disk."""

import csv
import io
import json

import pytest
from rich.console import Console

from grader.cli import judge
from grader.exercises import EXERCISES
from grader.report import print_verdict, write_grades, write_report, write_results
from grader.verdict import Verdict


@pytest.fixture
def failure():
    return Verdict(exercise="ex1_first_adapter", student="=cmd()|x", base="embedded", heldout_seed=1,
                   state="submission failed", message="<script>alert(1)</script>")  # fmt: skip


@pytest.fixture
def graded(evaluator, honest):
    return judge(evaluator, EXERCISES["ex1_first_adapter"], "Ann", honest.parent)


def test_the_table_names_every_check(graded):
    console = Console(file=io.StringIO(), width=160)
    print_verdict(graded, console)
    text = console.file.getvalue()
    assert all(check.name in text for check in graded.checks)
    assert "100 of 100 points, passed" in text


def test_results_json_can_be_read_back(graded, failure, tmp_path):
    write_results([graded, failure], tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [Verdict.model_validate(one) for one in stored] == [graded, failure]


def test_grades_csv_cannot_run_a_formula(graded, failure, tmp_path):
    write_grades([graded, failure], tmp_path)
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert [row["points"] for row in rows] == ["100.0", "0"]
    assert rows[1]["student"] == "'=cmd()|x"


def test_a_grader_failure_has_no_score(failure):
    assert failure.points == 0
    assert failure.model_copy(update={"state": "grader failed"}).points is None


def test_the_report_is_one_page_with_plots_and_no_foreign_markup(graded, failure, tmp_path):
    page = write_report([graded, failure], tmp_path).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script>" not in page
    assert "http" not in page.split("<h1>")[1]
