"""The operating gate: nine points that a finished run must pass before its adapter is used.

They check that the run is complete, that it describes itself correctly, and that the adapter learned to answer the
question it is asked. Whether its answers are good enough for a use, people must decide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from .ability import (
    Ability,
    Sample,
    fault_causes,
    faults,
    gain_text,
    ignores_question,
    measure,
    no_better_than_chance,
    samples_of,
    wrong_answers,
)
from .bases import PROFILES, Base, choose_base, load_model, load_tokenizer
from .card import CARD_FILE, card_problem, write_card
from .data import data_path
from .errors import LoralabError, first_line, one_line
from .files import write_whole
from .fourbit import nf4
from .measure import ADAPTER_FILE, CONFIG_FILE, LanguageModel, same_ppl
from .pairs import Pair, PairsError, encode_all
from .reading import read_pairs
from .record import RunRecord
from .scores import Scores
from .shapes import LINEAR, Shape

CHOICES_FILE = "gate.json"
Kind = TypeVar("Kind", bound=BaseModel)
SHOWN = 3  # samples that are printed and go onto the card
EXACT_TOLERANCE = 0.05  # of the answers: rounding on another machine may change a letter here and there
RATE_SHARES = (0.2, 2)  # of the base's own learning rate; three times it left the embedded base with no right answer
EPOCHS_FACTOR = 2  # more than this many times the base's own number of epochs only memorises
ALPHA_PER_RANK = (0.25, 4)  # from QLoRA (16 for rank 64) to LoRA Without Regret (32 for rank 8)
ALPHA_PER_ROOT = (0.25, 8)  # rsLoRA's: the course's 8, which suits every rank, for ranks 1024 to 1
MAX_DROPOUT = 0.2

DECISIONS = {
    "keep": "adapter and base stay apart: for a 4-bit base, or one base with many tasks",
    "merge": "one model without the adapter's arithmetic: for one task, or where answers must be fast",
    "swap": "one base in memory, adapters loaded in turn: for many tasks that run one at a time",
}
RESULTS = {True: ("pass", "green"), False: ("fail", "red"), None: ("not judged", "yellow")}
MERGE_4BIT = "merge into model.dequantize(), not into the 4-bit weights, whose rounding the adapter was trained around"


@dataclass(frozen=True)
class Point:
    """One point of the gate. `passed` is None if it could not be judged; `advice` says why and what to do."""

    name: str
    passed: bool | None
    found: str
    advice: str = ""
    details: str = ""


class Settings(BaseModel):
    """The part of `adapter_config.json` that shapes a LoRA adapter, and the values that the gate accepts."""

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1)]
    rank_pattern: Annotated[dict[str, Any], Field(max_length=0)] = {}
    lora_alpha: float
    alpha_pattern: Annotated[dict[str, Any], Field(max_length=0)] = {}
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    lora_dropout: float = 0.0
    target_modules: list[str]
    base_model_name_or_path: str | None = None


class Choices(BaseModel):
    """What only a person knows about a run; kept beside it in `gate.json`."""

    decision: str | None = None
    licence: str | None = None
    data: str | None = None


@dataclass
class Run:
    """A finished run and what was found out about it; what could not be found out is None, and `trouble` says why."""

    folder: Path
    record: RunRecord
    settings: Settings
    weights: dict[str, torch.Tensor]
    choices: Choices
    pairs: list[Pair]
    recompute: bool = False
    base: Base | None = None
    shape: Shape | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    before: Ability | None = None
    after: Ability | None = None
    samples: list[Sample] = field(default_factory=list)
    trouble: str = ""

    @property
    def fits(self) -> bool:
        """Whether the file has exactly the tensors that its configuration makes on the base."""
        found = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        return self.shape is not None and found == self.shape.tensors

    @property
    def scores(self) -> tuple[Scores, Scores] | None:
        """The scores before and after training: those of the record or, without them, those of the samples."""
        if self.record.scores_before and self.record.scores_after:
            return self.record.scores_before, self.record.scores_after
        return (self.before.scores, self.after.scores) if self.before and self.after else None

    @property
    def licence(self) -> str | None:
        """The base's licence; None if it is unknown."""
        known = self.choices.licence or (self.base.licence if self.base else "unknown")
        return None if known.startswith("unknown") else known


def gate(
    folder: str | Path,
    *,
    base: str | None = None,
    decision: str | None = None,
    licence: str | None = None,
    data: str | None = None,
    eval_file: str | Path | None = None,
    recompute: bool = False,
) -> list[Point]:
    """Judge the finished run in `folder`, write its model card, and return the nine points in order.

    A run that passes is complete, describes itself correctly and answers the question it is asked; whether its answers
    are good enough is for people to decide. `base` names the base where the run's own name for it cannot be found; `decision` (keep, merge or swap), `licence`
    (the base's) and `data` (what the pairs are) are kept in `gate.json` for later calls. `eval_file` has the held-out
    pairs, by default the course's; with `recompute` perplexities and scores are measured again on them. Raises
    `LoralabError` with one line if the folder does not hold a finished LoRA run.
    """
    folder = Path(folder)
    run = _read_run(folder, eval_file)
    if recompute and run.record.eval_pairs not in (0, len(run.pairs)):
        raise LoralabError(
            f"the run was measured on {run.record.eval_pairs} pairs, but there are {len(run.pairs)} to measure it on "
            "again; give its own file with --eval"
        )
    given = {"decision": decision, "licence": licence, "data": data}
    run.choices = _choose(folder, {name: value for name, value in given.items() if value is not None})
    run.recompute = recompute
    _try(run, base)
    return [point(run) for point in POINTS]


def show(points: list[Point], title: str = "", console: Console | None = None) -> None:
    """Print the points as a table, then the samples, then why each point that did not pass failed."""
    console = console or Console(markup=False, highlight=False)  # an answer may hold what looks like markup
    table = Table(title=f"Operating gate: {title}", title_justify="left")
    for heading in ("", "point", "result", "found"):
        table.add_column(heading, overflow="fold")
    for number, point in enumerate(points, start=1):
        word, style = RESULTS[point.passed]
        table.add_row(str(number), point.name, Text(word, style), point.found)
    console.print(table)
    for point in points:
        if point.details:
            console.print(f"\n{point.details}\n")
    for point in points:
        if not point.passed:
            console.print(Text(point.name, RESULTS[point.passed][1]) + f": {point.advice}")
    passed = sum(point.passed is True for point in points)
    console.print(f"{passed} of {len(points)} points passed")


def _read_run(folder: Path, eval_file: str | Path | None) -> Run:
    if not folder.is_dir():
        raise LoralabError(f"{folder}: no such run folder")
    record = RunRecord.load(folder)
    if not (folder / ADAPTER_FILE).is_file():
        raise LoralabError(f"{folder}: no {ADAPTER_FILE} in it; the gate judges adapters saved by save_pretrained")
    try:
        weights = load_file(folder / ADAPTER_FILE)
    except SafetensorError as error:
        raise LoralabError(f"{folder / ADAPTER_FILE}: truncated or not safetensors ({error}); save it again") from None
    settings = _read_json(folder / CONFIG_FILE, Settings)
    unknown = sorted(set(settings.target_modules) - set(LINEAR))
    if unknown:
        raise LoralabError(f"{folder / CONFIG_FILE}: targets {', '.join(unknown)}; the gate knows {', '.join(LINEAR)}")
    pairs = read_pairs(eval_file or data_path("pairs/eval.jsonl"))
    return Run(folder, record, settings, weights, Choices(), pairs)


def _read_json(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise LoralabError(f"{path.parent}: no {path.name} in it; save the adapter with save_pretrained") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LoralabError(
            f"{path}: {where}: {first['msg']}; the gate accepts nothing else: correct it, or save the adapter again"
        ) from None
    except (ValueError, RecursionError):
        raise LoralabError(f"{path}: not valid JSON") from None


def _choose(folder: Path, given: dict[str, str]) -> Choices:
    """Return what was given about the run, in this call and in earlier ones, and save it."""
    if given.get("decision", "keep") not in DECISIONS:
        raise LoralabError(f"the decision is {', '.join(DECISIONS)}, not {given['decision']!r}")
    path = folder / CHOICES_FILE
    choices = (_read_json(path, Choices) if path.is_file() else Choices()).model_copy(update=given)
    if given:
        write_whole(path, choices.model_dump_json(indent=1) + "\n")
    return choices


def _try(run: Run, name: str | None) -> None:
    """Load the base step by step and try the adapter on it; the first step that fails leaves its reason."""
    try:
        base = run.base = _find_base(run, name)
        run.shape = _expected_shape(run, base)
        tokenizer = run.tokenizer = load_tokenizer(base)
        _try_adapter(run, base, tokenizer)
    except (OSError, ValueError, SafetensorError) as error:
        run.trouble = first_line(error)


def _find_base(run: Run, name: str | None) -> Base:
    claimed = run.record.base
    base = choose_base(name or (claimed if claimed in PROFILES else run.settings.base_model_name_or_path or claimed))
    if base.name != claimed:
        raise LoralabError(f"run.json says that it was trained on {claimed!r}, which is not {base.name!r}")
    return base


def _expected_shape(run: Run, base: Base) -> Shape:
    """Return the tensors that the run's settings make on its base, from the base's config alone, without weights."""
    config = AutoConfig.from_pretrained(base.source)
    with _adapter_trouble(), torch.device("meta"):
        settings = LoraConfig.from_pretrained(str(run.folder))
        settings.inference_mode = False  # else nothing would count as trainable
        settings.init_lora_weights = True  # PiSSA's start would need the base's weights, and has the same shape
        settings.base_model_name_or_path = None  # else peft warns that the base has another name
        return Shape.of(get_peft_model(AutoModelForCausalLM.from_config(config), settings, low_cpu_mem_usage=True))


@contextmanager
def _adapter_trouble() -> Iterator[None]:
    """Turn any failure inside into one line about the adapter."""
    try:
        yield
    except Exception as error:  # a damaged configuration can fail anywhere inside peft
        raise LoralabError(f"the adapter cannot be put on its base ({one_line(error)})") from None


def _try_adapter(run: Run, base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Measure the base and the adapter on it."""
    if not run.fits:
        raise LoralabError("the adapter does not fit its base")
    model = load_model(base, quantization=nf4() if run.record.method == "qlora" else None)
    before = _measure(model, run, base, tokenizer)  # as long as it is bare: PiSSA changes the base's own weights
    with _adapter_trouble():
        adapted = PeftModel.from_pretrained(model, run.folder)
    run.before, run.after = before, _measure(adapted, run, base, tokenizer)
    run.samples = samples_of(run.pairs, run.before, run.after)


def _measure(model: LanguageModel, run: Run, base: Base, tokenizer: PreTrainedTokenizerBase) -> Ability:
    scored = run.record.scores_after.count if run.record.scores_after else 0
    return measure(model, tokenizer, run.pairs, base.max_length, scored if run.recompute else None)


def _not_judged(name: str, run: Run) -> Point:
    advice = "it needs the base with the adapter on it: run the gate where both can be loaded (see --base)"
    return Point(name, None, run.trouble, advice)


def _base(run: Run) -> Point:
    name = "base and licence"
    if run.base is None:
        return Point(
            name,
            False,
            run.trouble,
            "an adapter is useless without its base; give the base's Hub id or folder with --base",
        )
    found = f"{run.base.name}, licence {run.licence or 'unknown'}"
    advice = (
        "an adapter is usually treated as derived from its base, so the base's terms bind it too; "
        "read them and give the licence, e.g. --licence apache-2.0"
    )
    return Point(name, run.licence is not None, found, "" if run.licence else advice)


def _hyperparameters(run: Run) -> Point:
    name = "hyperparameters"
    if run.base is None:
        return _not_judged(name, run)
    settings, record = run.settings, run.record
    wrong = _unusual_factor(settings) + _unusual_dropout(settings)
    wrong += _unusual_training(record, run.base) + _false_claims(record, settings)
    found = (
        f"rank {settings.r}, alpha {settings.lora_alpha:g}, dropout {settings.lora_dropout:g}, "
        f"learning rate {record.learning_rate:g}, {record.epochs:g} epochs"
    )
    return Point(name, not wrong, found, "; ".join(wrong))


def _unusual_factor(settings: Settings) -> list[str]:
    if settings.use_rslora:
        name, divisor, (low, high), usual = "alpha/root of rank", math.sqrt(settings.r), ALPHA_PER_ROOT, "8"
    else:
        name, divisor, (low, high), usual = "alpha/rank", settings.r, ALPHA_PER_RANK, "2 x rank"
    factor = settings.lora_alpha / divisor
    if low <= factor <= high:
        return []
    return [
        f"{name} is {factor:g}, outside {low:g} to {high:g}: it scales the adapter, so it acts like another learning "
        f"rate; take alpha = {usual}"
    ]


def _unusual_dropout(settings: Settings) -> list[str]:
    if 0 <= settings.lora_dropout <= MAX_DROPOUT:
        return []
    return [
        f"dropout {settings.lora_dropout:g} is outside 0 to {MAX_DROPOUT:g}: it hides too much of the input from an "
        "adapter so small; take 0.05"
    ]


def _unusual_training(record: RunRecord, base: Base) -> list[str]:
    wrong = []
    low, high = (share * base.learning_rate for share in RATE_SHARES)
    if not low <= record.learning_rate <= high:
        wrong.append(
            f"the learning rate is outside {low:g} to {high:g}, the range around this base's own: lower barely trains, "
            f"higher diverges; take {base.learning_rate:g}"
        )
    if not 0 < record.epochs <= EPOCHS_FACTOR * base.epochs:
        wrong.append(
            f"{record.epochs:g} epochs, where {base.epochs} are usual on this base: more than "
            f"{EPOCHS_FACTOR * base.epochs} only memorise the pairs; see in which epoch held-out perplexity begins to rise"
        )
    return wrong


def _false_claims(record: RunRecord, settings: Settings) -> list[str]:
    claimed = (record.rank, record.alpha, record.dropout, set(record.targets))
    if claimed == (settings.r, settings.lora_alpha, settings.lora_dropout, set(settings.target_modules)):
        return []
    return [f"run.json and {CONFIG_FILE} disagree on rank, alpha, dropout or targets: train again into an empty folder"]


def _template(run: Run) -> Point:
    name = "chat template and EOS"
    if run.base is None or run.shape is None:
        return _not_judged(name, run)
    if run.tokenizer is None:
        return Point(
            name, False, run.trouble, "without a template, training and use put a question into different prompts"
        )
    try:
        encode_all(run.pairs, run.tokenizer, run.base.max_length)
    except PairsError as error:
        advice = "the model would not learn where an answer ends; shorten the pair, or use the base's instruct version"
        return Point(name, False, str(error), advice)
    ends, pairs = run.record.ends, run.record.train_pairs
    if ends is None:
        advice = "an older loralab did not count them; check where the answers end, or train again"
        return Point(name, None, "how the training pairs ended is not recorded", advice)
    found = f"{run.tokenizer.eos_token} is the last label of {ends} of {pairs} training pairs"
    advice = "an end that is masked or cut off is not learned, and answers run on; encode with loralab.encode"
    return Point(name, ends == pairs, found, "" if ends == pairs else advice)


def _count(run: Run) -> Point:
    name = "trainable parameters"
    if run.shape is None:
        return _not_judged(name, run)
    record, shape = run.record, run.shape
    held = sum(tensor.numel() for tensor in run.weights.values())
    found = f"{record.trainable:,} of {record.parameters:,} ({record.trainable_percent:.4f} %), {held:,} in the file"
    passed = run.fits and (record.trainable, record.parameters) == (shape.trainable, shape.parameters)
    advice = (
        f"rank {run.settings.r} on {', '.join(run.settings.target_modules)} makes exactly {shape.trainable:,} of "
        f"{shape.parameters:,}: more means that the base was not frozen, less that targets were missed; "
        "check print_trainable_parameters() before training"
    )
    return Point(name, passed, found, "" if passed else advice)


def _ppl_before(run: Run) -> Point:
    name, record = "PPL before", run.record
    again = run.before.ppl if run.before else None
    found = f"{_ppl(record.ppl_before, again)} on {record.eval_pairs} held-out pairs"
    if record.leaks:
        found += f", {record.leaks} of them trained on"
    wrong = _unmeasured(record, again)
    if wrong:
        return Point(name, False, found, "; ".join(wrong))
    if run.recompute and again is None:
        return Point(name, None, found, f"it could not be measured again: {run.trouble}")
    if record.leaks is None:
        advice = "an older loralab did not compare held-out and training pairs; compare them yourself, or train again"
        return Point(name, None, f"{found}; whether they were trained on is not recorded", advice)
    return Point(name, True, found)


def _unmeasured(record: RunRecord, again: float | None) -> list[str]:
    """Say why the held-out pairs measure nothing."""
    wrong = []
    if not _measured(record.ppl_before) or record.eval_pairs == 0:
        wrong.append("without it nobody can say what training changed; give train() eval_pairs")
    elif not _agrees(record.ppl_before, again):
        wrong.append(
            "run.json has another PPL than this base on these pairs: train again, or give its pairs with --eval"
        )
    if record.leaks:
        wrong.append(
            f"held-out pairs were trained on: the instruction or the answer of {record.leaks} is in the training pairs, so "
            "PPL and scores show memory, not ability; take them out of the training pairs and train again"
        )
    return wrong


def _trained(run: Run) -> Point:
    losses, (start, end) = run.record.losses, run.record.loss_ends
    largest = max((t.abs().max().item() for name, t in run.weights.items() if ".lora_B." in name), default=0.0)
    wrong = []
    if not all(torch.isfinite(tensor).all() for tensor in run.weights.values()) or not all(map(math.isfinite, losses)):
        wrong.append("it diverged: NaN or infinity in the adapter or its losses; lower the learning rate")
    elif not end < start:
        wrong.append("the loss does not fall, so nothing was learned: check the learning rate, the labels and the data")
    if largest == 0:
        wrong.append("B is all zeros, so the adapter does nothing: it was saved before training, or never trained")
    found = f"loss {start:.2f} to {end:.2f} in {len(losses)} steps, max |B| = {largest:.3g}"
    return Point("trained", not wrong, found, "; ".join(wrong))


def _after(run: Run) -> Point:
    name, record = "PPL after and samples", run.record
    again = run.after.ppl if run.after else None
    wrong = _worse(record.ppl_before, record.ppl_after, again) + _false_scores(run) + _unable(run)
    found = "; ".join([_ppl(record.ppl_after, again), *_ability(run), *_answers(run)])
    if not wrong and not run.samples:
        return Point(name, None, found, f"no answers could be generated: {run.trouble}")
    if wrong and run.samples and record.eval_pairs != len(run.pairs):
        wrong.append(
            f"(the run was measured on {record.eval_pairs} pairs and judged on {len(run.pairs)}: if these are not its own, "
            "give its file with --eval)"
        )
    return Point(name, not wrong, found, "; ".join(wrong), "\n\n".join(map(_shown, run.samples[:SHOWN])))


def _worse(before: float | None, after: float | None, again: float | None) -> list[str]:
    if not _measured(after):
        return ["only held-out pairs show whether an adapter helps; give train() eval_pairs"]
    if not _agrees(after, again):
        return ["run.json has another PPL than this adapter on these pairs: was it replaced after training?"]
    if _measured(before) and after >= before:
        return ["it is no better than its base on held-out pairs; check the learning rate, the epochs and the data"]
    return []


def _false_scores(run: Run) -> list[str]:
    """Compare the recorded scores with those that were measured again."""
    if not run.recompute or run.after is None or run.record.scores_after is None:
        return []
    claimed, found = run.record.scores_after, run.after.scores
    if abs(claimed.exact - found.exact) <= EXACT_TOLERANCE * found.count:
        return []
    return [f"run.json has {claimed.exact} exact answers of {claimed.count}, measured again {found.exact}"]


def _unable(run: Run) -> list[str]:
    """Say what the adapter cannot do, from what was measured here and, for exact match, from the record."""
    if run.before is None or run.after is None or run.scores is None:
        return []
    before, after = run.scores
    wrong = ignores_question(run.before.control, run.after.control)
    wrong += no_better_than_chance(run.after.chosen, run.after.choices)
    if after.valid is not None:
        wrong += wrong_answers(before, after)
    return wrong + fault_causes(run.samples)


def _ability(run: Run) -> list[str]:
    """Describe what was measured, in the order of the table."""
    found = []
    if run.scores and run.scores[1].valid is not None:
        before, after = run.scores
        found.append(f"exact match {before.exact_match.value:.2f} to {after.exact_match}")
    if run.after and run.after.chosen:
        found.append(f"own answer first among {run.after.choices} in {run.after.chosen}")
    if run.after and run.after.control:
        found.append(f"the right question saves {gain_text(run.after.control)}")
    return found


def _answers(run: Run) -> list[str]:
    if not run.samples:
        return []
    changed = sum(sample.before != sample.after for sample in run.samples)
    counted = (f"{count} {name}" for name, count in faults(run.samples).items())
    return [", ".join([f"of {len(run.samples)} answers {changed} changed", *counted])]


def _shown(sample: Sample) -> str:
    texts = {"right answer": sample.wanted, "before": sample.before, "after": sample.after}
    return "\n".join([sample.question, *(f"  {name}:\n{indent(text, '    ')}" for name, text in texts.items())])


def _decision(run: Run) -> Point:
    decision = run.choices.decision
    if decision is None:
        uses = "; ".join(f"{name} ({use})" for name, use in DECISIONS.items())
        advice = f"to serve it, one must know what to load; give --decision {uses}"
        return Point("merge decision", False, "not made", advice)
    note = f"; {MERGE_4BIT}" if (decision, run.record.method) == ("merge", "qlora") else ""
    return Point("merge decision", True, f"{decision}: {DECISIONS[decision]}{note}")


def _card(run: Run) -> Point:
    path, choices = run.folder / CARD_FILE, run.choices
    try:
        write_card(
            run.folder,
            run.record,
            run.base,
            licence=run.licence,
            data=choices.data,
            decision=choices.decision,
            samples=run.samples[:SHOWN],
            before=run.before,
            after=run.after,
        )
        problem = card_problem(path)
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
    advice = (
        f"without a card, users cannot know what the adapter is for; correct {CARD_FILE}, or delete it for a new one"
    )
    hint = "" if choices.data else " (describe the data with --data)"
    return Point("model card", not problem, problem or f"{CARD_FILE}{hint}", advice if problem else "")


def _measured(ppl: float | None) -> TypeGuard[float]:
    return ppl is not None and math.isfinite(ppl)


def _agrees(ppl: float, again: float | None) -> bool:
    return again is None or same_ppl(ppl, again)


def _ppl(ppl: float | None, again: float | None) -> str:
    recorded = "not measured" if ppl is None else f"PPL {ppl:.2f}"
    return recorded if again is None else f"{recorded}, measured again {again:.2f}"


POINTS = (_base, _hyperparameters, _template, _count, _ppl_before, _trained, _after, _decision, _card)
