"""Regrades: what changed and why, new verdicts on request, and points by hand that hold until they are removed."""

import csv
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from grader.cli import app
from grader.errors import GraderError
from grader.pipeline import Graded
from grader.records import ledger as ledger_module
from grader.records.ledger import Key, Ledger, decisive_code, decisive_parts
from grader.submission.find import SubmissionFolder
from grader.term.audit import differences, draw_sample, share_of
from grader.term.history import PART_NAMES, Decision, History, set_by_hand
from tests.grader.test_grade_command import submit
from tests.platforms import EX1
from tests.verdicts import failed, graded

KEY = Key("Ann", EX1, "d1", "embedded", "artifacts, seed 0", "", 7)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.db", 7) as opened:
        yield opened


def publish(ledger, verdict, **key):
    ledger.record(replace(KEY, grader_version=decisive_code(), **key), verdict)
    return History(ledger).publish([verdict], ledger.path.parent)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Sources of the test's own; returns what changes one of them."""
    monkeypatch.setattr(ledger_module, "ROOT", tmp_path)

    def change(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
        decisive_code.cache_clear()

    change("grader/evaluation/checks.py", "a = 1")
    yield change
    decisive_code.cache_clear()


def test_a_change_is_told_check_by_check_with_what_it_comes_from(ledger, sources, tmp_path):
    assert publish(ledger, graded(fails={"chat template": "no"})) == []
    sources("grader/evaluation/bands/ex1.json", "{}")
    sources("grader/evaluation/checks.py", "a = 2")
    found = publish(ledger, graded())
    assert {one.why for one in found} == {"grader code; bands"}
    told = {one.check: (one.before, one.after) for one in found}
    assert set(told) == {"points", "final points", "first-adapter: chat template"}
    assert told["first-adapter: chat template"][0].startswith("0 of ") and told["points"][1] == "100"
    with (tmp_path / "changes.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.DictReader(file)) == json.loads((tmp_path / "changes.json").read_text())
    assert publish(ledger, graded()) == []  # the same again


def test_changes_that_cannot_be_written_are_found_again(ledger, tmp_path):
    publish(ledger, graded(fails={"chat template": "no"}))
    (tmp_path / "changes.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        publish(ledger, graded(), digest="d2")
    (tmp_path / "changes.csv").rmdir()
    assert publish(ledger, graded(), digest="d2") != []


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ({"digest": "d2"}, "the submission"),
        ({"mode": "sandbox, seed 0"}, "how it was run"),
        ({"base": "other", "heldout_seed": 8}, "the base; the held-out seed"),
    ],
)
def test_what_else_a_verdict_depends_on_is_named(ledger, key, why):
    publish(ledger, graded(fails={"chat template": "no"}))
    assert {one.why for one in publish(ledger, graded(), **key)} == {why}


def test_seconds_alone_are_no_change_and_a_submission_that_cannot_be_opened_is_one(ledger):
    publish(ledger, graded())
    slower = graded().model_copy(update={"seconds": {"notebook": 99.0}})
    assert publish(ledger, slower, digest="d2") == []
    found = History(ledger).publish(
        [failed("Ann", "a symlink")], ledger.path.parent
    )  # intake's verdicts are not in the ledger
    assert {one.why for one in found} == {"the submission"} and "state" in {one.check for one in found}


def test_a_failure_of_the_grader_is_named_as_the_cause(ledger):
    History(ledger).publish([failed("Ann", "out of memory", "grader failed")], ledger.path.parent)
    assert {one.why for one in publish(ledger, graded())} == {"the grader failed"}


def test_results_whose_records_an_older_grader_wrote_are_compared(ledger):
    publish(ledger, graded(fails={"chat template": "no"}))
    ((stored,),) = ledger.query("SELECT verdict FROM published")
    ledger.query("UPDATE published SET verdict = ?", (stored.replace('"peak_memory"', '"a_field_of_then"'),))
    ledger.query("UPDATE verdict SET verdict = '{}'")
    assert {one.why for one in publish(ledger, graded(), digest="d2")} == {"the submission"}
    assert History(ledger).publish([failed("Ann", "a symlink")], ledger.path.parent) != []


def test_points_by_hand_hold_over_every_verdict_until_they_are_removed(ledger):
    history = History(ledger)
    history.decide(Decision("Ann", EX1, "points", 60, "first thought"))
    history.decide(Decision("Ann", EX1, "points", 80, "=good essay"))
    history.decide(Decision("Ann", EX1, "again", None, "flaky"))
    decision = history.points_by_hand()["Ann", EX1]
    for verdict in (graded(), failed("Ann"), failed("Ann", "out of memory", "grader failed")):
        adjusted = set_by_hand(verdict, decision)
        assert (adjusted.final_points, adjusted.points) == (80, verdict.points)
        assert adjusted.reasons.startswith("by hand: =good essay (20")
    history.decide(Decision("Ann", EX1, "removed", None, "appeal withdrawn"))
    assert history.points_by_hand() == {} and history.again() == {("Ann", EX1): 1}
    assert [one.note for one in history.decisions()] == ["first thought", "=good essay", "flaky", "appeal withdrawn"]


def run(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, " ".join(done.output.split())


def final(course):
    result = json.loads((course / "build" / "grade" / "results.json").read_text())[0]
    return result.get("final_points", 0), result.get("adjustments", [])


def test_the_command_judges_again_keeps_both_verdicts_and_sets_points_that_survive(tmp_path, monkeypatch):
    course = tmp_path / "course"
    submit(course, "# mine")
    assert run("grade", EX1, "--course", course, "--artifacts-only")[0] == 0
    where = ("ann", EX1, "--course", course)

    def rows():
        with Ledger(course / "build" / "grade" / "ledger.db") as ledger:
            return [mode for (mode,) in ledger.query("SELECT mode FROM verdict ORDER BY id")]

    assert rows() == ["artifacts, seed 0"]
    status, said = run("regrade", *where, "--points", "80", "--note", "oral exam")
    assert status == 0, said
    assert rows() == ["artifacts, seed 0"]  # nothing is judged again
    assert "changed: ann, ex1_first_adapter: final points 0 -> 80" in said and "points by hand" in said
    status, said = run("regrade", *where, "--note", "the disk was full")
    assert status == 0, said
    assert rows() == ["artifacts, seed 0", "artifacts, seed 0, again 1"]  # with the options of the last time
    assert final(course)[0] == 80 and "oral exam" in final(course)[1][0]["reason"]
    status, said = run("regrade", *where, "--remove", "--note", "a mistake")
    assert status == 0 and final(course) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bob", EX1), "has no bob/ex1_first_adapter: name the folders as they are there"),
        (("ann", EX1, "--points", "3", "--remove"), "give one of the two"),
        (("ann", EX1), "has no ledger.db: grade the class first"),
        (("ann", EX1, "--note", " "), "--note is empty: say why"),
    ],
)
def test_what_cannot_be_regraded_is_one_line(tmp_path, arguments, message):
    submit(tmp_path, "# mine")
    status, said = run("regrade", "--note", "why", "--course", tmp_path, *arguments)
    assert status == 2 and message in said
    assert not (tmp_path / "build").exists()


def test_the_audit_draws_the_same_share_whatever_the_order_and_reports_what_differs():
    folders = [SubmissionFolder(f"s{number}", EX1, None) for number in range(40)]
    chosen = draw_sample(folders, share_of("10%"), 5)
    assert len(chosen) == 4 and draw_sample(folders[::-1], 0.1, 5) == chosen != draw_sample(folders, 0.1, 6)
    assert len(draw_sample(folders[:3], 0.1, 5)) == 1
    assert len(draw_sample(folders * 5, share_of("7%"), 5)) == 7 * len(folders) * 5 // 100
    before = [Graded(graded("a")), Graded(graded("b")), Graded(graded("c"))]
    rerun = (
        Graded(one) for one in (graded("a"), graded("b", fails={"chat template": "x"}), failed("c", "cell 3: boom"))
    )
    assert [(one.student, one.difference.partition(":")[0]) for one in differences(rerun, before)] == [
        ("a", ""),
        ("b", f"100 points from the run folders, {graded('b', fails={'chat template': 'x'}).points:g} when its notebook is run; "
              "other outcome of first-adapter"),
        ("c", "graded from the run folders; when its notebook is run"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "0%", "101%", "ten", "-5%", "nan"])
def test_a_share_that_is_none_is_one_line(text):
    with pytest.raises(GraderError, match="write a share as 10%"):
        share_of(text)


def test_every_part_has_a_name():
    assert set(PART_NAMES) == set(decisive_parts())
