"""Grade sheets as Moodle and Canvas write them: filled, taken back, and otherwise byte for byte what they were."""

import csv
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from grader.cli import app
from grader.reports.exports import write_results
from grader.reports.student_feedback import write_feedback
from grader.term.roster import Entry, write_roster
from grader.term.sheets import Sheet, split_cells
from grader.verdict import Adjustment
from tests.platforms import EX1, EX2, RUN, canvas, moodle
from tests.verdicts import failed, graded

WORKSHEET = (
    'Identifier,"Full name","Email address",Status,Grade,"Maximum Grade","Grade can be changed",'
    '"Last modified (submission)","Last modified (grade)","Feedback comments"\n'
    '"Participant 11","김민준",kim@example.org,"Submitted for grading - ",,100.00,Yes,"Thursday, 1 October 2026, 12:00 PM",-,\n'
    '"Participant 12","=cmd|\' /C calc\'!A0, ""Ben""",ben@example.org,"Submitted for grading - ",,100.00,Yes,"1 October",-,\n'
    '"Participant 13","Cem Öz",cem@example.org,"No submission - ",,100.00,Yes,-,-,\n'
    '"Participant 14","Dee Lim",dee@example.org,"Submitted for grading - Graded",55.00,100.00,No,-,-,"see me"\n'
    '"Participant 15","Eve Ng",eve@example.org,"Submitted for grading - ",,100.00,Yes,-,-,"well, done"\n'
)
GRADEBOOK = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Quiz (77),Your first adapter (1234),Current Score,Final Score\n"
    ",,,,,,Manual Posting,,\n"
    "    Points Possible,,,,,5,100,(read only),(read only)\n"
    '"Kim, Minjun",11,K011,kim,Lab 1,4,,80,80\n'
    '"\'=cmd, Ben",12,,ben,"Lab 1, Lab 2",,,,\n'
    '"Öz, Cem",13,,cem,Lab 1,,,,\n'
    '"Lim, Dee",14,,dee,Lab 1,,EX,,\n'
    '"Ng, Eve",15,,eve,Lab 1,,12,,\n'
    '"Student, Test",99,,f00,Lab 1,,,,\n'
)


@pytest.fixture
def course(tmp_path):
    """Results of five students: one lost points and was late, one's submission failed, the grader failed at one."""
    out = tmp_path / "build" / "grade"
    out.mkdir(parents=True)
    late = Adjustment(kind="late", points=81.05, reason="1 day late, 10 % less")
    verdicts = [
        graded("11", fails={"prompt masked": "mask the prompt"}).model_copy(update={"adjustments": [late]}),
        graded("12"),
        failed("13", "MemoryError in the grader", state="grader failed"),
        graded("14"),
        failed("15", "@SUM(1); =cmd|' /C calc'!A0 <b>in</b> /home/grader/secret/x.py"),
        graded("16"),
        graded("11", EX2),
    ]
    write_results(verdicts, out)
    for verdict in verdicts:
        write_feedback(verdict, out)
    return tmp_path


def roster(course, lms, download):
    entries = [Entry(str(n), "", lms, EX1, "", "", download(n), "0") for n in (11, 12, 13, 14, 15, 16)]
    write_roster({(entry.student, EX1): entry for entry in entries}, course)


def export(course, platform, content, *options, name="sheet.csv"):
    (course / name).write_bytes(content)
    arguments = ["export", f"--{platform}", course / name, "--course", course, "--out", course / "out", *options]
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    written = course / "out" / name
    return done.exit_code, done.output, written.read_bytes() if written.exists() else b""


def cells(content, encoding="utf-8-sig", delimiter=","):
    return list(csv.reader(io.StringIO(content.decode(encoding), newline=""), delimiter=delimiter))


def changed(before, after, **form):
    """The cells that differ, by the first cell of their row and by their column's name."""
    before, after = cells(before, **form), cells(after, **form)
    assert [len(row) for row in before] == [len(row) for row in after]
    return {
        (row[1] if before[0][1] == "ID" else row[0], before[0][i]): new
        for row, other in zip(before, after, strict=True)
        for i, (old, new) in enumerate(zip(row, other, strict=True))
        if old != new
    }


@pytest.mark.parametrize(
    ("encoding", "mark", "delimiter", "end"),
    [("utf-8", b"", ",", "\n"), ("utf-8", b"\xef\xbb\xbf", ";", "\r\n"), ("utf-16-le", b"\xff\xfe", "\t", "\r\n")],
)
def test_a_worksheet_of_moodle_gets_grades_and_comments_and_nothing_else(course, encoding, mark, delimiter, end):
    roster(course, "moodle", lambda n: moodle("김민준" if n == 11 else "Ann", n).rstrip("/"))
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(csv.reader(io.StringIO(WORKSHEET)))
    sheet = mark + text.getvalue().encode(encoding)
    status, said, filled = export(course, "moodle", sheet, "--exercise", EX1)
    assert status == 0, said
    form = {"encoding": "utf-8-sig" if encoding == "utf-8" else "utf-16", "delimiter": delimiter}
    new = changed(sheet, filled, **form)
    comments = {who: text for (who, column), text in new.items() if column == "Feedback comments"}
    assert {who: text for (who, column), text in new.items() if column == "Grade"} == {
        "Participant 11": "81.05", "Participant 12": "100", "Participant 15": "0",
    }  # fmt: skip
    assert len(new) == 3 + len(comments)
    lost = f"{graded(fails={'prompt masked': ''}).points:g}"
    assert comments == {
        "Participant 11": f"81.05 of 100 points; {lost} before adjustment; late: 1 day late, 10 % less; {RUN}: prompt masked",
        "Participant 12": "100 of 100 points",
    }
    assert "14: Moodle says that the grade cannot be changed" in said and "15: has a comment by hand" in said
    assert "16: graded, and has no row in sheet.csv" in said
    with zipfile.ZipFile(course / "out" / "feedback.zip") as archive:
        assert archive.namelist() == [
            moodle("김민준", 11, f"{EX1}.html"),
            *(moodle("Ann", n, f"{EX1}.html") for n in (12, 15)),
        ]
        assert "mask the prompt" in archive.read(moodle("김민준", 11, f"{EX1}.html")).decode()
    again = export(course, "moodle", filled, "--exercise", EX1)
    assert again[2] == filled  # its own comments are its own


def test_our_text_is_no_formula_and_no_html_in_their_sheet(course):
    sheet = WORKSHEET.replace('"well, done"', "").encode()
    filled = export(course, "moodle", sheet, "--exercise", EX1)[2]
    comment = changed(sheet, filled)["Participant 15", "Feedback comments"]
    assert comment == "0 of 100 points; '@SUM(1); '=cmd|' /C calc'!A0 &lt;b&gt;in&lt;/b&gt; x.py"
    assert b"'/C" not in filled and b'=cmd|\' /C calc\'!A0, ""Ben""' in filled  # theirs is theirs


def test_a_gradebook_of_canvas_gets_the_one_column(course):
    roster(course, "canvas", lambda n: canvas("kim", n, 500 + n, f"{EX1}-1.zip", late=n == 11))
    sheet = GRADEBOOK.encode()
    status, said, filled = export(course, "canvas", sheet, "--exercise", EX1)
    assert status == 0, said
    column = "Your first adapter (1234)"
    assert changed(sheet, filled) == {("11", column): "81.05", ("12", column): "100", ("15", column): "0"}
    assert "14: excused in Canvas: left as it is" in said
    with zipfile.ZipFile(course / "out" / "feedback.zip") as archive:
        assert archive.namelist() == [canvas("kim", n, 500 + n, f"{EX1}-1.html", late=n == 11) for n in (11, 12, 15)]
    first = (course / "out" / "feedback.zip").read_bytes()
    assert export(course, "canvas", sheet, "--exercise", EX1)[2] == filled
    assert (course / "out" / "feedback.zip").read_bytes() == first


@pytest.mark.parametrize("option", ["Quiz (77)", "77"])
def test_another_column_is_named_and_its_scale_is_its_own(course, option):
    sheet = (
        GRADEBOOK.replace(",", ";").replace(";5;100;", ";5,0;100;").replace('"Kim; Minjun"', '"Kim, Minjun"').encode()
    )
    status, said, filled = export(course, "canvas", sheet, "--exercise", EX1, "--assignment", option)
    assert status == 0, said
    assert changed(sheet, filled, delimiter=";")["11", "Quiz (77)"] == "4,05"


def test_a_sheet_in_an_old_encoding_stays_byte_for_byte(course):
    sheet = WORKSHEET.encode("cp949", "replace")
    filled = export(course, "moodle", sheet, "--exercise", EX1)[2]
    assert filled.split(b"\n")[0] == sheet.split(b"\n")[0]
    assert "김민준".encode("cp949") in filled and len(changed(sheet, filled, encoding="cp949")) == 5


@pytest.mark.parametrize(
    ("platform", "content", "options", "message"),
    [
        ("moodle", b"Name,Note\n", ("--exercise", EX1), "has no column 'Identifier', 'Grade': download it again"),
        ("moodle", WORKSHEET.encode(), (), "has results of ex1_first_adapter, ex2_rank_sweep: name one with --exercise"),
        ("canvas", b"Student,ID,A (1),B (2)\n", ("--exercise", EX1), "name one with --assignment: A (1), B (2)"),
        ("canvas", GRADEBOOK.encode(), ("--exercise", "ex4_qlora"), "has no results of ex4_qlora"),
        ("moodle", WORKSHEET.replace("100.00", "Good").encode(), ("--exercise", EX1), "the largest grade 'Good' is no number"),
        ("moodle", WORKSHEET.encode(), ("--canvas", "x.csv", "--exercise", EX1), "name one sheet"),
    ],
)  # fmt: skip
def test_a_sheet_that_cannot_be_filled_is_one_line_and_nothing_is_written(course, platform, content, options, message):
    status, said, filled = export(course, platform, content, *options)
    assert (status, filled) == (2, b"") and message in said and said.count("\n") == 1
    assert not (course / "out").exists()


LETTERS = st.text('aé0",;\t\r\n =-@', max_size=30)


@given(LETTERS, st.sampled_from(",;\t"))
def test_whatever_a_sheet_holds_it_is_written_as_it_was_read(text, delimiter):
    assert Sheet(b"", "utf-8", delimiter, *split_cells(text, delimiter)).content() == text.encode()


@given(st.lists(st.lists(LETTERS, min_size=2, max_size=4), max_size=4), LETTERS, st.sampled_from(",;\t"))
def test_cells_are_those_that_csv_reads_and_a_filled_one_is_its_text(rows, text, delimiter):
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter).writerows(rows)
    sheet = Sheet(b"", "utf-8", delimiter, *split_cells(written.getvalue(), delimiter))
    assert [sheet.row(number) for number in range(len(sheet.rows))] == rows
    for number, row in enumerate(rows):
        sheet.put(number, 1, text)
        row[1] = text
    assert cells(sheet.content(), "utf-8", delimiter) == rows


def test_an_out_below_a_file_is_one_line(course):
    status, said, _ = export(
        course, "moodle", WORKSHEET.encode(), "--exercise", EX1, "--out", course / "sheet.csv" / "x"
    )
    assert status == 2 and said.count("\n") == 1 and "cannot be written (Not a directory): name another folder" in said


def test_the_sheet_itself_is_never_overwritten(course):
    status, said, _ = export(course, "moodle", WORKSHEET.encode(), "--exercise", EX1, "--out", course)
    assert status == 2 and "would be overwritten: name another folder" in said
    assert (course / "sheet.csv").read_bytes() == WORKSHEET.encode()
