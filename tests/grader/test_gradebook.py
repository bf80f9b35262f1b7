"""The gradebook, in SQLite and in a PostgreSQL server of the test's own: what the grader writes, and what it leaves."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest
from nbgrader.api import Base, Gradebook
from sqlalchemy import create_engine, select, text

from grader.errors import GradebookError
from grader.exercises import EXERCISES
from grader.records.gradebook import ask_for_another_look, default_url, write_gradebook
from grader.text import code_block
from grader.verdict import Check, Verdict

FIRST, LAST = "ex1_first_adapter", "ex5_low_rank_limits"


def verdict(student="ann", exercise=FIRST, points=100.0, state="graded", message=""):
    checks = [Check(name="kept", expected="", found="", points=points, passed=True)]
    if points < 100:
        lost = {"name": "lost", "run": "r8", "message": "the adapter is <b>untrained</b>"}
        checks.append(Check(**lost, expected="", found="", points=100 - points, passed=False))
    return Verdict(exercise=exercise, student=student, base="embedded", state=state, message=message,
                   checks=checks if state == "graded" else [])  # fmt: skip


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    """Makes empty gradebooks in SQLite; the first is copied, because nbgrader takes seconds to make one."""
    folder = tmp_path_factory.mktemp("gradebooks")
    write_gradebook([], default_url(folder))

    def make():
        course = folder / uuid.uuid4().hex
        course.mkdir()
        shutil.copy(folder / "gradebook.db", course)
        return default_url(course)

    return make


@pytest.fixture(scope="module")
def postgresql():
    """Makes empty gradebooks in a server that this starts on a socket in a folder of its own, and stops."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), default=None)
    initdb = shutil.which("initdb", path=binaries) or shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    as_user = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch), Path(scratch) / "data"
        if os.geteuid() == 0:  # a server refuses to be root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

        def call(command, *arguments):
            command = [Path(initdb).with_name(command), "-D", data, *arguments]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, **as_user)

        call("initdb", "-U", "course", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        call("pg_ctl", "-w", "-l", folder / "log", "-o", options, "start")
        try:
            address = f"postgresql://course@/{{}}?host={folder}"
            write_gradebook([], address.format("postgres"))

            def make():
                name = f"class_{uuid.uuid4().hex}"
                url = address.format("template1").replace("postgresql", "postgresql+psycopg2")
                with create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
                    connection.execute(text(f"CREATE DATABASE {name} TEMPLATE postgres"))
                return address.format(name)

            yield make
        finally:
            call("pg_ctl", "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    return request.getfixturevalue(request.param)()


def opened(url):
    return Gradebook(url.replace("postgresql:", "postgresql+psycopg2:"))


def notebook(gradebook, student="ann", exercise=FIRST):
    return gradebook.find_submission_notebook(exercise, exercise, student)


def dump(url):
    """Every row of every table."""
    with opened(url) as gradebook:
        tables = {t.name: gradebook.db.execute(select(t)).all() for t in Base.metadata.sorted_tables}
    return {name: sorted(map(repr, rows)) for name, rows in tables.items()}


def test_the_automatic_total_is_the_points_share_of_every_exercise(url):
    given = dict(zip(EXERCISES, [100, 95.5, 33.33, 0, 50], strict=True))
    assert write_gradebook([verdict(exercise=name, points=points) for name, points in given.items()], url) == []
    with opened(url) as gradebook:
        for name, points in given.items():
            entries = notebook(gradebook, exercise=name)
            assert entries.code_score == pytest.approx(entries.max_code_score * points / 100)
            assert {g.auto_score for g in entries.grades if g.cell.cell_type == "code"} == {points / 50}


def test_a_class_is_read_back_with_its_scores(url):
    given = {f"student{number}": number * 10.0 for number in range(8)}
    write_gradebook([verdict(name, points=points) for name, points in given.items()], url)
    with opened(url) as gradebook:
        found = {one["student"]: one["score"] for one in gradebook.notebook_submission_dicts(FIRST, FIRST)}
    assert found == {name: pytest.approx(points * 10 / 100) for name, points in given.items()}


def test_a_failed_submission_has_zero_and_is_told_why(url):
    write_gradebook([verdict(state="submission failed", message="cell 3: ZeroDivisionError")], url)
    with opened(url) as gradebook:
        entries = notebook(gradebook)
        assert (entries.score, entries.needs_manual_grade) == (0, False)
        (said,) = (comment.comment for comment in entries.comments if comment.comment)
        assert said == "    0 of 100 points: submission failed\n    cell 3: ZeroDivisionError"


def test_a_failure_of_the_grader_writes_nothing(url):
    write_gradebook([verdict(points=80)], url)
    before = dump(url)
    failed = [verdict(name, state="grader failed", message="out of memory") for name in ("ann", "bob")]
    write_gradebook(failed, url)
    assert dump(url) == before


def test_the_checks_that_failed_are_told_below_the_last_task_as_plain_text(url):
    write_gradebook([verdict(exercise=LAST, points=60)], url)
    with opened(url) as gradebook:
        said = {c.name: c.comment for c in notebook(gradebook, exercise=LAST).comments if c.comment}
    assert said == {"task5": "    60 of 100 points: what did not pass:\n    r8: lost: the adapter is <b>untrained</b>"}


def test_an_essay_waits_for_a_person_and_then_keeps_the_persons_score(url):
    write_gradebook([verdict(exercise=LAST, points=50)], url)
    with opened(url) as gradebook:
        entries = notebook(gradebook, exercise=LAST)
        assert [g.name for g in entries.grades if g.needs_manual_grade] == ["essay"]
        (essay,) = (grade for grade in entries.grades if grade.name == "essay")
        (comment,) = (comment for comment in entries.comments if comment.name == "essay")
        essay.manual_score, essay.extra_credit, essay.needs_manual_grade = 5, 1, False
        comment.manual_comment = "well argued"
        gradebook.db.commit()
    write_gradebook([verdict(exercise=LAST, points=100)], url)
    with opened(url) as gradebook:
        entries = notebook(gradebook, exercise=LAST)
        assert (entries.score, entries.written_score, entries.needs_manual_grade) == (10 + 5 + 1, 6, False)
        assert [c.comment for c in entries.comments if c.name == "essay"] == ["well argued"]


def test_what_was_graded_by_hand_is_to_be_looked_at_when_it_is_handed_in_anew(url):
    ask_for_another_look("ann", EXERCISES[LAST], url)  # nothing of hers is there yet
    write_gradebook([verdict(exercise=LAST)], url)
    with opened(url) as gradebook:
        (essay,) = (grade for grade in notebook(gradebook, exercise=LAST).grades if grade.name == "essay")
        essay.manual_score, essay.needs_manual_grade = 5, False
        gradebook.db.commit()
    ask_for_another_look("ann", EXERCISES[LAST], url)
    with opened(url) as gradebook:
        grades = {g.name: (g.manual_score, g.needs_manual_grade) for g in notebook(gradebook, exercise=LAST).grades}
    assert grades.pop("essay") == (5, True)
    assert set(grades.values()) == {(None, False)}


def test_the_same_verdicts_again_change_nothing_that_people_entered(url):
    verdicts = [verdict("ann", LAST, 70), verdict("bob", LAST), verdict("bob", state="submission failed", message="x")]
    write_gradebook(verdicts, url)
    with opened(url) as gradebook:
        gradebook.update_or_create_student("ann", first_name="Ann", email="ann@example.org")
        entries = notebook(gradebook, exercise=LAST)
        entries.flagged = True
        grade = entries.grades[0]
        grade.manual_score, grade.extra_credit, grade.needs_manual_grade = 1.5, 0.5, False
        entries.comments[0].manual_comment = "see me"
        gradebook.db.commit()
    before = dump(url)
    write_gradebook(verdicts, url)
    assert dump(url) == before


def test_a_new_score_below_a_manual_one_is_to_be_looked_at(url):
    write_gradebook([verdict(points=50)], url)
    with opened(url) as gradebook:
        grade = notebook(gradebook).grades[0]
        changed = grade.name
        grade.manual_score = 2
        gradebook.db.commit()
    write_gradebook([verdict(points=75)], url)
    with opened(url) as gradebook:
        found = {g.name: (g.score, g.needs_manual_grade) for g in notebook(gradebook).grades}
    assert found.pop(changed) == (2, True)
    assert set(found.values()) == {(1.5, False)}


def test_an_odd_name_is_a_student_like_any_other(url):
    names = ["=cmd()|x", "'; DROP TABLE grade; --", "O'Brien & Söhne", "李小龍", "%s{0}$HOME", "n" * 128]
    assert write_gradebook([verdict(name, points=50) for name in names], url) == []
    with opened(url) as gradebook:
        assert {student.id: student.score for student in gradebook.students} == dict.fromkeys(names, 5)


BAD_NAMES = ["<script>alert(1)</script>", 'a"b', "..", "../ann", "a/b", "a\\b", ".hidden", "", " ann", "*", "[a-z]",
             "n\udc80", "a\nb", "a\0b", "n" * 129]  # fmt: skip


def test_a_name_that_nbgrader_cannot_hold_is_one_line_and_the_class_goes_on(url):
    lines = write_gradebook([*map(verdict, BAD_NAMES), verdict("ann"), verdict(BAD_NAMES[0], LAST)], url)
    assert len(lines) == len(BAD_NAMES)
    assert all(line.isascii() and "\n" not in line and line.endswith(": rename the folder") for line in lines)
    assert "the name has 129 characters, and nbgrader takes 128" in lines[-1]
    with opened(url) as gradebook:
        assert [student.id for student in gradebook.students] == ["ann"]


def test_a_new_gradebook_needs_nothing_in_the_path_and_leaves_the_path_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    write_gradebook([], default_url(tmp_path))
    assert os.environ["PATH"] == "/nowhere"
    assert (tmp_path / "gradebook.db").is_file()


def test_a_gradebook_made_for_other_notebooks_is_refused(url):
    write_gradebook([verdict()], url)
    with opened(url) as gradebook:
        gradebook.add_grade_cell("check9", FIRST, FIRST, max_score=2, cell_type="code")
    with pytest.raises(
        GradebookError, match=r"was made for other notebooks \(Cannot add or remove cells .*: move it away"
    ):
        write_gradebook([verdict()], url)


def test_a_file_that_is_no_gradebook_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "gradebook.db"
    path.write_text("grades of the class\n" * 100)
    with pytest.raises(
        GradebookError, match=r"gradebook sqlite:.*gradebook.db: cannot be written: file is not a database"
    ):
        write_gradebook([verdict()], default_url(tmp_path))
    assert path.read_text() == "grades of the class\n" * 100


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://ann:secret@127.0.0.1:1/class", "cannot be written: .*Connection refused"),
        ("postgres://ann:secret@localhost/class", "no such kind of database"),
        ("gradebook.db", "URL cannot be read"),
        ("sqlite:////no/such/folder/gradebook.db", "unable to open database file"),
    ],
)
def test_a_gradebook_out_of_reach_is_one_line_without_the_password(url, said):
    with pytest.raises(GradebookError, match=said) as refused:
        write_gradebook([verdict()], url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_long_text_is_wrapped_and_cut():
    lines = code_block("word " * 100 + "\n\n" + "x" * 500 + "y" * 500, 1002).split("\n")
    assert all(line.startswith("    ") and len(line) <= 104 for line in lines if line)
    assert lines[-1] == "    ... (500 more characters)"
