"""The checks of a verdict: each compares what was recomputed with what must hold, and says why it fails."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from .bands import BaseBands
from .evaluate import Evidence
from .exercises import Exercise

CLAIM_TOLERANCE = 0.05  # relative, on perplexities: fp16 on a GPU against fp32 on a CPU differ by less
# The share of the reference runs' gain, in nats, that passes: seeds alone do not know other honest batch sizes.
HONEST_SHARE = 0.7
MAX_PAIRED_LOSS = 0.0  # nats per token: a base without bands must at least improve for certain


class Check(BaseModel):
    """One line of a verdict."""

    model_config = ConfigDict(frozen=True)

    name: str
    expected: str
    found: str
    points: float
    passed: bool
    message: str = ""

    @property
    def earned(self) -> float:
        return self.points if self.passed else 0.0


def check_all(exercise: Exercise, evidence: Evidence, bands: BaseBands | None) -> list[Check]:
    """Every check of an exercise with one adapter, in the order of the report; the points sum to 100."""
    return [
        _rank_and_targets(exercise, evidence),
        _trainable(exercise, evidence),
        _size(evidence),
        _moved(evidence),
        _loss(evidence),
        _held_out(evidence, bands),
        _forgetting(evidence, bands),
        _honest(evidence),
    ]


def _rank_and_targets(exercise: Exercise, evidence: Evidence) -> Check:
    settings = evidence.adapter.settings
    passed = (settings.r, set(settings.targets)) == (exercise.rank, set(exercise.targets))
    missing = [name for name in exercise.targets if name not in settings.targets]
    message = ""
    if settings.r != exercise.rank:
        message = f"the adapter has rank {settings.r}; set r={exercise.rank} in LoraConfig"
    elif missing:
        message = f"target_modules lacks {', '.join(missing)}"
    elif not passed:
        message = f"target_modules has more than {', '.join(exercise.targets)}"
    return Check(
        name="rank and targets",
        expected=f"r={exercise.rank} on {', '.join(exercise.targets)}",
        found=f"r={settings.r} on {', '.join(settings.targets)}",
        points=10,
        passed=passed,
        message=message,
    )


def _trainable(exercise: Exercise, evidence: Evidence) -> Check:
    shape = evidence.shape
    found = evidence.adapter.parameters
    claimed = (evidence.claim.trainable, evidence.claim.parameters)
    passed = found == shape.trainable and claimed == (shape.trainable, shape.parameters)
    claim_percent = 100 * claimed[0] / claimed[1] if claimed[1] > 0 else math.nan
    return Check(
        name="trainable share",
        expected=f"{shape.trainable:,} of {shape.parameters:,} ({shape.trainable_percent:.4f} %)",
        found=f"{claimed[0]:,} of {claimed[1]:,} ({claim_percent:.4f} %)",
        points=10,
        passed=passed,
        message="" if passed else "what was trained is not what this configuration trains: was the base frozen?",
    )


def _size(evidence: Evidence) -> Check:
    adapter = evidence.adapter
    expected = evidence.shape.file_bytes(adapter.dtype)
    passed = adapter.file_bytes == expected == evidence.claim.adapter_bytes
    return Check(
        name="adapter size",
        expected=f"{expected:,} bytes",
        found=f"{adapter.file_bytes:,} bytes (claimed {evidence.claim.adapter_bytes or 0:,})",
        points=10,
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
        points=10,
        passed=passed,
        message=""
        if passed
        else "B is still all zeros, so the adapter does nothing: it was saved before "
        "training, or trained with a learning rate of zero",
    )


def _loss(evidence: Evidence) -> Check:
    losses = np.asarray(evidence.claim.losses)
    quarter = max(1, len(losses) // 4)
    if len(losses) == 0 or not np.isfinite(losses).all():
        start = end = math.nan
    else:
        start, end = losses[:quarter].mean(), losses[-quarter:].mean()
    passed = bool(end < start)
    return Check(
        name="training loss",
        expected="finite, last quarter below the first",
        found=f"{start:.2f} to {end:.2f} in {len(losses)} steps",
        points=10,
        passed=passed,
        message="" if passed else "run.json shows no finite, falling loss: no training, or one that diverged",
    )


def _held_out(evidence: Evidence, bands: BaseBands | None) -> Check:
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
        name="fresh held-out PPL",
        expected=expected,
        found=found,
        points=30,
        passed=passed,
        message="" if passed else _why_held_out(evidence),
    )


def _why_held_out(evidence: Evidence) -> str:
    if evidence.fresh.ratio >= 0.98:
        return "the adapter does not help on new questions: untrained, or trained on something else"
    if evidence.public.ratio < 0.5 * evidence.fresh.ratio:
        return "far better on eval.jsonl than on fresh questions: was it trained on the evaluation pairs?"
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


def _forgetting(evidence: Evidence, bands: BaseBands | None) -> Check:
    general = evidence.general
    limit = bands.general_ratio.high if bands else 2.0
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


def _honest(evidence: Evidence) -> Check:
    claim, public, settings = evidence.claim, evidence.public, evidence.adapter.settings
    wrong = []
    for name, claimed, true in (
        ("PPL before", claim.ppl_before, public.before.ppl),
        ("PPL after", claim.ppl_after, public.after.ppl),
    ):
        if claimed is None or not abs(claimed - true) <= CLAIM_TOLERANCE * true:
            wrong.append(f"{name} {claimed if claimed is None else f'{claimed:.2f}'}, recomputed {true:.2f}")
    if claim.rank != settings.r or set(claim.targets) != set(settings.targets):
        wrong.append(f"rank {claim.rank} on {', '.join(claim.targets)}, but the adapter has rank {settings.r}")
    return Check(
        name="claims of run.json",
        expected=f"PPL {public.before.ppl:.1f} and {public.after.ppl:.2f} on eval.jsonl",
        found=f"PPL {claim.ppl_before or math.nan:.1f} and {claim.ppl_after or math.nan:.2f}",
        points=10,
        passed=not wrong,
        message="run.json does not match its own adapter: " + "; ".join(wrong) if wrong else "",
    )
