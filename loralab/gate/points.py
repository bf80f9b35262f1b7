"""The nine points of the operating gate, in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import indent
from typing import Any, TypeGuard

import torch
from peft import LoraConfig

from ..ability import Sample, fault_causes, faults, gain_text, ignores_question, no_better_than_chance, wrong_answers
from ..bases import PROFILES, Base, profile_source
from ..measure import same_ppl
from ..pairs import PairsError, encode_all
from ..record import CONFIG_FILE, loss_ends
from ..training import adapter_settings
from .model_card import CARD_FILE, card_problem, judged_on, write_card
from .run import DECISIONS, SHOWN_DIGITS, UNSLOTH, Run, Training
from .trial import Expected, Results, Trial

EXACT_TOLERANCE = 0.05  # of the answers: rounding on another machine may change a letter here and there
# A good learning rate falls with the root of the rank, if alpha is twice the rank (with rsLoRA it is the same for all).
# Exact match on the embedded base, q,k,v,o, at shares of the base's own rate: rank 16 has 0.31 at 1/4, 0.44 at 1/2, 0.76
# at 1, 0.72 at 2 and 0 at 3; rank 4 has 0.04 at 1/4 and 0.63 at 4; rank 64 has 0.71 at 1/4 and 0 at 2.
RATE_FACTOR, USUAL_RANK, HIGHEST_SHARE = 2, 16, 4
RULE_SLACK = 2.5  # where the base's own rate comes from a rule, not from measurements
EPOCHS_FACTOR = 2  # more than this many times the base's own number of epochs only memorises
RISE = 0.05  # nats per token by which the held-out loss may rise before it counts: 5 % of the perplexity
ALPHA_PER_RANK = (0.25, 4)  # from QLoRA (16 for rank 64) to LoRA Without Regret (32 for rank 8)
ALPHA_PER_ROOT = (0.25, 8)  # rsLoRA's: the course's 8, which suits every rank, for ranks 1024 to 1
MAX_DROPOUT = 0.2
NO_RECORD = "cannot be judged: no record"
MEASURE_IT = "give held-out pairs with --eval FILE to measure it"
MERGE_QUANTISED = (
    "merge into model.dequantize(), not into the quantised weights, whose rounding the adapter was trained around"
)


@dataclass(frozen=True)
class Point:
    """One point of the gate. `passed` is None if it could not be judged; `advice` says why and what to do."""

    name: str
    passed: bool | None
    found: str
    advice: str = ""
    details: str = ""


def judge(run: Run, trial: Trial, recompute: bool = False) -> list[Point]:
    """Return the nine points in order. The last one writes the model card."""
    return [
        _base(run, trial),
        _hyperparameters(run, trial),
        _template(run, trial),
        _count(run, trial),
        _ppl_before(run, trial, recompute),
        _trained(run),
        _after(run, trial, recompute),
        _decision(run),
        _card(run, trial),
    ]


def _not_judged(name: str, trial: Trial) -> Point:
    advice = "it needs the base with the adapter on it: run the gate where both can be loaded (see --base)"
    return Point(name, None, trial.trouble, advice)


def _licence(run: Run, trial: Trial) -> str | None:
    """Return the base's licence; None if it is unknown."""
    known = run.choices.licence or (trial.base.licence if trial.base else "unknown")
    return None if known.startswith("unknown") else known


def _base(run: Run, trial: Trial) -> Point:
    name = "base and licence"
    if trial.base is None:
        return Point(name, False, trial.trouble, _which_base(run.base_name))
    licence = _licence(run, trial)
    found = f"{trial.base.name}, licence {licence or 'unknown'}"
    advice = (
        "an adapter is usually treated as derived from its base, so the base's terms bind it too; "
        "read them and give the licence, e.g. --licence apache-2.0"
    )
    return Point(name, licence is not None, found, "" if licence else advice)


def _which_base(name: str | None) -> str:
    if copy := UNSLOTH.fullmatch(name or ""):
        return (
            f"{name} is Unsloth's 4-bit copy: give the model in 16 bits, e.g. --base {copy[1]}, or the folder of the "
            "original; it is loaded in 4 bits"
        )
    return "an adapter is useless without its base; give the base's Hub id or folder with --base"


def _hyperparameters(run: Run, trial: Trial) -> Point:
    name = "hyperparameters"
    if trial.base is None:
        return _not_judged(name, trial)
    settings, training, base = run.settings, run.training, trial.base
    wrong = _unusual_factors(settings, trial.expected) + _unusual_dropout(settings.lora_dropout)
    wrong += _unusual_rate(training.learning_rate, settings, base) + _unusual_epochs(training, base)
    wrong += _false_claims(run, trial.expected)
    found = f"rank {settings.r}, alpha {settings.lora_alpha:g}, dropout {settings.lora_dropout:g}"
    known = {"learning rate": training.learning_rate, "epochs": training.epochs}
    found += "".join(f", {_with_unit(what, value)}" for what, value in known.items() if value is not None)
    unknown = [what for what, value in known.items() if value is None]
    if wrong or not unknown:
        return Point(name, not wrong, found, "; ".join(wrong))
    advice = f"compare them with this base's own: learning rate {base.learning_rate:g}, {base.epochs} epochs"
    return Point(name, None, f"{found}; {' and '.join(unknown)} {NO_RECORD}", advice)


def _with_unit(what: str, value: float) -> str:
    return f"{value:g} epochs" if what == "epochs" else f"{what} {value:g}"


def _unusual_factors(settings: LoraConfig, expected: Expected | None) -> list[str]:
    """Judge the factor of every adapted layer: patterns may give some layers others."""
    factors = expected.factors if expected else {(settings.r, settings.lora_alpha)}
    return [wrong for rank, alpha in sorted(factors) if (wrong := _unusual_factor(rank, alpha, settings.use_rslora))]


def _unusual_factor(rank: int, alpha: float, use_rslora: bool) -> str:
    if use_rslora:
        name, divisor, (low, high), usual = "alpha/root of rank", math.sqrt(rank), ALPHA_PER_ROOT, "8"
    else:
        name, divisor, (low, high), usual = "alpha/rank", rank, ALPHA_PER_RANK, "2 x rank"
    factor = alpha / divisor
    if low <= factor <= high:
        return ""
    return (
        f"{name} is {factor:g}, outside {low:g} to {high:g}: it scales the adapter, so it acts like another learning "
        f"rate; take alpha = {usual}"
    )


def _unusual_dropout(dropout: float) -> list[str]:
    if 0 <= dropout <= MAX_DROPOUT:
        return []
    return [
        f"dropout {dropout:g} is outside 0 to {MAX_DROPOUT:g}: it hides too much of the input from an adapter so small; "
        "take 0.05"
    ]


def _unusual_rate(rate: float | None, settings: LoraConfig, base: Base) -> list[str]:
    same = (
        known for known in PROFILES.values() if base.name == known.name or base.source == profile_source(known.name)
    )
    profile = next(same, None)
    own, slack = (profile.learning_rate, 1.0) if profile else (base.learning_rate, RULE_SLACK)
    good = 1.0 if settings.use_rslora else math.sqrt(USUAL_RANK / settings.r)
    low = own * min(1, good) / RATE_FACTOR / slack
    high = own * min(max(1, good * RATE_FACTOR), HIGHEST_SHARE) * slack  # the base's own rate is always accepted
    if rate is None or low <= rate <= high:
        return []
    return [
        f"the learning rate is outside {low:.3g} to {high:.3g}, the range of this base at rank {settings.r}: lower barely "
        f"trains, higher diverges; take {own:g}"
    ]


def _unusual_epochs(training: Training, base: Base) -> list[str]:
    """Judge the epochs by the held-out loss, where it was logged, or by the base's own number."""
    if len(training.curve) > 1:
        (best_epoch, best), (_, last) = min(training.curve, key=lambda point: point[1]), training.curve[-1]
        if last <= best + RISE:
            return []
        return [
            f"the held-out loss rose from {best:.3g} in epoch {best_epoch:g} to {last:.3g}: the later epochs only memorise "
            "the pairs; keep the checkpoint of that epoch"
        ]
    if training.epochs is None or 0 < training.epochs <= EPOCHS_FACTOR * base.epochs:
        return []
    return [
        f"{training.epochs:g} epochs, where {base.epochs} are usual on this base: more than {EPOCHS_FACTOR * base.epochs} "
        "only memorise the pairs; see in which epoch held-out perplexity begins to rise"
    ]


def _false_claims(run: Run, expected: Expected | None) -> list[str]:
    """Name the settings on which the record and the adapter's configuration disagree."""
    record, settings = run.record, run.settings
    if record is None or expected is None:
        return []
    claims: dict[str, tuple[Any, Any]] = {
        "rank": (record.rank, settings.r),
        "alpha": (record.alpha, settings.lora_alpha),
        "dropout": (record.dropout, settings.lora_dropout),
        "targets": (sorted(record.targets), expected.targets),
    }
    if record.adapter:
        layers = record.adapter.layers
        claims["layers"] = (layers, layers and sorted(expected.layers))
        claims["further settings"] = (record.adapter, adapter_settings(settings, layers))
    wrong = [name for name, (claimed, found) in claims.items() if claimed != found]
    if not wrong:
        return []
    return [f"run.json and {CONFIG_FILE} disagree on {', '.join(wrong)}: train again into an empty folder"]


def _template(run: Run, trial: Trial) -> Point:
    name = "chat template and EOS"
    if trial.base is None or trial.expected is None:
        return _not_judged(name, trial)
    if trial.tokenizer is None:
        advice = "without template and tokens that fit, training and use put a question into different prompts"
        return Point(name, False, trial.trouble, advice)
    try:
        encode_all(run.pairs, trial.tokenizer, trial.base.max_length)
    except PairsError as error:
        advice = "the model would not learn where an answer ends; shorten the pair, or use the base's instruct version"
        return Point(name, False, str(error), advice)
    if run.record is None:
        advice = "check that the labels end with the end-of-answer token; point 7 counts the answers that end"
        return Point(name, None, f"how the training pairs ended {NO_RECORD}", advice)
    ends, pairs = run.record.ends, run.record.train_pairs
    if ends is None:
        advice = "an older loralab did not count them; check where the answers end, or train again"
        return Point(name, None, "how the training pairs ended is not recorded", advice)
    found = f"{trial.tokenizer.eos_token} is the last label of {ends} of {pairs} training pairs"
    advice = "an end that is masked or cut off is not learned, and answers run on; encode with loralab.encode"
    return Point(name, ends == pairs, found, "" if ends == pairs else advice)


def _count(run: Run, trial: Trial) -> Point:
    name, expected = "trainable parameters", trial.expected
    if expected is None:
        return _not_judged(name, trial)
    made = (expected.trainable, expected.parameters)
    claimed = (run.record.trainable, run.record.parameters) if run.record else made
    held = sum(tensor.numel() for tensor in run.weights.values())
    trainable, parameters = claimed
    found = f"{trainable:,} of {parameters:,} ({100 * trainable / parameters:.4f} %), {held:,} in the file"
    if trial.misfit:
        return Point(name, False, found, trial.misfit)
    advice = (
        f"rank {run.settings.r} on {', '.join(expected.targets)} makes exactly {expected.trainable:,} of "
        f"{expected.parameters:,}: more means that the base was not frozen, less that targets were missed; "
        "check print_trainable_parameters() before training"
    )
    return Point(name, claimed == made, found, "" if claimed == made else advice)


def _ppl_before(run: Run, trial: Trial, recompute: bool) -> Point:
    name, (again, _), results = "PPL before", trial.ppl, trial.results(run)
    if not run.measured and again is None:
        return _unmeasured(name, run, trial)
    claimed = results.ppl[0]
    found = f"{_ppl(claimed, again, run.measured)} on {results.pairs} held-out pairs"
    if run.leaks:
        found += f", {run.leaks} of them trained on"
    wrong = _false_ppl(claimed, again) + _leaked(run.leaks)
    if wrong:
        return Point(name, False, found, "; ".join(wrong))
    if recompute and again is None:
        return Point(name, None, found, f"it could not be measured again: {trial.trouble}")
    if run.leaks is None:
        why = "is not recorded" if run.record else NO_RECORD
        advice = "compare held-out and training pairs yourself (loralab.find_leaks), or train again with loralab"
        return Point(name, None, f"{found}; whether they were trained on {why}", advice)
    return Point(name, True, found)


def _unmeasured(name: str, run: Run, trial: Trial) -> Point:
    """Return the point of a measure that neither the training nor the gate has taken."""
    if run.pairs:
        return _not_judged(name, trial)
    return Point(name, None, "not measured in training" if run.record else NO_RECORD, MEASURE_IT)


def _false_ppl(claimed: float | None, again: float | None) -> list[str]:
    if not _is_number(claimed):
        return ["without it the change by training is unknown; pass eval_pairs to train()"]
    if again is None or same_ppl(claimed, again):
        return []
    return ["run.json has another PPL than this base on these pairs: train again"]


def _leaked(leaks: int | None) -> list[str]:
    if not leaks:
        return []
    return [
        f"held-out pairs were trained on: the instruction or the answer of {leaks} is in the training pairs, so PPL and "
        "scores show memory, not ability; take them out of the training pairs and train again"
    ]


def _trained(run: Run) -> Point:
    name, losses = "trained", run.training.losses
    start, end = loss_ends(losses)
    grown = (".lora_B.", ".lora_embedding_A")  # what peft starts at zero
    largest = max((t.abs().max().item() for n, t in run.weights.items() if any(g in n for g in grown)), default=0.0)
    wrong = []
    if not all(torch.isfinite(tensor).all() for tensor in run.weights.values()) or not all(map(math.isfinite, losses)):
        wrong.append("it diverged: NaN or infinity in the adapter or its losses; lower the learning rate")
    elif (run.record or losses) and not end < start:
        wrong.append("the loss does not fall, so nothing was learned: check the learning rate, the labels and the data")
    if largest == 0:
        wrong.append("B is all zeros, so the adapter does nothing: it was saved before training, or never trained")
    found = f"max |B| = {largest:.3g}"
    if run.record or losses:
        of = "steps" if run.record else "entries of the log"
        return Point(name, not wrong, f"loss {start:.2f} to {end:.2f} in {len(losses)} {of}, {found}", "; ".join(wrong))
    advice = "; ".join(wrong) or "see in the log of the training whether the loss fell"
    return Point(name, False if wrong else None, f"{found}; the loss {NO_RECORD}", advice)


def _after(run: Run, trial: Trial, recompute: bool) -> Point:
    name, (_, again), results = "PPL after and samples", trial.ppl, trial.results(run)
    if not run.measured and again is None:
        return _unmeasured(name, run, trial)
    wrong = _worse(*results.ppl, again) + (_false_scores(run, trial) if recompute else []) + _unable(trial, results)
    found = "; ".join([_ppl(results.ppl[1], again, run.measured), *_ability(trial, results), *_answers(trial.samples)])
    if not wrong and not trial.samples:
        return Point(name, None, found, f"no answers could be generated: {trial.trouble}")
    return Point(name, not wrong, found, "; ".join(wrong), "\n\n".join(map(_shown, trial.shown)))


def _worse(before: float | None, after: float | None, again: float | None) -> list[str]:
    if not _is_number(after):
        return ["only held-out pairs show whether an adapter helps; give train() eval_pairs"]
    if again is not None and not same_ppl(after, again):
        return ["run.json has another PPL than this adapter on these pairs: was it replaced after training?"]
    if _is_number(before) and after >= before:
        return ["it is no better than its base on held-out pairs; check the learning rate, the epochs and the data"]
    return []


def _false_scores(run: Run, trial: Trial) -> list[str]:
    """Compare the recorded scores with those that were measured again."""
    if trial.after is None or run.record is None or run.record.scores_after is None:
        return []
    claimed, found = run.record.scores_after, trial.after.scores
    if abs(claimed.exact - found.exact) <= EXACT_TOLERANCE * found.count:
        return []
    return [f"run.json has {claimed.exact} exact answers of {claimed.count}, measured again {found.exact}"]


def _unable(trial: Trial, results: Results) -> list[str]:
    """Say what the adapter cannot do, from what was measured here and, for exact match, from the record."""
    if trial.before is None or trial.after is None:
        return []
    wrong = ignores_question(trial.before.control, trial.after.control)
    wrong += no_better_than_chance(trial.after.chosen, trial.after.choices)
    if results.record_scores:
        wrong += wrong_answers(*results.record_scores)
    return wrong + fault_causes(trial.samples)


def _ability(trial: Trial, results: Results) -> list[str]:
    """Describe what was measured, in the order of the table."""
    found = []
    if results.record_scores:
        was, now = (scores.exact_match for scores in results.record_scores)
        found.append(f"exact match {was.value:.2f} to {now}")
    if trial.after and trial.after.chosen:
        found.append(f"own answer first among {trial.after.choices} in {trial.after.chosen}")
    if trial.after and trial.after.control:
        found.append(f"the right question saves {gain_text(trial.after.control)}")
    return found


def _answers(samples: list[Sample]) -> list[str]:
    if not samples:
        return []
    changed = sum(sample.before != sample.after for sample in samples)
    counted = (f"{count} {name}" for name, count in faults(samples).items())
    return [", ".join([f"of {len(samples)} answers {changed} changed", *counted])]


def _shown(sample: Sample) -> str:
    texts = {"right answer": sample.wanted, "before": sample.before, "after": sample.after}
    return "\n".join([sample.question, *(f"  {name}:\n{indent(text, '    ')}" for name, text in texts.items())])


def _decision(run: Run) -> Point:
    decision = run.choices.decision
    if decision is None:
        uses = "; ".join(f"{name} ({use})" for name, use in DECISIONS.items())
        advice = f"to serve it, one must know what to load; give --decision {uses}"
        return Point("merge decision", False, "not made", advice)
    note = f"; {MERGE_QUANTISED}" if decision == "merge" and run.quantization else ""
    return Point("merge decision", True, f"{decision}: {DECISIONS[decision]}{note}")


def _card(run: Run, trial: Trial) -> Point:
    path = run.folder / CARD_FILE
    earlier = judged_on(path)
    kept = ""
    if earlier and earlier != run.digest:
        kept = (
            f" kept as it is: it shows a judgement on other pairs (digest {earlier[:SHOWN_DIGITS]}); give those with --eval, "
            "or delete it for a new one"
        )
    try:
        if not kept:
            write_card(run, trial, _licence(run, trial))
        problem = card_problem(path)
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
    advice = (
        f"without a card, users cannot know what the adapter is for; correct {CARD_FILE}, or delete it for a new one"
    )
    hint = kept or ("" if run.choices.data else " (describe the data with --data)")
    return Point("model card", not problem, problem or f"{CARD_FILE}{hint}", advice if problem else "")


def _is_number(ppl: float | None) -> TypeGuard[float]:
    return ppl is not None and math.isfinite(ppl)


def _ppl(claimed: float | None, again: float | None, recorded: bool) -> str:
    found = "not measured" if claimed is None else f"PPL {claimed:.2f}"
    return f"{found}, measured again {again:.2f}" if recorded and again is not None else found
