"""What a verdict looks like in the terminal and on disk, and what a class does."""

import csv
import io
import json
import re
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from rich.console import Console

from grader.records.gradebook import _lines
from grader.reports.class_report import write_report
from grader.reports.exports import write_grades, write_results
from grader.reports.student_feedback import write_feedback
from grader.reports.terminal import print_class, print_verdict
from grader.submission.similarity import Fingerprint
from grader.text import listed
from grader.verdict import MAX_CHECK_TEXT, Check, Verdict
from tests.verdicts import failed, graded

EXERCISES = ("ex1_first_adapter", "ex2_rank_sweep", "ex4_qlora")
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A page as a browser reads it: its tags, its text, and where it leads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.links, self.ids, self.handlers = [], "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " "
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def printed(show, *what, width=160) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(*what, console)
    return console.file.getvalue()


def rows(folder):
    with (folder / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def classful():
    """Thirteen students with three exercises each, one of whom the grader failed at, and two of whom failed."""
    verdicts = [graded(f"student {i}", exercise) for i in range(1, 12) for exercise in EXERCISES]
    verdicts += [graded("student 12", one, {"prompt masked": "mask the prompt"}) for one in EXERCISES]
    verdicts.append(failed("student 13", "MemoryError in the grader", "grader failed"))
    verdicts.append(failed("student 13", "cell 5: NameError: x", exercise=EXERCISES[1]))
    return verdicts


def test_the_table_names_every_check():
    verdict = graded()
    text = printed(print_verdict, verdict)
    assert all(check.name in text for check in verdict.checks)
    assert "100 of 100 points, passed" in text


def test_a_class_is_one_table_and_names_what_the_grader_failed_at(classful):
    text = printed(print_class, classful)
    assert len(text.splitlines()) < 20
    assert "38 submissions of 13 students" in text
    assert re.search(r"ex1_first_adapter\W+12\W+0\W+1\W+11\W+99\.", text)
    assert re.search(r"ex2_rank_sweep\W+12\W+1\W+0\W+11\W+99\.", text)
    assert "grader failed: student 13, ex1_first_adapter: MemoryError in the grader" in text


def test_markup_and_escape_codes_of_students_are_text_in_the_terminal():
    name = "[red]x[/red] [/] \x1b[2J\u202e:smile: \\"
    for verdict in (graded(name, fails={"forgetting": name}), failed(name, name), failed(name, name, "grader failed")):
        for show, what in ((print_verdict, verdict), (print_class, [verdict] * 2)):
            text = printed(show, what)
            assert "\x1b" not in text
            assert "\u202e" not in text
            if show is print_verdict or verdict.state == "grader failed":
                assert "[red]x[/red] [/] :smile: \\" in text


def test_results_json_can_be_read_back(tmp_path):
    diverged = graded(losses=[2.0, float("nan"), float("inf")])
    verdicts = [
        graded(),
        failed("J\udcf6rg", "not UTF-8"),
        diverged.model_copy(update={"perplexities": {"a": float("inf")}}),
    ]
    write_results(verdicts, tmp_path)
    stored = [Verdict.model_validate(one) for one in json.loads((tmp_path / "results.json").read_text())]
    assert repr(stored) == repr(verdicts)  # NaN is not equal to itself
    write_results([], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "  =1",
        '"=1',
        "'=1",
        "\u200b=1",
        "\x00=1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20SUM(A1)",
        "\u201c=1",
    ],
)
def test_grades_csv_cannot_run_a_formula(tmp_path, text):
    write_grades([failed(text, text)], tmp_path)
    (row,) = rows(tmp_path)
    for value in (row["student"], row["message"]):
        assert value.startswith("'")
        assert not value.startswith("'\u200b")


def test_grades_csv_cannot_run_a_formula_where_semicolons_separate(tmp_path):
    write_grades([failed('Ann";=1+1', "a; =2+2"), failed("a;\uff1d1", "a\uff1b\uff0b1")], tmp_path)
    with (tmp_path / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        fields = [field.strip(' "') for row in csv.reader(file, delimiter=";") for field in row]
    assert sum("=1+1" in field or "=2+2" in field for field in fields) == 2
    assert not any(field.startswith(("=", "\uff1d")) for field in fields)
    assert any(field.endswith("a\uff1b'\uff0b1") for field in fields)


def test_grades_csv_has_a_row_for_each_and_no_points_where_the_grader_failed(tmp_path):
    verdicts = [
        graded("Zoë, \"the\" 'one'\nand only"),
        failed(),
        failed("Cem", state="grader failed"),
        failed("J\udcf6rg"),
    ]
    write_grades(verdicts, tmp_path)
    found = rows(tmp_path)
    assert [row["points"] for row in found] == ["100.0", "0", "", "0"]
    assert [row["passed"] for row in found] == ["True", "False", "", "False"]
    assert found[0]["student"] == "Zoë, \"the\" 'one' and only"
    assert found[3]["student"] == "J\\xf6rg"
    assert not list(tmp_path.glob("*.part"))


def test_points_in_part_are_the_same_wherever_they_are_shown(tmp_path):
    verdict = graded(fails={"exact match": "'fault' is wrong"}, partial={"exact match": 0.5})
    (check,) = [check for check in verdict.checks if not check.passed]
    assert (check.earned, verdict.points) == (
        pytest.approx(check.points / 2),
        pytest.approx(100 - check.points / 2, abs=0.01),
    )
    told = f"'fault' is wrong ({check.earned:.3g} of {check.points:.3g} points)"
    text = printed(print_verdict, verdict)
    assert told in text and f"{check.earned:.3g}/{check.points:.3g}" in text and "partly" in text
    write_grades([verdict], tmp_path)
    (row,) = rows(tmp_path)
    assert told in row["message"] and float(row["points"]) == verdict.points
    write_results([verdict], tmp_path)
    (stored,) = json.loads((tmp_path / "results.json").read_text())
    assert sum(one["earned"] for one in stored["checks"]) == pytest.approx(verdict.points, abs=0.01)
    assert Verdict.model_validate(stored) == verdict
    page = Page(write_report([verdict], tmp_path).read_text("utf-8")).text
    assert told in page and "partly" in page
    page = Page(write_feedback(verdict, tmp_path).read_text("utf-8")).text
    assert f"−{check.points - check.earned:.3g} points of {check.points:.3g}" in page
    assert told in "\n".join(_lines(verdict))


def test_a_notebook_that_stopped_is_not_passed_whatever_its_checks_say(tmp_path):
    verdict = graded().model_copy(update={"message": "ex1_first_adapter.ipynb, cell 9: NameError: x"})
    assert verdict.points == 100 and not verdict.passed
    assert "not passed" in printed(print_verdict, verdict)
    assert next(_lines(verdict)) == "100 of 100 points: the notebook stopped:"
    write_grades([verdict], tmp_path)
    assert rows(tmp_path)[0]["passed"] == "False"


def test_what_a_check_quotes_is_cut_when_it_is_made():
    check = Check(
        name="x", expected="y" * 10**6, found="\x1b[2Jz", points=1, passed=False, message=listed(["t"] * 15_000)
    )
    assert len(check.expected) < MAX_CHECK_TEXT + 50
    assert check.found == "z"
    assert check.message == "t, t, t, t, t, t, t, t and 14,992 more"


def test_adapters_that_do_nearly_the_same_are_named_together(classful, tmp_path):
    sketches = {name: {"first-adapter": "ADwAAA=="} for name in ("student 1", "student 2")}
    sketches["student 3"] = {"first-adapter": "AAAAPA=="}
    told = [verdict.model_copy(update={"sketches": sketches.get(verdict.student, {})}) for verdict in classful]
    fingerprints = {("student 1", EXERCISES[0]): Fingerprint()}
    words = " ".join(Page(write_report(told, tmp_path, fingerprints).read_text("utf-8")).text.split())
    assert "ex1_first_adapter first-adapter 1.000 student 1, student 2" in words


OLD = "made from version 1 of the exercise, graded by the current version 2"


@pytest.mark.parametrize("verdict", [graded(), failed()], ids=["graded", "failed"])
def test_another_version_is_named_wherever_a_verdict_is_shown(verdict, tmp_path):
    verdict = verdict.model_copy(update={"other_version": OLD})
    assert f"another version: {OLD}" in printed(print_verdict, verdict)
    write_grades([verdict], tmp_path)
    write_results([verdict], tmp_path)
    assert rows(tmp_path)[0]["message"].startswith(OLD)
    assert json.loads((tmp_path / "results.json").read_text())[0]["other_version"] == OLD
    assert OLD in "\n".join(_lines(verdict))
    for page in (write_report([verdict], tmp_path), write_feedback(verdict, tmp_path)):
        assert OLD in Page(page.read_text("utf-8")).text
    assert verdict.passed is (verdict.state == "graded")


def test_a_class_names_those_of_other_versions(classful, tmp_path):
    assert "another version" not in printed(print_class, classful)
    classful[:15] = [one.model_copy(update={"other_version": OLD}) for one in classful[:15]]
    text = printed(print_class, classful)
    assert f"another version: student 1, ex1_first_adapter: {OLD}" in text
    assert "and 5 more made from other versions, in report.html" in text
    assert Page(write_report(classful, tmp_path).read_text("utf-8")).text.count(OLD) == 15


def test_a_grader_failure_has_no_score():
    assert failed().points == 0
    assert failed(state="grader failed").points is None


def test_the_report_of_a_few_is_one_page_with_plots_and_no_foreign_markup(tmp_path):
    verdicts = [graded(exercise=one) for one in EXERCISES] + [
        failed(HOSTILE, HOSTILE),
        failed("<img src=x onerror=alert(1)>"),
    ]
    text = write_report(verdicts, tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 3
    assert HOSTILE in page.text
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert not page.handlers
    assert "http" not in text.split("<h1>")[1]
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)


def test_the_report_of_a_class_keeps_the_three_states_apart(classful, tmp_path):
    page = Page(write_report(classful, tmp_path).read_text("utf-8"))
    words = " ".join(page.text.split())
    assert "36 graded, 33 with every check passed 1 submission failed: 0 points 1 grader failed: no score" in words
    assert "student 13 no score failed – nothing submitted" in words
    assert "prompt masked 11 of 12" in words
    assert "1 prompt masked mask the prompt" in words
    assert "MemoryError in the grader" in words
    assert page.tags.count("svg") == len(EXERCISES)


def test_pages_can_be_read_without_a_mouse_on_a_phone_and_by_a_screen_reader(classful, tmp_path):
    pages = [write_report(classful, tmp_path / "class"), write_report(classful[-3:], tmp_path / "few")]
    pages += [write_feedback(verdict, tmp_path) for verdict in classful[-5:]]
    for page in (path.read_text("utf-8") for path in pages):
        tags = Page(page).tags
        levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(below <= above + 1 for above, below in pairwise(levels))
        assert tags.count("table") == tags.count("caption") and tags.count("main") == 1
        assert not re.search(r"<th(?! scope)[ >]|<[^>]+ title=", page)  # nothing is said on hovering alone
        assert "prefers-color-scheme: dark" in page and "@media (max-width" in page


def test_students_stand_in_the_order_in_which_people_count(classful, tmp_path):
    text = write_report(classful[::-1], tmp_path).read_text("utf-8")
    names = re.findall(r'<th scope="row">(student \d+)', text)
    assert names == [f"student {i}" for i in range(1, 14)]


def test_the_report_of_a_class_links_to_the_feedback_that_is_there(classful, tmp_path):
    strange = graded("a/../b <c>")
    missing = graded("no feedback")
    for verdict in [*classful, strange]:
        write_feedback(verdict, tmp_path)
    page = Page(write_report([*classful, strange, missing], tmp_path).read_text("utf-8"))
    links = {link for link in page.links if not link.startswith("#")}
    assert len(links) == len(classful) + 1
    assert "feedback/student%201/ex1_first_adapter.html" in links
    assert all((tmp_path / link.replace("%20", " ")).is_file() for link in links)


def test_the_report_of_three_hundred_is_small_and_quick(tmp_path):
    some = [graded(exercise=exercise, losses=[2.0] * 200) for exercise in EXERCISES]
    verdicts = [one.model_copy(update={"student": f"s{i}"}) for i in range(300) for one in some]
    started = time.process_time()
    path = write_report(verdicts, tmp_path)
    assert time.process_time() - started < 10
    assert path.stat().st_size < 300_000


def test_identical_submissions_are_named_together_with_the_solution(classful, tmp_path):
    fingerprints = {
        (f"student {i}", EXERCISES[0]): Fingerprint({"first-adapter": "same" if i < 3 else f"hash {i}"})
        for i in range(1, 13)
    }
    text = write_report(classful, tmp_path, fingerprints, {EXERCISES[0]: Fingerprint({"first-adapter": "hash 7"})})
    words = " ".join(Page(text.read_text("utf-8")).text.split("Identical submissions")[-1].split())
    assert "12 submissions were compared" in words
    assert "adapter of first-adapter student 1, student 2" in words
    assert "adapter of first-adapter and the solution's student 7" in words
    assert "student 8" not in words


def test_time_is_summed_and_the_slowest_is_named(classful, tmp_path):
    classful[4].seconds["notebook"] = 3600.0
    words = " ".join(Page(write_report(classful, tmp_path).read_text("utf-8")).text.split())
    assert "notebook 36 78 min 30 s 60 min student 2, ex2_rank_sweep" in words
    assert f"{(35 * 30 + 3600 + 36 * 9) / 3600:.2f} worker-hours" in words
