"""What exercise 3's self-checks say of right answers and of typical wrong ones."""

import numpy as np
import pytest
from transformers import AutoConfig

from loralab import choose_base
from loralab.check import ex3
from loralab.layers import ATTENTION, LINEAR
from loralab.record import RunRecord
from loralab.scores import paired_interval
from loralab.selfcheck import NotYet

GROUPS = {"qv": ["q_proj", "v_proj"], "qkvo": list(ATTENTION), "all": list(LINEAR)}
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def base():
    return choose_base("embedded")


@pytest.fixture(scope="module")
def config(base):
    return AutoConfig.from_pretrained(base.source)


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


def cost(config, targets, few_kv=True, own_width=True, layers=True, feed_forward=True):
    hidden, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    width = (getattr(config, "head_dim", None) if own_width else None) or hidden // heads
    q, kv = heads * width, (config.num_key_value_heads if few_kv else heads) * width
    sizes = {"q_proj": hidden + q, "k_proj": hidden + kv, "v_proj": hidden + kv, "o_proj": q + hidden}
    sizes |= dict.fromkeys(LINEAR[4:], hidden + (inner if feed_forward else hidden))
    return (config.num_hidden_layers if layers else 1) * sum(sizes[name] for name in targets)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "Task 1 is done."),
        ({"few_kv": False}, "k and v have fewer heads than q"),
        ({"own_width": False}, "a config may set head_dim itself"),
        ({"layers": False}, "that is one layer of the transformer"),
        ({"feed_forward": False}, "write down both sizes of"),
    ],
)
def test_a_wrong_count_gets_its_own_hint(told, base, wrong, message):
    assert message in told(ex3.cost, lambda *asked: cost(*asked, **wrong), base, GROUPS)


@pytest.mark.parametrize("wrong", [lambda *_: None, lambda *_: "many", lambda *_: [1], lambda *_: 1.5])
def test_what_is_no_count_is_said(told, base, wrong):
    assert "qv: you count" in told(ex3.cost, wrong, base, GROUPS)


def rank_for(config, targets, budget, nearest=round, least=1):
    return max(least, nearest(budget / cost(config, targets)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rank_for, "Task 3 is done."),
        (lambda *asked: float(rank_for(*asked)), "a Python int"),
        (lambda *asked: np.int64(rank_for(*asked)), "a Python int"),
        (lambda *asked: rank_for(*asked, nearest=lambda x: int(x + 0.999)), "which one is nearest"),
        (lambda *asked: rank_for(*asked, least=0), "the smallest adapter has rank 1"),
        (lambda *_: 5, "qkvo gets rank 5"),
        (lambda *_: None, "a Python int"),
    ],
)
def test_a_wrong_rank_gets_its_own_hint(told, config, wrong, message):
    assert message in told(ex3.ranks, wrong, config, GROUPS, 8)


def record(name, its_rank, its_seed, base, **changes):
    fields = {"rank": its_rank, "targets": GROUPS[name], "seed": its_seed, "learning_rate": base.learning_rate}
    fields |= {"epochs": base.epochs, "train_pairs": 100, "ppl_before": 100.0, "ppl_after": 1.1}
    return RunRecord.model_construct(**fields | changes)


def trained(base, **changes):
    return lambda ranks, kind: {
        name: [record(name, rank, seed, base, **changes) for seed in SEEDS] for name, rank in ranks.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Task 2 is done."),
        ({"rank": 4}, "qv: rank and targets are"),
        ({"targets": ["q_proj"]}, "give train_on the targets of the group"),
        ({"seed": 5}, "go through SEEDS for each group"),
        ({"learning_rate": 1.0}, "learning rate, epochs and pairs are"),
        ({"ppl_after": None}, "a perplexity is missing"),
    ],
)
def test_runs_of_equal_rank_differ_in_their_targets_alone(told, base, changes, message):
    assert message in told(ex3.equal_rank, trained(base, **changes), 8, GROUPS, SEEDS, base.epochs, base)


@pytest.mark.parametrize(
    "wrong", [lambda *_: None, lambda *_: {"qv": []}, lambda ranks, _: dict.fromkeys(ranks, 5), lambda *_: [1]]
)
def test_what_are_no_records_is_said(told, base, wrong):
    assert "return a dict: group -> list of the records" in told(
        ex3.equal_rank, wrong, 8, GROUPS, SEEDS, base.epochs, base
    )


def test_runs_of_equal_size_have_their_own_ranks_and_are_returned(told, base):
    ranks = {"qv": 14, "all": 3}
    assert "all: rank 3 on its 7 kinds" in told(ex3.equal_size, trained(base), ranks, GROUPS, SEEDS, base.epochs, base)
    assert list(ex3.equal_size(trained(base), ranks, GROUPS, SEEDS, base.epochs, base)) == ["qv", "all"]


def carried(losses, statements, high=lambda one, other: paired_interval(one, other)[2]):
    return [high(losses[one], losses[other]) < 0 for one, other in statements]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (carried, "Task 4 is done."),
        (lambda *asked: [np.bool_(one) for one in carried(*asked)], "Task 4 is done."),
        (lambda *asked: carried(*asked, high=lambda a, b: np.mean(a) - np.mean(b)), "is zero outside the interval?"),
        (lambda *asked: carried(*asked, high=lambda a, b: -paired_interval(a, b)[1]), "claims the opposite"),
        (lambda *asked: [not one for one in carried(*asked)], "b is lower with every seed"),
        (lambda *_: True, "return a list: True or False"),
        (lambda *_: [True], "return a list: True or False"),
        (lambda *_: [1, 0, 0, 0], "you say 1"),
    ],
)
def test_statements_are_carried_or_not(told, wrong, message):
    assert message in told(ex3.statements, wrong)
