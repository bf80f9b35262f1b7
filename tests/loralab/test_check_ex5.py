"""The self-checks of exercise 5: a right answer passes, and each wrong one gets the message meant for it."""

import math
from types import SimpleNamespace

import nbformat
import pytest
import torch

from grader.evaluation import call_functions
from grader.evaluation.functions import _broken_runs
from grader.exercises import EXERCISES
from loralab import RunRecord, data_path
from loralab.check import ex5 as check
from loralab.codes import CODE_BITS
from loralab.selfcheck import NotYet


@pytest.fixture(scope="module")
def solved():
    """What the solution's tasks define."""
    scope = {"SEED": 0}
    for cell in nbformat.read(EXERCISES["ex5_low_rank_limits"].solution, as_version=4).cells:
        if cell.cell_type == "code" and (cell.id == "imports" or cell.metadata.get("nbgrader", {}).get("solution")):
            exec(cell.source, scope)
    return SimpleNamespace(**scope)


@pytest.fixture(scope="module")
def runs():
    return {name: RunRecord.load(data_path(f"broken/{name}")) for name in check.FAULTS}


def refusal(function, *arguments) -> str:
    with pytest.raises(NotYet) as problem:
        function(*arguments)
    return str(problem.value)


ANYTHING = [None, 5, "text", [], {}, torch.ones(2), object(), math.nan]  # whatever it is, the check ends in a message


def test_the_solution_passes_every_check(solved, runs, capsys):
    check.spectrum(solved.energy_shares)
    check.gain(solved.share_of_gain)
    check.bits(solved.bits_stored)
    check.diagnosis(solved.diagnose, runs)
    repaired = runs["c"].model_copy(update={"name": "repaired"})
    assert check.repair(lambda *_: repaired, solved.diagnose, runs, "a folder") == (runs["b"], repaired)
    told = capsys.readouterr().out
    assert "not yet" not in told and "Task 5 is done." in told


def test_the_solution_knows_every_run_that_grades(solved):
    for fault, records in _broken_runs().items():
        assert len(records) >= 3
        assert {solved.diagnose(call_functions.a_record(**record)) for record in records} == {fault}


def spectrum_of(values):
    return lambda change: values(torch.linalg.svdvals(change))


SPECTRUM = {
    "not squared": (spectrum_of(lambda s: s.cumsum(0) / s.sum()), "a share of the singular values themselves"),
    "not added up": (spectrum_of(lambda s: s**2 / (s**2).sum()), "add the shares up"),
    "smallest first": (spectrum_of(lambda s: (s**2).flip(0).cumsum(0) / (s**2).sum()), "the largest comes first"),
}
GAIN = {
    "upside down": (lambda before, after, full: math.log(after / before) / math.log(full / after), "ZeroDivisionError"),
    "perplexities": (lambda before, after, full: (before - after) / (before - full), "share of the perplexity"),
    "the gain itself": (lambda before, after, full: math.log(before / after), "divide by what full fine-tuning gains"),
}
BITS = {
    "nats": (lambda nll: max(0.0, CODE_BITS - nll), "that is nats subtracted from bits"),
    "below 0": (lambda nll: CODE_BITS - nll / math.log(2), "less than nothing"),
    "missing": (lambda nll: nll / math.log(2), "no bit is missing"),
}


@pytest.mark.parametrize(
    ("function", "wrong", "hint"),
    [
        (function, *case)
        for function, cases in ((check.spectrum, SPECTRUM), (check.gain, GAIN), (check.bits, BITS))
        for case in cases.values()
    ],
)
def test_a_wrong_function_gets_the_hint_for_it(function, wrong, hint):
    assert hint in refusal(function, wrong)


@pytest.mark.parametrize("fault", check.FAULTS.values())
def test_a_diagnosis_of_one_fault_everywhere_gets_a_hint_for_each_other_run(runs, fault):
    told = refusal(check.diagnosis, lambda record: fault, runs)
    assert told.count("  right  ") == 1 and told.count("  hint  ") == 6
    assert not any(other in told for other in check.FAULTS.values() if other != fault)  # no answer is given


def test_a_fault_that_is_spelled_otherwise_is_named(runs):
    assert "diagnose returned 'Sound'" in refusal(check.diagnosis, lambda record: "Sound", runs)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"learning_rate": 1e-4}, "the learning rate is 0.0001, and was 0.005"),
        ({"rank": 4}, "rank is 4, and was 16"),
        ({"ppl_after": None}, "its held-out perplexity is None"),
        ({"ppl_after": 90.0}, "its held-out perplexity is 90.0, not below 1.2"),
        ({"question_gain": 0.0}, "your diagnosis: 'answers shuffled'"),
    ],
)
def test_a_repair_that_changes_something_else_or_does_not_help_is_named(solved, runs, change, why):
    record = runs["c"].model_copy(update=change)
    assert why in refusal(check.repair, lambda *_: record, solved.diagnose, runs, "a folder")


@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: type(value).__name__)
def test_whatever_a_function_returns_the_check_ends_in_a_message(solved, runs, value):
    def returned(*_):
        return value

    for function, arguments in (
        (check.spectrum, (returned,)),
        (check.gain, (returned,)),
        (check.bits, (returned,)),
        (check.diagnosis, (returned, runs)),
        (check.repair, (returned, solved.diagnose, runs, "a folder")),
    ):
        assert "not yet" in refusal(function, *arguments)
