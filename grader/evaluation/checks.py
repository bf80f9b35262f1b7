"""The checks of a verdict: each compares what was recomputed with what must hold, and says why it fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from scipy import stats

from loralab import Base
from loralab.measure import same_ppl
from loralab.scores import differ

from ..exercises import Exercise, RunSpec
from ..text import listed
from ..verdict import EXACT, HELD_OUT, Check
from .delta_w import Factors, contained, likeness
from .evaluator import Evidence, Measured
from .functions import Outcome
from .reference_bands import Band, BaseBands, RunBands

# The share of the reference runs' gain, in nats, that passes: reference runs differ by seed alone, honest runs also by
# batch size. A wrong template, a masked end and the like are found by checks of their own, not by a narrow band.
HONEST_SHARE = 0.6
# The share of the lower end of the references' exact match that earns all its points. References have batches of 4; where
# their band ends at 0.40, batches of 8 reached 0.36 and of 16 0.37 (at twice the rate), and half the pairs 0.20.
EXACT_SHARE = 0.8
# Cosines of what the changes of two runs of one submission do to the inputs of the layers. Measured on honest runs of one
# method and seed: 0.37 to 0.74 with alpha twice the rank, and up to 0.96 for ranks 16 and 64 with an equal alpha, which
# learn nearly the same. A copy under noise of a tenth of its standard deviation has 0.999, one cut to a quarter of its rank
# 0.99, and one with three times as much added where the inputs have no energy 0.99 (0.32 as a matrix).
MAX_LIKENESS = 0.98
# Of the matrices themselves, inside the spaces of one of the two they come closer: up to 0.93, up to 0.96 for rank 1; a
# copy padded with noise of its own size 0.999.
MAX_CONTAINED = 0.99
# Lower limits for the two together: honest runs reach 0.94 and 0.90, a copy under noise as large as itself 0.86 and 0.98.
LIKE_AND_CONTAINED = 0.8, 0.95
# With one seed on a base in 4 bits and in 16 bits 0.8, and closer where the base is larger: there a copy alone counts.
COPIED = 0.9999
RANK_AND_TARGETS, QUESTION = "rank and targets", "reads the question"
MIN_EXACT = 0.02  # a limit this close to the base's own share is none: there exact match tells runs apart by luck
FORGETTING_ROOM = 1.5  # how many times the references' worst loss on general pairs, in nats, passes
# Of the pairs and epochs that are asked for. Early stopping ends a little before the last epoch; more epochs are allowed,
# more pairs are not, because all students are compared.
ENOUGH, MOST_PAIRS, MOST_EPOCHS = 0.95, 1.05, 1.5
# What was gained on the questions' own tokens, as a share of what was gained on the answers'. Honest runs of the triage
# unlearn the questions (-0.25 to -0.05); a run that learned them, too, has 0.8.
MAX_QUESTION_GAIN = {"triage": 0.4, "far": 0.4, "codes": 0.65}
MAX_END_LOSS = 2.0  # nats; honest runs 0.01 to 0.8, runs that never saw the end 9
# Public pairs against fresh ones: the probability, under equal ability, of losses as much lower as these are.
MIN_UNSEEN_P = 1e-4
MAX_PAIRED_LOSS = 0.0  # nats per token: a base without bands must at least improve for certain
# Points by check of one run: ability decides most of them, and form alone earns less than 15.
FORM = {RANK_AND_TARGETS: 5, "trainable share": 2, "adapter size": 3, "lora_B moved": 2}
ABILITY = {EXACT: 50, QUESTION: 6, HELD_OUT: 6}  # the last two hardly tell half an ability from all of it
# What an adapter passes as well that does nothing: these count only where it does the task.
MANNER = {
    "pairs and epochs": 3,
    "training loss": 2,
    "chat template": 4,
    "prompt masked": 4,
    "end of answer": 4,
    "evaluation pairs unseen": 3,
    "forgetting": 3,
    "claims of run.json": 3,
}
POINTS = FORM | ABILITY | MANNER
ACROSS = 10  # points of each check of the exercise as a whole
PER_FUNCTION = 4  # points of each function or class that the tasks define,
OF_FUNCTION = {"merge_weight": 8, "diagnose": 12}  # and of those that are the heart of an exercise


def submitted_twice(
    exercise: Exercise, evidence: dict[str, Evidence], effects: Mapping[str, Factors], base: Base
) -> dict[str, str]:
    """Return, of several runs with the same adapter, all but one, and why; the one kept has the required rank.

    An adapter is the same if it does nearly the same to the inputs of the layers (`effects`, by run), or makes the same
    change to the matrices, whatever was padded, left out, scaled or added elsewhere.
    """
    fitting = sorted(evidence, key=lambda name: not _fits(exercise.run(name), evidence[name], base.source))
    changes = {name: one.adapter.change for name, one in evidence.items()}
    twice: dict[str, str] = {}
    for one, other in combinations(fitting, 2):
        if exercise.run(one).method == exercise.run(other).method:
            alike, inside = likeness(effects[one], effects[other]), contained(changes[one], changes[other])
            both = alike > LIKE_AND_CONTAINED[0] and inside > LIKE_AND_CONTAINED[1]
            copied = alike > MAX_LIKENESS or inside > MAX_CONTAINED or both
        else:
            copied = likeness(changes[one], changes[other]) > COPIED
        if copied:
            twice.setdefault(other, f"{other}: the same adapter as {one}: train each, and save it into its own folder")
    return twice


def _fits(run: RunSpec, evidence: Evidence, source: str) -> bool:
    settings = evidence.adapter.settings
    return (settings.r, set(settings.targets)) == (run.rank_on(source), set(run.targets))


def check_all(
    exercise: Exercise,
    evidence: dict[str, Evidence],
    refused: dict[str, str],
    bands: BaseBands | None,
    base: Base,
    functions: Sequence[Outcome] | None,
) -> list[Check]:
    """Return every check of an exercise in report order; the points sum to 100, and all runs weigh the same.

    `refused` says of the runs without evidence why they could not be evaluated; `base` is the base they were evaluated
    on; `functions` says how the functions of its tasks answered, or None if the notebook was not run to ask them.
    """
    across = _across_runs(exercise, evidence)
    if functions is not None:
        across.append(_functions(functions))
    room = (100 - sum(check.points for check in across)) / len(exercise.runs)
    checks, able = [], 0
    for run in exercise.runs:
        if run.name in refused:
            checks.append(_not_evaluated(run, refused[run.name], room))
            continue
        band = bands.runs[run.name] if bands else None
        of_run, gains = _of_one_run(run, evidence[run.name], band, base)
        able += gains
        for check in of_run:
            checks.append(check.model_copy(update={"run": run.name, "points": check.points * room / 100}))
    return checks + [_in_proportion(check, able, len(exercise.runs)) for check in across]


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


def _of_one_run(run: RunSpec, evidence: Evidence, band: RunBands | None, base: Base) -> tuple[list[Check], bool]:
    """Return the checks of one run, whose points sum to 100, and whether it does the task better than the base."""
    honest, question, exact = _honest(run, evidence), _question(evidence, band), _exact(evidence, band)
    checks = [
        _rank_and_targets(run, evidence, base.source),
        _trainable(evidence),
        _size(evidence),
        _moved(evidence),
        exact,
        question,
        _held_out(run, evidence, band, base),
        _recipe(run, evidence, base),
        _loss(evidence, believed=honest.passed),
        _template(evidence),
        _answers_only(run, evidence),
        _end(evidence),
        _unseen(run, evidence),
        _forgetting(evidence, band.forgetting) if band else None,
        honest,
    ]
    made = [check for check in checks if check is not None]
    gains = question.passed and (exact is None or exact.passed or _more_right_answers(evidence))
    if not gains:
        # Perplexity falls about as far for answers of other messages: it shows no ability by itself.
        made = [_without_ability(check) if check.name in MANNER or check.name == HELD_OUT else check for check in made]
    # What is left out leaves its points to the others, but not to form, which an idle adapter has as well.
    left = sum(check.points for check in made if check.name not in FORM)
    factor = (100 - sum(FORM.values())) / left
    scaled = [c if c.name in FORM else c.model_copy(update={"points": factor * c.points}) for c in made]
    return scaled, gains


def _more_right_answers(evidence: Evidence) -> bool:
    before, after = evidence.before.scores.exact_match, evidence.after.scores.exact_match
    return after.value > before.value and differ(after, before)


def _without_ability(check: Check) -> Check:
    """Take away the points of a check that only says how an adapter was trained, if it does not do the task."""
    why = f'counts only for an adapter that passes "{QUESTION}" and gives more right answers than the base'
    return check.model_copy(update={"passed": False, "partial": 0.0, "message": check.message or why})


def _in_proportion(check: Check, able: int, runs: int) -> Check:
    """Scale a check of the whole exercise by the share of its runs that do the task."""
    if able == runs:
        return check
    share = (1 if check.passed else check.partial) * able / runs
    why = f"counts for the runs that do the task, {able} of {runs}"
    return check.model_copy(update={"passed": False, "partial": share, "message": check.message or why})


def _across_runs(exercise: Exercise, evidence: dict[str, Evidence]) -> list[Check]:
    """Return the checks that compare an exercise's runs."""
    if len(exercise.runs) == 1:
        return []
    checks = [_one_change(exercise, evidence)]
    return [*checks, _own_base(exercise, evidence)] if exercise.compares_methods else checks


def _one_change(exercise: Exercise, evidence: dict[str, Evidence]) -> Check:
    """Test that the runs on one subject differ only in what is compared."""
    differing = []
    for subject in dict.fromkeys(run.subject for run in exercise.runs):
        names = [run.name for run in exercise.runs if run.subject == subject and run.name in evidence]
        for field in ("seed", "train_pairs", "epochs", "batch_size", "learning_rate", "tokens"):
            values = {name: getattr(evidence[name].claim, field) for name in names}
            if len(set(values.values())) > 1:
                shown = ", ".join(f"{name} {value:,.15g}" for name, value in values.items())
                differing.append(f"{field} differs: {shown}")
    missing = [run.name for run in exercise.runs if run.name not in evidence]
    gaps = f"; {len(missing)} of {len(exercise.runs)} runs are missing" if missing else ""
    return Check(
        name="one thing changed",
        expected="same seed, pairs, epochs, batch and learning rate",
        found=f"{len(differing)} settings differ{gaps}",
        points=ACROSS,
        passed=not differing and not missing,
        message="; ".join(differing) or (f"missing runs: {', '.join(missing)}" if missing else ""),
    )


def _own_base(exercise: Exercise, evidence: dict[str, Evidence]) -> Check:
    """Test that each adapter does best on the base it was trained on: it learned to compensate 4-bit rounding."""
    wrong, found = [], []
    for run in exercise.runs:
        one = evidence.get(run.name)
        if one is None or one.elsewhere is None:
            wrong.append(f"{run.name}: missing")
            continue
        own, other = one.after.public.ppl, one.elsewhere.ppl
        found.append(f"{run.name}: PPL {own:.2f} there, {other:.2f} on the other")
        if not own < other:  # NaN is no better than anything
            kind = "a 4-bit base" if run.method == "qlora" else "a base that was not quantised"
            wrong.append(f"{run.name}: says {kind}, but its adapter does better on the other kind")
    return Check(
        name="trained on its own base",
        expected="each adapter better on its own kind of base than on the other",
        found="; ".join(found),
        points=ACROSS,
        passed=not wrong,
        message="; ".join(wrong),
    )


def _functions(outcomes: Sequence[Outcome]) -> Check:
    """Check what the functions of the tasks return for inputs that nobody has seen."""
    wrong = [outcome for outcome in outcomes if not outcome.right]
    points, lost = (sum(OF_FUNCTION.get(one.name, PER_FUNCTION) for one in some) for some in (outcomes, wrong))
    return Check(
        name="functions",
        expected=f"right values from {', '.join(outcome.name for outcome in outcomes)} for fresh inputs",
        found=f"{len(outcomes) - len(wrong)} of {len(outcomes)} functions are right",
        points=points,
        passed=not wrong,
        partial=(points - lost) / points if wrong else 0.0,
        message="; ".join(f"{outcome.name} {outcome.why}" for outcome in wrong),
    )


def _check(
    name: str,
    expected: str,
    found: str,
    passed: bool,
    message: str,
    measured: Iterable[float] = (),
    partial: float = 0.0,
) -> Check:
    """Return a check of one run with its points; the message says why it failed and what to do.

    It earns nothing if one of the `measured` numbers is NaN or infinite, whatever the comparison made of it.
    """
    finite = all(map(math.isfinite, measured))
    passed = passed and finite
    return Check(
        name=name,
        expected=expected,
        found=found,
        points=POINTS[name],
        passed=passed,
        partial=partial if finite and not passed else 0.0,
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
    shape, claim = evidence.shape, evidence.claim
    is_claimed = (claim.trainable, claim.parameters) == (shape.trainable, shape.parameters)
    return _check(
        "trainable share",
        expected=f"{shape.trainable:,} of {shape.parameters:,} ({shape.trainable_percent:.4f} %)",
        found=f"{claim.trainable:,} of {claim.parameters:,} ({claim.trainable_percent:.4f} %)",
        passed=evidence.adapter.parameters == shape.trainable and is_claimed,
        message="the trained parameters are not those of this configuration: is the base frozen?",
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
        measured=[largest],
        message="B is still all zeros, so the adapter does nothing: it was saved before training, or trained with a "
        "learning rate of zero",
    )


def _loss(evidence: Evidence, believed: bool) -> Check:
    """Check the loss curve, which the record alone tells: believed where the record is true of its adapter."""
    losses, (start, end) = evidence.claim.losses, evidence.claim.loss_ends
    falls = end < start and all(map(math.isfinite, [*losses, start, end]))
    message = "run.json does not match its adapter, so its losses do not count"
    if not falls:
        message = "run.json shows no finite, falling loss: it was not trained, or it diverged"
    return _check(
        "training loss",
        expected="finite, last quarter below the first",
        found=f"{start:.2f} to {end:.2f} in {len(losses)} steps",
        passed=falls and believed,
        message=message,
    )


def _template(evidence: Evidence) -> Check:
    probes = evidence.after.probes
    own, other = probes.answer, probes.formats[probes.best_format]
    return _check(
        "chat template",
        expected="lower loss of the answers in the chat template than in other prompt formats",
        found=f"PPL {_ppl(own):.1f} in it, {_ppl(other):.1f} as {probes.best_format}",
        passed=own < other,
        measured=[own, *probes.formats.values()],
        message=f"it answers better as {probes.best_format}: train in the format in which it will be used, the chat template",
    )


def _ppl(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # more is beyond any float


def _answers_only(run: RunSpec, evidence: Evidence) -> Check:
    limit = MAX_QUESTION_GAIN[run.subject]
    before, after = evidence.before.probes, evidence.after.probes
    gain, on_questions = before.answer - after.answer, before.question - after.question
    return _check(
        "prompt masked",
        expected=f"gain on the questions' tokens at most {limit} of that on the answers'",
        found=f"{on_questions:.2f} and {gain:.2f} nats per token",
        passed=on_questions <= limit * max(gain, 0.5),
        measured=[on_questions, gain],
        message="it also learned to write questions: the labels of the prompt must be -100",
    )


def _end(evidence: Evidence) -> Check:
    loss = evidence.after.probes.end
    return _check(
        "end of answer",
        expected=f"loss of the end-of-answer token at most {MAX_END_LOSS} nats",
        found=f"{loss:.2f} nats",
        passed=loss <= MAX_END_LOSS,
        measured=[loss],
        message="it has not learned to stop: the end-of-answer token must be in input_ids, with its own label",
    )


def _unseen(run: RunSpec, evidence: Evidence) -> Check | None:
    """Compare losses on public and on fresh pairs by rank; codes have no fresh ones, so nothing to compare."""
    if run.subject == "codes":
        return None
    public, fresh = (
        [nll / n for nll, n in zip(one.nll, one.tokens, strict=True)]
        for one in (evidence.after.public, evidence.after.fresh)
    )
    p = float(stats.mannwhitneyu(public, fresh, alternative="less").pvalue)
    return _check(
        "evaluation pairs unseen",
        expected=f"losses on eval.jsonl like those on fresh pairs (Mann-Whitney p at least {MIN_UNSEEN_P:g})",
        found=f"p = {p:.2g}",
        passed=p >= MIN_UNSEEN_P,
        measured=[p, *public, *fresh],
        message="better on eval.jsonl than on fresh pairs: it was trained on the evaluation pairs",
    )


def _exact(evidence: Evidence, bands: RunBands | None) -> Check | None:
    """Compare the share of fresh messages that were answered exactly; None where honest runs hardly exceed the base.

    All points are earned from just below the band's lower end; further down they fall in proportion, to none at the base's
    own share.
    """
    before, after = evidence.before.scores.exact_match, evidence.after.scores.exact_match
    found = (
        f"{after.hits} of {after.of} fresh messages, 95 % interval {after.interval[0]:.2f} to {after.interval[1]:.2f}"
    )
    if bands is None:
        expected = "more right answers than the base gives, beyond chance (no band measured for this base)"
        reached = float(_more_right_answers(evidence))
    else:
        limit = EXACT_SHARE * bands.exact.low
        if limit - before.value < MIN_EXACT:
            return None
        expected = f"at least {limit:.2f} ({len(bands.exact.values)} reference runs: {bands.exact.mean:.2f} on average)"
        found = f"{after.value:.2f} of {limit:.2f} required: {found}"
        reached = (after.value - before.value) / (limit - before.value)
    return _check(
        EXACT,
        expected=expected,
        found=found,
        passed=reached >= 1,
        partial=min(max(reached, 0.0), math.nextafter(1, 0)),
        measured=[reached],
        message=_why_not_exact(evidence.after),
    )


def _why_not_exact(after: Measured) -> str:
    """Name the field that is wrong most often, or that answers are no records at all."""
    scores, first = after.scores, after.probes.first
    if first > MAX_END_LOSS:
        return (
            f"it has not learned how an answer begins (loss of its first token {first:.1f} nats): only the prompt's "
            "labels may be -100"
        )
    if scores.stopped.value < 0.5:
        return "most answers do not end: was the end-of-answer token learned?"
    if not scores.fields:
        return "the answers are wrong: generate some and compare them with the right ones"
    if scores.valid_records is not None and scores.valid_records.value < 0.5:
        return "most answers are not records with the required fields: generate some and read them"
    field, hits = min(scores.fields.items(), key=lambda item: item[1])
    return f"{field!r} is right in {hits} of {scores.count} answers only: generate some and compare"


def _question(evidence: Evidence, bands: RunBands | None) -> Check:
    """Test that the right answer is more likely after its own question than after another one."""
    before, after = evidence.before.control.gain, evidence.after.control.gain
    limit = max(0.0, HONEST_SHARE * bands.question_gain.low if bands else before)
    low = evidence.after.control.interval[0]
    return _check(
        QUESTION,
        expected=f"the right answer at least {limit:.2f} nats per token more likely than after another question",
        found=f"{after:.2f} nats per token ({before:.2f} without the adapter)",
        passed=after >= limit and low > 0 and low > before,
        measured=[before, after, low],
        message="it answers without reading the question: are the answers paired with their own questions?",
    )


def _held_out(run: RunSpec, evidence: Evidence, bands: RunBands | None, base: Base) -> Check:
    before, after = evidence.before.fresh, evidence.after.fresh
    ratio = after.ppl / before.ppl
    found = f"PPL {before.ppl:.1f} to {after.ppl:.2f} (ratio {ratio:.4f})"
    if bands is None:
        worst = paired_upper_bound(evidence)
        passed = worst < MAX_PAIRED_LOSS
        expected = "an improvement beyond chance (no band measured for this base yet)"
        found += f", upper bound of the change {worst:+.3f} nats"
    else:
        band = bands.fresh_ratio
        limit = band.high**HONEST_SHARE
        passed = ratio <= limit
        expected = f"ratio at most {limit:.4f} ({len(band.values)} reference runs: {band.low:.4f} to {band.high:.4f})"
        if ratio < band.low:
            found += ", better than the references"
    measured = [before.loss, after.loss, ratio]
    return _check(HELD_OUT, expected, found, passed, message=_why_held_out(run, evidence, base), measured=measured)


def _why_held_out(run: RunSpec, evidence: Evidence, base: Base) -> str:
    rate = evidence.claim.learning_rate
    if not base.learning_rate / 10 <= rate <= base.learning_rate * 10:
        size = "small" if rate < base.learning_rate else "large"
        return f"the learning rate {rate:g} is far too {size} for this base; start near {base.learning_rate:g}"
    if run.subject == "codes":
        return (
            "it memorised the codes less well than the reference runs: check the epochs, the answer mask and the pairs"
        )
    if evidence.after.fresh.ppl >= 0.98 * evidence.before.fresh.ppl:
        return "the adapter does not help on new messages: untrained, or trained on something else"
    return "it improves less than the reference runs: check the learning rate, the epochs, the answer mask and the data"


def paired_upper_bound(evidence: Evidence) -> float:
    """Return the upper end of a 95 % bootstrap interval (over pairs) of the change in loss, in nats per token."""
    fresh = evidence.before.fresh
    before, after, tokens = map(np.array, (fresh.nll, evidence.after.fresh.nll, fresh.tokens))

    def change(difference: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        mean: np.ndarray = difference.sum(axis=axis) / count.sum(axis=axis)
        return mean

    result = stats.bootstrap(
        (after - before, tokens),
        change,
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.high)


def _recipe(run: RunSpec, evidence: Evidence, base: Base) -> Check:
    """Compare the record's pairs and epochs with the exercise's; packed pairs are counted by their tokens."""
    claim, epochs = evidence.claim, run.epochs_on(base.epochs)
    per_epoch = claim.tokens / claim.epochs if claim.epochs else 0.0
    packed = claim.train_pairs < run.pairs and per_epoch >= ENOUGH * evidence.epoch_tokens
    wrong = []
    if not (packed or ENOUGH * run.pairs <= claim.train_pairs <= MOST_PAIRS * run.pairs):
        wrong.append(f"on {claim.train_pairs:,} pairs, not {run.pairs}")
    if not ENOUGH * epochs <= claim.epochs <= MOST_EPOCHS * epochs:
        wrong.append(f"for {claim.epochs:g} epochs, not {epochs:g}")
    return _check(
        "pairs and epochs",
        expected=f"{run.pairs} pairs, {epochs:g} epochs",
        found=f"{claim.train_pairs:,} {'packed texts' if packed else 'pairs'}, {claim.epochs:g} epochs",
        passed=not wrong,
        message=f"it was trained {' and '.join(wrong)}: train as the task says",
    )


def _forgetting(evidence: Evidence, band: Band) -> Check | None:
    """Compare the perplexity of general pairs; None where honest runs may forget as much as there is to forget."""
    before, after = evidence.before.general, evidence.after.general
    ratio = after.ppl / before.ppl
    nothing_left = evidence.vocabulary / before.ppl  # the ratio of a model that takes every token for as likely
    if band.high >= nothing_left:
        return None
    limit = min(max(band.high, band.high**FORGETTING_ROOM), nothing_left)
    return _check(
        "forgetting",
        expected=f"general PPL ratio at most {limit:.2f}",
        found=f"PPL {before.ppl:.1f} to {after.ppl:.1f} (ratio {ratio:.2f})",
        passed=ratio <= limit,
        measured=[before.loss, after.loss, ratio],
        message="it forgot more of what the base knew than the reference runs: lower the learning rate or train for fewer "
        "epochs",
    )


def _honest(run: RunSpec, evidence: Evidence) -> Check:
    claim, settings = evidence.claim, evidence.adapter.settings
    before, after = evidence.before.public, evidence.after.public
    ppls = {"before": (claim.ppl_before, before.ppl), "after": (claim.ppl_after, after.ppl)}
    wrong = [
        f"PPL {when} {claimed:.2f}, recomputed {true:.2f}"
        for when, (claimed, true) in ppls.items()
        if claimed is not None and not same_ppl(claimed, true)
    ]
    if claim.rank != settings.r or set(claim.targets) != set(settings.targets):
        wrong.append(f"rank {claim.rank} on {listed(claim.targets)}, but the adapter has rank {settings.r}")
    if claim.method != run.method:
        wrong.append(f"method {claim.method!r}, but this run requires {run.method!r}")
    return _check(
        "claims of run.json",
        expected=f"PPL {before.ppl:.1f} and {after.ppl:.2f} on eval.jsonl",
        found=f"PPL {claim.ppl_before or math.nan:.1f} and {claim.ppl_after or math.nan:.2f}",
        passed=not wrong and claim.ppl_before is not None and claim.ppl_after is not None,
        measured=[before.loss, after.loss],
        message="run.json does not match its own adapter: " + "; ".join(wrong)
        if wrong
        else "run.json has no perplexities to compare with: train with train(..., eval_pairs=eval_pairs)",
    )
