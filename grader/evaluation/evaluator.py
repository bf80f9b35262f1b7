"""The trusted evaluation: everything a verdict needs, recomputed from the saved adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from loralab import (
    Base,
    HeldOut,
    Pair,
    RunRecord,
    data_path,
    encode_all,
    held_out,
    load_model,
    load_tokenizer,
    nf4,
    read_pairs,
)
from loralab.codes import locker_codes
from loralab.docstrings import draw_general
from loralab.errors import LoralabError
from loralab.far import far_pair
from loralab.measure import LanguageModel
from loralab.scores import QuestionControl, Scores, question_control, score_answers
from loralab.shapes import Shape, adapter_shape
from loralab.triage import draw

from ..errors import Refused
from ..exercises import FRESH_PAIRS, Method, RunSpec, Subject
from .adapter import Adapter, attach, read_adapter
from .adapter_settings import names_of
from .delta_w import Factors
from .effect import effects
from .probes import Probes, probe

MAX_NUMBER = 10**15  # bytes, parameters, tokens, seeds: no run of the course comes near
MAX_LENGTH = 20_000  # losses: all claims of a class are in memory until its report is written
MAX_WORDS = 50_000  # characters of all else in a record; those of the course have about 1,100
PROBE_PAIRS = 24  # enough for differences of a nat


@dataclass(frozen=True)
class Measured:
    """What one model makes of the pairs of one subject; the kinds of pairs are those of `Evaluator.pairs`.

    `scores` and `control` are of the fresh pairs: are the answers right, and do they depend on the question?
    """

    fresh: HeldOut
    public: HeldOut
    general: HeldOut
    probes: Probes
    scores: Scores
    control: QuestionControl


# The bases themselves, by how they are held and what they are asked about: the same for every submission of a class.
Baselines = Mapping[tuple[Method, Subject], Measured]


@dataclass(frozen=True)
class Evidence:
    """What the grader itself measured of one run, on the base alone and with the adapter, beside what the run claims.

    `epoch_tokens` counts the tokens of the pairs that the run should have been trained on, `vocabulary` the base's words.
    `elsewhere` is the loss on the public pairs with the same adapter on the other kind of base (4 bits for a run that
    says it was trained on 16 or 32, and the other way round), where an exercise compares the two.
    """

    adapter: Adapter
    shape: Shape
    claim: RunRecord
    before: Measured
    after: Measured
    epoch_tokens: int
    vocabulary: int
    elsewhere: HeldOut | None = None


class Evaluator:
    """Holds the grader's own copies of the base and evaluates adapters on them.

    `seed` draws the held-out pairs; a submission never sees it. `baselines` are measurements made before with the same
    base and seed; what is missing there is measured when it is needed.
    """

    def __init__(self, base: Base, seed: int, baselines: Baselines | None = None) -> None:
        disable_progress_bar()  # of transformers, at every load; the grader has one of its own
        self.base, self.seed = base, seed
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(base)
        self.models: dict[Method, PreTrainedModel] = {}
        self._pairs: dict[Subject, dict[str, list[Pair]]] = {}
        self._baselines = dict(baselines or {})

    def _model(self, method: Method) -> PreTrainedModel:
        if method not in self.models:
            self.models[method] = load_model(self.base, quantization=nf4() if method == "qlora" else None)
        return self.models[method]

    def pairs(self, subject: Subject) -> dict[str, list[Pair]]:
        """Return the pairs that an adapter of this subject is measured on: fresh, public and general ones."""
        if subject not in self._pairs:
            self._pairs[subject] = _pairs(subject, self.seed)
        return self._pairs[subject]

    def before(self, method: Method, subject: Subject) -> Measured:
        """Return what the base alone measures on the pairs."""
        if (method, subject) not in self._baselines:
            self._baselines[method, subject] = self._measure(self._model(method), subject)
        return self._baselines[method, subject]

    def after(self, adapter: Adapter, method: Method, subject: Subject) -> Measured:
        """Return what the base measures on them with the adapter."""
        with self._attached(adapter, method) as model:
            return self._measure(model, subject)

    def _measure(self, model: LanguageModel, subject: Subject) -> Measured:
        pairs, tokenizer, length = self.pairs(subject), self.tokenizer, self.base.max_length
        fresh = pairs["fresh"]
        losses = {kind: held_out(model, tokenizer, of_kind, length) for kind, of_kind in pairs.items()}
        return Measured(
            **losses,
            probes=probe(model, tokenizer, fresh[:PROBE_PAIRS], length),
            scores=score_answers(model, tokenizer, fresh),
            control=question_control(model, tokenizer, fresh, length, own=losses["fresh"]),
        )

    @contextmanager
    def _attached(self, adapter: Adapter, method: Method) -> Iterator[PeftModel]:
        """Attach the adapter to this kind of base, and detach it at the end."""
        model = attach(self._model(method), adapter)
        try:
            yield model
        finally:
            self.models[method] = model.unload()

    def evaluate(self, run: RunSpec, folder: Path, elsewhere: bool = False) -> Evidence:
        """Measure the run in `folder`; with `elsewhere`, also on the other kind of base.

        Raises `Refused` if it cannot be evaluated.
        """
        adapter = read_adapter(folder, self.base)
        return Evidence(
            adapter=adapter,
            shape=adapter_shape(self.base.source, adapter.settings.r, adapter.settings.targets),
            claim=_read_claim(folder, self.base),
            before=self.before(run.method, run.subject),
            after=self.after(adapter, run.method, run.subject),
            epoch_tokens=self._epoch_tokens(run),
            vocabulary=len(self.tokenizer),
            elsewhere=self._elsewhere(run, adapter) if elsewhere else None,
        )

    def effects(self, evidence: Mapping[str, Evidence]) -> dict[str, Factors]:
        """Return what each adapter changes at the inputs of the base's layers, for fresh messages and answers."""
        if not evidence:
            return {}
        changes = {name: one.adapter.change for name, one in evidence.items()}
        encoded = encode_all(self.pairs("triage")["fresh"][:PROBE_PAIRS], self.tokenizer, self.base.max_length)
        return effects(self._model("lora"), [one["input_ids"] for one in encoded], changes)

    def _epoch_tokens(self, run: RunSpec) -> int:
        encoded = encode_all(_stored(run.subject, "train")[: run.pairs], self.tokenizer, self.base.max_length)
        return sum(len(one["input_ids"]) for one in encoded)

    def _elsewhere(self, run: RunSpec, adapter: Adapter) -> HeldOut:
        other: Method = "lora" if run.method == "qlora" else "qlora"
        with self._attached(adapter, other) as model:
            return held_out(model, self.tokenizer, self.pairs(run.subject)["public"], self.base.max_length)


def _pairs(subject: Subject, seed: int) -> dict[str, list[Pair]]:
    """Return the pairs of a subject by kind; memorised codes have no fresh ones.

    General pairs are drawn too: on public ones a student could train, and forgetting would not show.
    """
    fresh = locker_codes() if subject == "codes" else draw(seed, FRESH_PAIRS)
    fresh = [far_pair(pair) for pair in fresh] if subject == "far" else fresh
    return {"fresh": fresh, "public": _stored(subject, "eval"), "general": list(draw_general(seed, FRESH_PAIRS))}


def _stored(subject: Subject, kind: str) -> list[Pair]:
    """Return the pairs of a subject that students have, for training ("train") or evaluation ("eval")."""
    if subject == "codes":
        return locker_codes()
    return read_pairs(data_path(f"pairs/far/{kind}.jsonl" if subject == "far" else f"pairs/{kind}.jsonl"))


def _read_claim(folder: Path, base: Base) -> RunRecord:
    try:
        claim = RunRecord.load(folder)
    except LoralabError as error:
        raise Refused(str(error).replace(f"{folder.parent}/", "")) from None
    if too_large := [name for name, value in claim if isinstance(value, int) and abs(value) > MAX_NUMBER]:
        raise Refused(
            f"run.json: {too_large[0]} is out of range for a training run: submit the record as it was written"
        )
    if too_long := [name for name, value in claim if isinstance(value, Sized) and len(value) > MAX_LENGTH]:
        raise Refused(
            f"run.json: {too_long[0]} has more than {MAX_LENGTH:,} entries, far more than any training run of this course: "
            "submit the record as it was written"
        )
    if (words := len(claim.model_dump_json(exclude={"losses"}))) > MAX_WORDS:
        raise Refused(
            f"run.json has {words:,} characters in addition to its losses, more than the {MAX_WORDS:,} allowed: "
            "submit the record as it was written"
        )
    if claim.base not in names_of(base):
        raise Refused(f"run.json says it was trained on {claim.base!r}, but {base.name!r} is being graded")
    return claim


def perplexities(evidence: dict[str, Evidence]) -> dict[str, float]:
    """Return the perplexities that a verdict shows, by label: all kinds of pairs for one run, fresh pairs for several."""
    if len(evidence) > 1:
        named = {name: (one.before.fresh, one.after.fresh) for name, one in evidence.items()}
    else:
        (one,) = evidence.values()
        named = {
            "fresh questions": (one.before.fresh, one.after.fresh),
            "eval.jsonl": (one.before.public, one.after.public),
            "general questions": (one.before.general, one.after.general),
        }
    found: dict[str, float] = {}
    for name, (before, after) in named.items():
        found |= {f"{name}, before": before.ppl, f"{name}, after": after.ppl}
    return found
