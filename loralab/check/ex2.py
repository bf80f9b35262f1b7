"""The self-checks of exercise 2: which rank is enough?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from transformers import PreTrainedModel

from ..bases import Base
from ..record import RunRecord
from ..scores import paired_interval
from ..selfcheck import SelfCheck, brief, close
from ..shapes import adapter_shape, linear_layers

DIFFERENCES = ([0.52, 0.61, 0.49, 0.58], [0.41, 0.53, 0.36, 0.49])  # losses of two ranks, one per seed, made up


def count(
    adapter_parameters: Callable[..., Any],
    model: PreTrainedModel,
    base: Base,
    targets: Sequence[str],
    ranks: Sequence[int],
) -> None:
    """Check task 1: the parameters of adapters of `ranks` on `targets` against peft's own count."""
    with SelfCheck("Task 1") as check:
        for rank in ranks:
            wanted = adapter_shape(base.source, rank, tuple(targets)).trainable
            found = check.call(adapter_parameters, model, list(targets), rank)
            check(
                found == wanted,
                f"rank {rank} trains {wanted:,} parameters, as peft counts",
                f"for rank {rank} you count {_number(found)}, peft {wanted:,}",
                _count_hint(found, model, targets, rank),
            )
        wanted = adapter_shape(base.source, 3, ("down_proj",)).trainable
        check(
            check.call(adapter_parameters, model, ["down_proj"], 3) == wanted,
            "other targets are counted right, too",
            f"for rank 3 on down_proj alone peft counts {wanted:,}",
            "does your code use the argument `targets`, and both sizes of a layer that is not square?",
        )


def _number(found: object) -> str:
    return f"{found:,}" if isinstance(found, int | float) else brief(found)


def _count_hint(found: object, model: PreTrainedModel, targets: Sequence[str], rank: int) -> str:
    layers = [layer for name, layer in linear_layers(model).items() if name.rpartition(".")[2] in targets]
    a, b = (rank * sum(getattr(layer, side) for layer in layers) for side in ("in_features", "out_features"))
    if found in (a, b):
        return f"that is the size of {'A' if found == a else 'B'} alone"
    if found == sum(layer.weight.numel() for layer in layers):
        return "that is the size of the base's own matrices; the adapter adds A and B"
    return "write down the shapes of A and B of one layer; how many layers of the model have a target's name?"


SEARCHES: tuple[tuple[str, dict[float, float], float | None, str], ...] = (
    ("one rate measured", {1e-3: 2.0}, 4e-3, "with one rate it is the largest so far; go up"),
    ("the best is the largest", {1e-3: 2.0, 4e-3: 1.1}, 1.6e-2, "the best one may be larger still"),
    ("the best is the smallest", {4e-3: 1.5, 1.6e-2: 3.0}, 1e-3, "the best one may be smaller still"),
    ("the best has a neighbour on both sides", {4e-3: 1.1, 1e-3: 2.0, 1.6e-2: 3.0}, None, "there is nothing to add"),
    ("the largest diverged", {4e-3: math.nan, 1e-3: 2.0}, 2.5e-4, "NaN is neither smaller nor larger than any number"),
)


def search(next_rate: Callable[..., Any], factor: float = 4) -> None:
    """Check task 2: the next rate to try, for made-up losses."""
    with SelfCheck("Task 2") as check:
        for case, losses, wanted, hint in SEARCHES:
            found = check.call(next_rate, dict(losses), factor)
            right = found is None if wanted is None else close(found, wanted)
            shown = "None" if wanted is None else f"{wanted:g}"
            given = ", ".join(f"{rate:g}: {loss:g}" for rate, loss in losses.items())
            check(right, f"{case}: {shown}", f"{case}: for {{{given}}} you return {brief(found)}", hint)


def sweep(
    train_ranks: Callable[..., Any], rate: float, ranks: Sequence[int], seeds: Sequence[int], epochs: float
) -> Any:
    """Check task 3 and return what `train_ranks` returned: every rank with every seed, nothing else changed."""
    records: Any = None
    with SelfCheck("Task 3") as check:
        records = check.call(train_ranks, rate)
        hint = "return a dict: rank -> list of the records, one per seed"
        check.need(isinstance(records, Mapping), f"train_ranks returned {brief(records)}", hint)
        check.need(
            list(records) == list(ranks), f"the dict has the keys {brief(list(records))}", f"one key per rank: {ranks}"
        )
        lists = all(isinstance(of_rank, list | tuple) for of_rank in records.values())
        runs = [run for of_rank in records.values() for run in of_rank] if lists else []
        check.need(runs and all(isinstance(run, RunRecord) for run in runs), f"the dict holds {brief(records)}", hint)
        check(
            all([run.seed for run in of_rank] == list(seeds) for of_rank in records.values()),
            f"every rank has the seeds {', '.join(map(str, seeds))}, in this order",
            f"the seeds are {brief({rank: [run.seed for run in of_rank] for rank, of_rank in records.items()})}",
            "runs are compared seed by seed: go through SEEDS for each rank",
        )
        check(
            all(run.rank == rank for rank, of_rank in records.items() for run in of_rank),
            "every run has the rank of its key",
            f"the ranks of the runs are {brief([run.rank for run in runs])}",
            "what does train_rank take as its first argument?",
        )
        same = {(run.learning_rate, run.epochs, run.train_pairs) for run in runs}
        check(
            same == {(rate, epochs, 100)},
            f"nothing else differs: learning rate {rate:g}, {epochs:g} epochs, 100 pairs",
            f"learning rate, epochs and pairs are {brief(sorted(same))}",
            "a sweep changes one thing: pass the rate that was given, and leave the rest to train_rank",
        )
        check(
            all(run.ppl_after and run.ppl_before and run.ppl_after < run.ppl_before for run in runs),
            "every run learned something",
            "a perplexity is missing or did not fall",
            "is the rate the one that the search found?",
        )
    return records


def difference(paired_difference: Callable[..., Any]) -> None:
    """Check task 4: mean and 95 % interval of made-up paired differences."""
    one, other = DIFFERENCES
    with SelfCheck("Task 4") as check:
        found = check.call(paired_difference, list(one), list(other))
        three = isinstance(found, tuple | list) and len(found) == 3
        check.need(three, f"paired_difference returned {brief(found)}", "return three numbers: mean, low, high")
        mean, low, high = paired_interval(one, other)
        check(
            close(found[0], mean),
            "the mean is right",
            f"the mean of {one} minus {other} is {mean:.4f}, not {brief(found[0])}",
            "the sign tells which of the two is lower: first minus second",
        )
        reach = high - mean
        check(
            close(found[1], low) and close(found[2], high),
            f"the interval reaches {reach:.4f} to both sides",
            f"the interval should reach from {low:.4f} to {high:.4f}, not from {brief(found[1])} to {brief(found[2])}",
            _interval_hint(found),
        )
        few = check.call(paired_difference, [0.5, 0.7, 0.6], [0.4, 0.5, 0.3])
        few_wanted = paired_interval([0.5, 0.7, 0.6], [0.4, 0.5, 0.3])
        check(
            isinstance(few, tuple | list) and len(few) == 3 and all(map(close, few, few_wanted)),
            "for three seeds it is right, too",
            f"for three seeds it should be {_shown(few_wanted)}, not {brief(few)}",
            "n is the number of differences, and t depends on it",
        )


def _shown(interval: Sequence[float]) -> str:
    return "({})".format(", ".join(f"{value:.4f}" for value in interval))


def _interval_hint(found: Sequence[Any]) -> str:
    """Return a hint for the typical wrong reaches of an interval of `DIFFERENCES`."""
    one, other = map(np.array, DIFFERENCES)
    gaps, n = one - other, len(one)
    t = float(stats.t.ppf(0.975, n - 1))
    s, root = float(gaps.std(ddof=1)), math.sqrt(n)
    unpaired = float(np.sqrt(one.var(ddof=1) + other.var(ddof=1)))
    hints = {
        t * float(gaps.std()) / root: "numpy's std divides by n: ddof=1 divides by n - 1",
        1.96 * s / root: "1.96 is for many runs; for n of them it is t with n - 1 degrees of freedom",
        float(stats.t.ppf(0.95, n - 1)) * s / root: "95 % lie inside, so 2.5 % lie above: which quantile is that?",
        float(stats.t.ppf(0.975, n)) * s / root: "how many degrees of freedom have n differences?",
        t * s: "that is the spread of one difference; the mean of n varies less",
        t * unpaired / root: "take the difference seed by seed first, and then its standard deviation",
        s / root: "that is the standard error alone; by what is it multiplied?",
    }
    try:
        reach = (float(found[2]) - float(found[1])) / 2
    except (TypeError, ValueError):
        return "return numbers"
    return next(
        (hint for wrong, hint in hints.items() if close(reach, wrong)), "compute s, n and t one by one and print them"
    )


DECISIONS: tuple[tuple[str, dict[int, list[float]], int, str], ...] = (
    (
        "the smallest rank of the plateau",
        {64: [0.31, 0.41, 0.36], 1: [0.52, 0.63, 0.58], 4: [0.40, 0.49, 0.46], 16: [0.32, 0.40, 0.37]},
        16,
        "which ranks cannot be told from the best one, and which of them is the smallest?",
    ),
    (
        "the best need not be the largest",
        {4: [0.40, 0.49, 0.46], 16: [0.30, 0.40, 0.35], 64: [0.38, 0.48, 0.42]},
        16,
        "compare with the lowest mean loss, whatever rank it has",
    ),
    (
        "seeds that differ more than the ranks",
        {2: [0.24, 0.61, 0.43], 8: [0.205, 0.575, 0.39], 32: [0.20, 0.57, 0.395]},
        8,
        "the interval is of the differences seed by seed, so it is narrow here: rank 2 is worse with every seed",
    ),
    (
        "differences that the seeds explain",
        {2: [0.45, 0.38, 0.52], 8: [0.40, 0.47, 0.43], 32: [0.42, 0.39, 0.41]},
        2,
        "an interval that reaches zero shows no difference, even if the mean is higher",
    ),
)


def enough(smallest_enough: Callable[..., Any]) -> None:
    """Check task 5: the smallest rank that is enough, for made-up losses."""
    with SelfCheck("Task 5") as check:
        for case, losses, wanted, hint in DECISIONS:
            found = check.call(smallest_enough, {rank: list(of_seeds) for rank, of_seeds in losses.items()})
            check(
                found == wanted,
                f"{case}: rank {wanted}",
                f"{case}: for {brief(losses, 110)} you say {brief(found)}",
                hint,
            )
