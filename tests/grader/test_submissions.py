"""A class of honest and hostile students: right states, no forged points, nothing outside changed, and nobody is left out."""

import hashlib
import socket
import stat
from pathlib import Path

import pytest

from grader.exercises import EXERCISES, ROOT
from grader.pipeline import GradingSetup, grade_class
from grader.sandbox.bubblewrap import available
from grader.sandbox.limits import MIB, Limits
from grader.submission.find import SubmissionFolder, find
from grader.submission.intake import take_in
from grader.submission.rebuild import rebuild
from tests.submissions.__main__ import expected, plant_secrets
from tests.submissions.case import EX1, RECORD, RUN, Case, Mode, Parts
from tests.submissions.compare import differences
from tests.submissions.honest import HONEST
from tests.submissions.hostile import HOSTILE

# The hostile ones whose code runs on every change; the others are run by `make proof`.
ALWAYS = {
    "answers-for-the-kernel", "escape-in-an-error", "files-on-their-way", "forged-run", "fork-bomb",
    "goes-on-after-the-end", "no-first-thread",
    "output-of-200-megabytes", "planted-nest", "planted-symlinks", "reaches-the-network", "reads-the-repository",
    "spoilt-notebook", "writes-outside",
}  # fmt: skip
# Of those that are evaluated, the ones on every change: each shows something that no other one shows.
EVALUATED = {
    "trained-on-a-gpu", "weights-that-overflow", "numbers-beyond-floats", "record-with-lies", "noise",
    "trained-on-the-evaluation-pairs", "one-adapter-under-noise", "pickles-beside", "idle-with-a-true-record",
}  # fmt: skip
NEVER_RUN = {"hard-exit", "writes-outside", "pickles-for-the-grader", "kills-everything"}  # some code that must not run
# Honest forms that change it.
OWN_RECORD = {"adapter-in-fp16", "adapter-in-bf16", "config-with-paths", "json-saved-by-an-editor"}
OWN = ("solutions", "exercises", "grader", "loralab", "data", "tests")

needs_sandbox = pytest.mark.skipif(bool(available()), reason=str(available()))


@pytest.fixture(scope="session")
def _parts(_honest, trained, eval_pairs):
    return _honest, trained("on-eval", pairs=eval_pairs[:100])


@pytest.fixture
def server():
    """A server of this machine that no submission may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def parts(_parts, server, tmp_path, monkeypatch):
    outside = plant_secrets(tmp_path / "outside")
    monkeypatch.setenv("HOME", str(outside / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))  # the grader's own, not a student's doing
    monkeypatch.setenv("GRADEBOOK_PASSWORD", "a secret")
    return Parts(*_parts, outside, server.getsockname()[1])


def tree(*folders: Path) -> dict[str, object]:
    """What lies in the folders: of everything its kind and permissions, of files their content, of links their goal."""
    return {
        str(path): _state(path) for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts
    }


def _state(path: Path) -> object:
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        return state.st_mode, path.readlink()
    if not stat.S_ISREG(state.st_mode) or state.st_size > 50 * MIB:
        return state.st_mode, state.st_size if stat.S_ISREG(state.st_mode) else 0
    return state.st_mode, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def what_went_wrong(base, parts, server, tmp_path):
    """Grades these cases as a class, and says in a line each what is not as it must be."""

    def grade(cases: list[Case], mode: Mode, limits: Limits | None = None) -> list[str]:
        submitted = tmp_path / "submitted"
        by_place = {(case.shown_id, case.exercise): case for case in cases}
        for case in cases:
            case.write(submitted, parts)
        places = find(submitted)
        watched = (submitted, parts.outside, *(ROOT / name for name in OWN))
        before = tree(*watched)
        setting = GradingSetup(base, heldout_seed=123, mode=mode, limits=limits or Limits())
        verdicts = [graded.verdict for graded in grade_class(places, setting, workers=2)]
        after = tree(*watched)
        wrong = [f"{path} has changed" for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        with pytest.raises(BlockingIOError):  # nobody has knocked
            server.accept()
        assert sorted((verdict.student, verdict.exercise) for verdict in verdicts) == sorted(by_place)
        for verdict in verdicts:
            case = by_place[verdict.student, verdict.exercise]
            wrong += [f"{case.name}: {what}" for what in differences(case, mode, verdict)]
        return wrong

    return grade


def of(cases, *kinds):
    return [case for case in cases if case.kind in kinds]


def quick(case: Case) -> bool:
    """Whether it is cheap where nothing is run, or worth it."""
    return case.expects.state != "graded" or case.name in EVALUATED


def test_the_class_is_as_large_as_it_should_be_and_names_are_unique():
    assert len(HONEST) >= 30
    assert len(HOSTILE) >= 30
    everybody = [*HONEST, *HOSTILE]
    assert len({case.shown_id for case in everybody}) == len({case.name for case in everybody}) == len(everybody)
    assert all(case.honest for case in HONEST)
    assert not any(case.honest for case in HOSTILE)
    assert len(expected(everybody)) == len(everybody)


def test_a_class_is_graded_right_from_its_files_alone_and_nothing_is_harmed(what_went_wrong):
    never_run = [case for case in HOSTILE if case.name in NEVER_RUN]
    files = [case for case in of([*HONEST, *HOSTILE], "files", "runs", "notebook") if quick(case)]
    assert what_went_wrong(files + never_run, "artifacts") == []


@pytest.mark.slow
def test_every_other_hand_in_is_graded_right_from_its_files_alone(what_went_wrong):
    others = [case for case in of([*HONEST, *HOSTILE], "runs", "notebook") if not quick(case)]
    assert what_went_wrong(others, "artifacts") == []


def test_an_honest_run_is_taken_in_as_it_is_whatever_lies_around_it(parts, tmp_path):
    for case in of(HONEST, "runs", "notebook", "code"):
        place = SubmissionFolder(case.shown_id, case.exercise, case.write(tmp_path, parts))
        taken = take_in(place, EXERCISES[EX1])
        assert taken.notebook is not None, case.name
        assert {name: len(files) for name, files in taken.runs.items()} == {RUN: 3}, case.name
        if case.name not in EVALUATED | OWN_RECORD:
            assert taken.runs[RUN][RECORD] == (parts.honest / RECORD).read_bytes(), case.name


def test_an_honest_notebook_is_rebuilt_with_the_same_solutions_whatever_its_form(parts, tmp_path):
    wanted = [cell.source for cell in parts.notebook().cells]
    for case in of(HONEST, "notebook"):
        content = (case.write(tmp_path, parts) / f"{EX1}.ipynb").read_bytes()
        rebuilt = rebuild(EXERCISES[EX1], content)
        found = [cell.source.replace("\r\n", "\n").replace("\n\n\n", "\n\n") for cell in rebuilt.cells]
        assert found == [source.replace("\n\n\n", "\n\n") for source in wanted], case.name


def test_two_students_have_different_adapters_unless_one_copies(parts, tmp_path):
    copied = [case for case in HOSTILE if case.name.startswith("reference-copied")]
    flat = [case for case in HONEST if case.name in ("flat", "runs-folder")]
    folders = [case.write(tmp_path, parts) for case in copied + flat]
    weights = [next(folder.rglob("*.safetensors")).read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert len(set(weights)) == 3


def test_zip_bombs_are_small_on_disk(parts, tmp_path):
    for case in HOSTILE:
        if case.name.startswith(("zip-bomb", "zip-in-a-zip")):
            folder = case.write(tmp_path, parts)
            assert (folder / f"{EX1}.zip").stat().st_size < 5_000_000, case.name


SHORT = Limits(wall=90, cpu=90, memory=2048 * MIB, folder=300 * MIB, file=200 * MIB, scratch=200 * MIB)


@needs_sandbox
def test_hostile_code_earns_nothing_and_harms_nothing(what_went_wrong):
    assert what_went_wrong([case for case in HOSTILE if case.name in ALWAYS], "sandbox", SHORT) == []


@needs_sandbox
@pytest.mark.slow
def test_all_other_hostile_submissions_earn_nothing_in_the_sandbox_either(what_went_wrong):
    assert what_went_wrong([case for case in HOSTILE if case.name not in ALWAYS], "sandbox", SHORT) == []


@needs_sandbox
@pytest.mark.slow
def test_honest_submissions_get_all_points_when_their_notebooks_are_run(what_went_wrong):
    assert what_went_wrong(list(HONEST), "sandbox") == []
