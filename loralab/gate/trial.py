"""Try an adapter on its base: does it fit, and what can the base do without it and with it?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..ability import MEASURED, Ability, Sample, measure, samples_of
from ..bases import Base, config_of, find_base, load_model, load_tokenizer
from ..errors import LoralabError, first_line, one_line
from ..record import CONFIG_FILE
from ..scores import Scores
from ..shapes import tensor_shapes, without_weights
from .run import Run

SHOWN = 3
VOCABULARY = ("embed_tokens", "wte", "lm_head")  # layers with one row per token


@dataclass(frozen=True)
class Expected:
    """What the adapter's configuration makes on its base, worked out without weights.

    The file must have the tensors in `tensors` and may have those in `optional`: peft saves the embeddings, too, in some
    cases. `layers` are the full names of the adapted layers, `factors` their ranks with their alphas.
    """

    tensors: dict[str, tuple[int, ...]]
    optional: dict[str, tuple[int, ...]]
    trainable: int
    parameters: int
    layers: frozenset[str]
    factors: frozenset[tuple[int, float]]

    @classmethod
    def of(cls, run: Run, config: PretrainedConfig) -> Expected:
        """Work it out for a base with this config. Raises `LoralabError` if the adapter cannot be put on such a base."""
        model = without_weights(config, run.settings)
        modules = model.get_base_model().named_modules()
        layers = {name: module for name, module in modules if isinstance(module, LoraLayer)}
        return cls(
            tensor_shapes(model, embeddings=False),
            tensor_shapes(model, embeddings=True),
            *model.get_nb_trainable_parameters(),
            frozenset(layers),
            frozenset((layer.r["default"], layer.lora_alpha["default"]) for layer in layers.values()),
        )

    @property
    def targets(self) -> list[str]:
        """The last parts of the names of the adapted layers."""
        return sorted({name.rpartition(".")[2] for name in self.layers})


@dataclass(frozen=True)
class Results:
    """What is known of a run before and after training: as the training measured it or, if it did not, as the gate did.

    `ppl` is the perplexity of `pairs` held-out pairs.
    """

    pairs: int
    ppl: tuple[float | None, float | None]
    scores: tuple[Scores, Scores] | None

    @property
    def record_scores(self) -> tuple[Scores, Scores] | None:
        """The scores where the right answers are records, for which exact match makes sense."""
        return self.scores if self.scores and self.scores[1].valid is not None else None


@dataclass
class Trial:
    """What was found out about a run on its base; what was not is None, and `trouble` says why."""

    base: Base | None = None
    expected: Expected | None = None
    misfit: str | None = None  # why the file's tensors are not the expected ones; empty if they are
    tokenizer: PreTrainedTokenizerBase | None = None
    before: Ability | None = None
    after: Ability | None = None
    samples: list[Sample] = field(default_factory=list)
    trouble: str = ""

    @property
    def ppl(self) -> tuple[float | None, float | None]:
        """The perplexities that were measured here, before and after training."""
        return (self.before.ppl, self.after.ppl) if self.before and self.after else (None, None)

    def results(self, run: Run) -> Results:
        """Return the results of the training and, where it has none, of this trial."""
        record = run.record
        scores = (self.before.scores, self.after.scores) if self.before and self.after else None
        if record and record.scores_before and record.scores_after:
            scores = record.scores_before, record.scores_after
        if record and run.measured:
            return Results(record.eval_pairs, (record.ppl_before, record.ppl_after), scores)
        return Results(len(run.pairs), self.ppl, scores)

    @property
    def shown(self) -> list[Sample]:
        """The samples that are printed and go onto the card."""
        return self.samples[:SHOWN]


def try_on_base(run: Run, name: str | None = None, recompute: bool = False) -> Trial:
    """Load the base step by step and try the adapter on it; the first step that fails leaves its reason.

    `name` names the base if the run's own name for it is not found. What the training did not measure is measured here;
    with `recompute`, the rest is measured again.
    """
    trial = Trial()
    try:
        base = trial.base = _find_base(run, name)
        config = config_of(base)
        trial.expected = Expected.of(run, config)
        trial.misfit = _misfit(run, trial.expected)
        trial.tokenizer = _tokenizer(run, base, config)
        _measure(run, trial, base, trial.tokenizer, recompute or not run.measured)
    except (OSError, ValueError) as error:
        trial.trouble = first_line(error)
    return trial


def _find_base(run: Run, name: str | None) -> Base:
    name = name or run.base_name
    if name is None:
        raise LoralabError(f"{CONFIG_FILE} names no base")
    base = find_base(name)
    if run.record and base.name != run.record.base:
        raise LoralabError(f"run.json says that it was trained on {run.record.base!r}, which is not {base.name!r}")
    return base


def _misfit(run: Run, expected: Expected) -> str:
    """Say why the file does not have exactly the tensors that its configuration makes on the base; empty if it does."""
    found = {name: tuple(tensor.shape) for name, tensor in run.weights.items()}
    allowed = expected.optional | expected.tensors
    wrong = sorted(name for name in expected.tensors.keys() | found.keys() if found.get(name) != allowed.get(name))
    if not wrong:
        return ""
    sizes = [zip(found.get(name, ()), allowed.get(name, ()), strict=False) for name in wrong]
    rows = next(((has, needs) for both in sizes for has, needs in both if has != needs), None)
    if rows and all(any(layer in name for layer in VOCABULARY) for name in wrong):
        return (
            f"its vocabulary has {rows[0]} rows, the base's {rows[1]}: tokens were added before training; save the base "
            "with them, and give its folder with --base"
        )
    return f"{wrong[0]} is not as its configuration makes it on this base"


def _tokenizer(run: Run, base: Base, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was saved with the adapter, if there is one, or the base's."""
    own = (run.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(replace(base, source=str(run.folder)) if own else base)
    rows = config.get_text_config().vocab_size
    if own and len(tokenizer) > rows:
        raise LoralabError(
            f"the adapter's tokenizer has {len(tokenizer)} tokens, but the base's vocabulary {rows} rows"
        )
    return tokenizer


def _measure(run: Run, trial: Trial, base: Base, tokenizer: PreTrainedTokenizerBase, recompute: bool) -> None:
    """Measure the base and the adapter on it."""
    if trial.misfit:
        raise LoralabError("the adapter does not fit its base")
    if not run.pairs:
        raise LoralabError("there are no held-out pairs; give --eval FILE")
    settings = run.pairs, base.max_length, _scored(run) if recompute else None
    model = load_model(base, quantization=run.quantization)
    before = measure(model, tokenizer, *settings)  # as long as it is bare: PiSSA changes the base's own weights
    try:
        adapted = PeftModel.from_pretrained(model, str(run.folder))
    except Exception as error:  # tensors of a damaged file fail in many ways inside peft
        raise LoralabError(f"the adapter cannot be put on its base ({one_line(error)})") from None
    trial.before, trial.after = before, measure(adapted, tokenizer, *settings)
    trial.samples = samples_of(run.pairs, trial.before, trial.after)


def _scored(run: Run) -> int:
    """Return how many answers are scored: as many as the training scored; 0 stands for the samples alone."""
    if run.record is None or not run.measured:
        return min(MEASURED, len(run.pairs))
    return run.record.scores_after.count if run.record.scores_after else 0
