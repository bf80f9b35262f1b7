"""The self-checks of exercise 5: where a low rank ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..codes import CODE_BITS
from ..record import RunRecord
from ..selfcheck import SelfCheck, brief, close

# The runs of task 4 by the names of their folders in data/broken, which tools/broken_runs.py writes.
FAULTS = {
    "a": "prompt not masked",
    "b": "steps too large",
    "c": "sound",
    "d": "end not learned",
    "e": "steps too small",
    "f": "answers shuffled",
    "g": "layers missing",
}
LOOK = {
    "prompt not masked": "a mean over prompt and answer is no longer comparable with the held-out loss of answers",
    "steps too large": "look at the product of learning rate and alpha / r, not at one of them",
    "sound": "the others have something that this one has not: which of your rules is too wide?",
    "end not learned": "which field counts the training pairs whose last label is the end token?",
    "steps too small": "look at the product of learning rate and alpha / r, not at one of them",
    "answers shuffled": "its losses fall; does its answer depend on the message?",
    "layers missing": "record.adapter says which layers have an adapter",
}
REPAIRED_PPL = 1.2


def spectrum(energy_shares: Callable[..., Any]) -> None:
    """Check task 1: on a matrix with known singular values, and on a product of rank 4."""
    with SelfCheck("Task 1") as check:
        found = check.call(energy_shares, torch.diag(torch.tensor([1.0, 3.0, 2.0])))
        is_three = isinstance(found, torch.Tensor) and found.shape == (3,)
        check.need(
            is_three, f"for a 3 × 3 matrix you return {brief(found)}", "return a tensor with one entry for each r"
        )
        check(
            close(found[0], 9 / 14),
            "singular values 3, 2, 1: the first holds 9 of 14",
            f"for singular values 3, 2, 1 the first share is {found[0]:.3f}, not 9/14 = 0.643",
            "that is a share of the singular values themselves: what is the energy?"
            if close(found[0], 3 / 6)
            else "energy goes with the square, and the largest comes first",
        )
        check(
            close(found[-1], 1),
            "all singular values together hold everything",
            f"the last share is {found[-1]:.3f}, not 1",
            "entry r - 1 has the first r together: add the shares up",
        )
        generator = torch.Generator().manual_seed(0)
        factors = torch.randn(60, 4, generator=generator), torch.randn(4, 40, generator=generator)
        product = check.call(energy_shares, factors[0] @ factors[1])
        check(
            product.shape == (40,) and product[3] > 0.9999 > product[2],
            "a product B·A of rank 4 is complete after four",
            f"for a 60 × 40 product of rank 4 you return {brief(product)}, and the first four hold {product[3]:.3f}",
            "a matrix has as many singular values as its shorter side has rows",
        )


def gain(share_of_gain: Callable[..., Any]) -> None:
    """Check task 2 on four triples of perplexities."""
    with SelfCheck("Task 2") as check:
        nothing = check.call(share_of_gain, 800, 800, 10)
        check(
            isinstance(nothing, int | float) and abs(nothing) < 1e-9,
            "no change is no gain",
            f"from 800 to 800 you get {brief(nothing)}",
            "how far is it from before to after?",
        )
        whole = check.call(share_of_gain, 800, 10, 10)
        check(
            close(whole, 1),
            "as good as full fine-tuning is 1",
            f"from 800 to 10, where full fine-tuning gets to 10, you get {brief(whole)}",
            "divide by what full fine-tuning gains",
        )
        half = check.call(share_of_gain, 100, 10, 1)
        check(
            close(half, 0.5),
            "100, 10, 1 are equal steps",
            f"from 100 to 10, where full fine-tuning gets to 1, you get {brief(half)}, not 0.5",
            "that is the share of the perplexity: take the losses"
            if close(half, 90 / 99)
            else "the gain is a difference of losses, and a loss is the logarithm of a perplexity",
        )


def bits(bits_stored: Callable[..., Any]) -> None:
    """Check task 3: a certain answer, one with 22 bits missing, and one worse than guessing."""
    with SelfCheck("Task 3") as check:
        certain = check.call(bits_stored, 0.0)
        check(
            close(certain, CODE_BITS),
            "a certain answer is stored whole",
            f"for p = 1 you get {brief(certain)}, not {CODE_BITS}",
            "-ln 1 is 0: no bit is missing",
        )
        found = check.call(bits_stored, 22 * math.log(2))
        check(
            close(found, CODE_BITS - 22),
            "if 22 bits are missing, 100 are stored",
            f"for p = 2^-22 you get {brief(found)}, not 100",
            "that is nats subtracted from bits"
            if close(found, CODE_BITS - 22 * math.log(2))
            else "how many bits is a nat?",
        )
        worse = check.call(bits_stored, 500.0)
        check(
            isinstance(worse, int | float) and worse == 0,
            "worse than guessing is nothing stored",
            f"for 500 nats you get {brief(worse)}, not 0",
            "a model cannot have stored less than nothing",
        )


def diagnosis(diagnose: Callable[..., Any], runs: Mapping[str, RunRecord]) -> None:
    """Check task 4: the seven runs, by name."""
    with SelfCheck("Task 4") as check:
        found = {name: check.call(diagnose, record) for name, record in runs.items()}
        unknown = [value for value in found.values() if value not in FAULTS.values()]
        check.need(not unknown, f"diagnose returned {brief(unknown and unknown[0])}", "spell faults as the table does")
        for name, fault in FAULTS.items():
            check(found[name] == fault, f"run {name}: {fault}", f"run {name} is not {found[name]!r}", LOOK[fault])


def repair(
    train_again: Callable[..., Any], diagnose: Callable[..., Any], runs: Mapping[str, RunRecord], folder: str | Path
) -> tuple[RunRecord, Any]:
    """Check task 5 and return the records of the failed run and of the repaired one: the fault is gone, all else the same."""
    (failed,) = (runs[name] for name, fault in FAULTS.items() if fault == "steps too large")
    record: Any = None
    with SelfCheck("Task 5") as check:
        record = check.call(train_again, failed, folder)
        is_record = isinstance(record, RunRecord)
        check.need(is_record, f"train_again returned {brief(record)}", "return the record that train returns")
        for field in ("rank", "dropout", "targets", "train_pairs", "epochs", "batch_size", "seed"):
            before, after = getattr(failed, field), getattr(record, field)
            if before != after:
                hint = "only the fault may change: take all else from the record"
                check(False, "", f"{field} is {after}, and was {before}", hint)
        check(
            record.learning_rate == failed.learning_rate,
            "the learning rate is the one of the record, which was right",
            f"the learning rate is {record.learning_rate:g}, and was {failed.learning_rate:g}",
            "that works as well, but this rate is the base's own: which other setting scales a step?",
        )
        check(
            record.ppl_after is not None and record.ppl_after < REPAIRED_PPL,
            f"its held-out perplexity is {record.ppl_after or 0:.3f}, below {REPAIRED_PPL}",
            f"its held-out perplexity is {brief(record.ppl_after)}, not below {REPAIRED_PPL}",
            "is the step the size of the base's own recipe now, and was train given near_eval?",
        )
        again = check.call(diagnose, record)
        check(again == "sound", "your diagnosis: sound", f"your diagnosis: {brief(again)}", "is something else wrong?")
    return failed, record
