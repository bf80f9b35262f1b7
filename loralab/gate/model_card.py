"""The model card of an adapter: what it was made from, how, and with which results."""

from __future__ import annotations

import math
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import BitsAndBytesConfig

from ..ability import gain_text
from ..errors import first_line
from ..files import write_whole
from ..fourbit import FORMATS
from .run import Run
from .trial import Results, Trial

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
MARK = "<!-- Written by `loralab gate`, and rewritten at every call. To edit the card by hand, delete this line. -->"
PEFT_FORM = "# Model Card for Model ID"
METHODS = {"lora": "LoRA", "qlora": "QLoRA"}
UNKNOWN = "not measured"


def write_card(run: Run, trial: Trial, licence: str | None = None) -> Path:
    """Write the run's card into its folder; it appears whole or not at all. A card edited by hand is left alone."""
    path = run.folder / CARD_FILE
    if path.is_file() and not _is_ours(path):
        return path
    hub_id = trial.base.source if trial.base is not None and not Path(trial.base.source).is_dir() else ""
    base_model = hub_id or _portable_name(run, trial)
    results = trial.results(run)
    card = ModelCard.from_template(
        _metadata(run, results, base_model, licence),
        template_path=str(TEMPLATE),
        mark=MARK,
        name=run.name,
        record=run.record,
        method=METHODS.get(run.method, run.method),
        base_model=base_model,
        on_hub=bool(hub_id),
        licence=licence or "unknown",
        data=run.choices.data or 'The data was not described; do it with `loralab gate RUN --data "..."`.',
        settings=_settings(run, trial),
        quantization=_code(run.quantization) if run.quantization else "",
        results=_rows(run, trial, results),
        scores=results.record_scores[1] if results.record_scores else None,
        samples=trial.shown,
        block=_block,
    )
    return write_whole(path, str(card))


def card_problem(path: Path) -> str:
    """Return what the card at `path` lacks for the Hub; empty if nothing."""
    if not path.is_file():
        return "there is no card"
    try:
        data = ModelCard.load(path).data
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        return f"its metadata cannot be read ({first_line(error)})"
    missing = [name for name in ("base_model", "license", "library_name") if not data.get(name)]
    return f"its metadata lacks {', '.join(missing)}" if missing else ""


def judged_on(path: Path) -> str | None:
    """Return the digest of the pairs whose results the gate's own card at `path` shows; None if there are none."""
    if not path.is_file() or not _is_ours(path):
        return None
    try:
        results: list[EvalResult] = ModelCard.load(path).data.eval_results or []
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None
    return next((result.dataset_revision for result in results), None)


def _is_ours(path: Path) -> bool:
    """Tell whether the card is the gate's own, or the empty form that peft saves."""
    text = path.read_text("utf-8", errors="replace")
    return MARK in text or PEFT_FORM in text


def _portable_name(run: Run, trial: Trial) -> str:
    """Return a name of the base that is no path: local paths are not portable."""
    if run.record:
        return run.record.base
    return trial.base.name if trial.base else Path(run.base_name or "unknown").name


def _metadata(run: Run, results: Results, base_model: str, licence: str | None) -> ModelCardData:
    return ModelCardData(
        base_model=base_model,
        license=licence.lower() if licence else "unknown",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora"] if run.method == "lora" else ["lora", run.method],
        model_name=run.name,
        eval_results=_eval_results(run, results) or None,
    )


def _eval_results(run: Run, results: Results) -> list[EvalResult]:
    """Perplexity and exact match, as the Hub shows them beside the card."""
    found = [
        _result(run, results.pairs, "perplexity", when, ppl)
        for when, ppl in zip(("before", "after"), results.ppl, strict=True)
        if ppl is not None and math.isfinite(ppl)
    ]
    if results.record_scores:
        after = results.record_scores[1]
        found.append(_result(run, after.count, "exact_match", "after", after.exact_match.value))
    return found


def _result(run: Run, pairs: int, measure: str, when: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-pairs",
        dataset_name=f"{pairs} held-out instruction pairs",
        dataset_revision=run.digest,
        metric_type=measure,
        metric_name=f"{measure.replace('_', ' ')} {when} training",
        metric_value=round(value, 4),
    )


def _settings(run: Run, trial: Trial) -> list[tuple[str, str]]:
    """Return the rows of the table of the method."""
    settings, record = run.settings, run.record
    layers = trial.expected.targets if trial.expected else record.targets if record else []
    rows = [
        ("method", METHODS.get(run.method, run.method) + (_in_words(run.quantization) if run.quantization else "")),
        ("rank, alpha, dropout", f"{settings.r}, {settings.lora_alpha}, {settings.lora_dropout}"),
    ]
    if layers:
        rows.append(("target modules", ", ".join(layers)))
    if record:
        rows.append(("epochs, batch size", f"{record.epochs:g}, {record.batch_size}"))
        rows.append(("learning rate, seed", f"{record.learning_rate}, {record.seed}"))
        share = f"{record.trainable:,} of {record.parameters:,} parameters ({record.trainable_percent:.4f} %)"
        rows.append(("trainable share", share))
    return [*rows, ("merged or kept apart", run.choices.decision or "not decided yet")]


def _in_words(quantization: BitsAndBytesConfig) -> str:
    if quantization.load_in_8bit:
        return ", the base in 8 bits"
    double = ", double quantisation" if quantization.bnb_4bit_use_double_quant else ""
    return f", the base in 4 bits ({quantization.bnb_4bit_quant_type.upper()}{double})"


def _code(quantization: BitsAndBytesConfig) -> str:
    """Return the settings as Python writes them."""
    used = [name for name in FORMATS if ("4bit" in name) != quantization.load_in_8bit and getattr(quantization, name)]
    return f"BitsAndBytesConfig({', '.join(f'{name}={getattr(quantization, name)!r}' for name in used)})"


def _rows(run: Run, trial: Trial, results: Results) -> list[tuple[str, str, str]]:
    """Return the rows of the table of results: what was measured, before and after training."""
    before, after = results.ppl
    rows = [(f"perplexity of {results.pairs} held-out answers", _number(before), _number(after))]
    if results.record_scores:
        was, now = (scores.exact_match for scores in results.record_scores)
        rows.append((f"exact match of {now.of} generated answers", str(was), str(now)))
    if trial.after and trial.after.chosen:
        rows.append((f"right answer ranked first among {trial.after.choices}", UNKNOWN, str(trial.after.chosen)))
    name = "question control: what the right question saves"
    if trial.after and trial.after.control:
        old = gain_text(trial.before.control) if trial.before and trial.before.control else UNKNOWN
        rows.append((name, old, gain_text(trial.after.control)))
    elif run.record and run.record.question_gain is not None:
        rows.append((name, UNKNOWN, f"{run.record.question_gain:.2f} nats per token"))
    return rows


def _block(text: str) -> str:
    """Return the text as a code block, whose fence is longer than any row of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip() or '(empty)'}\n{fence}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"
