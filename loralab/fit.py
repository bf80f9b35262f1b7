"""Will it fit on my GPU? The memory of a training run, from the base's config alone, against a GPU's.

The estimate is that of `loralab.memory`; this module adds the names of models, the verdict, and what to change.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from inspect import signature
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from .bases import find_base
from .data import data_path
from .errors import LoralabError, one_line
from .gpus import GPUS, Gpu, find_gpu, smallest_gpu
from .memory import METHODS, OVERHEAD, Memory, at_rest, estimate
from .plots import plot_memory
from .quantized import Quantization, stored_quantization
from .shapes import ALL_LINEAR, TARGETS, adapter_shape, modules

VERDICTS = {"fits": "green", "tight": "yellow", "does not fit": "red"}
SHORTEST, SMALLEST = 128, 8  # length and rank below which a change saves next to nothing


@dataclass(frozen=True)
class Settings:
    """The settings of a training run: see `loralab.memory.estimate`; `targets` are words that `shapes.modules` knows."""

    method: str = "lora"
    rank: int = 16
    targets: str = "all"
    batch: int = 1
    length: int = 512
    checkpointing: bool = True
    upcast: bool = False

    def __str__(self) -> str:
        adapter = "" if self.method == "full" else f", rank {self.rank} on {self.targets}"
        saving = "with" if self.checkpointing else "without"
        cast = ", up-cast to 32 bits" if self.upcast else ""
        return f"{self.method}{adapter}, {self.batch} × {self.length} tokens, {saving} checkpointing{cast}"


@dataclass(frozen=True)
class Change:
    """Settings that differ from the given ones, in words, and the peak with them in bytes."""

    words: str
    settings: Settings
    total: float

    def __str__(self) -> str:
        return f"{self.words}: {self.total / 1e9:.1f} GB"


@dataclass(frozen=True)
class Fit:
    """The memory of a training run against a GPU's; see `fit`. Counts are of parameters, sizes in bytes.

    `source` is where the model's config was found, a folder or a hub id; `stored` says how its weights are stored if they
    are quantised.
    """

    model: str
    source: str
    settings: Settings
    memory: Memory
    trainable: int
    parameters: int
    gpu: Gpu
    stored: Quantization | None = None

    @property
    def sharded(self) -> Memory:
        """What each of several GPUs holds if weights, gradients and optimiser states are divided among them (FSDP, ZeRO-3).

        Activations and logits are not: each GPU has texts of its own. The blocks that are gathered for a moment come on top.
        """
        held = ("weights", "adapter", "gradients", "optimizer")
        return replace(self.memory, **{part: getattr(self.memory, part) / self.gpu.count for part in held})

    @property
    def verdict(self) -> str:
        """fits, tight or does not fit."""
        return self.gpu.holds(self.memory.total)

    @cached_property
    def leanest(self) -> Change:
        """Every change at once: the least that this training can be brought to."""
        return _changed(self, _with_all(_knobs(self), self.settings))

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What would make it fit, the change that costs the learner least first; a combination if none does alone.

        None if it fits, and none if nothing would do: see `leanest`. Takes seconds.
        """
        if self.verdict == "fits" or self.gpu.holds(self.leanest.total) != "fits":
            return ()
        return tuple(_changed(self, settings) for settings in _cheapest(self))

    def as_dict(self) -> dict[str, object]:
        """Return settings and results for JSON."""
        found = {name: value for name, value in asdict(self).items() if name != "source"}
        found["memory"] |= {"total": self.memory.total, "overhead": OVERHEAD}
        found["gpu"] |= {"bytes": self.gpu.bytes}
        found["sharded"] = {"total": self.sharded.total} if self.gpu.count > 1 else None
        return found | {"verdict": self.verdict, "changes": [asdict(change) for change in self.changes]}


def fit(
    model: str,
    method: str = "lora",
    rank: int = 16,
    targets: str = "all",
    batch: int = 1,
    length: int = 512,
    gpu: str | float = "t4",
    checkpointing: bool = True,
    upcast: bool = False,
) -> Fit:
    """Tell whether training `model` fits on `gpu`, and what would make it fit. No weights are loaded.

    `model` is a hub id, a folder, or the name of a config that the course carries (its own models' hub ids need no
    network); `gpu` as in `loralab.gpus.find_gpu`: a name, its memory, or several; `targets` as in
    `loralab.shapes.modules`; the rest as in `loralab.memory.estimate`. Raises `LoralabError`, in one line, for what is
    unknown or impossible.
    """
    found, source = find_gpu(gpu), _source(model)
    stored = _stored(model, source)
    if upcast and method != "qlora" and not stored:
        raise LoralabError(f"upcast applies to parameters that qlora leaves unquantised; {method} has none")
    asked = Settings(method, rank, targets, batch, length, checkpointing, upcast)
    return Fit(model, source, asked, _memory(source, asked), *_counts(source, asked), found, stored)


def _stored(model: str, source: str) -> Quantization | None:
    try:
        return stored_quantization(AutoConfig.from_pretrained(source))
    except LoralabError as error:
        raise LoralabError(f"{model}: {error}") from None


def known_models() -> list[str]:
    """Return the names of the configs that the course carries."""
    return ["embedded", *sorted(path.parent.name for path in data_path("configs").glob("*/config.json"))]


def _source(model: str) -> str:
    """Return where the config of `model` is: a folder, or a hub id."""
    owner, _, name = model.rpartition("/")
    name = re.sub("-(instruct|chat|hf)", "", name.lower())  # trained further, in the same shape
    if owner in ("", "Qwen", "HuggingFaceTB", "meta-llama") and name in known_models()[1:]:
        source = str(data_path(f"configs/{name}"))
    else:
        source = _located(model)
    _check_config(model, source)
    return source


def _located(model: str) -> str:
    try:
        return find_base(model).source
    except LoralabError as error:
        raise LoralabError(f"{error}; by name there are {', '.join(known_models())}") from None


def _check_config(model: str, source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # not JSON, a kind that transformers does not know, code of its own
        raise LoralabError(f"{model}: its config.json cannot be used: {one_line(error)}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LoralabError(f"{model}: {config.model_type!r} is no causal language model")
    if any(getattr(config.get_text_config(), name, 0) for name in ("num_experts", "num_local_experts")):
        raise LoralabError(
            f"{model}: a mixture of experts; they are no linear layers, and this estimate cannot count them"
        )


def _memory(source: str, settings: Settings) -> Memory:
    return estimate(source, **asdict(settings) | {"targets": modules(settings.targets)})


def _counts(source: str, settings: Settings) -> tuple[int, int]:
    """Return the parameters that are trained, and all of them, as peft counts them."""
    shape = adapter_shape(source, settings.rank, modules(settings.targets))
    if settings.method == "full":
        base = shape.parameters - shape.trainable
        return base, base
    return shape.trainable, shape.parameters


# What to change. Every knob has its values from the mildest to the strongest; the knobs are in the order of what they
# cost the learner: nothing; time alone, as the gradients stay the same (checkpointing computes each block twice, smaller
# batches are accumulated); time and a rounded base; the ends of long texts; and last what the adapter can learn, which
# saves little.
Knobs = dict[str, list[Any]]


def _knobs(found: Fit) -> Knobs:
    asked = found.settings
    knobs: Knobs = {
        "upcast": [False] if asked.upcast else [],
        "checkpointing": [] if asked.checkpointing else [True],
        "batch": _halves(asked.batch, 1),
        "method": [] if found.stored else {"full": ["lora", "qlora"], "lora": ["qlora"], "qlora": []}[asked.method],
        "length": _halves(asked.length, SHORTEST),
        "rank": _halves(asked.rank, SMALLEST),
        "targets": ["qv"] if _has_more_than_qv(found.source, asked.targets) else [],
    }
    return {name: values for name, values in knobs.items() if values}


def _halves(value: int, least: int) -> list[int]:
    values = []
    while value // 2 >= least:
        value //= 2
        values.append(value)
    return values


def _has_more_than_qv(source: str, targets: str) -> bool:
    chosen = modules(targets)
    try:
        adapter_shape(source, 1, TARGETS["qv"])
    except LoralabError:
        return False  # it calls them otherwise
    return chosen == ALL_LINEAR or set(chosen) > set(TARGETS["qv"])


def _with_all(knobs: Knobs, asked: Settings) -> Settings:
    return replace(asked, **{name: values[-1] for name, values in knobs.items()})


def _fits(found: Fit, settings: Settings) -> bool:
    layers = modules(settings.targets)
    resting = at_rest(found.source, settings.method, settings.rank, layers, settings.upcast)  # spares the trace
    return resting.total < found.gpu.bytes and found.gpu.holds(_memory(found.source, settings).total) == "fits"


def _cheapest(found: Fit) -> list[Settings]:
    """Every knob that is enough alone, turned as far as needed; or else the cheapest combination of them all."""
    knobs = _knobs(found)
    alone = [{name: values} for name, values in knobs.items()]
    enough = [knob for knob in alone if _fits(found, _with_all(knob, found.settings))]
    return [_turned_back(found, turned) for turned in enough or [knobs]]


def _turned_back(found: Fit, knobs: Knobs) -> Settings:
    """From all knobs at their end, which fits, each turned back as far as it goes, the dearest first."""
    settings = _with_all(knobs, found.settings)
    for name, values in reversed(knobs.items()):
        milder = [replace(settings, **{name: value}) for value in (getattr(found.settings, name), *values[:-1])]
        first = bisect_left(milder, True, key=lambda one: _fits(found, one))
        settings = [*milder, settings][first]
    return settings


def _changed(found: Fit, settings: Settings) -> Change:
    asked = found.settings
    said = {
        "upcast": "no up-cast to 32 bits",
        "checkpointing": "gradient checkpointing",
        "batch": f"batch {settings.batch} with {-(-asked.batch // settings.batch)} steps of accumulation",
        "method": f"{settings.method} instead of {asked.method}",
        "length": f"texts of {settings.length} tokens",
        "rank": f"rank {settings.rank}",
        "targets": f"targets {settings.targets}",
    }
    different = [words for name, words in said.items() if getattr(settings, name) != getattr(asked, name)]
    return Change(" + ".join(different), settings, _memory(found.source, settings).total)


def show(found: Fit, console: Console | None = None) -> None:
    """Print the parts as a table (GB = 1e9 bytes), below it the verdict and what to change."""
    console = console or Console(markup=False, highlight=False, soft_wrap=True)
    share = 100 * found.trainable / found.parameters
    console.print(f"{found.model}: {found.settings}")
    console.print(f"{found.trainable:,} of {found.parameters:,} parameters are trained ({share:.4g} %)")
    if found.stored:
        console.print(f"counted as it is stored: {found.stored}")
    console.print(_table(found))
    console.print(Text(found.verdict, f"bold {VERDICTS[found.verdict]}") + f" on {found.gpu.name}")
    for line in [found.gpu.note, *_advice(found), _several(found)]:
        if line:
            console.print(line)


def _table(found: Fit) -> Table:
    table = Table("part", "GB")
    table.columns[1].justify = "right"
    for part, size in asdict(found.memory).items():
        table.add_row(part, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{found.memory.total / 1e9:.2f}")
    table.add_row("CUDA's context and gaps", " to ".join(f"{size / 1e9:.1f}" for size in OVERHEAD))
    table.add_section()
    table.add_row(f"{found.gpu.name} ({found.gpu.gib:.2f} GiB)", f"{found.gpu.bytes / 1e9:.2f}")
    return table


def _advice(found: Fit) -> list[str]:
    if found.verdict == "fits":
        return []
    asked = f"As asked, {_smallest(found.memory.total)}."
    if found.changes:
        return ["This would make it fit, what costs least first:", *(f"  {change}" for change in found.changes), asked]
    if found.leanest.settings == found.settings:
        return [f"Nothing is left to be changed. {asked}"]
    all_at_once = f"Nothing makes it fit. Everything at once: {found.leanest}; {_smallest(found.leanest.total)}."
    return [all_at_once, asked]


def _several(found: Fit) -> str:
    """Say in one line what several GPUs change."""
    gpu, total = found.gpu, found.sharded.total
    if gpu.count == 1:
        return ""
    holds = {"fits": "would fit", "tight": "would be tight", "does not fit": "would not fit either"}[gpu.holds(total)]
    return (
        f"{gpu.count} GPUs, data parallel: each holds the whole model and a batch of its own, so the figures above are per "
        f"GPU. Sharded (FSDP, ZeRO-3): at least {total / 1e9:.1f} GB per GPU, which {holds}: weights, gradients and "
        "optimiser states are divided, activations and logits are not."
    )


def _smallest(total: float) -> str:
    gpu = smallest_gpu(total)
    return f"the smallest GPU for that is {gpu.name}" if gpu else "no GPU of the table takes that"


def picture(found: Fit) -> Figure:
    """Draw the parts as one stacked bar against the GPU's memory, with the verdict above."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")  # not pyplot's: it is shown once, by the caller
    axes = plot_memory({found.settings.method: found.memory}, found.gpu.bytes, found.gpu.name, figure.subplots())
    axes.set_title(f"{found.model}, {found.settings}\n{found.memory.total / 1e9:.1f} GB: {found.verdict}", fontsize=10)
    return figure


def _in_words(found: Fit) -> str:
    """Return what `picture` shows, for those who cannot see it."""
    parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in asdict(found.memory).items())
    return (
        f"One bar for {found.model}, {found.settings}, in GB: {parts}; {found.memory.total / 1e9:.1f} in all. "
        f"{found.gpu.name} has {found.gpu.bytes / 1e9:.1f}, verdict: {found.verdict}."
    )


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def widget(**start: object) -> None:
    """Show controls for the arguments of `fit`, which begin at `start`, and its picture below; in a notebook.

    Where no kernel runs, the picture of the start remains.
    """
    import ipywidgets
    from IPython.display import Image, display

    steps = partial(ipywidgets.SelectionSlider, continuous_update=False)
    controls = {
        "model": ipywidgets.Dropdown(options=known_models()),
        "method": ipywidgets.Dropdown(options=METHODS),
        "targets": ipywidgets.Dropdown(options=list(TARGETS)),
        "gpu": ipywidgets.Dropdown(options=[gpu.name for gpu in GPUS]),
        "rank": steps(options=[2**i for i in range(9)]),
        "batch": steps(options=[2**i for i in range(6)]),
        "length": steps(options=[128 * 2**i for i in range(6)]),
        "checkpointing": ipywidgets.Checkbox(),
    }
    usual = {name: parameter.default for name, parameter in signature(fit).parameters.items()}
    beginning = usual | {"model": "qwen2.5-7b"} | start
    for name, control in controls.items():
        if hasattr(control, "options") and beginning[name] not in control.options:
            control.options = [*control.options, beginning[name]]  # a model of the hub, names of layers
        control.description, control.value = name, beginning[name]

    def drawn() -> Image:
        try:
            found = fit(**{name: control.value for name, control in controls.items()})
            figure, alt = picture(found), _in_words(found)
        except LoralabError as error:  # more tokens than the model reads
            figure, alt = Figure(figsize=(8, 2.6)), str(error)
            figure.text(0.02, 0.5, alt, wrap=True)
        return Image(_png(figure), alt=alt)  # pyplot's inline backend, which would draw a figure, may not be loaded

    display(ipywidgets.GridBox(list(controls.values()), layout={"grid_template_columns": "repeat(2, 22em)"}))
    shown = display(drawn(), display_id=True)
    for control in controls.values():
        control.observe(lambda _: shown.update(drawn()), "value")
