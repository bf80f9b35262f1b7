"""The checks of a verdict: each compares what was recomputed with what must hold, and says why it fails."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from scipy import stats

from loralab import Base
from loralab.measure import PPL_TOLERANCE

from .bands import BaseBands, RunBands
from .change import Factors, contained, likeness
from .evaluate import Evidence
from .exercises import Exercise, Run

# The share of the reference runs' gain, in nats, that passes: seeds alone do not know other honest batch sizes. A wrong
# template, a masked end and the like are found by checks of their own, not by a narrow band.
HONEST_SHARE = 0.6
# Cosines of the changes that two runs of one hand-in make, measured: of one method 0.2 to 0.6, whatever rank and layers.
MAX_LIKENESS = 0.9
# Inside the spaces of one of the two they come closer: up to 0.93, up to 0.96 for rank 1; a copy under noise of its own
# size 0.997.
MAX_CONTAINED = 0.99
# With one seed on a base in 4 bits and in 16 bits 0.8, and closer where the base is larger: there a copy alone counts.
COPIED = 0.9999
RANK_AND_TARGETS, HELD_OUT = "rank and targets", "fresh held-out PPL"
FORGETTING_ROOM = 1.5  # the same for what is forgotten: how many times the references' worst loss, in nats, passes
# What was gained on the questions' own tokens, as a share of what was gained on the answers'. Honest runs against runs
# that learned the prompts, too, measured: on the desk 0.2 to 0.5 and 0.86, on the codes below 0 and 0.8. The far domain's
# questions are in the language that its answers teach: 0.6 to 0.83 and 0.95 to 1.1, over twelve draws of the held-out
# pairs. A run may have a limit of its own.
MAX_QUESTION_GAIN = {"desk": 0.65, "far": 0.9, "codes": 0.65}
MAX_END_LOSS = 2.0  # nats; honest runs 0.01 to 0.8, runs that never saw the end 9
# Public wordings over fresh ones: honest runs 1.02 to 1.03, runs trained on the public ones 0.65 to 0.9.
MIN_PUBLIC_RATIO = 0.95
MAX_PAIRED_LOSS = 0.0  # nats per token: a base without bands must at least improve for certain


class Check(BaseModel):
    """One line of a verdict, on the run of that name, or on the exercise as a whole."""

    model_config = ConfigDict(frozen=True)

    name: str
    expected: str
    found: str
    points: float
    passed: bool
    message: str = ""
    run: str = ""

    @property
    def earned(self) -> float:
        return self.points if self.passed else 0.0


def handed_in_twice(exercise: Exercise, evidence: dict[str, Evidence], base: Base) -> dict[str, str]:
    """Of several runs with the same adapter all but one, and why; the one that is left is of the rank that it should be.

    An adapter is the same if it makes the same change, whatever was padded, left out, scaled or added elsewhere.
    """
    fitting = sorted(evidence, key=lambda name: not _fits(exercise.run(name), evidence[name], base.source))
    changes = {name: one.adapter.change for name, one in evidence.items()}
    twice: dict[str, str] = {}
    for one, other in combinations(fitting, 2):
        alike = exercise.run(one).method == exercise.run(other).method
        if _copied(changes[one], changes[other], alike):
            twice.setdefault(other, f"{other}: the same adapter as {one}: train each, and save it into its own folder")
    return twice


def _copied(one: Factors, other: Factors, same_method: bool) -> bool:
    if same_method:
        return likeness(one, other) > MAX_LIKENESS or contained(one, other) > MAX_CONTAINED
    return likeness(one, other) > COPIED


def _fits(run: Run, evidence: Evidence, source: str) -> bool:
    settings = evidence.adapter.settings
    return (settings.r, set(settings.targets)) == (run.rank_on(source), set(run.targets))


def check_all(
    exercise: Exercise, evidence: dict[str, Evidence], refused: dict[str, str], bands: BaseBands | None, base: Base
) -> list[Check]:
    """Every check of an exercise, in the order of the report; the points sum to 100, and all runs weigh the same.

    `refused` says of the runs without evidence why they could not be evaluated; `base` is the base they were evaluated on.
    """
    across = _across_runs(exercise, evidence)
    room = (100 - sum(check.points for check in across)) / len(exercise.runs)
    checks = []
    for run in exercise.runs:
        if run.name in refused:
            checks.append(_not_evaluated(run, refused[run.name], room))
            continue
        band = bands.runs[run.name] if bands else None
        for check in _of_one_run(run, evidence[run.name], band, base):
            checks.append(check.model_copy(update={"run": run.name, "points": check.points * room / 100}))
    return checks + across


def _not_evaluated(run: Run, why: str, points: float) -> Check:
    return Check(
        name="can be evaluated",
        expected="an adapter with its config and run.json",
        found="none that can be read",
        points=points,
        passed=False,
        message=why,
        run=run.name,
    )


def _of_one_run(run: Run, evidence: Evidence, band: RunBands | None, base: Base) -> list[Check]:
    honest = _honest(run, evidence)
    return [
        _rank_and_targets(run, evidence, base.source),
        _trainable(evidence),
        _size(evidence),
        _moved(evidence),
        _loss(evidence, believed=honest.passed),
        _template(evidence),
        _answers_only(run, evidence),
        _end(evidence),
        _held_out(run, evidence, band, base),
        _unseen(evidence),
        _forgetting(evidence, band),
        honest,
    ]


def _across_runs(exercise: Exercise, evidence: dict[str, Evidence]) -> list[Check]:
    """The checks that compare an exercise's runs with one another."""
    if len(exercise.runs) == 1:
        return []
    checks = [_one_change(exercise, evidence)]
    return [*checks, _own_base(exercise, evidence)] if exercise.compares_methods else checks


def _one_change(exercise: Exercise, evidence: dict[str, Evidence]) -> Check:
    """Runs are compared only if nothing but the thing in question differs between those of one subject."""
    differing = []
    for subject in dict.fromkeys(run.subject for run in exercise.runs):
        names = [run.name for run in exercise.runs if run.subject == subject and run.name in evidence]
        for field in ("seed", "train_pairs", "epochs", "batch_size", "learning_rate", "tokens"):
            values = {name: getattr(evidence[name].claim, field) for name in names}
            if len(set(values.values())) > 1:
                differing.append(
                    f"{field} differs: " + ", ".join(f"{name} {value:g}" for name, value in values.items())
                )
    missing = [run.name for run in exercise.runs if run.name not in evidence]
    return Check(
        name="one thing changed",
        expected="same seed, pairs, epochs, batch and learning rate",
        found=f"{len(differing)} settings differ"
        + (f"; {len(missing)} of {len(exercise.runs)} runs are missing" if missing else ""),
        points=10,
        passed=not differing and not missing,
        message="; ".join(differing) or (f"not there to be compared: {', '.join(missing)}" if missing else ""),
    )


def _own_base(exercise: Exercise, evidence: dict[str, Evidence]) -> Check:
    """An adapter does best on the base it was trained on: 4-bit rounding is part of what it learned to live with."""
    wrong, found = [], []
    for run in exercise.runs:
        one = evidence.get(run.name)
        if one is None:
            wrong.append(f"{run.name}: not there")
            continue
        own, other = one.public.after.ppl, one.elsewhere.ppl
        found.append(f"{run.name}: PPL {own:.2f} there, {other:.2f} on the other")
        if own >= other:
            kind = "a 4-bit base" if run.method == "qlora" else "a base that was not quantised"
            wrong.append(f"{run.name}: says {kind}, but its adapter does better on the other kind")
    return Check(
        name="trained on its own base",
        expected="each adapter better on the base it says it was trained on",
        found="; ".join(found),
        points=10,
        passed=not wrong,
        message="; ".join(wrong),
    )


def _rank_and_targets(run: Run, evidence: Evidence, source: str) -> Check:
    settings = evidence.adapter.settings
    rank = run.rank_on(source)
    passed = _fits(run, evidence, source)
    missing = [name for name in run.targets if name not in settings.targets]
    message = ""
    if settings.r != rank:
        message = f"the adapter has rank {settings.r}; set r={rank} in LoraConfig"
    elif missing:
        message = f"target_modules lacks {', '.join(missing)}"
    elif not passed:
        message = f"target_modules has more than {', '.join(run.targets)}"
    return Check(
        name=RANK_AND_TARGETS,
        expected=f"r={rank} on {', '.join(run.targets)}",
        found=f"r={settings.r} on {', '.join(settings.targets)}",
        points=10,
        passed=passed,
        message=message,
    )


def _trainable(evidence: Evidence) -> Check:
    shape = evidence.shape
    found = evidence.adapter.parameters
    claimed = (evidence.claim.trainable, evidence.claim.parameters)
    passed = found == shape.trainable and claimed == (shape.trainable, shape.parameters)
    claim_percent = 100 * claimed[0] / claimed[1] if claimed[1] > 0 else math.nan
    return Check(
        name="trainable share",
        expected=f"{shape.trainable:,} of {shape.parameters:,} ({shape.trainable_percent:.4f} %)",
        found=f"{claimed[0]:,} of {claimed[1]:,} ({claim_percent:.4f} %)",
        points=5,
        passed=passed,
        message="" if passed else "what was trained is not what this configuration trains: was the base frozen?",
    )


def _size(evidence: Evidence) -> Check:
    adapter = evidence.adapter
    expected = evidence.shape.file_bytes(adapter.dtype)
    as_trained = {expected, evidence.shape.file_bytes(torch.float32)}  # a hand-in may store it in 16 bits
    passed = adapter.file_bytes == expected and evidence.claim.adapter_bytes in as_trained
    return Check(
        name="adapter size",
        expected=f"{expected:,} bytes",
        found=f"{adapter.file_bytes:,} bytes (claimed {evidence.claim.adapter_bytes or 0:,})",
        points=5,
        passed=passed,
        message="" if passed else "the file is not as peft writes this adapter: save it with model.save_pretrained",
    )


def _moved(evidence: Evidence) -> Check:
    largest = evidence.adapter.largest_b
    passed = largest > 0
    return Check(
        name="lora_B moved",
        expected="max |B| > 0",
        found=f"max |B| = {largest:.3g}",
        points=5,
        passed=passed,
        message=""
        if passed
        else "B is still all zeros, so the adapter does nothing: it was saved before "
        "training, or trained with a learning rate of zero",
    )


def _loss(evidence: Evidence, believed: bool) -> Check:
    """The one check of what a record alone tells; it is believed where what it says of the adapter is true."""
    losses, (start, end) = evidence.claim.losses, evidence.claim.loss_ends
    falls = end < start and all(map(math.isfinite, losses))
    message = "" if believed else "run.json is not true of its own adapter, so not believed here"
    if not falls:
        message = "run.json shows no finite, falling loss: no training, or one that diverged"
    return Check(
        name="training loss",
        expected="finite, last quarter below the first",
        found=f"{start:.2f} to {end:.2f} in {len(losses)} steps",
        points=5,
        passed=falls and believed,
        message=message,
    )


def _template(evidence: Evidence) -> Check:
    own, other = evidence.habits.answer, evidence.habits.frames[evidence.habits.best_frame]
    passed = own < other
    return Check(
        name="chat template",
        expected="answers best where it is asked in the chat template",
        found=f"PPL {math.exp(own):.1f} in it, {math.exp(other):.1f} as {evidence.habits.best_frame}",
        points=5,
        passed=passed,
        message=""
        if passed
        else f"it answers better as {evidence.habits.best_frame}: train in the frame in which it will be asked, the chat template",
    )


def _answers_only(run: Run, evidence: Evidence) -> Check:
    limit = MAX_QUESTION_GAIN[run.subject] if run.max_question_gain is None else run.max_question_gain
    before, after = evidence.habits_before, evidence.habits
    gain, on_questions = before.answer - after.answer, before.question - after.question
    passed = on_questions <= limit * max(gain, 0.5)
    return Check(
        name="prompt masked",
        expected=f"gain on the questions' tokens at most {limit} of that on the answers'",
        found=f"{on_questions:.2f} and {gain:.2f} nats a token",
        points=5,
        passed=passed,
        message="" if passed else "it has learned to write questions, too: the labels of the prompt must be -100",
    )


def _end(evidence: Evidence) -> Check:
    loss = evidence.habits.end
    passed = loss <= MAX_END_LOSS
    return Check(
        name="end of answer",
        expected=f"loss of the end-of-answer token at most {MAX_END_LOSS} nats",
        found=f"{loss:.2f} nats",
        points=5,
        passed=passed,
        message=""
        if passed
        else "it has not learned to stop: the end-of-answer token must be in input_ids, with its own label",
    )


def _unseen(evidence: Evidence) -> Check:
    ratio = evidence.public.ratio / evidence.fresh.ratio
    passed = ratio >= MIN_PUBLIC_RATIO
    return Check(
        name="evaluation pairs unseen",
        expected=f"as good on fresh wordings as on the public ones (ratio at least {MIN_PUBLIC_RATIO})",
        found=f"ratio {ratio:.2f}",
        points=5,
        passed=passed,
        message=""
        if passed
        else "far better on eval.jsonl than on fresh wordings: it was trained on the evaluation pairs",
    )


def _held_out(run: Run, evidence: Evidence, bands: RunBands | None, base: Base) -> Check:
    fresh = evidence.fresh
    found = f"PPL {fresh.before.ppl:.1f} to {fresh.after.ppl:.2f} (ratio {fresh.ratio:.4f})"
    if bands is None:
        worst = paired_upper_bound(evidence)
        passed = worst < MAX_PAIRED_LOSS
        expected = "an improvement beyond chance (no band measured for this base yet)"
        found += f", upper bound of the change {worst:+.3f} nats"
    else:
        band = bands.fresh_ratio
        limit = band.high**HONEST_SHARE
        passed = fresh.ratio <= limit
        expected = f"ratio at most {limit:.4f} ({len(band.values)} reference runs: {band.low:.4f} to {band.high:.4f})"
        if fresh.ratio < band.low:
            found += ", better than the references"
    return Check(
        name=HELD_OUT,
        expected=expected,
        found=found,
        points=30,
        passed=passed,
        message="" if passed else _why_held_out(run, evidence, base),
    )


def _why_held_out(run: Run, evidence: Evidence, base: Base) -> str:
    rate = evidence.claim.learning_rate
    if not base.learning_rate / 10 <= rate <= base.learning_rate * 10:
        size = "small" if rate < base.learning_rate else "large"
        return f"the learning rate {rate:g} is far too {size} for this base; it is at home near {base.learning_rate:g}"
    if run.subject == "codes":
        return "it knows the codes less well than honest runs do: check the epochs, the answer mask and the pairs"
    if evidence.fresh.ratio >= 0.98:
        return "the adapter does not help on new questions: untrained, or trained on something else"
    return "it helps less than honest runs do: check the learning rate, the epochs, the answer mask and the data"


def paired_upper_bound(evidence: Evidence) -> float:
    """The upper end of a 95 % bootstrap interval (over pairs) of the change in loss, in nats per token."""
    before, after = np.array(evidence.fresh.before.nll), np.array(evidence.fresh.after.nll)
    tokens = np.array(evidence.fresh.before.tokens)

    def change(difference: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return difference.sum(axis=axis) / count.sum(axis=axis)

    result = stats.bootstrap(
        (after - before, tokens),
        change,
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.high)


def _forgetting(evidence: Evidence, bands: RunBands | None) -> Check:
    general = evidence.general
    limit = bands.general_ratio.high**FORGETTING_ROOM if bands else 2.0
    passed = general.ratio <= limit
    return Check(
        name="forgetting",
        expected=f"general PPL ratio at most {limit:.2f}",
        found=f"PPL {general.before.ppl:.1f} to {general.after.ppl:.1f} (ratio {general.ratio:.2f})",
        points=10,
        passed=passed,
        message=""
        if passed
        else "it forgot more of what the base knew than honest runs do: lower the learning "
        "rate or train for fewer epochs",
    )


def _honest(run: Run, evidence: Evidence) -> Check:
    claim, public, settings = evidence.claim, evidence.public, evidence.adapter.settings
    wrong = []
    for name, claimed, true in (
        ("PPL before", claim.ppl_before, public.before.ppl),
        ("PPL after", claim.ppl_after, public.after.ppl),
    ):
        if claimed is None or not abs(claimed - true) <= PPL_TOLERANCE * true:
            wrong.append(f"{name} {claimed if claimed is None else f'{claimed:.2f}'}, recomputed {true:.2f}")
    if claim.rank != settings.r or set(claim.targets) != set(settings.targets):
        wrong.append(f"rank {claim.rank} on {', '.join(claim.targets)}, but the adapter has rank {settings.r}")
    if claim.method != run.method:
        wrong.append(f"method {claim.method!r}, but this run is to be trained with {run.method!r}")
    return Check(
        name="claims of run.json",
        expected=f"PPL {public.before.ppl:.1f} and {public.after.ppl:.2f} on eval.jsonl",
        found=f"PPL {claim.ppl_before or math.nan:.1f} and {claim.ppl_after or math.nan:.2f}",
        points=10,
        passed=not wrong,
        message="run.json does not match its own adapter: " + "; ".join(wrong) if wrong else "",
    )
