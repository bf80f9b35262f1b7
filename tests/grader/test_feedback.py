"""The page that a student gets back: what is on it, and what is not."""

import ast
import re
import time
from pathlib import Path

import pytest

from grader import text
from grader.evaluation import checks
from grader.reports.hints import HINTS
from grader.reports.student_feedback import feedback_path, write_feedback
from grader.reports.svg import loss_plot, perplexity_bars
from grader.verdict import Verdict
from tests.grader.test_report import HOSTILE, Page
from tests.verdicts import failed, graded

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def page(tmp_path):
    return lambda verdict: write_feedback(verdict, tmp_path).read_text("utf-8")


def words(text: str) -> str:
    return " ".join(Page(text.split("</style>")[1]).text.split())


def test_every_check_has_advice():
    """The checks of one run are those with points; the others name themselves where they are made."""
    calls = [one for one in ast.walk(ast.parse(Path(checks.__file__).read_text())) if isinstance(one, ast.Call)]
    named = [
        k.value for one in calls if getattr(one.func, "id", "") == "Check" for k in one.keywords if k.arg == "name"
    ]
    others = {ast.literal_eval(value) for value in named if isinstance(value, ast.Constant)}
    assert len(others) == 4
    assert checks.POINTS.keys() | others == HINTS.keys()


def test_what_failed_comes_with_what_was_found_and_what_to_do_next(page):
    text = words(page(graded(fails={"prompt masked": "it writes questions"})))
    assert "93.33 of 100" in text
    for part in ("−6.67 points", "Expected as asked", "What was found as found", "it writes questions",
                 HINTS["prompt masked"].asks, HINTS["prompt masked"].next):  # fmt: skip
        assert part in text
    assert HINTS["forgetting"].next not in text


def test_what_passed_says_so(page):
    text = words(page(graded()))
    assert "100 of 100 Every check passed" in text
    assert "What to look at" not in text


def test_a_check_that_failed_in_several_runs_is_told_once_with_every_run(page):
    text = words(page(graded(exercise="ex2_rank_sweep", fails={"forgetting": "it forgot"})))
    assert text.count(HINTS["forgetting"].next) == text.count("it forgot") == 1
    assert "run expected found rank-4 as asked as found rank-16 as asked as found rank-64" in text


def test_both_plots_are_on_it(page):
    text = page(graded())
    assert text.count("<svg") == 1
    assert "fresh questions, before" in words(text)
    assert "206.6" not in words(text) and "207" not in words(text)
    assert "210" in words(text)


def test_numbers_from_the_secret_pairs_are_coarse_and_those_that_a_student_can_compute_are_not(page):
    told = graded(
        fails={"exact match": "0.8725 of 1234.56, and 12.345", "claims of run.json": "PPL 12.345, peft 0.21.2"}
    )
    text = words(page(told))
    assert "0.87 of 1235, and 12" in text and "0.8725" not in text
    assert "PPL 12.345, peft 0.21.2" in text


def test_a_notebook_that_stopped_after_it_had_saved_a_run_is_told(page):
    stopped = graded().model_copy(update={"message": "cell 9: ValueError: no"})
    assert "The notebook stopped early" in words(page(stopped))
    assert "cell 9: ValueError: no" in words(page(stopped))


def test_a_failed_submission_is_told_what_was_found_without_the_graders_folders(page):
    text = words(
        page(
            failed(message="cell 5: FileNotFoundError: '/tmp/grading-x1/runs/data.json' in /home/me/course/ex.py, 1/2")
        )
    )
    assert "cell 5: FileNotFoundError: 'data.json' in ex.py, 1/2" in text
    assert "0 of 100" in text


def test_a_failure_of_the_grader_is_no_zero_and_keeps_its_cause_to_itself(page):
    text = words(page(failed(message="KeyError: 'held-out'", state="grader failed")))
    assert "KeyError" not in text
    assert "of 100" not in text
    assert "not a zero" in text


def test_claimed_texts_are_not_on_it(page):
    verdict = graded(fails={"forgetting": "no"})
    claims = {
        name: one.model_copy(update={"name": "CLAIMED", "hardware": "CLAIMED"}) for name, one in verdict.claims.items()
    }
    text = page(verdict.model_copy(update={"claims": claims}))
    assert "CLAIMED" not in text


@pytest.mark.parametrize("state", ["graded", "submission failed", "grader failed"])
def test_nothing_of_a_students_acts_on_the_page(page, state):
    nasty = HOSTILE + "\"'><img src=x onerror=y>\x1b[31m\u202e\u2066\x07\x00\x9b2J\u200b{{ 7*7 }}" + "a" * 100_000
    verdict = failed(nasty, nasty, state)
    if state == "graded":
        verdict = graded(nasty, fails={"forgetting": nasty}).model_copy(update={"message": nasty})
        verdict.claims = {nasty: verdict.claims["first-adapter"]}
        verdict.perplexities = {nasty: 3.0}
        verdict.checks = [
            one.model_copy(update={"found": nasty, "expected": nasty, "run": nasty}) for one in verdict.checks
        ]
    text = page(verdict)
    found = Page(text)
    assert not {"script", "img"} & set(found.tags)
    assert not found.handlers
    assert not found.links
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)
    assert "49" not in words(text)
    assert len(text) < 250_000
    assert "<script>" in found.text


def test_every_student_has_a_folder_of_their_own(tmp_path):
    one, other = (
        write_feedback(graded(name, fails={"forgetting": f"only {name}"}), tmp_path) for name in ("Ann", "Ben")
    )
    assert one == tmp_path / "feedback/Ann/ex1_first_adapter.html"
    assert "Ben" not in one.read_text("utf-8")
    assert "Ann" not in other.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["ex1_first_adapter.html"] * 2


HARMLESS = ["Ann", "ann.lee@uni.edu", "s-123_4", "Ann Lee", "José", "김철수", "O+"]
STEERING = ["", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "con", "NUL.html", "lpt1", "a" * 300,
            "é" * 100, "a\x00b", "a\nb", "J\udcf6rg", "C:x", "a ", " a", "a.", "~root", "$HOME", "a*", "\u202eexe", "e\u0301",
            "Ann-0123456789abcdef"]  # fmt: skip


@pytest.mark.parametrize("student", HARMLESS)
def test_a_harmless_name_is_kept(student):
    assert feedback_path(student, "ex1") == Path("feedback") / student / "ex1.html"


@pytest.mark.parametrize("student", STEERING)
def test_no_name_steers_where_feedback_goes(student, tmp_path):
    path = write_feedback(graded(student), tmp_path)
    assert path.resolve().parent.parent == (tmp_path / "feedback").resolve()
    assert re.fullmatch(r"[A-Za-z0-9-]+-[0-9a-f]{16}", path.parent.name)


def test_different_names_have_different_folders():
    names = [*HARMLESS, *STEERING]
    # a student who takes the name that another one's folder was given
    names += [feedback_path(name, "ex1").parent.name for name in STEERING]
    assert len({feedback_path(name, "ex1") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("losses", "undrawn"),
    [([], 0), ([1.0], 0), ([NAN], 1), ([INF, -INF, NAN], 3), ([1e308, 2.0, -1e308], 2), ([2.0, NAN, 1.0], 1),
     ([0.0, 0.0], 0), ([3.0] * 50, 0), ([5e-324, 1e-300], 0), ([-3.0, 2.0], 0)],
)  # fmt: skip
def test_no_loss_breaks_the_plot(losses, undrawn):
    plot = loss_plot({"a $x_{1}$ & <b>": losses, "_b": losses})
    assert [one.undrawn for one in plot.series] == [undrawn] * 2
    assert bool(plot.svg) == (len(losses) > undrawn)
    assert not re.search(r"nan|inf", plot.svg)
    assert all(-1 <= float(x) <= 641 for x in re.findall(r"[ML](-?[\d.]+) ", plot.svg))


def test_a_million_losses_are_thinned(page):
    started = time.process_time()
    text = page(graded(losses=[6.0 - i * 5e-6 for i in range(1_000_000)]))
    assert time.process_time() - started < 5
    assert len(text) < 60_000
    assert "6.00 to 1.00 in 1,000,000 steps" in words(text)


def test_perplexities_that_are_no_numbers_have_no_bar():
    bars = perplexity_bars({"a": NAN, "b": INF, "c": 0.0, "d": -1.0, "e": 1e300, "f": 1.0, "g": 0.5})
    assert [bar.percent for bar in bars] == [None, None, None, None, pytest.approx(100), 0, 0]


def test_what_is_shown_stays_readable():
    assert text.display("a\tb\r\nc\u2028d") == "a    b\nc\nd"
    assert text.display("e\u0301 สวัสดี 김철수 \N{ARABIC LETTER ALEF}") == "e\u0301 สวัสดี 김철수 \N{ARABIC LETTER ALEF}"
    assert len(text.display("a" + "\u0301" * 500)) == 5
    assert text.display("x" * 3_010, 10) == "x" * 10 + " ... (3,000 more characters)"
    assert text.display("x" * 30, 10) == "x" * 30  # the note is no shorter than what it stands for
    assert text.display_name("\u202e\x00") == "(a name that cannot be shown)"


@pytest.mark.parametrize("letters", ["x", "\t", "\x1b[1m", "\n", "e\u0301", "x\t\x1b]0;x\x07"])
@pytest.mark.parametrize("length", [50, 51, 52, 100, 1_000, 100_000])
def test_what_was_cut_once_is_not_cut_again(letters, length):
    once = text.display((letters * length)[:length], 10)
    assert text.display(once, 10) == once


def test_only_absolute_paths_lose_their_folders():
    for kept in ("https://a.org/b/c", "q/k/v", "and/or", "a ratio of 1/2", "runs/first/run.json"):
        assert text.without_folders(kept) == kept
    assert text.without_folders(r"C:\Users\me\x.py and file:///home/me/y.py") == "x.py and y.py"


def test_a_real_verdict_makes_a_page(page, evaluator, honest):
    from grader.exercises import EXERCISES
    from grader.pipeline import judge

    verdict = judge(evaluator, EXERCISES["ex1_first_adapter"], "Ann", honest.parent)
    assert isinstance(verdict, Verdict)
    text = words(page(verdict))
    assert "100 of 100 Every check passed" in text
    assert str(honest.parent) not in text
