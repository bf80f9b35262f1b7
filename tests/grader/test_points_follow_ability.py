"""What ability is worth: exact match, the question control, and the checks that count only beside them."""

from types import SimpleNamespace

import pytest

from grader.evaluation.checks import ABILITY, FORM, MANNER, _exact, _question, _unseen, _without_ability
from grader.evaluation.reference_bands import Band
from grader.exercises import EXERCISES
from grader.verdict import Check
from loralab import HeldOut
from loralab.scores import QuestionControl, Scores

RUN = EXERCISES["ex1_first_adapter"].runs[0]
CODES = EXERCISES["ex5_low_rank_limits"].run("codes-4")


def scores(exact: int, fields: dict[str, int] | None = None) -> Scores:
    fields = {"fault": exact, "serial": exact} if fields is None else fields
    return Scores(count=100, exact=exact, ended=100, valid=100, fields=fields)


def control(gain: float, spread: float = 0.01) -> QuestionControl:
    """A control over 20 answers of 10 tokens, half of which gain a little more and half a little less."""
    own, tokens = (10.0,) * 20, (10,) * 20
    other = tuple(10 + 10 * (gain + (spread if i % 2 else -spread)) for i in range(20))
    return QuestionControl(HeldOut(own, tokens), HeldOut(other, tokens))


def evidence(**changes):
    usual = {"scores_before": scores(0), "scores": scores(60), "control_before": control(0.4), "control": control(1.2)}
    return SimpleNamespace(**usual | changes)


def bands(exact: list[float], gains: list[float] = (1.1, 1.2, 1.15)):
    return SimpleNamespace(exact=Band.shares(exact), question_gain=Band.linear(list(gains)))


def test_form_alone_is_worth_less_than_fifteen_points_and_ability_most():
    assert sum(FORM.values()) < 15
    assert sum(ABILITY.values()) == 60
    assert sum((FORM | ABILITY | MANNER).values()) == 100


def test_exact_match_is_compared_with_what_honest_runs_reach():
    references = bands([0.70, 0.72, 0.71, 0.69, 0.70, 0.71, 0.70, 0.72])
    assert _exact(evidence(), references).passed
    weak = _exact(evidence(scores=scores(20, {"fault": 30, "serial": 90})), references)
    assert not weak.passed
    assert "'fault' is right in 30 of 100" in weak.message


def test_exact_match_is_left_out_where_honest_runs_reach_next_to_nothing():
    assert _exact(evidence(), bands([0.02, 0.08, 0.05, 0.01])) is None


@pytest.mark.parametrize(("right", "passes"), [(0, False), (3, False), (20, True)])
def test_without_bands_it_must_beat_the_base_beyond_chance(right, passes):
    assert _exact(evidence(scores=scores(right)), None).passed is passes


def test_answers_that_run_on_are_told_apart_from_wrong_ones():
    endless = Scores(count=100, exact=0, ended=10, valid=0, fields={"fault": 0})
    assert "do not end by themselves" in _exact(evidence(scores=endless), None).message
    no_records = Scores(count=100, exact=0, ended=100, valid=3, fields={"fault": 2})
    assert "no records" in _exact(evidence(scores=no_records), None).message


@pytest.mark.parametrize("known", [None, bands([0.7, 0.7, 0.72])], ids=["no bands", "bands"])
def test_an_adapter_that_ignores_the_question_fails_its_control(known):
    assert _question(evidence(), known).passed
    ignoring = _question(evidence(control=control(0.02)), known)
    assert not ignoring.passed
    assert "without reading the question" in ignoring.message


def test_an_adapter_that_only_keeps_what_the_base_can_do_fails_the_control():
    """A base prefers answers that repeat words of their question, before any training."""
    assert not _question(evidence(control=control(0.4)), None).passed


def test_a_gain_that_is_not_a_number_fails():
    assert not _question(evidence(control=control(float("nan"))), None).passed


def test_what_only_says_how_it_was_trained_earns_nothing_without_ability():
    check = Check(name="chat template", expected="", found="", points=5, passed=True)
    spoilt = _without_ability(check)
    assert (spoilt.earned, spoilt.message) == (0, 'counts only if "reads the question" passes')
    told = Check(name="chat template", expected="", found="", points=5, passed=False, message="plain text")
    assert _without_ability(told).message == "plain text"


def losses(values: list[float]):
    return SimpleNamespace(after=HeldOut(tuple(values), (1,) * len(values)))


def test_public_pairs_that_were_trained_on_show_in_the_order_of_losses():
    fresh = losses([0.1 + i / 100 for i in range(100)])
    honest = losses([0.1 + (i + 0.5) / 100 for i in range(100)])
    trained_on = losses([0.01 + i / 1000 for i in range(100)])
    assert _unseen(RUN, SimpleNamespace(public=honest, fresh=fresh)).passed
    assert not _unseen(RUN, SimpleNamespace(public=trained_on, fresh=fresh)).passed
    assert _unseen(CODES, SimpleNamespace(public=honest, fresh=honest)) is None
