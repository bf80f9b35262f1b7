"""The model card of an adapter: what it was made from, how, and with which results."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .ability import Ability, Sample, gain_text
from .bases import Base
from .errors import first_line
from .files import write_whole
from .record import RunRecord
from .scores import Scores

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
MARK = "<!-- Written by `loralab gate`, and rewritten at every call. To edit the card by hand, delete this line. -->"


def write_card(
    folder: Path,
    record: RunRecord,
    base: Base | None = None,
    *,
    licence: str | None = None,
    data: str | None = None,
    decision: str | None = None,
    samples: Sequence[Sample] = (),
    before: Ability | None = None,
    after: Ability | None = None,
) -> Path:
    """Write the run's card into its folder; it appears whole or not at all. A card edited by hand is left alone.

    `before` and `after` are what the gate measured of the base and of the adapter; the rest comes from the record.
    """
    path = folder / CARD_FILE
    if _kept_by_hand(path):
        return path
    hub_id = base.source if base is not None and not Path(base.source).is_dir() else ""
    base_model = hub_id or record.base  # local paths are not portable
    card = ModelCard.from_template(
        _metadata(record, base_model, licence),
        template_path=str(TEMPLATE),
        mark=MARK,
        record=record,
        method={"lora": "LoRA", "qlora": "QLoRA"}.get(record.method, record.method),
        quantised=record.method == "qlora",
        base_model=base_model,
        on_hub=bool(hub_id),
        licence=licence or "unknown",
        data=data or 'The data was not described; do it with `loralab gate RUN --data "..."`.',
        decision=decision or "not decided yet",
        samples=samples,
        block=_block,
        results=_rows(record, before, after),
        scores=_record_scores(record),
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


def _kept_by_hand(path: Path) -> bool:
    return path.is_file() and MARK not in path.read_text("utf-8", errors="replace")


def _metadata(record: RunRecord, base_model: str, licence: str | None) -> ModelCardData:
    return ModelCardData(
        base_model=base_model,
        license=licence.lower() if licence else "unknown",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora"] if record.method == "lora" else ["lora", record.method],
        model_name=record.name,
        eval_results=_results(record) or None,
    )


def _results(record: RunRecord) -> list[EvalResult]:
    """Perplexity and exact match, as the Hub shows them beside the card."""
    results = [
        _result(record.eval_pairs, "perplexity", when, value)
        for when, value in (("before", record.ppl_before), ("after", record.ppl_after))
        if value is not None and math.isfinite(value)
    ]
    if scores := _record_scores(record):
        results.append(_result(scores.count, "exact_match", "after", scores.exact_match.value))
    return results


def _result(pairs: int, measure: str, when: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-pairs",
        dataset_name=f"{pairs} held-out instruction pairs",
        metric_type=measure,
        metric_name=f"{measure.replace('_', ' ')} {when} training",
        metric_value=round(value, 4),
    )


def _record_scores(record: RunRecord) -> Scores | None:
    """Return the scores after training where the right answers are records, for which exact match makes sense."""
    scores = record.scores_after
    return scores if scores and scores.valid is not None else None


def _rows(record: RunRecord, before: Ability | None, after: Ability | None) -> list[tuple[str, str, str]]:
    """Return the rows of the table of results: what was measured, before and after training."""
    rows = [
        (f"perplexity of {record.eval_pairs} held-out answers", _number(record.ppl_before), _number(record.ppl_after))
    ]
    if scores := _record_scores(record):
        was = record.scores_before.exact_match if record.scores_before else "not measured"
        rows.append((f"exact match of {scores.count} generated answers", str(was), str(scores.exact_match)))
    if after and after.chosen:
        rows.append((f"right answer ranked first among {after.choices}", "not measured", str(after.chosen)))
    if after and after.control:
        was = gain_text(before.control) if before and before.control else "not measured"
        rows.append(("question control: what the right question saves", was, gain_text(after.control)))
    elif record.question_gain is not None:
        now = f"{record.question_gain:.2f} nats per token"
        rows.append(("question control: what the right question saves", "not measured", now))
    return rows


def _block(text: str) -> str:
    """Return the text as a code block, whose fence is longer than any row of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip() or '(empty)'}\n{fence}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
