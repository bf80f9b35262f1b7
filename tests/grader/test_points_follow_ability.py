"""What ability is worth: exact match, the question control, and the checks that count only beside them."""

import math
from dataclasses import fields, replace
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grader.evaluation import checks
from grader.evaluation.checks import ABILITY, FORM, MANNER, _exact, _forgetting, _question, _recipe, _unseen, check_all
from grader.evaluation.evaluator import Evidence, Measured
from grader.evaluation.functions import Outcome
from grader.evaluation.probes import FORMATS, Probes
from grader.evaluation.reference_bands import Band, ExerciseBands
from grader.exercises import EXERCISES
from grader.verdict import HELD_OUT, Check
from loralab import HeldOut, choose_base
from loralab.scores import QuestionControl, Scores
from loralab.shapes import adapter_shape
from tests.verdicts import claim

RUN = EXERCISES["ex1_first_adapter"].runs[0]
CODES = EXERCISES["ex5_low_rank_limits"].run("codes-4")
BASE = choose_base("embedded")
TOKENS = 9_000  # of the pairs that a run is trained on
NUMBERS = float("nan"), float("inf"), float("-inf")


def scores(exact: int, fields: dict[str, int] | None = None) -> Scores:
    fields = {"fault": exact, "serial": exact} if fields is None else fields
    return Scores(count=100, exact=exact, ended=100, valid=100, fields=fields)


def control(gain: float, spread: float = 0.01) -> QuestionControl:
    """A control over 20 answers of 10 tokens, half of which gain a little more and half a little less."""
    own, tokens = (10.0,) * 20, (10,) * 20
    other = tuple(10 + 10 * (gain + (spread if i % 2 else -spread)) for i in range(20))
    return QuestionControl(HeldOut(own, tokens), HeldOut(other, tokens))


def probes(answer: float, question: float = 5.0, first: float = 0.1, end: float = 0.1, frame: float = 6.0) -> Probes:
    return Probes(question, answer, first, end, dict.fromkeys(FORMATS, frame))


def held(loss: float, spread: float = 0.01) -> HeldOut:
    return HeldOut(tuple(10 * (loss + spread * i / 100) for i in range(100)), (10,) * 100)


def evidence(run=RUN, **changes):
    """What is measured of a run that does the task, as exercise 1's references do.

    Of `changes` those with the name of a measurement are of the adapter, and with "_before" of the base alone.
    """
    rank = run.rank_on(BASE.source)
    shape = adapter_shape(BASE.source, rank, run.targets)
    record = claim(rank=rank, targets=list(run.targets), trainable=shape.trainable, parameters=shape.parameters,
                   train_pairs=run.pairs, epochs=run.epochs_on(BASE.epochs), tokens=round(run.epochs_on(BASE.epochs) * TOKENS),
                   ppl_before=held(5.0).ppl, ppl_after=held(0.4).ppl, method=run.method)  # fmt: skip
    usual = {
        "adapter": SimpleNamespace(settings=SimpleNamespace(r=rank, targets=run.targets), largest_b=0.3, dtype=torch.float32,
                                   parameters=shape.trainable, file_bytes=shape.file_bytes(torch.float32)),
        "shape": shape,
        "claim": record.model_copy(update={"adapter_bytes": shape.file_bytes(torch.float32)}),
        "epoch_tokens": TOKENS, "vocabulary": 4096, "elsewhere": held(0.6),
    }  # fmt: skip
    before = Measured(held(5.0), held(5.0), held(3.0), probes(5.0), scores(0), control(0.4))
    after = Measured(held(0.4), held(0.4), held(4.0), probes(0.4), scores(60), control(1.2))
    names = [field.name for field in fields(Measured)]
    before = replace(before, **{name: changes.pop(f"{name}_before") for name in names if f"{name}_before" in changes})
    after = replace(after, **{name: changes.pop(name) for name in names if name in changes})
    return Evidence(**usual | changes, before=before, after=after)


def idle(run=RUN, **changes):
    """Of an adapter that does nothing but has moved: every measure is as without it, and the record boasts."""
    same = {"fresh": held(5.0), "public": held(5.0), "general": held(3.0), "elsewhere": held(5.01)}
    same |= {"probes": probes(5.0), "scores": scores(0), "control": control(0.4)}
    boasting = evidence(run).claim.model_copy(update={"ppl_after": held(5.0).ppl})
    return evidence(run, **same | {"claim": boasting} | changes)


def bands(exact: list[float], gains: list[float] = (1.1, 1.2, 1.15)):
    return SimpleNamespace(exact=Band.shares(exact), question_gain=Band.linear(list(gains)))


def judged(exercise: str, each, functions=None, known=True) -> dict[str, Check]:
    """The checks of an exercise of which every run has the evidence that `each` makes."""
    one = EXERCISES[exercise]
    measured = ExerciseBands.load(exercise).bases["embedded"] if known else None
    found = check_all(one, {run.name: each(run) for run in one.runs}, {}, measured, BASE, functions)
    assert sum(check.points for check in found) == pytest.approx(100)
    return {check.label: check for check in found}


def points(found: dict[str, Check]) -> float:
    return sum(check.earned for check in found.values())


def test_form_alone_is_worth_less_than_fifteen_points_and_ability_most():
    assert sum(FORM.values()) < 15
    assert sum(ABILITY.values()) > 60
    assert sum((FORM | ABILITY | MANNER).values()) == 100


def test_what_does_the_task_has_all_points():
    found = judged("ex1_first_adapter", evidence, [Outcome("encode_pair", True)])
    assert points(found) == pytest.approx(100), [check for check in found.values() if not check.passed]


RIGHT = [Outcome("encode_pair", True), Outcome("perplexity", True)]


@pytest.mark.parametrize("known", [True, False], ids=["bands", "no bands"])
@pytest.mark.parametrize("functions", [None, RIGHT], ids=["adapters alone", "functions right"])
@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_adapter_that_improves_nothing_has_less_than_fifteen_whatever_its_record_says(exercise, functions, known):
    assert points(judged(exercise, idle, functions, known)) < 15


def test_low_perplexity_without_a_right_answer_is_no_ability():
    """The label of the first answer token was masked: losses are low, and every generated answer is wrong."""
    found = judged("ex1_first_adapter", lambda run: evidence(run, scores=scores(0), probes=probes(0.4, first=9.0)))
    assert points(found) < 25
    assert found[f"{RUN.name}: exact match"].message.startswith("it has not learned how an answer begins")


def test_runs_that_do_nothing_take_their_share_of_what_compares_runs():
    able = {"rank-4", "rank-16"}
    found = judged("ex2_rank_sweep", lambda run: evidence(run) if run.name in able else idle(run))
    compared = found["one thing changed"]
    assert not compared.passed
    assert compared.earned == pytest.approx(compared.points * 2 / 3)
    assert compared.message == "counts for the runs that do the task, 2 of 3"


@pytest.mark.parametrize(
    ("field", "values", "shown"),
    [
        ("tokens", (1_234_567, 1_234_570), "rank-4 1,234,567, rank-16 1,234,570, rank-64 1,234,570"),
        ("epochs", (1.0, 4.0), "rank-4 1, rank-16 4, rank-64 4"),
        ("learning_rate", (0.002, 0.002000001), "rank-4 0.002, rank-16 0.002000001, rank-64 0.002000001"),
    ],
)
def test_values_that_differ_are_shown_as_different(field, values, shown):
    one, others = values

    def changed(run):
        value = one if run.name == "rank-4" else others
        return evidence(run, claim=evidence(run).claim.model_copy(update={field: value}))

    assert f"{field} differs: {shown}" in judged("ex2_rank_sweep", changed)["one thing changed"].message


def test_exact_match_is_compared_with_what_honest_runs_reach():
    references = bands([0.70, 0.62, 0.71, 0.59, 0.66, 0.71, 0.68, 0.72])
    assert 0.4 < references.exact.low < 0.6
    assert _exact(evidence(), references).passed
    half = _exact(evidence(scores=scores(25)), references)
    assert not half.passed and half.earned / half.points == pytest.approx(0.25 / (0.8 * references.exact.low))
    weak = _exact(evidence(scores=scores(20, {"fault": 30, "serial": 90})), references)
    assert not weak.passed
    assert "'fault' is right in 30 of 100" in weak.message


@pytest.mark.parametrize(("before", "after", "share"), [
    (0, 0, 0), (0, 10, 10 / 40), (0, 39, 39 / 40), (0, 40, 1), (0, 90, 1), (10, 10, 0), (10, 25, 15 / 30), (10, 5, 0),
])  # fmt: skip
def test_exact_match_earns_in_proportion_between_the_base_and_the_limit(before, after, share):
    limit = SimpleNamespace(exact=SimpleNamespace(low=0.5, values=[0.6], mean=0.6))
    check = _exact(evidence(scores_before=scores(before), scores=scores(after)), limit)
    assert check.earned == pytest.approx(ABILITY["exact match"] * share)
    assert check.passed is (share == 1)
    assert check.found.startswith(f"{after / 100:.2f} of 0.40 required: {after} of 100 fresh messages")
    assert check.outcome == ("yes" if share == 1 else "partly" if share else "no")
    assert (check.score in check.reason) is (0 < share < 1)


def test_exact_match_is_left_out_where_honest_runs_hardly_exceed_the_base():
    assert _exact(evidence(), bands([0.02, 0.08, 0.05, 0.01])) is None
    near = SimpleNamespace(exact=SimpleNamespace(low=0.375, values=[0.6], mean=0.6))
    assert _exact(evidence(scores_before=scores(29)), near) is None


@pytest.mark.parametrize("exercise", EXERCISES)
def test_no_limit_of_a_band_fails_the_references_that_it_was_made_of(exercise):
    stored = ExerciseBands.load(exercise).bases["embedded"]
    for name, band in stored.runs.items():
        run = EXERCISES[exercise].run(name)
        for share, gain, general, ratio in zip(
            band.exact.values,
            band.question_gain.values,
            cycle(band.forgetting.values),  # over fewer seeds
            band.fresh_ratio.values,
            strict=False,
        ):
            one = evidence(
                run,
                scores=scores(round(100 * share)),
                control_before=control(-0.5),
                control=control(gain, 0.001),
                fresh_before=held(8.0),
                fresh=held(8.0 + math.log(ratio)),
                general=held(3.0 + math.log(general)),
            )
            found = [
                _exact(one, band),
                _question(one, band),
                _forgetting(one, band.forgetting),
                checks._held_out(run, one, band, BASE),
            ]
            assert [check.name for check in found if check and not check.passed] == [], (
                name,
                share,
                gain,
                general,
                ratio,
            )


def test_forgetting_is_judged_only_where_a_model_that_has_forgotten_everything_fails():
    def limit(high, before=3.0):
        one = evidence(general_before=held(before), general=held(8.4, 0))  # worse than every token as likely as any
        return _forgetting(one, SimpleNamespace(high=high))

    assert not limit(4.8).passed
    assert not limit(40).passed
    assert limit(300) is None
    assert "ratio at most 0.90" in limit(0.9).expected  # not 0.85, which would fail an honest 0.89


HALF = {"train_pairs": 50, "tokens": 8 * TOKENS // 2}


@pytest.mark.parametrize(("changes", "message"), [
    (HALF, "on 50 pairs, not 100"),
    ({"epochs": 2, "tokens": 2 * TOKENS}, "for 2 epochs, not 8"),
    (HALF | {"epochs": 16, "tokens": 8 * TOKENS}, "on 50 pairs, not 100 and for 16 epochs, not 8"),
    ({"train_pairs": 400, "tokens": 32 * TOKENS}, "on 400 pairs, not 100"),
    ({"epochs": 0, "tokens": 0}, "for 0 epochs, not 8"),
    ({}, ""),
    ({"epochs": 9, "tokens": 9 * TOKENS}, ""),
    ({"epochs": 7.8, "tokens": 7.8 * TOKENS}, ""),
    ({"train_pairs": 50}, ""),  # two pairs packed into each text
])  # fmt: skip
def test_the_records_pairs_and_epochs_are_those_that_the_exercise_asks_for(changes, message):
    one = evidence()
    check = _recipe(RUN, replace_claim(one, **changes), BASE)
    assert check.passed is (not message)
    assert check.message == (f"it was trained {message}: train as the task says" if message else "")


def replace_claim(one, **changes):
    return replace(one, claim=one.claim.model_copy(update=changes))


def test_every_run_of_the_exercises_has_pairs_and_epochs():
    wanted = {run.name: (run.pairs, run.epochs_on(8)) for one in EXERCISES.values() for run in one.runs}
    assert wanted["first-adapter"] == wanted["qlora"] == (100, 8)
    assert wanted["rank-64"] == wanted["far-4"] and wanted["all-8"] == (100, pytest.approx(4.8))
    assert (wanted["far-4"], wanted["codes-16"]) == ((100, 4), (16, 25))


@pytest.mark.parametrize(("right", "passes"), [(0, False), (3, False), (20, True)])
def test_without_bands_it_must_beat_the_base_beyond_chance(right, passes):
    assert _exact(evidence(scores=scores(right)), None).passed is passes


def test_answers_that_run_on_are_told_apart_from_wrong_ones():
    endless = Scores(count=100, exact=0, ended=10, valid=0, fields={"fault": 0})
    assert "most answers do not end" in _exact(evidence(scores=endless), None).message
    no_records = Scores(count=100, exact=0, ended=100, valid=3, fields={"fault": 2})
    assert "not records" in _exact(evidence(scores=no_records), None).message


@pytest.mark.parametrize("known", [None, bands([0.7, 0.7, 0.72])], ids=["no bands", "bands"])
def test_an_adapter_that_ignores_the_question_fails_its_control(known):
    assert _question(evidence(), known).passed
    ignoring = _question(evidence(control=control(0.02)), known)
    assert not ignoring.passed
    assert "without reading the question" in ignoring.message


def test_an_adapter_that_only_keeps_what_the_base_can_do_fails_the_control():
    """A base prefers answers that repeat words of their question, before any training."""
    assert not _question(evidence(control=control(0.4)), None).passed


def test_a_check_that_failed_keeps_its_own_message_where_the_task_is_not_done():
    found = judged("ex1_first_adapter", lambda run: idle(run, probes=probes(5.0, end=9.0)))
    assert found[f"{RUN.name}: end of answer"].message.startswith("it has not learned to stop")
    assert found[f"{RUN.name}: chat template"].message.startswith("counts only for an adapter that")
    assert not found[f"{RUN.name}: {HELD_OUT}"].earned


def test_functions_earn_in_proportion_and_say_what_is_wrong():
    outcomes = [
        Outcome("encode_pair", True),
        Outcome("perplexity", False, "returned 1.0, not 2.0: perplexity([(3, 4)])"),
    ]
    check = judged("ex1_first_adapter", evidence, outcomes)["functions"]
    assert (check.earned, check.points) == (4, 8)
    assert check.reason == "perplexity returned 1.0, not 2.0: perplexity([(3, 4)]) (4 of 8 points)"


def losses(values: list[float]):
    return HeldOut(tuple(values), (1,) * len(values))


def test_public_pairs_that_were_trained_on_show_in_the_order_of_losses():
    fresh = losses([0.1 + i / 100 for i in range(100)])
    honest = losses([0.1 + (i + 0.5) / 100 for i in range(100)])
    trained_on = losses([0.01 + i / 1000 for i in range(100)])
    assert _unseen(RUN, evidence(public=honest, fresh=fresh)).passed
    assert not _unseen(RUN, evidence(public=trained_on, fresh=fresh)).passed
    assert _unseen(CODES, evidence(public=honest, fresh=honest)) is None


# No number that is none


def poisoned(value, number: float, unread=()):
    """A measurement with one of its numbers replaced, everywhere that it has some but in the fields `unread`."""
    if isinstance(value, HeldOut):
        yield HeldOut((number, *value.nll[1:]), value.tokens)
        yield HeldOut((number,) * len(value.nll), value.tokens)
    elif isinstance(value, QuestionControl | Probes):
        for name in (field.name for field in fields(value) if field.name not in unread):
            yield from (replace(value, **{name: spoilt}) for spoilt in poisoned(getattr(value, name), number))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from (value | {name: spoilt} for spoilt in poisoned(one, number))
    elif isinstance(value, float):
        yield number


# What each check rests on: where that is no number, it earns nothing.
RESTS_ON = {
    "fresh": {HELD_OUT, "evaluation pairs unseen"},
    "fresh_before": {HELD_OUT},
    "public": {"claims of run.json", "evaluation pairs unseen", "training loss"},
    "public_before": {"claims of run.json", "training loss"},
    "general": {"forgetting"},
    "general_before": {"forgetting"},
    "probes": {"chat template", "prompt masked", "end of answer"},
    "probes_before": {"prompt masked"},
    "control": {"reads the question"},
    "control_before": {"reads the question"},
}


# Losses of single tokens that decide a message and no check.
UNREAD = {"probes": {"first"}, "probes_before": {"first", "end", "formats"}}


def every_spoilt_measure(numbers=NUMBERS[:2]):
    """Losses are not negative, so they may be NaN or infinite; each with the name of the measurement that it is in."""
    for name in RESTS_ON:
        model = evidence().before if name.endswith("_before") else evidence().after
        for number in numbers:
            for spoilt in poisoned(getattr(model, name.removesuffix("_before")), number, UNREAD.get(name, ())):
                yield name, spoilt


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(every_spoilt_measure())), st.booleans())
def test_what_is_no_number_earns_no_point(spoilt, known):
    """Points are only lost by it, and at least one of the checks that rest on it earns nothing."""
    name, measure = spoilt
    clean = judged("ex1_first_adapter", evidence, known=known)
    found = judged("ex1_first_adapter", lambda run: evidence(run, **{name: measure}), known=known)
    resting = [check for check in found.values() if check.name in RESTS_ON[name]]
    assert not resting or any(not check.earned for check in resting)
    assert 0 <= points(found) <= points(clean) + 1e-9


def test_a_loss_whose_perplexity_is_beyond_any_float_is_judged():
    clean = points(judged("ex1_first_adapter", evidence))
    for name, measure in every_spoilt_measure([1e5]):
        one = judged("ex1_first_adapter", lambda run, spoilt={name: measure}: evidence(run, **spoilt))
        assert 0 <= points(one) <= clean + 1e-9


@given(st.sampled_from(NUMBERS), st.sampled_from(["epochs", "learning_rate", "ppl_before", "ppl_after"]))
def test_a_record_that_is_no_number_earns_nothing_for_it(number, field):
    found = judged("ex1_first_adapter", lambda run: replace_claim(evidence(run), **{field: number}))
    name = {"epochs": "pairs and epochs", "learning_rate": ""}.get(field, "claims of run.json")
    assert not name or not found[f"{RUN.name}: {name}"].earned
    assert points(found) == points(found)


@given(st.sampled_from(NUMBERS), st.integers(0, 5))
def test_a_loss_that_is_no_number_earns_nothing(number, at):
    curve = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    curve[at] = number
    found = judged("ex1_first_adapter", lambda run: replace_claim(evidence(run), losses=curve))
    assert not found[f"{RUN.name}: training loss"].earned
