"""The model card of an adapter: what it was made from, how, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .bases import Base
from .errors import first_line
from .files import write_whole
from .record import RunRecord

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
MARK = "<!-- Written by `loralab gate`, and written anew at every call. To edit the card by hand, delete this line. -->"


@dataclass(frozen=True)
class Sample:
    """A question with the greedy answers of the base alone and of the base with the adapter."""

    question: str
    before: str
    after: str
    ended: bool  # whether the answer after training stopped by itself


def write_card(
    folder: Path,
    record: RunRecord,
    base: Base | None = None,
    *,
    licence: str | None = None,
    data: str | None = None,
    decision: str | None = None,
    samples: Sequence[Sample] = (),
) -> Path:
    """Write the run's card into its folder; it appears whole or not at all. A card kept by hand is left alone."""
    path = folder / CARD_FILE
    if _kept_by_hand(path):
        return path
    on_hub = base is not None and not Path(base.source).is_dir()
    base_model = base.source if on_hub else record.base  # a path of this machine would help nobody
    card = ModelCard.from_template(
        _metadata(record, base_model, licence),
        template_path=str(TEMPLATE),
        mark=MARK,
        record=record,
        method={"lora": "LoRA", "qlora": "QLoRA"}.get(record.method, record.method),
        quantised=record.method == "qlora",
        base_model=base_model,
        on_hub=on_hub,
        licence=licence or "unknown",
        data=data or 'What the data is was not recorded; say it with `loralab gate RUN --data "..."`.',
        decision=decision or "not decided yet",
        samples=samples,
        ppl_before=_number(record.ppl_before),
        ppl_after=_number(record.ppl_after),
    )
    return write_whole(path, str(card))


def card_problem(path: Path) -> str:
    """What a reader of the hub would miss in the card at `path`; empty if nothing."""
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
    """Both perplexities, as the hub shows them beside the card."""
    measured = {"before": record.ppl_before, "after": record.ppl_after}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out-pairs",
            dataset_name=f"{record.eval_pairs} held-out instruction pairs",
            metric_type="perplexity",
            metric_name=f"perplexity {when} training",
            metric_value=round(value, 4),
        )
        for when, value in measured.items()
        if value is not None and math.isfinite(value)
    ]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
