"""Deadlines: what is late, what it costs, and that it is said beside the number wherever points are shown."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from grader.cli import app
from grader.errors import GraderError
from grader.records.gradebook import _lines
from grader.reports.class_report import write_report
from grader.reports.exports import write_grades, write_results
from grader.reports.student_feedback import write_feedback
from grader.reports.terminal import print_verdict
from grader.term.deadlines import lateness, read_rules
from grader.term.roster import Entry, read_roster, write_roster
from grader.verdict import Verdict
from tests.grader.test_grade_command import submit
from tests.grader.test_report import printed
from tests.platforms import EX1, EX2
from tests.verdicts import failed, graded

EX3 = "ex3_target_modules"
DUE = f"""
timezone = "Asia/Seoul"
grace_minutes = 10
[due]
{EX1} = 2026-10-01T23:59:00
{EX2} = 2026-10-15T23:59:00
{EX3} = 2026-10-29T14:59:00Z
"""


def late(tmp_path, rules, *rows):
    """The lateness of entries that are given as student, exercise, timestamp and what the platform says."""
    (tmp_path / "course.toml").write_text(DUE + rules)
    entries = [Entry(who, "", "moodle", exercise, flag, time, "", "") for who, exercise, time, flag in rows]
    write_roster({(entry.student, entry.exercise): entry for entry in entries}, tmp_path)
    return lateness(read_rules(tmp_path), read_roster(tmp_path))


@pytest.mark.parametrize(
    ("time", "days"),
    [
        ("2026-10-01T23:59:00", 0),
        ("2026-10-02T00:09:00", 0),  # within the grace
        ("2026-10-02T00:09:01", 1),
        ("2026-10-02T23:59:00", 1),
        ("2026-10-02T23:59:01", 2),
        ("2026-10-01T15:00:00Z", 0),  # one minute after, in Seoul
        ("2026-10-01T15:10:00Z", 1),
        ("2026-10-02T00:00:00+09:00", 0),
    ],
)
def test_days_are_counted_from_the_due_time_in_its_zone_after_the_grace(tmp_path, time, days):
    found = late(tmp_path, "[late]\npercent_per_day = 10\n", ("ann", EX1, time, ""))
    assert [round(one.share, 6) for one in found.values()] == ([1 - days / 10] if days else [])


def test_a_percentage_per_day_ends_at_its_floor(tmp_path):
    rules = "[late]\npercent_per_day = 20\nfloor_percent = 50\n"
    found = late(tmp_path, rules, ("ann", EX1, "2026-10-04T12:00:00", ""), ("bob", EX1, "2026-10-03T12:00:00", ""))
    assert {who: one.share for (who, _), one in found.items()} == {"ann": 0.5, "bob": 0.6}
    assert found["ann", EX1].reason == (
        "submitted 2026-10-04 12:00, due 2026-10-01 23:59 (Asia/Seoul): 3 days late; "
        "3 days at 20 % per day: 50 % of the points count (the floor)"
    )


def test_a_budget_is_spent_in_the_order_of_due_dates_and_then_nothing_or_a_percentage_is_left(tmp_path):
    rows = [
        ("ann", EX2, "2026-10-17T12:00:00", ""),  # two days, one of which is left
        ("ann", EX1, "2026-10-03T12:00:00", ""),  # two days
        ("ann", EX3, "2026-10-29T12:00:00", ""),  # in time
        ("bob", EX1, "2026-10-03T12:00:00", ""),
    ]
    found = late(tmp_path, "[late]\nbudget_days = 3\n", *rows)
    assert {who: one.share for who, one in found.items()} == {("ann", EX1): 1, ("ann", EX2): 0, ("bob", EX1): 1}
    assert "2 of 3 days of the budget used, 1 left; nothing is taken off" in found["ann", EX1].reason
    assert "1 of 3 days of the budget used, 0 left; 1 day beyond the budget: no points" in found["ann", EX2].reason
    found = late(tmp_path, "[late]\nbudget_days = 3\npercent_per_day = 25\n", *rows)
    assert found["ann", EX2].share == 0.75


def test_an_extension_is_one_students_and_never_shortens(tmp_path):
    rules = f"""
[late]
percent_per_day = 10
[[extension]]
student = 12
exercise = "{EX1}"
days = 2
note = "ill"
[[extension]]
student = "bob"
due = 2026-10-08T12:00:00
"""
    time = "2026-10-04T12:00:00"
    rows = [
        ("12", EX1, time, ""),
        ("bob", EX1, time, ""),
        ("bob", EX2, "2026-10-15T23:00:00", ""),
        ("cem", EX1, time, ""),
    ]
    found = late(tmp_path, rules, *rows)
    assert {who: one.share for who, one in found.items()} == {("12", EX1): 0.9, ("cem", EX1): 0.7}
    assert "due 2026-10-03 23:59 (Asia/Seoul), extended: 1 day late" in found["12", EX1].reason
    assert "ill" not in found["12", EX1].reason


def test_what_canvas_says_counts_and_costs_nothing_because_it_does_not_say_when(tmp_path):
    rules = "[late]\npercent_per_day = 10\n"
    time = "2026-10-20T12:00:00"
    found = late(tmp_path, rules, ("ann", EX1, time, "no"), ("bob", EX1, time, "yes"), ("cem", EX1, "", ""))
    assert {who: one.share for (who, _), one in found.items()} == {"bob": 1}
    assert "late, as moodle says, which does not say when" in found["bob", EX1].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("due = 3", "due: Input should be a valid dictionary"),
        ("[due]\nex9 = 2026-10-01T12:00:00", "due.ex9.[key]: no exercise 'ex9'; there are: ex1_first_adapter"),
        (f"[due]\n{EX1} = 2026-10-01", f"due.{EX1}: has no time of day: write 2026-10-01T23:59:00"),
        ('timezone = "Seoul"', "timezone: no time zone 'Seoul': write it as in Asia/Seoul"),
        ("[late]\npercent = 10", "late.percent: Extra inputs are not permitted"),
        ("[late]\npercent_per_day = 110", "late.percent_per_day: Input should be less than or equal to 100"),
        ('[[extension]]\nstudent = "a"', "extension.0: needs either due or days"),
        (
            f'[[extension]]\nstudent = "a"\nexercise = ["{EX1}"]\ndays = 1',
            "extension.0.exercise: Input should be a valid string",
        ),
        ("grace_minutes = ", "cannot be read as TOML: Invalid value (at end of document)"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, message):
    (tmp_path / "course.toml").write_text(text)
    with pytest.raises(GraderError) as problem:
        read_rules(tmp_path)
    assert message in str(problem.value) and "\n" not in str(problem.value)
    assert str(problem.value).startswith(f"{tmp_path / 'course.toml'}: ")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "course.toml").write_text("grace_minutes = 5", "utf-8-sig")
    assert read_rules(tmp_path).grace_minutes == 5


def test_the_command_says_so_before_anything_is_graded(tmp_path):
    submit(tmp_path, "# mine")
    (tmp_path / "course.toml").write_text("grace_minutes = -1")
    done = CliRunner().invoke(app, ["grade", EX1, "--course", str(tmp_path), "--artifacts-only"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "course.toml: grace_minutes: Input should be greater than or equal to 0" in done.output
    assert not (tmp_path / "gradebook.db").exists() and not list(tmp_path.rglob("results.json"))


@pytest.fixture
def one(tmp_path):
    """A late verdict with lost points."""
    found = late(tmp_path, "[late]\npercent_per_day = 10\n", ("Ann", EX1, "2026-10-02T12:00:00", ""))
    return found["Ann", EX1].adjust(graded(fails={"prompt masked": "mask the prompt"}))


def test_both_sums_and_the_reason_are_wherever_points_are(one, tmp_path):
    earned, counts = one.points, round(one.points * 0.9, 2)
    assert (one.final_points, earned > counts) == (counts, True)
    reason = "1 day at 10 % per day: 90 % of the points count"
    write_results([one, failed()], tmp_path)
    result, other = json.loads((tmp_path / "results.json").read_text())
    assert (result["points"], result["final_points"], "final_points" in other) == (earned, counts, False)
    assert reason in result["adjustments"][0]["reason"]
    assert Verdict.model_validate(result) == one
    write_grades([one, failed()], tmp_path)
    with (tmp_path / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        first, second = csv.DictReader(file)
    assert (float(first["points"]), float(first["final_points"])) == (earned, counts) and reason in first["adjustment"]
    assert (second["final_points"], second["adjustment"]) == ("0", "")
    said = printed(print_verdict, one)
    assert f"{earned:g} of 100 points" in said and f"{counts:g} of 100 points count" in said and reason in said
    pages = [write_feedback(one, tmp_path), write_report([one, failed()], tmp_path)]
    for page in pages:
        text = page.read_text("utf-8")
        assert f"{earned:.4g}" in text and f"{counts:.4g}" in text and reason in text
    comment = "\n".join(_lines(one))
    assert comment.startswith(f"{counts:g} of 100") and f"{earned:g} before adjustment" in comment and reason in comment


def test_without_an_adjustment_nothing_is_written_that_was_not_before(tmp_path):
    verdict = graded()
    write_results([verdict], tmp_path)
    write_grades([verdict], tmp_path)
    assert set(json.loads((tmp_path / "results.json").read_text())[0]) == set(Verdict.model_fields) - {"adjustments"}
    assert (tmp_path / "grades.csv").read_text("utf-8-sig").splitlines()[0].endswith('"passed","message"')
    for page in (write_feedback(verdict, tmp_path), write_report([verdict], tmp_path)):
        assert "djusted" not in page.read_text("utf-8") and "count." not in page.read_text("utf-8")
    assert read_rules(tmp_path) is None
    shutil.rmtree(tmp_path)
