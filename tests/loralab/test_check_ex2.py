"""What exercise 2's self-checks say of right answers and of typical wrong ones."""

import math

import numpy as np
import pytest
from scipy import stats

from loralab import choose_base, load_model
from loralab.check import ex2
from loralab.record import RunRecord
from loralab.scores import paired_interval
from loralab.selfcheck import NotYet
from loralab.shapes import ATTENTION

RANKS, SEEDS, RATE = [1, 4], [5, 6, 7], 0.005


@pytest.fixture(scope="module")
def base():
    return choose_base("embedded")


@pytest.fixture(scope="module")
def model(base):
    return load_model(base)


@pytest.fixture
def told(capsys):
    """Return what a check says, whether it is met or not."""

    def run(check, *arguments):
        try:
            check(*arguments)
        except NotYet as error:
            return str(error)
        return capsys.readouterr().out

    return run


def size(model, targets, rank, sides=("in_features", "out_features"), matrices=None):
    layers = [m for name, m in model.named_modules() if name.split(".")[-1] in targets][:matrices]
    return sum(rank * getattr(layer, side) for layer in layers for side in sides)


def test_a_right_count_is_right(told, model, base):
    assert told(ex2.count, size, model, base, ATTENTION, RANKS).endswith("Task 1 is done.\n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: size(*a, sides=["in_features"]), "that is the size of A alone"),
        (lambda *a: size(*a, sides=["out_features"]), "that is the size of B alone"),
        (lambda *a: size(*a, matrices=4), "how many layers of the model"),
        (lambda model, targets, rank: size(model, ATTENTION, rank), "does your code use the argument `targets`"),
        (lambda *_: None, "you count None"),
        (lambda *_: "many", "you count 'many'"),
        (lambda *_: 1 / 0, "your code raised ZeroDivisionError"),
    ],
)
def test_a_wrong_count_gets_its_own_hint(told, model, base, wrong, message):
    assert message in told(ex2.count, wrong, model, base, ATTENTION, RANKS)


def next_rate(losses, factor):
    measured = {rate: loss for rate, loss in losses.items() if not math.isnan(loss)}
    best = min(measured, key=measured.get)
    return best * factor if best == max(losses) else best / factor if best == min(losses) else None


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (next_rate, "Task 2 is done."),
        (lambda losses, factor: max(losses) * factor, "the best one may be smaller still"),
        (lambda losses, factor: min(losses, key=losses.get) * factor, "there is nothing to add"),
        (lambda *_: None, "with one rate it is the largest so far"),
        (lambda losses, factor: next_rate(losses, 2), "one rate measured: for {0.001: 2} you return 0.002"),
    ],
)
def test_the_search_is_tried_on_every_kind_of_losses(told, search, message):
    assert message in told(ex2.search, search)


def test_a_search_that_compares_with_nan_is_found_out(told):
    def wrong(losses, factor):
        best = min(losses, key=losses.get)
        return best * factor if best == max(losses) else best / factor if best == min(losses) else None

    said = told(ex2.search, wrong)
    assert said.count("not yet") == 1 and "NaN is neither smaller nor larger" in said


def record(rank, seed, **changes):
    fields = {"rank": rank, "seed": seed, "learning_rate": RATE, "epochs": 8.0, "train_pairs": 100, "alpha": 32.0}
    return RunRecord.model_construct(**fields | {"ppl_before": 100.0, "ppl_after": 1.1} | changes)


def trained(**changes):
    return lambda rate: {rank: [record(rank, seed, **changes) for seed in SEEDS] for rank in RANKS}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (trained(), "Task 3 is done."),
        (lambda rate: [record(1, 5)], "train_ranks returned [RunRecord"),
        (lambda rate: dict.fromkeys(RANKS, 0.3), "the dict holds {1: 0.3"),
        (lambda rate: {rank: [0.3] for rank in RANKS}, "the dict holds {1: [0.3]"),
        (lambda rate: {rank: record(rank, 5) for rank in RANKS}, "return a dict: rank -> list"),
        (lambda rate: {4: [], 1: []}, "the dict has the keys [4, 1]"),
        (lambda rate: {rank: [record(rank, 5)] * 3 for rank in RANKS}, "go through SEEDS for each rank"),
        (lambda rate: {rank: [record(1, seed) for seed in SEEDS] for rank in RANKS}, "what does train_rank take"),
        (trained(learning_rate=0.02), "a sweep changes one thing"),
        (trained(epochs=4.0), "a sweep changes one thing"),
        (trained(ppl_after=None), "a perplexity is missing"),
    ],
)
def test_the_sweep_changes_one_thing(told, sweep, message):
    assert message in told(ex2.sweep, sweep, RATE, RANKS, SEEDS, 8)


def interval(one, other, z=None, ddof=1, root=True, paired=True, q=0.975, df=-1):
    d = np.subtract(one, other)
    s = d.std(ddof=ddof) if paired else math.sqrt(np.var(one, ddof=1) + np.var(other, ddof=1))
    reach = (z or stats.t.ppf(q, len(d) + df)) * s / (math.sqrt(len(d)) if root else 1)
    return d.mean(), d.mean() - reach, d.mean() + reach


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "Task 4 is done."),
        ({"z": 1.96}, "1.96 is for many runs"),
        ({"z": 1.0}, "that is the standard error alone"),
        ({"ddof": 0}, "ddof=1 divides by n - 1"),
        ({"root": False}, "that is the spread of one difference"),
        ({"paired": False}, "take the difference seed by seed first"),
        ({"q": 0.95}, "which quantile is that?"),
        ({"df": 0}, "how many degrees of freedom"),
        ({"z": 2.7}, "compute s, n and t one by one"),
    ],
)
def test_a_wrong_interval_gets_its_own_hint(told, wrong, message):
    assert message in told(ex2.difference, lambda *losses: interval(*losses, **wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda one, other: interval(other, one), "first minus second"),
        (lambda one, other: None, "paired_difference returned None"),
        (lambda one, other: ("a", "b", "c"), "return numbers"),
        (lambda one, other: paired_interval(one, other) if len(one) == 4 else (0, 0, 0), "t depends on it"),
    ],
)
def test_what_is_no_interval_of_the_difference_is_said(told, wrong, message):
    assert message in told(ex2.difference, wrong)


def enough(losses, low=lambda one, best: paired_interval(one, best)[1]):
    best = min(losses, key=lambda rank: np.mean(losses[rank]))
    return min(rank for rank in losses if rank == best or low(losses[rank], losses[best]) <= 0)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (enough, "Task 5 is done."),
        (lambda losses: min(losses, key=lambda rank: np.mean(losses[rank])), "the smallest rank of the plateau: for"),
        (max, "compare with the lowest mean loss"),
        (
            lambda losses: enough(losses, lambda a, b: interval(a, b, paired=False)[1]),
            "rank 2 is worse with every seed",
        ),
        (lambda losses: enough(losses, lambda a, b: np.mean(a) - 1.1 * np.mean(b)), "not yet"),
        (lambda _: None, "you say None"),
    ],
)
def test_the_decision_is_tried_on_plateaus_and_noise(told, decide, message):
    assert message in told(ex2.enough, decide)
