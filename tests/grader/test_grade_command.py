"""The grader's command line: what it grades, and the one line it says where it cannot."""

import json
import os
import shutil
import stat

import nbformat
import pytest
from typer.testing import CliRunner

from grader import grading, release
from grader.cli import app
from grader.errors import GradebookError, ReleaseError
from grader.evaluation import measure_bands
from grader.exercises import EXERCISES, ROOT
from grader.pipeline import GradingSetup, measure_bases
from grader.records.ledger import Ledger
from grader.sandbox.bubblewrap import available
from grader.sandbox.limits import Limits
from grader.submission.intake import Submission
from loralab import Base, data_path

EX1 = EXERCISES["ex1_first_adapter"]
SECRET = "918273645"


def call(*arguments):
    done = CliRunner().invoke(app, ["grade", EX1.id, *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def course(tmp_path):
    (tmp_path / "submitted").mkdir()
    return tmp_path


@pytest.mark.parametrize("options", [("--artifacts-only",), ("--no-sandbox",)])
def test_a_class_without_submissions_is_told_where_they_belong_and_nothing_else_is_graded(course, options):
    (course / "submitted" / "ann" / "ex1").mkdir(parents=True)
    status, said = call("--course", course, "--out", course / "out", *options)
    assert status == 2
    assert "submitted/ann/ex1: no exercise has this name" in said
    assert not (course / "out" / "results.json").exists()


def test_options_that_contradict_each_other_are_one_line(course):
    (course / "submitted" / "ann" / EX1.id).mkdir(parents=True)
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only", "--no-sandbox")
    assert status == 2 and "there is nothing for --no-sandbox to do" in said


@pytest.mark.parametrize(("option", "most"), [("--seed", 2**32 - 1), ("--heldout-seed", 2**128 - 1)])
def test_a_seed_that_nothing_can_be_drawn_with_is_one_line(course, option, most):
    for seed in (-1, most + 1):
        status, told = call("--course", course, option, seed)
        assert status == 2 and f"Invalid value for '{option}'" in told


def test_an_exercise_that_nbgrader_refuses_is_one_line(monkeypatch):
    monkeypatch.setattr(release, "generate", lambda one: (_ for _ in ()).throw(ReleaseError("nbgrader refused it")))
    done = CliRunner().invoke(app, ["exercises", EX1.id])
    assert (done.exit_code, done.output.strip()) == (2, "Error: nbgrader refused it")


def test_reference_runs_of_other_code_are_not_taken_for_these(base, monkeypatch):
    before = measure_bands._made_from(base, EX1)
    monkeypatch.setattr(measure_bands, "describe", lambda module: "other code")
    assert measure_bands._made_from(base, EX1) != before


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
    submission = Submission("ann", EX1.id, None, {}, ())
    keys = [GradingSetup(base, 1, "sandbox", limits=Limits(wall=wall)).key(submission) for wall in (60, 60, 900)]
    assert keys[0] == keys[1] != keys[2]


def test_a_small_class_is_graded_handed_back_and_not_graded_again(course, honest):
    good = course / "submitted" / "ann" / EX1.id
    shutil.copytree(honest, good / honest.name)
    (course / "submitted" / "ben" / EX1.id).mkdir(parents=True)
    options = ("--course", course, "--out", course / "out", "--artifacts-only", "--heldout-seed", SECRET)
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
    written = [*out.rglob("*"), course / "gradebook.db"]
    assert not [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077]  # nobody else can read it
    told = [path for path in course.rglob("*") if path.is_file() and path.name != "ledger.db"]
    assert not [path for path in told if SECRET.encode() in path.read_bytes()]
    first = (out / "results.json").read_text()
    assert call(*options)[0] == 0
    assert (out / "results.json").read_text() == first  # the seconds, too: it was looked up
    (good / honest.name / "run.json").write_text("{}")
    assert call(*options)[0] == 0
    assert (out / "results.json").read_text().count("submission failed") == 2


def submit(course, answer, student="ann"):
    """The notebook alone, with this in the first task."""
    folder = course / "submitted" / student / EX1.id
    folder.mkdir(parents=True, exist_ok=True)
    notebook = EX1.released()
    next(cell for cell in notebook.cells if cell.id == "task1").source = answer
    nbformat.write(notebook, folder / f"{EX1.id}.ipynb")
    return folder


def test_formgrader_shows_the_notebook_that_was_handed_in_last(course):
    options = ("--course", course, "--out", course / "out", "--artifacts-only")
    shown = course / "autograded" / "ann" / EX1.id / f"{EX1.id}.ipynb"
    for answer in ("# the first", "# the second", "# the first"):
        folder = submit(course, answer)
        assert call(*options)[0] == 0
        assert answer in shown.read_text()
    shutil.rmtree(course / "autograded")
    assert call(*options)[0] == 0
    assert "# the first" in shown.read_text()
    os.utime(shown, (1, 1))
    assert call(*options)[0] == 0
    assert shown.stat().st_mtime == 1  # it has the outputs of a run, perhaps
    (folder / "first-adapter").symlink_to("elsewhere")
    assert call(*options)[0] == 0
    assert not shown.exists()


def test_only_another_hand_in_is_another_one_to_look_at(course, monkeypatch):
    asked = []
    monkeypatch.setattr(
        grading, "ask_for_another_look", lambda student, exercise, url: asked.append((student, exercise.id))
    )
    for answer, told in (("# the first", []), ("# the first", []), ("# the second", [("ann", EX1.id)])):
        submit(course, answer)
        assert call("--course", course, "--artifacts-only")[0] == 0
        assert asked == told
    assert (course / "build" / "grade" / "report.html").exists()  # of this course, not of the one that the grader is in


def test_a_gradebook_that_cannot_mark_an_answer_stops_nothing_and_is_asked_again(course, monkeypatch):
    def lost(*where):
        raise GradebookError("locked")

    shown = course / "autograded" / "ann" / EX1.id / f"{EX1.id}.ipynb"
    submit(course, "# the first")
    assert call("--course", course, "--artifacts-only")[0] == 0
    submit(course, "# the second")
    with monkeypatch.context() as broken:
        broken.setattr(grading, "ask_for_another_look", lost)
        assert call("--course", course, "--artifacts-only")[0] == 0
    assert "# the first" in shown.read_text()
    assert call("--course", course, "--artifacts-only")[0] == 0
    assert "# the second" in shown.read_text()


def test_artifacts_that_are_not_there_are_one_line(tmp_path):
    status, said = call("--artifacts", tmp_path / "typo", "--out", tmp_path / "out")
    assert status == 2 and "no such folder: name the one with your run folders" in said


def test_what_was_left_out_has_no_verdict_and_the_status_says_so(course):
    submit(course, "# mine")
    (course / "submitted" / "ben").symlink_to("ann", target_is_directory=True)
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only")
    assert status == 1
    assert "left out: submitted/ben: a symlink" in said
    assert (course / "gradebook.db").exists()


def test_names_that_mislead_are_told_as_they_are_spelled(course):
    for student in ("ann", "an\u200bn"):
        submit(course, "# mine", student)
    (course / "submitted" / ":smile:").touch()
    (course / "submitted" / ".carl" / EX1.id).mkdir(parents=True)
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only")
    assert status == 1
    assert "left out: submitted/:smile: not a student's folder" in said.replace(":smile:: ", ":smile: ")
    assert "left out: submitted/.carl: a name that begins with a dot" in said
    assert "check the name: submitted/an\\u200bn: the name holds \\u200b" in said
    assert "look alike" in said


def test_a_gradebook_that_cannot_be_opened_is_told_before_anything_is_graded(course, monkeypatch):
    submit(course, "# mine")
    monkeypatch.setattr(grading, "grade_class", None)
    url = f"sqlite:///{course}/nowhere/gradebook.db"
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only", "--gradebook", url)
    assert status == 2
    assert said.startswith("Error: gradebook sqlite:///") and "cannot be written" in said


def test_a_gradebook_that_is_lost_meanwhile_loses_no_verdict(course, monkeypatch):
    submit(course, "# mine")
    shutil.copytree(course / "submitted" / "ann", course / "submitted" / "ben")
    write_back, url = grading._write_back, f"sqlite:///{course}/books/gradebook.db"
    (course / "books").mkdir()

    def lose(one, **where):
        write_back(one, **where)
        shutil.rmtree(course / "books", ignore_errors=True)

    monkeypatch.setattr(grading, "_write_back", lose)
    (course / "submitted" / "notes").touch()
    status, said = call("--course", course, "--out", course / "out", "--artifacts-only", "--gradebook", url)
    assert status == 1
    assert "left out: submitted/notes" in said and "cannot be written" in said
    assert (course / "out" / "grades.csv").read_text().count("submission failed") == 2


def test_an_out_below_a_file_is_one_line(course):
    submit(course, "# mine")
    (course / "file").touch()
    status, said = call("--course", course, "--out", course / "file" / "out", "--artifacts-only")
    assert status == 2
    assert said.endswith("file/out cannot be a folder (Not a directory): give another --out")


def test_a_folder_with_the_name_of_a_base_is_another_base_wherever_it_is_asked_for(course, monkeypatch):
    submit(course, "# mine")
    folder = shutil.copytree(data_path("base"), course / "embedded")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    options = ("--course", course, "--out", course / "out", "--artifacts-only")
    assert "no bands" not in call(*options)[1]
    monkeypatch.chdir(folder)
    status, said = call(*options, "--base", ".")
    assert status == 0
    assert f"no bands: {EX1.id}:" in said and "base embedded, so" in said and f"make bands BASE={folder}" in said


def test_a_base_that_cannot_be_had_is_one_line():
    nowhere = GradingSetup(Base("nothing", "nobody/nothing", 1e-3, "none"), heldout_seed=1)
    with pytest.raises(
        ValueError,
        match=r"^the base nothing cannot be measured: nothing: its tokenizer cannot be loaded: OSError: [^\n]+$",
    ):
        measure_bases(nowhere, {("lora", "triage")}, workers=1)


@pytest.mark.parametrize(
    "bug", [ValueError("a bug"), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "a bug"), KeyError("a bug")]
)
def test_a_defect_keeps_its_traceback(course, monkeypatch, bug):
    def broken(*_):
        raise bug

    submit(course, "# mine")
    monkeypatch.setattr(grading, "grade_class", broken)
    done = CliRunner().invoke(app, ["grade", EX1.id, "--course", str(course), "--artifacts-only"])
    assert (done.exit_code, done.exception) == (1, bug)


def test_the_results_are_in_the_course_from_whatever_folder_it_is_graded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(grading, "make_folder", lambda out: None)
    for name in ("_grade_folders", "_grade_submitted"):
        monkeypatch.setattr(grading, name, lambda request, *_: asked.append(request) or True)
    for folder, options in ((tmp_path, []), (ROOT, ["--course", "."]), (ROOT / "docs", ["--course", ".."])):
        monkeypatch.chdir(folder)
        assert call(*options)[0] == 0
    assert {(one.course, one.out) for one in asked} == {(ROOT, ROOT / "build" / "grade")}


def test_a_damaged_notebook_in_autograded_is_replaced_and_stops_nobody(course, monkeypatch):
    asked = []
    monkeypatch.setattr(grading, "ask_for_another_look", lambda student, *_: asked.append(student))
    shown = course / "autograded" / "ann" / EX1.id / f"{EX1.id}.ipynb"
    submit(course, "# the first")
    assert call("--course", course, "--artifacts-only")[0] == 0
    damaged = json.loads(shown.read_text()) | {"cells": [{"cell_type": "code"}]}
    shown.write_text(json.dumps(damaged))
    submit(course, "# the second")
    submit(course, "# another student's", "ben")
    assert call("--course", course, "--artifacts-only")[0] == 0
    assert "# the second" in shown.read_text()
    assert asked == ["ann"]
    assert (course / "build" / "grade" / "grades.csv").read_text().count("submission failed") == 2
