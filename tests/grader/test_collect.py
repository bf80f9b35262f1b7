"""Bulk downloads of Moodle and Canvas, as their own code names the files, brought to where submissions are graded."""

import csv
import os
import shutil
import struct
import time
import unicodedata
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grader.cli import app
from grader.exercises import EXERCISES
from grader.submission.find import SubmissionFolder
from grader.submission.intake import take_in
from grader.term.roster import read_roster
from tests.platforms import EX1, EX2, RUN, RUN_FILES, canvas, moodle, notebook, packed, sources, write_download
from tests.submissions.zips import filled, stored, write_zip

ZIP = f"{EX1}.zip"


def collected(course, download, *options):
    """The exit status of the command, and what it printed."""
    done = CliRunner().invoke(app, ["collect", str(download), "--course", str(course), *options])
    return done.exit_code, done.output


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "course"
    folder.mkdir()
    return folder


@pytest.fixture
def moodle_zip(tmp_path):
    runs = {moodle("Ben Okri", 12346, f"runs/{RUN}/{name}"): b"{}" for name in RUN_FILES}
    return write_download(
        tmp_path / "moodle.zip",
        {
            moodle("김민준", 12345, ZIP): packed(mark="Kim"),
            moodle(unicodedata.normalize("NFD", "José Müller"), 12348, f"{EX1} (1).ipynb", end=""): notebook(
                mark="José"
            ),
            moodle("Ben Okri", 12346, "my work.ipynb"): notebook(mark="Ben", metadata=False),
            **runs,
            moodle("Ben Okri", 12347, ZIP): packed(mark="the other Ben"),
            moodle("Ben Okri", 12347, "onlinetext.html", plugin="onlinetext"): b"<p>see the zip",
        },
    )


def test_a_moodle_zip_is_taken_as_it_comes(course, moodle_zip):
    status, said = collected(course, moodle_zip)
    assert status == 0, said
    assert "ignored: Ben Okri_12347_assignsubmission_onlinetext_: onlinetext, not files" in said
    assert "4 students, 4 new, 0 updated, 0 unchanged, 0 older" in said
    submitted = course / "submitted"
    assert {path.name for path in submitted.iterdir()} == {"12345", "12346", "12347", "12348"}
    for student, mark in (("12345", "Kim"), ("12346", "Ben"), ("12347", "the other Ben"), ("12348", "José")):
        taken = take_in(SubmissionFolder(student, EX1, submitted / student / EX1), EXERCISES[EX1])
        assert f"# {mark}".encode() in taken.notebook
    assert set(take_in(SubmissionFolder("12346", EX1, submitted / "12346" / EX1), EXERCISES[EX1]).runs) == {RUN}
    with (course / "students.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert [rows[one]["name"] for one in rows] == ["김민준", "Ben Okri", "Ben Okri", "José Müller"]
    assert {row["lms"] for row in rows.values()} == {"moodle"} and {row["late"] for row in rows.values()} == {""}
    assert rows["12345"]["timestamp"] == "2026-10-01T12:00:00"
    assert rows["12345"]["download"] == "김민준_12345_assignsubmission_file_"


@pytest.mark.parametrize("around", ["", "unpacked"])
def test_its_folder_is_the_same_as_the_zip(course, moodle_zip, tmp_path, around):
    collected(course, moodle_zip)
    other = tmp_path / "other"
    other.mkdir()
    with zipfile.ZipFile(moodle_zip) as archive:
        archive.extractall(tmp_path / "download" / around)
    assert collected(other, tmp_path / "download")[0] == 0
    assert tree(other / "submitted") == tree(course / "submitted")


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "김민준"), ("utf-8", "José"), ("cp949", "김민준"), ("cp932", "表ソ")],
)
def test_names_without_the_flag_of_utf_8_lose_no_submission(course, tmp_path, encoding, name, separator):
    files = {moodle(name, 1, f"{RUN}/run.json"): b"{}", moodle(name, 1, ZIP): packed(), moodle("Ann", 2, ZIP): packed()}
    raw = {path.replace("/", separator).encode(encoding): content for path, content in files.items()}
    raw |= {moodle(name, 1).replace("/", separator).encode(encoding): b""}
    write_zip(tmp_path / "moodle.zip", [stored(path, content, flags=0) for path, content in raw.items()])
    status, said = collected(course, tmp_path / "moodle.zip")
    assert status == 0 and "2 students, 2 new" in said, said
    assert set(tree(course / "submitted")) == {f"1/{EX1}/{RUN}/run.json", f"1/{EX1}/{ZIP}", f"2/{EX1}/{ZIP}"}
    assert read_roster(course)["1", EX1].name == name


def test_the_exercise_is_seen_in_a_zip_with_backslashes(course, tmp_path):
    write_zip(tmp_path / "work.zip", [stored(f"homework\\{RUN}\\run.json", b"{}")])
    files = {moodle("Ann", 1, "work.zip"): (tmp_path / "work.zip").read_bytes()}
    status, said = collected(course, write_download(tmp_path / "moodle.zip", files))
    assert status == 0 and set(tree(course / "submitted")) == {f"1/{EX1}/work.zip"}, said


def test_a_canvas_zip_has_its_late_ones_and_resubmissions_and_the_last_counts(course, tmp_path):
    download = write_download(
        tmp_path / "canvas.zip",
        {
            canvas("limsora", 71, 501, f"{EX1}.ipynb"): notebook(mark="first"),
            canvas("limsora", 71, 640, f"{EX1}-1.ipynb", late=True): notebook(mark="second"),
            canvas("limsora", 71, 641, ZIP, late=True): packed(mark="in the zip"),
            canvas("김민준", 72, 502, f"{EX1}-10.zip"): packed(mark="tenth"),
            canvas("김민준", 72, 499, f"{EX1}-9.zip"): packed(mark="ninth"),
            canvas("late", 73, 503, ZIP).replace("late_", "late_late_"): packed(mark="Late, and late"),
            "late_74_504_" + ZIP: packed(mark="Late, in time"),
            "anon_Xy12z_505_" + ZIP: packed(mark="anonymous"),
            "leeann_75_text.html": b"<p>typed",
        },
    )
    status, said = collected(course, download)
    assert status == 0, said
    assert "kept aside: limsora (71), ex1_first_adapter: ex1_first_adapter.ipynb: a later attempt counts" in said
    assert "ignored: leeann_75_text.html" in said
    submitted = course / "submitted"
    assert sources(submitted / "71" / EX1) == "# second"
    assert {path.name for path in (submitted / "71" / EX1).iterdir()} == {f"{EX1}.ipynb", ZIP}
    assert [path.name for path in (submitted / "72" / EX1).iterdir()] == [f"{EX1}-10.zip"]
    aside = tree(course / "earlier")
    assert len(aside) == 2 and aside[next(name for name in aside if name.endswith(".ipynb"))] == notebook(mark="first")
    late = {student: (one.late, one.name) for (student, _), one in read_roster(course).items()}
    assert late == {
        "71": ("yes", "limsora"),
        "72": ("no", "김민준"),
        "73": ("yes", "late"),
        "74": ("no", "late"),
        "anon_Xy12z": ("no", "anon_Xy12z"),
    }


def test_again_changes_nothing_a_newer_one_updates_and_an_older_one_does_not(course, tmp_path):
    def download(name, mark, day):
        return write_download(tmp_path / name, {moodle("Ann", 1, ZIP): packed(mark=mark)}, (2026, 10, day, 9, 0, 0))

    first, second = download("a.zip", "first", 1), download("b.zip", "second", 2)
    assert "1 new" in collected(course, first)[1]
    before, stamp = tree(course), (course / "submitted" / "1" / EX1).stat().st_mtime_ns
    assert "1 unchanged" in collected(course, first)[1]
    assert tree(course) == before and (course / "submitted" / "1" / EX1).stat().st_mtime_ns == stamp
    assert "1 updated" in collected(course, second)[1]
    assert tree(course / "submitted") == {f"1/{EX1}/{ZIP}": packed(mark="second")}
    assert list(tree(course / "earlier").values()) == [packed(mark="first")]
    after = tree(course)
    assert "1 older" in collected(course, first)[1]
    assert tree(course) == after


@pytest.fixture
def in_california(monkeypatch):
    monkeypatch.setenv("TZ", "PST8PDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", ["the course's", "this computer's"])
def test_a_folders_time_in_utc_is_compared_with_a_zips_local_one(course, tmp_path, zone, request):
    if zone == "the course's":
        (course / "course.toml").write_text('timezone = "America/Los_Angeles"')
    else:
        request.getfixturevalue("in_california")
    unpacked = tmp_path / "download" / moodle("Ann", 1, ZIP)
    unpacked.parent.mkdir(parents=True)
    unpacked.write_bytes(packed(mark="at noon"))
    noon = datetime(2026, 1, 15, 20, tzinfo=UTC).timestamp()
    os.utime(unpacked, (noon, noon))
    assert "1 new" in collected(course, tmp_path / "download")[1]
    at_two = {moodle("Ann", 1, ZIP): packed(mark="at two")}
    assert "1 updated" in collected(course, write_download(tmp_path / "b.zip", at_two, (2026, 1, 15, 14, 0, 0)))[1]
    at_ten = {moodle("Ann", 1, ZIP): packed(mark="at ten")}
    assert "1 older" in collected(course, write_download(tmp_path / "c.zip", at_ten, (2026, 1, 15, 10, 0, 0)))[1]
    assert tree(course / "submitted") == {f"1/{EX1}/{ZIP}": packed(mark="at two")}


def test_of_one_download_the_later_file_counts_whatever_the_form_of_its_time(course, tmp_path):
    (course / "course.toml").write_text('timezone = "America/Los_Angeles"')
    noon = int(datetime(2026, 1, 15, 20, tzinfo=UTC).timestamp())
    with zipfile.ZipFile(tmp_path / "moodle.zip", "w") as archive:
        in_utc = zipfile.ZipInfo(moodle("Ann", 1, f"{EX1}.ipynb"), (2026, 1, 15, 12, 0, 0))
        in_utc.extra = struct.pack("<HHBi", 0x5455, 5, 1, noon)
        archive.writestr(in_utc, notebook(mark="at noon"))
        local = zipfile.ZipInfo(moodle("Ann", 1, f"{EX1} (1).ipynb"), (2026, 1, 15, 14, 0, 0))
        archive.writestr(local, notebook(mark="at two"))
    assert collected(course, tmp_path / "moodle.zip")[0] == 0
    assert sources(course / "submitted" / "1" / EX1) == "# at two"
    assert read_roster(course)["1", EX1].timestamp == "2026-01-15T14:00:00"


def test_what_the_instructor_corrects_in_the_roster_stays(course, moodle_zip):
    collected(course, moodle_zip)
    roster = course / "students.csv"
    roster.write_text(roster.read_text("utf-8").replace("2026-10-01T12:00:00", "2026-09-30T23:58:00+09:00", 1), "utf-8")
    collected(course, moodle_zip)
    assert "2026-09-30T23:58:00+09:00" in roster.read_text("utf-8")


def test_moodles_worksheet_knows_when_each_was_submitted(course, moodle_zip, tmp_path):
    worksheet = tmp_path / "worksheet.csv"
    lines = ["Identifier,Last modified (submission)"]
    lines += [f'Participant {number},"{time}"' for number, time in (
        (12345, "Wednesday, 30 September 2026, 11:58\u202fPM"), (12346, "-"), (12347, "mercredi 30 septembre"),
    )]  # fmt: skip
    worksheet.write_text("\n".join(lines), "utf-8")
    collected(course, moodle_zip)
    status, said = collected(course, moodle_zip, "--worksheet", str(worksheet))
    assert status == 0 and "4 unchanged" in said
    assert "12347: time 'mercredi 30 septembre' is not understood: download the worksheet in English" in said
    found = {student: one.timestamp for (student, _), one in read_roster(course).items()}
    usual = "2026-10-01T12:00:00"
    assert found == {"12345": "2026-09-30T23:58:00", "12346": usual, "12347": usual, "12348": usual}


def test_which_exercise_is_seen_from_the_contents_and_else_is_asked_for(course, tmp_path):
    files = {
        moodle("Ann", 1, "homework.zip"): packed(EX2),
        moodle("Ann", 1, f"{EX1}.ipynb"): notebook(EX1),
        moodle("Bob", 2, "work.zip"): b"no zip at all",
        moodle("Cem", 3, "Untitled.ipynb"): b'{"nbformat": 4, "cells": []}',
    }
    download = write_download(tmp_path / "moodle.zip", files)
    status, said = collected(course, download)
    assert status == 1
    assert "left out: Bob (2): work.zip: cannot tell the exercise: name it with --exercise" in said
    assert set(tree(course / "submitted")) == {f"1/{EX2}/homework.zip", f"1/{EX1}/{EX1}.ipynb"}
    assert collected(course, download, "--exercise", EX1)[0] == 0
    assert tree(course / "submitted")[f"3/{EX1}/{EX1}.ipynb"] == files[moodle("Cem", 3, "Untitled.ipynb")]
    status, said = collected(course, download, "--exercise", "ex9")
    assert status == 2 and "no exercise 'ex9'" in said


def test_another_notebook_and_numbers_that_are_part_of_a_name_supersede_nothing(course, tmp_path):
    files = {
        canvas("ann", 1, 10, "Untitled (3).ipynb"): notebook(EX2, "mine"),
        canvas("ann", 1, 11, "notes.ipynb"): b'{"nbformat": 4, "cells": []}',
        canvas("ann", 1, 12, "rank-4.zip"): packed(EX2),
        canvas("ann", 1, 13, "rank-16.zip"): packed(EX2),
    }
    status, said = collected(course, write_download(tmp_path / "canvas.zip", files))
    assert status == 0 and "kept aside" not in said
    assert sorted(tree(course / "submitted" / "1" / EX2)) == [
        f"{EX2}.ipynb",
        "notes.ipynb",
        "rank-16.zip",
        "rank-4.zip",
    ]


def test_hostile_entries_leave_out_their_student_and_nothing_else(course, tmp_path):
    good = [stored(moodle("Ann", 1, ZIP), packed())]
    bad = [
        filled(moodle("Bomb", 2, "zeros.bin"), b"\0", 24),
        stored(moodle("Up", 3, "../../../up.txt"), b"out"),
        stored(moodle("Link", 4, f"{RUN}/run.json"), b"/etc/passwd", mode=0o120777),
        stored(moodle("Twice", 5, ZIP), b"1"),
        stored(moodle("Twice", 5, ZIP), b"2"),
        stored("/" + moodle("Root", 6, ZIP), b"3"),
        stored("../evil.txt", b"4"),
        stored("notes.txt", b"5"),
        stored("__MACOSX/._notes", b"6"),
    ]
    write_zip(tmp_path / "moodle.zip", [*bad, *good])
    status, said = collected(course, tmp_path / "moodle.zip")
    assert status == 1
    assert set(tree(course)) == {f"submitted/1/{EX1}/{ZIP}", "students.csv"}
    assert set(tree(tmp_path)) - {f"course/{name}" for name in tree(course)} == {"moodle.zip"}
    for line in (
        "Bomb (2): its files: its ", "Up (3): its files: ", "Link (4): its files: ", "Twice (5): its files: ",
        "Root (6): its files: ", "../evil.txt: no name that", "notes.txt: no name that",
    ):  # fmt: skip
        assert f"left out: {line}" in said
    assert said.count("left out") == 7 and "MACOSX" not in said


def test_an_older_attempt_that_cannot_be_kept_aside_stops_nobody(course, tmp_path):
    newer = write_download(tmp_path / "b.zip", {moodle("Ann", 1, ZIP): packed()}, (2026, 10, 2, 9, 0, 0))
    assert collected(course, newer, "--exercise", EX1)[0] == 0
    both = {moodle("Ann", 1, "work"): b"a file", moodle("Ann", 1, "work/run.json"): b"and a folder of its name"}
    older = write_download(tmp_path / "a.zip", both | {moodle("Ben", 2, ZIP): packed()}, (2026, 10, 1, 9, 0, 0))
    status, said = collected(course, older, "--exercise", EX1)
    assert status == 1 and "left out: Ann (1), ex1_first_adapter: its files cannot be written to" in said
    assert set(tree(course / "submitted")) == {f"1/{EX1}/{ZIP}", f"2/{EX1}/{ZIP}"}


def test_links_in_a_folder_are_not_followed(course, tmp_path):
    folder = tmp_path / "download"
    for name in ("Ann_1_assignsubmission_file_", "Bob_2_assignsubmission_file_"):
        (folder / name).mkdir(parents=True)
        (folder / name / ZIP).write_bytes(packed())
    (folder / "Bob_2_assignsubmission_file_" / "run.json").symlink_to("/etc/passwd")
    (folder / "Cem_3_assignsubmission_file_").symlink_to("Ann_1_assignsubmission_file_")
    (folder / canvas("dee", 4, 5, ZIP)).symlink_to("/etc/passwd")
    status, said = collected(course, folder)
    assert status == 1 and said.count("left out") == 3 and said.count("is a symlink") == 3
    assert set(tree(course / "submitted")) == {f"1/{EX1}/{ZIP}"}


def test_what_was_put_there_by_hand_is_not_overwritten(course, moodle_zip):
    by_hand = course / "submitted" / "12345" / EX1
    by_hand.mkdir(parents=True)
    (by_hand / "mine.txt").write_text("by hand")
    status, said = collected(course, moodle_zip)
    assert status == 1 and "submitted/12345/ex1_first_adapter was changed or put there by hand: move it away" in said
    assert (by_hand / "mine.txt").exists() and not (by_hand / ZIP).exists()
    shutil.rmtree(by_hand)
    assert collected(course, moodle_zip)[0] == 0


def test_a_course_has_one_platform(course, tmp_path):
    collected(course, write_download(tmp_path / "m.zip", {moodle("Ann", 1, ZIP): packed()}))
    status, said = collected(course, write_download(tmp_path / "c.zip", {canvas("ann", 1, 2, ZIP): packed(mark="x")}))
    assert status == 1 and "1 came from moodle before: collect it into another course" in said


@pytest.mark.parametrize("odd", ["=cmd; 100%_x", "-cmd|'x'!A0", "＝1", "@x"])
def test_names_that_a_spreadsheet_would_run_are_text_in_the_roster_and_the_download_is_exact(course, tmp_path, odd):
    collected(course, write_download(tmp_path / "m.zip", {moodle(odd, 7, ZIP): packed()}))
    text = (course / "students.csv").read_text("utf-8-sig")
    assert f"\n7,'{odd[:2]}" in text.replace("\r", "") and f",{odd[0]}" not in text
    found = read_roster(course)["7", EX1]
    assert (found.name, found.download) == (odd, f"{odd}_7_assignsubmission_file_")


@pytest.mark.parametrize(
    ("old", "new"),
    [(b",moodle,", b",blackboard,"), (b"2026-10-01T12", b"1 October"), (b",digest", b""), (b"1,Ann,moodle", b"1,Ann\r\n"),
     (b"Ann", b"\xff")],
)  # fmt: skip
def test_a_roster_that_cannot_be_read_is_one_line_and_stays(course, tmp_path, old, new):
    download = write_download(tmp_path / "m.zip", {moodle("Ann", 1, ZIP): packed()})
    collected(course, download)
    roster = course / "students.csv"
    broken = roster.read_bytes().replace(old, new, 1)
    roster.write_bytes(broken)
    status, said = collected(course, download)
    assert status == 2 and said.count("\n") == 1 and "students.csv: cannot be read as the roster (" in said
    assert roster.read_bytes() == broken


def test_a_course_that_cannot_be_written_is_one_line(tmp_path, course, moodle_zip):
    (tmp_path / "file").write_text("no folder")
    status, said = collected(tmp_path / "file", moodle_zip)
    assert status == 2 and "Invalid value for '--course'" in said and not (tmp_path / "submitted").exists()
    (course / "students.csv").mkdir()
    status, said = collected(course, moodle_zip)
    assert status == 2 and said.count("\n") == 1 and "students.csv: cannot be read (Is a directory)" in said
    assert not (course / "submitted").exists()


def test_a_folder_whose_name_looks_like_markup_is_printed_as_it_is(tmp_path):
    (tmp_path / "[autumn]").mkdir()
    download = write_download(tmp_path / "m.zip", {moodle("Ann", 1, ZIP): packed()})
    assert "[autumn]/students.csv" in collected(tmp_path / "[autumn]", download)[1].replace("\n", "")


@pytest.mark.parametrize("content", [None, b"not a zip"])
def test_a_download_that_cannot_be_read_is_one_line(course, tmp_path, content):
    if content:
        (tmp_path / "x.zip").write_bytes(content)
    status, said = collected(course, tmp_path / "x.zip")
    assert status == 2 and said.count("\n") == 1 and said.startswith("Error: ")
    assert not list(course.iterdir())
