"""A class in numbers."""

from grader.reports.class_stats import Reason, Summary, by_exercise, in_order
from grader.verdict import Check
from tests.verdicts import failed, graded


def of(*verdicts):
    return Summary("ex1_first_adapter", verdicts)


def test_points_are_those_of_graded_submissions():
    summary = of(graded(), graded("Ben", fails={"forgetting": ""}), failed(), failed("Cem", state="grader failed"))
    assert summary.counts == {"graded": 2, "submission failed": 1, "grader failed": 1}
    assert (summary.mean, summary.passed) == ((100 + 93.33) / 2, 1)
    assert of(failed()).mean is None


def test_a_check_passes_if_it_does_in_every_run():
    one = graded(exercise="ex2_rank_sweep")
    one.checks[0] = one.checks[0].model_copy(update={"passed": False})
    counts = {check.name: (check.passed, check.ran) for check in of(one, graded("Ben", "ex2_rank_sweep")).checks()}
    assert counts.pop(one.checks[0].name) == (1, 2)
    assert set(counts.values()) == {(2, 2)}


def test_a_run_that_could_not_be_evaluated_has_no_other_checks():
    lost = Check(
        name="can be evaluated", expected="", found="", points=100, passed=False, message="none", run="first-adapter"
    )
    broken = graded("Ben").model_copy(update={"checks": [lost]})
    counts = {check.name: (check.passed, check.ran) for check in of(graded(), broken, graded("Cem")).checks()}
    assert counts["can be evaluated"] == (2, 3)
    assert counts["forgetting"] == (2, 2)


def test_messages_that_differ_in_numbers_are_one_reason():
    verdicts = [graded(f"s{i}", fails={"claims of run.json": f"PPL {i}.5, recomputed 1{i}"}) for i in range(4)]
    verdicts += [
        failed("x", "cell 3: KeyError\nmore"),
        failed("y", "cell 12: KeyError"),
        failed("z", "gone", "grader failed"),
    ]
    verdicts.append(graded("w").model_copy(update={"message": "cell 9: ValueError"}))
    assert of(*verdicts).reasons() == [
        Reason("claims of run.json", "PPL 0.5, recomputed 10", 4, True),
        Reason("submission failed", "cell 3: KeyError", 2, True),
        Reason("the notebook stopped", "cell 9: ValueError", 1, False),
    ]


def test_a_hand_in_counts_once_for_a_reason_however_many_runs_have_it():
    (reason,) = of(graded(exercise="ex2_rank_sweep", fails={"forgetting": "it forgot"})).reasons()
    assert reason == Reason("forgetting", "it forgot", 1, False)


def test_exercises_are_summed_up_apart():
    assert [
        (one.exercise, len(one.verdicts)) for one in by_exercise([graded(), failed(exercise="ex4_qlora"), graded("B")])
    ] == [
        ("ex1_first_adapter", 2),
        ("ex4_qlora", 1),
    ]


def test_names_are_ordered_as_people_order_them():
    names = ["s10", "S9", "s09a", "Ann", "ben", "10", "9", "", "\udcff", "²", "1" * 5000]
    ordered = sorted(names, key=in_order)
    assert ordered == ["", "9", "10", "1" * 5000, "Ann", "ben", "S9", "s09a", "s10", "²", "\udcff"]
