"""From a submission to its verdict: what is shown of the notebook, whatever it does, and what a verdict hangs on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from grader import pipeline
from grader.errors import NotebookFailed
from grader.evaluation.evaluator import MAX_LENGTH
from grader.evaluation.reference_bands import ExerciseBands
from grader.exercises import ABOUT, EXERCISES
from grader.pipeline import Graded, GradingJob, GradingSetup, grade, grade_class, judge
from grader.records.ledger import Ledger
from grader.sandbox.limits import Limits
from grader.submission import intake
from grader.submission.find import SubmissionFolder
from grader.submission.intake import Submission
from grader.verdict import Verdict
from loralab import choose_base, data_path
from loralab.bases import asked_for
from tests.grader.test_scratch import nest

EX1 = EXERCISES["ex1_first_adapter"]
ANSWER = "# what the student wrote"
FOLDER = SubmissionFolder("ann", EX1.id, Path("submitted") / "ann" / EX1.id)


@pytest.fixture
def submission():
    notebook = EX1.released()
    next(cell for cell in notebook.cells if cell.id == "task1").source = ANSWER
    return Submission("ann", EX1.id, nbformat.writes(notebook).encode(), {}, ())


@pytest.fixture
def grade_what(base, submission, tmp_path, monkeypatch):
    """Grades the submission as if its notebook, when it was run, had done what a function does to its folder."""

    def grade_what(does):
        monkeypatch.setattr(pipeline, "execute_in_sandbox", lambda notebook, folder, *_: does(folder))
        graded = grade(GradingJob(FOLDER, submission, GradingSetup(base, 1), {}, "this submission", tmp_path))
        assert list(tmp_path.iterdir()) == []
        return graded

    return grade_what


def shown(graded):
    """The first task's cell as it is shown."""
    notebook = nbformat.reads(graded.notebook.decode(), as_version=4)
    nbformat.validate(notebook)
    return next(cell for cell in notebook.cells if cell.id == "task1")


def spoilt_run(folder):
    (folder / "runs" / "first-adapter").mkdir(parents=True)
    (folder / "runs" / "first-adapter" / "run.json").write_text("{}")


def executed(folder, **changes):
    cell = {"cell_type": "code", "id": "task1", "metadata": {}, "source": "pass", "execution_count": 1}
    cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "it ran"}]} | changes
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{EX1.id}.ipynb").write_text(json.dumps(content))


def fail():
    raise NotebookFailed("its process was killed")


def test_an_executed_notebook_is_shown_with_the_students_answer_and_its_outputs(grade_what):
    graded = grade_what(lambda folder: (spoilt_run(folder), executed(folder)))
    assert graded.verdict.state == "submission failed"
    assert (shown(graded).source, shown(graded).outputs[0].text) == (ANSWER, "it ran")


@pytest.mark.parametrize("spoilt", [
    {"outputs": [{"output_type": "stream", "name": "stdout", "text": 5}]},
    {"outputs": [{"output_type": "error", "traceback": {"x": [5]}}]},
    {"outputs": 5}, {"source": 5}, {"metadata": 5}, {"id": {}},
])  # fmt: skip
def test_a_notebook_that_student_code_has_spoilt_is_shown_and_stops_nothing(grade_what, spoilt):
    graded = grade_what(lambda folder: (spoilt_run(folder), executed(folder, **spoilt), fail()))
    assert graded.verdict.state == "submission failed"
    assert graded.verdict.message.startswith("its process was killed")
    assert shown(graded).source == ANSWER


@pytest.mark.parametrize("content", ["", "[" * 10**6, '{"nbformat": 4, "cells": [5]}', "9" * 10**4, " " * 10_000_001])
def test_a_notebook_that_cannot_be_read_is_shown_as_it_was_rebuilt(grade_what, content):
    graded = grade_what(lambda folder: (spoilt_run(folder), (folder / f"{EX1.id}.ipynb").write_text(content)))
    assert shown(graded).source == ANSWER


@pytest.mark.parametrize("does", [
    lambda folder: fail(),
    lambda folder: (folder / "runs").symlink_to("/"),
    lambda folder: None,
])  # fmt: skip
def test_a_notebook_that_leaves_no_run_is_shown_for_its_essay_is_graded_by_hand(grade_what, does):
    graded = grade_what(does)
    assert graded.verdict.state == "submission failed"
    assert shown(graded).source == ANSWER


def test_a_nest_of_folders_is_a_message_and_is_removed(grade_what):
    def nests(folder):
        spoilt_run(folder)
        nest(folder / "runs", 1_500)

    graded = grade_what(nests)
    assert graded.verdict.state == "submission failed"
    assert "deep" in graded.verdict.message


@pytest.mark.parametrize("does", [lambda folder: (spoilt_run(folder), executed(folder)), lambda folder: fail()])
def test_a_verdict_says_that_the_notebook_was_made_from_another_version(grade_what, submission, does):
    assert grade_what(does).verdict.other_version == ""
    notebook = json.loads(submission.notebook)
    notebook["metadata"][ABOUT]["version"] = 1
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "task5"]
    object.__setattr__(submission, "notebook", json.dumps(notebook).encode())
    graded = grade_what(does)
    assert graded.verdict.other_version.startswith("made from version 1 of the exercise")
    assert graded.verdict.other_version.endswith("missing and left empty: task5")
    assert shown(graded).source == ANSWER


def test_a_notebook_that_cannot_be_rebuilt_is_not_shown(base, submission, tmp_path):
    graded = grade(GradingJob(FOLDER, replace(submission, notebook=b"{}"), GradingSetup(base, 1), {}, "", tmp_path))
    assert (graded.verdict.state, graded.notebook) == ("submission failed", None)


def test_a_claim_is_no_longer_than_a_training(evaluator, honest):
    record = json.loads((honest / "run.json").read_text())
    (honest / "run.json").write_text(json.dumps(record | {"losses": [1.0] * (MAX_LENGTH + 1)}))
    verdict = judge(evaluator, EX1, "ann", honest.parent)
    assert verdict.state == "submission failed"
    assert verdict.message.startswith("run.json: losses has more than 20,000 entries")


def test_arithmetic_that_fails_refuses_the_run_and_not_the_grader(evaluator, monkeypatch, tmp_path):
    def evaluate(*_, **__):
        raise OverflowError("math range error")

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    verdict = judge(evaluator, EX1, "ann", tmp_path)
    assert verdict.state == "submission failed"
    assert verdict.message.startswith("first-adapter: its values are unusable (OverflowError: math range error)")


def test_a_record_of_many_words_is_refused_in_one_line(evaluator, honest):
    record = json.loads((honest / "run.json").read_text())
    (honest / "run.json").write_text(json.dumps(record | {"targets": ["a layer that is none" + "x" * 40] * 15_000}))
    verdict = judge(evaluator, EX1, "ann", honest.parent)
    assert verdict.state == "submission failed"
    assert "characters in addition to its losses, more than the" in verdict.message
    assert len(verdict.message) < 200


# What a verdict hangs on


@pytest.fixture
def namesake(tmp_path):
    """Another base in a folder of the course's base's name: one byte of its weights differs."""
    folder = shutil.copytree(data_path("base"), tmp_path / "x" / "embedded")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return choose_base(str(folder))


def test_two_bases_of_one_name_share_neither_verdicts_nor_bands(base, namesake, submission):
    assert base.name == namesake.name
    assert GradingSetup(base, 1).key(submission) != GradingSetup(namesake, 1).key(submission)
    assert (asked_for(base), asked_for(namesake)) == ("embedded", namesake.source)
    bands = ExerciseBands.load(EX1.id)
    assert bands.of(base) == bands.bases["embedded"]
    assert bands.of(namesake) is None


def test_bands_are_of_the_weights_that_the_base_had(base):
    bands = ExerciseBands.load(EX1.id)
    bands.bases["embedded"].base_sha256 = "0" * 64
    assert bands.of(base) is None


def test_the_weights_in_a_folder_may_change_under_its_name(namesake, base, submission, tmp_path):
    other = shutil.copytree(data_path("base"), tmp_path / "other")
    keys = {
        GradingSetup(replace(namesake, source=str(folder)), 1).key(submission).base
        for folder in (namesake.source, other)
    }
    (other / "model.safetensors").write_bytes(b"changed")
    keys.add(GradingSetup(replace(namesake, source=str(other), reason="anew"), 1).key(submission).base)
    assert len(keys) == 3


def test_the_processors_of_the_machine_limit_a_notebook_and_no_verdict_hangs_on_them(base, submission, monkeypatch):
    allowed, keys = [], set()
    for count in (1, 2, 64):
        monkeypatch.setattr(pipeline, "processors", lambda count=count: count)
        setting = GradingSetup(base, 1, limits=Limits(wall=100, cpu=float(count)))
        allowed.append(setting.limits_here().cpu)
        keys.add(setting.key(submission))
    assert allowed == [200, 200, 6400]
    assert len(keys) == 1


def test_with_nothing_left_to_grade_no_cluster_is_asked(base, tmp_path, honest):
    place = SubmissionFolder("ann", EX1.id, honest.parent)
    with Ledger(tmp_path / "out" / "ledger.db", heldout_seed=1) as ledger:
        setting = GradingSetup(base, 1, "artifacts")
        (first,) = grade_class([place], setting, ledger)
        (again,) = grade_class([place], setting, ledger, cluster="tcp://127.0.0.1:1")
    assert again.from_ledger and again.verdict == first.verdict


# A class, without the work


@pytest.fixture
def class_of_three(base, tmp_path, monkeypatch):
    """Three students' notebooks, graded at once by what a test puts in the place of the work."""
    folders = [SubmissionFolder(name, EX1.id, tmp_path / "submitted" / name / EX1.id) for name in ("ann", "ben", "cem")]
    for folder in folders:
        folder.folder.mkdir(parents=True)
        nbformat.write(EX1.released(), folder.folder / f"{EX1.id}.ipynb")

    def outcome(job):
        return Graded(Verdict(exercise=EX1.id, student=job.folder.student, base="embedded", state="graded"))

    def run_all(function, jobs, workers, cluster):
        return ((job, work.outcome(job)) for job in jobs)

    work = SimpleNamespace(folders=folders, setup=GradingSetup(base, 1, "artifacts"), outcome=outcome)
    monkeypatch.setattr(pipeline, "run_all", run_all)
    monkeypatch.setattr(pipeline, "measure_bases", lambda setup, needed, *_: dict.fromkeys(needed))
    with Ledger(tmp_path / "ledger.db", heldout_seed=1) as work.ledger:
        yield work


def test_a_verdict_is_recorded_before_it_is_given(class_of_three):
    grading = grade_class(class_of_three.folders, class_of_three.setup, class_of_three.ledger)
    assert next(grading).verdict.student == "ann"
    grading.close()
    again = list(grade_class(class_of_three.folders, class_of_three.setup, class_of_three.ledger))
    assert [(one.verdict.student, one.from_ledger) for one in again] == [("ann", True), ("ben", False), ("cem", False)]


def test_what_is_recorded_and_what_is_new_come_once_each_in_whatever_order(class_of_three):
    work = class_of_three
    list(grade_class(work.folders[1:2], work.setup, work.ledger))
    (work.folders[2].folder / f"{EX1.id}.ipynb").unlink()  # nothing is left to be graded
    found = {one.verdict.student: one for one in grade_class(work.folders, work.setup, work.ledger)}
    assert {name: one.from_ledger for name, one in found.items()} == {"ann": False, "ben": True, "cem": False}
    assert found["cem"].verdict.state == "submission failed"


def test_a_submission_is_read_once_and_hashed_once(class_of_three, monkeypatch):
    read, hashed = [], []
    take_in, sha256 = pipeline.take_in, intake._sha256
    monkeypatch.setattr(pipeline, "take_in", lambda folder, exercise: read.append(folder) or take_in(folder, exercise))
    monkeypatch.setattr(intake, "_sha256", lambda content: hashed.append(content) or sha256(content))
    work = class_of_three
    assert len(list(grade_class(work.folders, work.setup, work.ledger))) == 3
    assert read == work.folders
    assert len(hashed) == 3 * 2  # the notebook, and then all


@pytest.mark.parametrize(
    ("mode", "submitted", "measured"),
    [
        ("artifacts", ["notebook"], set()),
        ("artifacts", ["codes-16", "codes-4"], {("lora", "codes")}),
        ("sandbox", ["notebook"], {("lora", "far"), ("lora", "codes")}),
        ("sandbox", ["codes-16"], set()),
    ],
)
def test_the_base_is_measured_only_for_what_can_be_evaluated(
    class_of_three, tmp_path, monkeypatch, mode, submitted, measured
):
    work, found = class_of_three, set()
    ex5 = SubmissionFolder("ann", "ex5_low_rank_limits", tmp_path / "ex5")
    ex5.folder.mkdir()
    if "notebook" in submitted:
        nbformat.write(EXERCISES[ex5.exercise].released(), ex5.folder / f"{ex5.exercise}.ipynb")
    for run in set(submitted) - {"notebook"}:
        (ex5.folder / run).mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json", "run.json"):
            (ex5.folder / run / name).write_bytes(b"{}")
    monkeypatch.setattr(pipeline, "measure_bases", lambda _, needed, *__: found.update(needed) or dict.fromkeys(needed))
    (one,) = grade_class([ex5], replace(work.setup, mode=mode))
    assert one.verdict.state == "graded" and found == measured


def test_what_the_grader_fails_at_is_tried_a_second_time(class_of_three):
    work, tries, well = class_of_three, [], class_of_three.outcome

    def fails(job):
        tries.append(job.folder.student)
        broken = job.folder.student == "ann" or (job.folder.student == "ben" and tries.count("ben") == 1)
        return MemoryError("no room") if broken else well(job)

    work.outcome = fails
    found = {one.verdict.student: one.verdict for one in grade_class(work.folders, work.setup, work.ledger)}
    assert tries == ["ann", "ben", "cem", "ann", "ben"]
    assert {name: one.state for name, one in found.items()} == {
        "ann": "grader failed", "ben": "graded", "cem": "graded",
    }  # fmt: skip
    assert found["ann"].message == "MemoryError: no room"
