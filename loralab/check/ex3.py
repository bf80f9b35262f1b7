"""The self-checks of exercise 3: rank or spread?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import AutoConfig, PretrainedConfig

from ..bases import Base
from ..data import data_path
from ..record import RunRecord
from ..selfcheck import SelfCheck, brief
from ..shapes import Shape, without_weights

MODELS = ("qwen2.5-7b", "llama-3.2-1b")  # real ones, whose configs ship with the course
Groups = Mapping[str, Sequence[str]]


def peft_count(config: PretrainedConfig, targets: Sequence[str]) -> int:
    """Return how many parameters peft trains at rank 1 on `targets` of a model with this config."""
    settings = LoraConfig(r=1, target_modules=list(targets), task_type="CAUSAL_LM")
    return Shape.of(without_weights(config, settings)).trainable


def cost(cost_of_rank: Callable[..., Any], base: Base, groups: Groups) -> None:
    """Check task 1 against peft's count, for the base, two real models and a made-up one."""
    configs = {base.name: AutoConfig.from_pretrained(base.source)}
    configs |= {name: AutoConfig.from_pretrained(data_path(f"configs/{name}")) for name in MODELS}
    configs["a model with wide heads"] = _wide_heads()
    with SelfCheck("Task 1") as check:
        for model, config in configs.items():
            counts = {name: peft_count(config, targets) for name, targets in groups.items()}
            found = {name: check.call(cost_of_rank, config, list(targets)) for name, targets in groups.items()}
            wrong = next((name for name in groups if found[name] != counts[name]), "")
            check(
                not wrong,
                f"{model}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
                f"{model}, {wrong}: you count {brief(found.get(wrong))}, peft {counts.get(wrong, 0):,}",
                _cost_hint(config, groups[wrong], found[wrong], counts[wrong]) if wrong else "",
            )


def _wide_heads() -> PretrainedConfig:
    """Return the config of a small model whose heads together are wider than its hidden size, as in Qwen3-0.6B."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 32}
    return AutoConfig.for_model("qwen3", num_attention_heads=4, num_key_value_heads=2, vocab_size=64, **sizes)


def _cost_hint(config: PretrainedConfig, targets: Sequence[str], found: object, true: int) -> str:
    if found == true / config.num_hidden_layers:
        return "that is one layer of the transformer; how many has the model?"
    other, heads = copy.deepcopy(config), config.num_attention_heads
    other.num_key_value_heads = heads
    if found == peft_count(other, targets):
        return "k and v have fewer heads than q in many models: which entry of the config says how many?"
    other = copy.deepcopy(config)
    other.head_dim = config.hidden_size // heads
    if found == peft_count(other, targets):
        return "a config may set head_dim itself, and then it need not be hidden_size / num_attention_heads"
    return f"print the base and write down both sizes of {', '.join(targets)}: from which entries of its config do they come?"


def equal_rank(
    train_groups: Callable[..., Any], rank: int, groups: Groups, seeds: Sequence[int], epochs: float, base: Base
) -> Any:
    """Check task 2 and return what `train_groups` returned: each group at `rank` with every seed."""
    with SelfCheck("Task 2") as check:
        return _trained(check, train_groups, dict.fromkeys(groups, rank), str(rank), groups, seeds, epochs, base)


def ranks(rank_for: Callable[..., Any], config: PretrainedConfig, groups: Groups, rank: int) -> None:
    """Check task 3: the rank of each group that is nearest to the size of `qkvo` at `rank`."""
    with SelfCheck("Task 3") as check:
        costs = {name: peft_count(config, targets) for name, targets in groups.items()}
        budget = rank * costs["qkvo"]
        found = {name: check.call(rank_for, config, list(targets), budget) for name, targets in groups.items()}
        check.need(
            all(type(one) is int for one in found.values()),
            f"the ranks are {brief(found)}",
            "LoraConfig takes a whole number, a Python int",
        )
        check(
            found["qkvo"] == rank,
            f"qkvo keeps rank {rank}",
            f"qkvo gets rank {found['qkvo']}",
            "its budget is its own size",
        )
        for name, one in found.items():
            off = abs(one * costs[name] - budget)
            check(
                off <= costs[name] / 2,
                f"{name}: rank {one} is nearest to {budget:,} parameters",
                f"{name}: rank {one} is {off:,} parameters away from {budget:,}",
                "a rank is a whole number: which one is nearest, not which one still fits?",
            )
        tiny = check.call(rank_for, config, list(groups["all"]), 1)
        check(
            tiny == 1,
            "the rank is never zero",
            f"for a budget of 1 you return {brief(tiny)}",
            "the smallest adapter has rank 1",
        )


def equal_size(
    train_groups: Callable[..., Any],
    ranks: Mapping[str, int],
    groups: Groups,
    seeds: Sequence[int],
    epochs: float,
    base: Base,
) -> Any:
    """Check the runs at equal size and return them: each group in `ranks` at its rank with every seed."""
    with SelfCheck("Task 3, trained") as check:
        return _trained(check, train_groups, ranks, "same-size", groups, seeds, epochs, base)


def _trained(
    check: SelfCheck,
    train_groups: Callable[..., Any],
    ranks: Mapping[str, int],
    kind: str,
    groups: Groups,
    seeds: Sequence[int],
    epochs: float,
    base: Base,
) -> Any:
    """Call `train_groups` and check its records: rank, targets, seeds, and that nothing else differs."""
    records = check.call(train_groups, dict(ranks), kind)
    hint = "return a dict: group -> list of the records, one per seed"
    is_dict = isinstance(records, Mapping) and list(records) == list(ranks)
    check.need(is_dict, f"train_groups returned {brief(records)}", hint)
    lists = all(isinstance(of_group, list | tuple) for of_group in records.values())
    runs = [(name, run) for name, of_group in records.items() for run in of_group] if lists else []
    check.need(runs and all(isinstance(run, RunRecord) for _, run in runs), f"the dict holds {brief(records)}", hint)
    check(
        all([run.seed for run in of_group] == list(seeds) for of_group in records.values()),
        f"every group has the seeds {', '.join(map(str, seeds))}, in this order",
        f"the seeds are {brief({name: [run.seed for run in of_group] for name, of_group in records.items()})}",
        "runs are compared seed by seed: go through SEEDS for each group",
    )
    for name, rank in ranks.items():
        of_group = {(run.rank, tuple(sorted(run.targets))) for of, run in runs if of == name}
        check(
            of_group == {(rank, tuple(sorted(groups[name])))},
            f"{name}: rank {rank} on its {len(groups[name])} kinds of matrices",
            f"{name}: rank and targets are {brief(sorted(of_group, key=str))}",
            "give train_on the targets of the group and its own rank",
        )
    same = {(run.learning_rate, run.epochs, run.train_pairs) for _, run in runs}
    check(
        same == {(base.learning_rate, epochs, 100)},
        "nothing else differs",
        f"learning rate, epochs and pairs are {brief(sorted(same))}",
        "leave them to train_on",
    )
    check(
        all(run.ppl_after and run.ppl_before and run.ppl_after < run.ppl_before for _, run in runs),
        "every run learned something",
        "a perplexity is missing or did not fall",
        "leave the evaluation to train_on",
    )
    return records


LOSSES = {  # of made-up groups, one per seed
    "a": [0.30, 0.41, 0.35],
    "b": [0.20, 0.30, 0.26],
    "c": [0.24, 0.28, 0.31],
    "d": [0.12, 0.45, 0.20],
}
STATEMENTS = (
    (("b", "a"), True, "b is lower with every seed, by about the same"),
    (("a", "b"), False, "the statement claims the opposite of what was measured"),
    (("c", "b"), False, "the differences of the seeds disagree, and the interval reaches zero"),
    (("d", "a"), False, "the mean is lower, but is zero outside the interval?"),
)


def statements(carried: Callable[..., Any]) -> None:
    """Check task 4: which of the statements "the first beats the second" the intervals of made-up losses carry."""
    with SelfCheck("Task 4") as check:
        asked = [pair for pair, _, _ in STATEMENTS]
        found = check.call(carried, {name: list(losses) for name, losses in LOSSES.items()}, asked)
        listed = isinstance(found, list | tuple) and len(found) == len(asked)
        check.need(listed, f"carried returned {brief(found)}", "return a list: True or False for each statement")
        for (pair, wanted, hint), one in zip(STATEMENTS, found, strict=True):
            first, second = pair
            check(
                isinstance(one, bool | np.bool_) and bool(one) is wanted,
                f"{first} beats {second}: {wanted}",
                f"{first} beats {second}: you say {brief(one)} for {LOSSES[first]} and {LOSSES[second]}",
                hint,
            )
