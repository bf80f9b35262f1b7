"""The trusted evaluation: everything a verdict needs, recomputed from the saved adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loralab import Base, HeldOut, RunRecord, data_path, held_out, load_model, load_tokenizer, read_pairs
from loralab.desk import draw, first_facts
from loralab.precision import Precision
from loralab.shapes import Shape, adapter_shape

from .adapter import Adapter, Refused, attach, read_adapter

FRESH_PAIRS = 100


@dataclass(frozen=True)
class BeforeAfter:
    """The base's and the adapted model's loss on the same pairs."""

    before: HeldOut
    after: HeldOut

    @property
    def ratio(self) -> float:
        """Perplexity after over perplexity before; below 1 is better than the base."""
        return self.after.ppl / self.before.ppl


@dataclass(frozen=True)
class Evidence:
    """What the grader itself measured of one run, beside what the run claims."""

    adapter: Adapter
    shape: Shape
    claim: RunRecord
    fresh: BeforeAfter
    public: BeforeAfter
    general: BeforeAfter


class Evaluator:
    """Holds the grader's own copy of the base, measured once, and evaluates adapters on it.

    `seed` draws the held-out pairs; a submission never sees it.
    """

    def __init__(self, base: Base, seed: int, hardware: Precision | None = None) -> None:
        self.base, self.seed = base, seed
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(base)
        self.model: PreTrainedModel = load_model(base, hardware)
        self.pairs = {
            "fresh": draw(seed, FRESH_PAIRS, among=first_facts()),
            "public": read_pairs(data_path("pairs/eval.jsonl")),
            "general": read_pairs(data_path("pairs/general.jsonl")),
        }
        self.before = self._measure(self.model)

    def _measure(self, model: PreTrainedModel) -> dict[str, HeldOut]:
        return {
            kind: held_out(model, self.tokenizer, pairs, self.base.max_length) for kind, pairs in self.pairs.items()
        }

    def evaluate(self, folder: Path) -> Evidence:
        """Everything measured of the run in `folder`. Raises `Refused` if it cannot be evaluated."""
        adapter = read_adapter(folder, self.base.source)
        claim = _read_claim(folder, self.base)
        model = attach(self.model, adapter)
        try:
            after = self._measure(model)
        finally:
            self.model = model.unload()
        measured = {kind: BeforeAfter(self.before[kind], after[kind]) for kind in after}
        shape = adapter_shape(self.base.source, adapter.settings.r, adapter.settings.targets)
        return Evidence(adapter, shape, claim, **measured)


def _read_claim(folder: Path, base: Base) -> RunRecord:
    try:
        claim = RunRecord.load(folder)
    except ValueError as error:
        raise Refused(str(error).replace(f"{folder.parent}/", "")) from None
    if claim.base != base.name:
        raise Refused(f"run.json says it was trained on {claim.base!r}, but {base.name!r} is being graded")
    return claim
