"""The operating gate: nine points that a finished run must pass before its adapter is used.

They say that the run is complete and that it tells the truth about itself. How good its answers are, people must read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .bases import PROFILES, Base, choose_base, load_model, load_tokenizer
from .card import CARD_FILE, Sample, card_problem, write_card
from .data import data_path
from .errors import first_line, one_line
from .files import write_whole
from .fourbit import nf4
from .measure import ADAPTER_FILE, CONFIG_FILE, PPL_TOLERANCE, answer_and_end, perplexity
from .pairs import Pair, PairsError, encode_all, read_pairs
from .record import RunRecord
from .shapes import LINEAR, Shape

CHOICES_FILE = "gate.json"
SAMPLES, ANSWER_TOKENS = 3, 80
RATE_FACTOR = 5  # learning rates within this factor of the base's own are usual
EPOCHS_FACTOR = 2  # more than this many times the base's own number of epochs is learning by heart
ALPHA_PER_RANK = (0.25, 4)  # from QLoRA (16 for rank 64) to LoRA Without Regret (32 for rank 8)
ALPHA_PER_ROOT = (0.25, 8)  # rsLoRA's: the course's 8, which suits every rank, for ranks 1024 to 1
MAX_DROPOUT = 0.2

DECISIONS = {
    "keep": "adapter and base stay apart: for a 4-bit base, or one base with many tasks",
    "merge": "one model without the adapter's arithmetic: for one task, and where answers must be fast",
    "swap": "one base in memory, adapters put on it in turn: for many tasks that are asked for one at a time",
}
RESULTS = {True: ("pass", "green"), False: ("fail", "red"), None: ("not judged", "yellow")}
MERGE_4BIT = "merge into model.dequantize(), not into the 4-bit weights, whose rounding the adapter was trained around"


@dataclass(frozen=True)
class Point:
    """One point of the gate. `passed` is None where it could not be judged; `advice` says why and what to do."""

    name: str
    passed: bool | None
    found: str
    advice: str = ""
    details: str = ""


class Settings(BaseModel):
    """The part of `adapter_config.json` that shapes a LoRA adapter, and what the gate takes of it."""

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1)]
    rank_pattern: Annotated[dict, Field(max_length=0)] = {}
    lora_alpha: float
    alpha_pattern: Annotated[dict, Field(max_length=0)] = {}
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    lora_dropout: float = 0.0
    target_modules: list[str]
    base_model_name_or_path: str | None = None


class Choices(BaseModel):
    """What only a person can say about a run; kept beside it in `gate.json`."""

    decision: str | None = None
    licence: str | None = None
    data: str | None = None


@dataclass
class Run:
    """A finished run and what was found out about it: None where `trouble`, in words, kept it from being found out."""

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
    samples: list[Sample] = field(default_factory=list)
    remeasured: tuple[float, float] | None = None
    trouble: str = ""

    @property
    def fits(self) -> bool:
        """Whether the file holds exactly the tensors that its configuration makes on the base."""
        found = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        return self.shape is not None and found == self.shape.tensors

    @property
    def licence(self) -> str | None:
        """The base's licence, if anybody knows it."""
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

    A run that passes is complete and tells the truth about itself; whether its answers are good is for people to read.
    `base` names the base where the run's own name for it cannot be found; `decision` (keep, merge or swap), `licence`
    (the base's) and `data` (what the pairs are) are kept in `gate.json` for later calls. `eval_file` has the held-out
    pairs, by default the course's; with `recompute` both perplexities are measured again on them. Raises `ValueError`
    with one line if the folder does not hold a finished LoRA run.
    """
    folder = Path(folder)
    run = _read_run(folder, eval_file)
    if recompute and run.record.eval_pairs not in (0, len(run.pairs)):
        raise ValueError(
            f"the run was measured on {run.record.eval_pairs} pairs, but there are {len(run.pairs)} to measure it on "
            "again; give its own file with --eval"
        )
    said = {"decision": decision, "licence": licence, "data": data}
    run.choices = _choose(folder, {name: value for name, value in said.items() if value is not None})
    run.recompute = recompute
    _look(run, base)
    return [point(run) for point in POINTS]


def show(points: list[Point], title: str = "", console: Console | None = None) -> None:
    """The points as a table, below it what is to be seen of them and why each that did not pass did not."""
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
        raise ValueError(f"{folder}: no such run folder")
    record = RunRecord.load(folder)
    if not (folder / ADAPTER_FILE).is_file():
        raise ValueError(f"{folder}: no {ADAPTER_FILE} in it; the gate judges adapters saved by save_pretrained")
    try:
        weights = load_file(folder / ADAPTER_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER_FILE}: truncated or not safetensors ({error}); save it again") from None
    settings = _read_json(folder / CONFIG_FILE, Settings)
    unknown = sorted(set(settings.target_modules) - set(LINEAR))
    if unknown:
        raise ValueError(f"{folder / CONFIG_FILE}: targets {', '.join(unknown)}; the gate knows {', '.join(LINEAR)}")
    pairs = read_pairs(eval_file or data_path("pairs/eval.jsonl"))
    return Run(folder, record, settings, weights, Choices(), pairs)


def _read_json(path: Path, kind: type[BaseModel]) -> BaseModel:
    try:
        return kind.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: no {path.name} in it; save the adapter with save_pretrained") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path}: {where}: {first['msg']}; the gate takes nothing else: correct it or make it anew"
        ) from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not valid JSON") from None


def _choose(folder: Path, said: dict[str, str]) -> Choices:
    """What was said about the run, now and in earlier calls."""
    if said.get("decision", "keep") not in DECISIONS:
        raise ValueError(f"the decision is {', '.join(DECISIONS)}, not {said['decision']!r}")
    path = folder / CHOICES_FILE
    choices = (_read_json(path, Choices) if path.is_file() else Choices()).model_copy(update=said)
    if said:
        write_whole(path, choices.model_dump_json(indent=1) + "\n")
    return choices


def _look(run: Run, name: str | None) -> None:
    """Load the base, step by step, and try the adapter on it; the first step that fails leaves its reason."""
    try:
        run.base = _find_base(run, name)
        run.shape = _expected_shape(run)
        run.tokenizer = load_tokenizer(run.base)
        _try_adapter(run)
    except (OSError, ValueError, SafetensorError) as error:
        run.trouble = first_line(error)


def _find_base(run: Run, name: str | None) -> Base:
    claimed = run.record.base
    base = choose_base(name or (claimed if claimed in PROFILES else run.settings.base_model_name_or_path or claimed))
    if base.name != claimed:
        raise ValueError(f"run.json says that it was trained on {claimed!r}, which is not {base.name!r}")
    return base


def _expected_shape(run: Run) -> Shape:
    """What the run's own settings make of its base, from the base's config alone: no weights are loaded."""
    base = AutoConfig.from_pretrained(run.base.source)
    with _adapter_trouble(), torch.device("meta"):
        settings = LoraConfig.from_pretrained(run.folder)
        settings.inference_mode = False  # else nothing of it would count as trainable
        settings.init_lora_weights = True  # PiSSA's start would need the base's weights, and has the same shape
        settings.base_model_name_or_path = None  # else peft warns that the base has another name
        return Shape.of(get_peft_model(AutoModelForCausalLM.from_config(base), settings, low_cpu_mem_usage=True))


@contextmanager
def _adapter_trouble() -> Iterator[None]:
    """Within it a failure of whatever kind is the adapter's trouble, in one line."""
    try:
        yield
    except Exception as error:  # a damaged configuration can fail anywhere inside peft
        raise ValueError(f"the adapter cannot be put on its base ({one_line(error)})") from None


def _try_adapter(run: Run) -> None:
    """Answers of the base and of the adapter, and on demand their perplexities."""
    if not run.fits:
        raise ValueError("the adapter does not fit its base")
    model = load_model(run.base, quantization=nf4() if run.record.method == "qlora" else None)
    before, ppl_before = _try(model, run)  # as long as it is bare: PiSSA changes the base's own weights
    with _adapter_trouble():
        model = PeftModel.from_pretrained(model, run.folder)
    after, ppl_after = _try(model, run)
    run.samples = [
        Sample(pair.instruction, old, new, ended)
        for pair, (old, _), (new, ended) in zip(run.pairs[:SAMPLES], before, after, strict=True)
    ]
    if run.recompute:
        run.remeasured = ppl_before, ppl_after


def _try(model: PreTrainedModel | PeftModel, run: Run) -> tuple[list[tuple[str, bool]], float | None]:
    """The model's first answers, each with whether it ended by itself, and on demand its perplexity."""
    answers = [answer_and_end(model, run.tokenizer, pair.instruction, ANSWER_TOKENS) for pair in run.pairs[:SAMPLES]]
    ppl = perplexity(model, run.tokenizer, run.pairs, run.base.max_length) if run.recompute else None
    return answers, ppl


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
            "nobody can use an adapter without its base; give its hub id or folder with --base",
        )
    found = f"{run.base.name}, licence {run.licence or 'unknown'}"
    advice = (
        "an adapter is usually treated as derived from its base, so the base's terms bind it too; "
        "read them and say which they are, e.g. --licence apache-2.0"
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
    low, high = base.learning_rate / RATE_FACTOR, base.learning_rate * RATE_FACTOR
    if not low <= record.learning_rate <= high:
        wrong.append(
            f"the learning rate is outside {low:g} to {high:g}, the range around this base's own: lower barely trains, "
            f"higher diverges; take {base.learning_rate:g}"
        )
    if not 0 < record.epochs <= EPOCHS_FACTOR * base.epochs:
        wrong.append(
            f"{record.epochs:g} epochs, where {base.epochs} are usual on this base: more than "
            f"{EPOCHS_FACTOR * base.epochs} learn the pairs by heart; look where the held-out perplexity turns"
        )
    return wrong


def _false_claims(record: RunRecord, settings: Settings) -> list[str]:
    claimed = (record.rank, record.alpha, record.dropout, set(record.targets))
    if claimed == (settings.r, settings.lora_alpha, settings.lora_dropout, set(settings.target_modules)):
        return []
    return [f"run.json and {CONFIG_FILE} disagree on rank, alpha, dropout or targets: train again into an empty folder"]


def _template(run: Run) -> Point:
    name = "chat template and EOS"
    if run.shape is None:
        return _not_judged(name, run)
    if run.tokenizer is None:
        return Point(name, False, run.trouble, "without a template, training and use frame a question differently")
    try:
        encode_all(run.pairs, run.tokenizer, run.base.max_length)
    except PairsError as error:
        advice = "the model would learn no end of an answer and would write on; use the base's instruct version"
        return Point(name, False, str(error), advice)
    ends, pairs = run.record.ends, run.record.train_pairs
    if ends is None:
        advice = "an older loralab did not count them; read where the answers end, or train again"
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
    ppl, again = run.record.ppl_before, run.remeasured and run.remeasured[0]
    found = f"{_ppl(ppl, again)} on {run.record.eval_pairs} held-out pairs"
    advice = "without it nobody can say what the training changed; give train() eval_pairs that are not trained on"
    if ppl is not None and not _agrees(ppl, again):
        advice = "run.json does not tell what this base does on these pairs: train again, or give its pairs with --eval"
    passed = _measured(ppl) and run.record.eval_pairs > 0 and _agrees(ppl, again)
    if passed and run.recompute and again is None:
        return Point("PPL before", None, found, f"it could not be measured again: {run.trouble}")
    return Point("PPL before", passed, found, "" if passed else advice)


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
    again = run.remeasured and run.remeasured[1]
    wrong = _worse(record.ppl_before, record.ppl_after, again) + _bad_samples(run.samples)
    changed, ended = sum(s.before != s.after for s in run.samples), sum(s.ended for s in run.samples)
    found = (
        f"{_ppl(record.ppl_after, again)}; of {len(run.samples)} answers {changed} changed, {ended} end by themselves"
    )
    if ended < len(run.samples):
        found += f", {len(run.samples) - ended} cut off at {ANSWER_TOKENS} tokens"
    if not wrong and not run.samples:
        return Point(name, None, found, f"no answers could be made: {run.trouble}")
    return Point(name, not wrong, found, "; ".join(wrong), "\n\n".join(map(_shown, run.samples)))


def _worse(before: float | None, after: float | None, again: float | None) -> list[str]:
    if not _measured(after):
        return ["only held-out pairs show whether an adapter helps; give train() eval_pairs"]
    if not _agrees(after, again):
        return ["run.json does not tell what this adapter does on these pairs: was it replaced after training?"]
    if _measured(before) and after >= before:
        return ["it is no better than its base on held-out pairs; check the learning rate, the epochs and the data"]
    return []


def _bad_samples(samples: list[Sample]) -> list[str]:
    wrong = []
    if samples and all(sample.before == sample.after for sample in samples):
        wrong.append("every answer is the base's own, so users would see no difference; train longer or on more pairs")
    if samples and not any(sample.ended for sample in samples):
        wrong.append(
            f"no answer ends within {ANSWER_TOKENS} tokens: train longer, and see above whether the labels had the end-of-answer token"
        )
    return wrong


def _shown(sample: Sample) -> str:
    return f"{sample.question}\n  before: {sample.before}\n  after:  {sample.after}"


def _decision(run: Run) -> Point:
    decision = run.choices.decision
    if decision is None:
        uses = "; ".join(f"{name} ({use})" for name, use in DECISIONS.items())
        advice = f"whoever serves it must know what to load; say --decision {uses}"
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
            samples=run.samples,
        )
        problem = card_problem(path)
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
    advice = (
        f"without a card nobody knows what the adapter may be used for; correct {CARD_FILE}, or delete it for a new one"
    )
    said = "" if choices.data else " (say what the data is with --data)"
    return Point("model card", not problem, problem or f"{CARD_FILE}{said}", advice if problem else "")


def _measured(ppl: float | None) -> bool:
    return ppl is not None and math.isfinite(ppl)


def _agrees(ppl: float, again: float | None) -> bool:
    return again is None or abs(ppl - again) <= PPL_TOLERANCE * again


def _ppl(ppl: float | None, again: float | None) -> str:
    recorded = "not measured" if ppl is None else f"PPL {ppl:.2f}"
    return recorded if again is None else f"{recorded}, measured again {again:.2f}"


POINTS = (_base, _hyperparameters, _template, _count, _ppl_before, _trained, _after, _decision, _card)
