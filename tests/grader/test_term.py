"""A term as docs/grading.md tells it: the commands are taken from there, and each does what is said of it."""

import csv
import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grader.cli import app
from grader.exercises import ROOT
from grader.sandbox.bubblewrap import available
from tests.platforms import EX1, RUN, moodle, packed, write_download

GUIDE = (ROOT / "docs" / "grading.md").read_text("utf-8")
TERM = GUIDE[GUIDE.index("## A term\n") : GUIDE.index("## What a verdict says\n")]
WORKSHEET = (
    'Identifier,"Full name",Grade,"Maximum Grade","Last modified (submission)","Feedback comments"\r\n'
    'Participant 12345,김민준,,100.00,"Tuesday, 6 October 2026, 12:00 PM",\r\n'
    'Participant 12346,"Okri, Ben",,100.00,"Tuesday, 6 October 2026, 12:00 PM",\r\n'
    'Participant 12347,"Lim, Dee",,100.00,-,\r\n'
)


def commands(kind="sh"):
    return re.findall(rf"```{kind}\n(.*?)```", TERM, re.DOTALL)


def play(line, home):
    """Run a line of the guide with `home` for ~; the exit status and what was printed."""
    python, dash, grader, *arguments = shlex.split(line)
    assert (python, dash, grader) == (".venv/bin/python", "-m", "grader")
    done = CliRunner().invoke(app, [one.replace("~", str(home)) for one in arguments])
    return done.exit_code, " ".join(done.output.split())


def results(course):
    found = json.loads((course / "build" / "grade" / "results.json").read_text())
    return {one["student"]: one for one in found}


@pytest.mark.skipif(bool(available()), reason=str(available()))
def test_a_term_as_the_guide_tells_it(honest, tmp_path):
    downloads, course = tmp_path / "Downloads", tmp_path / "autumn"
    downloads.mkdir()
    course.mkdir()
    runs = {RUN: {path.name: path.read_bytes() for path in honest.iterdir() if path.is_file()}}
    names = {12345: "김민준", 12346: "Ben Okri"}
    files = {moodle(name, number, "work.zip"): packed(runs=runs) for number, name in names.items()}
    write_download(downloads / "submissions.zip", files, (2026, 11, 1, 9, 0, 0))
    (downloads / "worksheet.csv").write_bytes(WORKSHEET.encode("utf-8-sig"))
    (rules,) = commands("toml")
    (course / "course.toml").write_text(rules, "utf-8")
    first, appeals = ([line for line in block.splitlines() if line] for block in commands())
    collect, grade, export = first
    again, by_hand, remove = appeals

    status, said = play(collect, tmp_path)
    assert status == 0 and "2 students, 2 new" in said, said
    status, said = play(grade, tmp_path)
    assert status == 0, said
    # five days late, three of them free, two at 10 %; the other has a week more
    assert {
        student: (one.get("points", 100.0), one.get("final_points", 100.0)) for student, one in results(course).items()
    } == {
        "12345": (100.0, 80.0),
        "12346": (100.0, 100.0),
    }
    assert "80 of 100 points count" in said and "2 days at 10 % per day: 80 % of the points count" in said
    # the notebooks have no solution in them, so none trained what was submitted: the audit sees it in the one it draws
    assert "audited 1, of which 1 differ" in said
    assert re.search(
        r"audit: 1234[56], ex1_first_adapter: graded from the run folders; when its notebook is run: submission", said
    )

    report = (course / "build" / "grade" / "report.html").read_text("utf-8")
    assert "김민준" in report and "100 → 80 *" in report
    status, said = play(export, tmp_path)
    assert status == 0, said
    assert _sheet(course) == {"Participant 12345": "80", "Participant 12346": "100", "Participant 12347": ""}
    with zipfile.ZipFile(course / "to-moodle" / "feedback.zip") as archive:
        assert archive.namelist() == [moodle(name, number, f"{EX1}.html") for number, name in names.items()]
        assert "80 % of the points count" in archive.read(archive.namelist()[0]).decode()

    status, said = play(again, tmp_path)
    assert status == 0 and "changed:" not in said, said  # the same verdict
    status, said = play(by_hand, tmp_path)
    assert status == 0 and "changed: 12345, ex1_first_adapter: final points 80 -> 90" in said, said
    assert "points by hand" in said and "12346" not in said.partition("changed:")[2]
    changes = json.loads((course / "build" / "grade" / "changes.json").read_text())
    assert {(one["student"], one["why"]) for one in changes} == {("12345", "points by hand")}
    assert play(export, tmp_path)[0] == 0 and _sheet(course)["Participant 12345"] == "90"
    status, said = play(remove, tmp_path)
    assert status == 0 and results(course)["12345"]["final_points"] == 80
    assert (course / "gradebook.db").exists()


def _sheet(course: Path) -> dict[str, str]:
    with (course / "to-moodle" / "worksheet.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["Identifier"]: row["Grade"] for row in csv.DictReader(file)}
