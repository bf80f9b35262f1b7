"""The checks of a verdict: each compares what was recomputed with what must hold, and says why it fails."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from scipy import stats

from loralab import Base
from loralab.measure import same_ppl
from loralab.scores import Scores, differ

from ..exercises import Exercise, RunSpec
from ..verdict import EXACT, HELD_OUT, Check
from .delta_w import Factors, contained, likeness
from .evaluator import Evidence
from .reference_bands import BaseBands, RunBands

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
RANK_AND_TARGETS, QUESTION = "rank and targets", "reads the question"
MIN_EXACT = 0.02  # a limit below this is none: with so few right answers exact match tells runs apart by luck
FORGETTING_ROOM = 1.5  # how many times the references' worst loss on general pairs, in nats, passes
# What was gained on the questions' own tokens, as a share of what was gained on the answers'. Honest runs of the triage
# unlearn the questions (-0.25 to -0.05); a run that learned them, too, has 0.8.
MAX_QUESTION_GAIN = {"triage": 0.4, "far": 0.4, "codes": 0.65}
MAX_END_LOSS = 2.0  # nats; honest runs 0.01 to 0.8, runs that never saw the end 9
# Public pairs against fresh ones: the probability, under equal ability, of losses as much lower as these are.
MIN_UNSEEN_P = 1e-4
MAX_PAIRED_LOSS = 0.0  # nats per token: a base without bands must at least improve for certain
# Points by check, before they are scaled to 100: ability decides most of them, and form alone earns less than 15.
FORM = {"rank and targets": 5, "trainable share": 3, "adapter size": 3, "lora_B moved": 2}
ABILITY = {HELD_OUT: 15, EXACT: 35, QUESTION: 10}
# What an adapter passes as well that does nothing: these count only where it reads the question.
MANNER = {
    "training loss": 2,
    "chat template": 5,
    "prompt masked": 5,
    "end of answer": 5,
    "evaluation pairs unseen": 3,
    "forgetting": 4,
    "claims of run.json": 3,
}
POINTS = FORM | ABILITY | MANNER


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


def _fits(run: RunSpec, evidence: Evidence, source: str) -> bool:
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


def _not_evaluated(run: RunSpec, why: str, points: float) -> Check:
    return Check(
        name="can be evaluated",
        expected="an adapter with its config and run.json",
        found="none that can be read",
        points=points,
        passed=False,
        message=why,
        run=run.name,
    )


def _of_one_run(run: RunSpec, evidence: Evidence, band: RunBands | None, base: Base) -> list[Check]:
    """Return the checks of one run, whose points sum to 100."""
    honest, question = _honest(run, evidence), _question(evidence, band)
    checks = [
        _rank_and_targets(run, evidence, base.source),
        _trainable(evidence),
        _size(evidence),
        _moved(evidence),
        _exact(evidence, band),
        question,
        _held_out(run, evidence, band, base),
        _loss(evidence, believed=honest.passed),
        _template(evidence),
        _answers_only(run, evidence),
        _end(evidence),
        _unseen(run, evidence),
        _forgetting(evidence, band) if band else None,
        honest,
    ]
    made = [check for check in checks if check is not None]
    if not question.passed:
        # Perplexity falls about as far for answers of other messages: it shows no ability by itself.
        made = [_without_ability(check) if check.name in MANNER or check.name == HELD_OUT else check for check in made]
    total = sum(check.points for check in made)
    return [check.model_copy(update={"points": 100 * check.points / total}) for check in made]


def _without_ability(check: Check) -> Check:
    """A check that only says how an adapter was trained earns nothing where the adapter does not do the task."""
    why = f'counts only if "{QUESTION}" passes'
    return check.model_copy(update={"passed": False, "message": check.message or why})


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
        if not own < other:  # NaN is no better than anything
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


def _check(name: str, expected: str, found: str, passed: bool, message: str) -> Check:
    """Return a check of one run with its points; the message says why it failed and what to do."""
    return Check(
        name=name,
        expected=expected,
        found=found,
        points=POINTS[name],
        passed=passed,
        message="" if passed else message,
    )


def _rank_and_targets(run: RunSpec, evidence: Evidence, source: str) -> Check:
    settings = evidence.adapter.settings
    rank = run.rank_on(source)
    missing = [name for name in run.targets if name not in settings.targets]
    if settings.r != rank:
        message = f"the adapter has rank {settings.r}; set r={rank} in LoraConfig"
    elif missing:
        message = f"target_modules lacks {', '.join(missing)}"
    else:
        message = f"target_modules has more than {', '.join(run.targets)}"
    return _check(
        RANK_AND_TARGETS,
        expected=f"r={rank} on {', '.join(run.targets)}",
        found=f"r={settings.r} on {', '.join(settings.targets)}",
        passed=_fits(run, evidence, source),
        message=message,
    )


def _trainable(evidence: Evidence) -> Check:
    shape = evidence.shape
    claimed = (evidence.claim.trainable, evidence.claim.parameters)
    claim_percent = 100 * claimed[0] / claimed[1] if claimed[1] > 0 else math.nan
    return _check(
        "trainable share",
        expected=f"{shape.trainable:,} of {shape.parameters:,} ({shape.trainable_percent:.4f} %)",
        found=f"{claimed[0]:,} of {claimed[1]:,} ({claim_percent:.4f} %)",
        passed=evidence.adapter.parameters == shape.trainable and claimed == (shape.trainable, shape.parameters),
        message="what was trained is not what this configuration trains: was the base frozen?",
    )


def _size(evidence: Evidence) -> Check:
    adapter = evidence.adapter
    expected = evidence.shape.file_bytes(adapter.dtype)
    as_trained = {expected, evidence.shape.file_bytes(torch.float32)}  # a submission may store it in 16 bits
    return _check(
        "adapter size",
        expected=f"{expected:,} bytes",
        found=f"{adapter.file_bytes:,} bytes (claimed {evidence.claim.adapter_bytes or 0:,})",
        passed=adapter.file_bytes == expected and evidence.claim.adapter_bytes in as_trained,
        message="the file is not as peft writes this adapter: save it with model.save_pretrained",
    )


def _moved(evidence: Evidence) -> Check:
    largest = evidence.adapter.largest_b
    return _check(
        "lora_B moved",
        expected="max |B| > 0",
        found=f"max |B| = {largest:.3g}",
        passed=largest > 0,
        message="B is still all zeros, so the adapter does nothing: it was saved before training, or trained with a "
        "learning rate of zero",
    )


def _loss(evidence: Evidence, believed: bool) -> Check:
    """Check the loss curve, which the record alone tells: believed where the record is true of its adapter."""
    losses, (start, end) = evidence.claim.losses, evidence.claim.loss_ends
    falls = end < start and all(map(math.isfinite, losses))
    message = "run.json is not true of its own adapter, so not believed here"
    if not falls:
        message = "run.json shows no finite, falling loss: no training, or one that diverged"
    return _check(
        "training loss",
        expected="finite, last quarter below the first",
        found=f"{start:.2f} to {end:.2f} in {len(losses)} steps",
        passed=falls and believed,
        message=message,
    )


def _template(evidence: Evidence) -> Check:
    own, other = evidence.probes.answer, evidence.probes.frames[evidence.probes.best_frame]
    frame = evidence.probes.best_frame
    return _check(
        "chat template",
        expected="answers best where it is asked in the chat template",
        found=f"PPL {math.exp(own):.1f} in it, {math.exp(other):.1f} as {frame}",
        passed=own < other,
        message=f"it answers better as {frame}: train in the format in which it will be asked, the chat template",
    )


def _answers_only(run: RunSpec, evidence: Evidence) -> Check:
    limit = MAX_QUESTION_GAIN[run.subject]
    before, after = evidence.probes_before, evidence.probes
    gain, on_questions = before.answer - after.answer, before.question - after.question
    return _check(
        "prompt masked",
        expected=f"gain on the questions' tokens at most {limit} of that on the answers'",
        found=f"{on_questions:.2f} and {gain:.2f} nats per token",
        passed=on_questions <= limit * max(gain, 0.5),
        message="it has learned to write questions, too: the labels of the prompt must be -100",
    )


def _end(evidence: Evidence) -> Check:
    loss = evidence.probes.end
    return _check(
        "end of answer",
        expected=f"loss of the end-of-answer token at most {MAX_END_LOSS} nats",
        found=f"{loss:.2f} nats",
        passed=loss <= MAX_END_LOSS,
        message="it has not learned to stop: the end-of-answer token must be in input_ids, with its own label",
    )


def _unseen(run: RunSpec, evidence: Evidence) -> Check | None:
    """Compare losses on public and on fresh pairs by rank; codes have no fresh ones, so nothing to compare."""
    if run.subject == "codes":
        return None
    public, fresh = (
        [nll / n for nll, n in zip(one.after.nll, one.after.tokens, strict=True)]
        for one in (evidence.public, evidence.fresh)
    )
    p = float(stats.mannwhitneyu(public, fresh, alternative="less").pvalue)
    passed = p >= MIN_UNSEEN_P
    return _check(
        "evaluation pairs unseen",
        expected=f"losses on eval.jsonl like those on fresh pairs (Mann-Whitney p at least {MIN_UNSEEN_P:g})",
        found=f"p = {p:.2g}",
        passed=passed,
        message="better on eval.jsonl than on fresh pairs: it was trained on the evaluation pairs",
    )


def _exact(evidence: Evidence, bands: RunBands | None) -> Check | None:
    """Compare the share of fresh messages that were answered exactly; None where honest runs answer next to none."""
    before, after = evidence.scores_before.exact_match, evidence.scores.exact_match
    if bands is None:
        expected = "more right answers than the base gives, beyond chance (no band measured for this base)"
        passed = after.value > before.value and differ(after, before)
    else:
        limit = HONEST_SHARE * bands.exact.low
        if limit < MIN_EXACT:
            return None
        expected = f"at least {limit:.2f} ({len(bands.exact.values)} reference runs: {bands.exact.mean:.2f} on average)"
        passed = after.value >= limit
    return _check(
        EXACT,
        expected=expected,
        found=f"{after.hits} of {after.of} fresh messages, 95 % interval {after.interval[0]:.2f} to {after.interval[1]:.2f}",
        passed=passed,
        message=_why_not_exact(evidence.scores),
    )


def _why_not_exact(scores: Scores) -> str:
    """Name the field that is wrong most often, or that answers are no records at all."""
    if scores.stopped.value < 0.5:
        return "most answers do not end by themselves: was the end-of-answer token learned?"
    if not scores.fields:
        return "the answers are wrong: generate some and compare them with the right ones"
    if scores.valid_records.value < 0.5:
        return "most answers are no records with the wanted fields: generate some and read them"
    field, hits = min(scores.fields.items(), key=lambda item: item[1])
    return f"{field!r} is right in {hits} of {scores.count} answers only: generate some and compare"


def _question(evidence: Evidence, bands: RunBands | None) -> Check:
    """The right answer must be likelier after its own question than after another one."""
    before, after = evidence.control_before.gain, evidence.control.gain
    limit = HONEST_SHARE * bands.question_gain.low if bands else max(0.0, before)
    low = evidence.control.interval[0]
    passed = after >= limit and low > 0 and low > before
    return _check(
        QUESTION,
        expected=f"the right answer at least {limit:.2f} nats per token likelier than after another question",
        found=f"{after:.2f} nats per token ({before:.2f} without the adapter)",
        passed=passed,
        message="it answers without reading the question: are the answers paired with their own questions?",
    )


def _held_out(run: RunSpec, evidence: Evidence, bands: RunBands | None, base: Base) -> Check:
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
    return _check(HELD_OUT, expected, found, passed, message=_why_held_out(run, evidence, base))


def _why_held_out(run: RunSpec, evidence: Evidence, base: Base) -> str:
    rate = evidence.claim.learning_rate
    if not base.learning_rate / 10 <= rate <= base.learning_rate * 10:
        size = "small" if rate < base.learning_rate else "large"
        return f"the learning rate {rate:g} is far too {size} for this base; start near {base.learning_rate:g}"
    if run.subject == "codes":
        return "it knows the codes less well than honest runs do: check the epochs, the answer mask and the pairs"
    if evidence.fresh.ratio >= 0.98:
        return "the adapter does not help on new messages: untrained, or trained on something else"
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


def _forgetting(evidence: Evidence, bands: RunBands) -> Check:
    general = evidence.general
    limit = max(bands.general_ratio.high, bands.general_ratio.high**FORGETTING_ROOM)
    return _check(
        "forgetting",
        expected=f"general PPL ratio at most {limit:.2f}",
        found=f"PPL {general.before.ppl:.1f} to {general.after.ppl:.1f} (ratio {general.ratio:.2f})",
        passed=general.ratio <= limit,
        message="it forgot more of what the base knew than honest runs do: lower the learning rate or train for fewer "
        "epochs",
    )


def _honest(run: RunSpec, evidence: Evidence) -> Check:
    claim, public, settings = evidence.claim, evidence.public, evidence.adapter.settings
    wrong = []
    for name, claimed, true in (
        ("PPL before", claim.ppl_before, public.before.ppl),
        ("PPL after", claim.ppl_after, public.after.ppl),
    ):
        if claimed is None or not same_ppl(claimed, true):
            wrong.append(f"{name} {claimed if claimed is None else f'{claimed:.2f}'}, recomputed {true:.2f}")
    if claim.rank != settings.r or set(claim.targets) != set(settings.targets):
        wrong.append(f"rank {claim.rank} on {', '.join(claim.targets)}, but the adapter has rank {settings.r}")
    if claim.method != run.method:
        wrong.append(f"method {claim.method!r}, but this run is to be trained with {run.method!r}")
    return _check(
        "claims of run.json",
        expected=f"PPL {public.before.ppl:.1f} and {public.after.ppl:.2f} on eval.jsonl",
        found=f"PPL {claim.ppl_before or math.nan:.1f} and {claim.ppl_after or math.nan:.2f}",
        passed=not wrong,
        message="run.json does not match its own adapter: " + "; ".join(wrong),
    )
