"""The run record: what a training run writes beside its adapter, in `run.json`.

Plots, gates and the grader read run folders and nothing else.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .errors import LoralabError
from .files import read_json, write_whole
from .scores import Scores

ADAPTER_FILE, CONFIG_FILE, RECORD_FILE = "adapter_model.safetensors", "adapter_config.json", "run.json"
RUN_FILES = (ADAPTER_FILE, CONFIG_FILE, RECORD_FILE)  # what is submitted of a run
EVAL_FILE = "eval.jsonl"  # held-out pairs, kept beside a run or above it
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
SCORES = ("scores_before", "scores_after")

LARGEST = 2**63 - 1  # the largest integer of other readers of JSON; Python's own have no limit
LARGEST_SEED = 2**32 - 1  # of numpy, which transformers seeds, too
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
# Zero is possible: a learning rate of 0 is a control, and a run may end before its first step.
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _at_least(least: float) -> AfterValidator:
    """Refuse numbers below `least`, but not NaN: a run that diverged can be read."""

    def checked(value: float) -> float:
        if value < least:
            raise ValueError(f"must be at least {least:g}")
        return value

    return AfterValidator(checked)


Loss = Annotated[float, _at_least(0)]
Perplexity = Annotated[float, _at_least(1)]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hardware() -> str:
    """Return the name of the device that does the arithmetic."""
    import torch  # slow to import, and reading a record needs none

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    vectors = torch.backends.cpu.get_cpu_capability()  # such as AVX2 or AVX512
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    matrices = ", AMX" if known.get("amx_bf16") else ""
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' * (count > 1)} ({platform.machine()}, {vectors}{matrices})"


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """Format seconds for people."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def loss_ends(losses: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last quarter of `losses`; NaN if there are none."""
    quarter = max(1, len(losses) // 4)
    first, last = (sum(part) / len(part) if part else math.nan for part in (losses[:quarter], losses[-quarter:]))
    return first, last


class AdapterSettings(BaseModel):
    """The settings of a LoRA adapter other than rank, alpha, dropout and targets."""

    model_config = ConfigDict(extra="forbid")

    bias: str = "none"
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    init: bool | str = True
    modules_to_save: list[str] = Field(default_factory=list, description="layers that are trained and saved in full")
    layers: list[str] | None = Field(
        None, description="full names of the adapted layers, if others of the same names have no adapter"
    )


class RunRecord(BaseModel):
    """One finished training. Sizes in bytes, times in seconds, losses in nats per answer token."""

    # NaN is written as NaN: a run that diverged must be readable, so that it can be explained
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")

    name: str
    base: str
    method: str = "lora"
    rank: Positive | None = None
    alpha: Finite | None = None
    dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    targets: list[str] = Field(default_factory=list)
    adapter: AdapterSettings | None = Field(None, description="further settings of the adapter; None if unknown")
    quantization: dict[str, Any] | None = Field(
        None, description="the base's settings of quantisation; {} if it was not quantised, None if unknown"
    )
    trainable: Count
    parameters: Positive
    adapter_bytes: Count | None = None
    train_pairs: Positive
    train_digest: str | None = Field(None, description="SHA-256 of the training pairs (`loralab.pairs.digest`)")
    ends: Count | None = Field(
        None, description="training pairs whose last label is the end-of-answer token; None if not counted"
    )
    tokens: Count = Field(description="tokens that went through the model, padding not counted")
    epochs: Finite
    batch_size: Positive
    learning_rate: Finite
    seed: int = Field(ge=0, le=LARGEST_SEED)
    losses: list[Loss] = Field(description="training loss of every optimiser step")
    seconds: float = Field(gt=0, allow_inf_nan=False)
    peak_memory: Count
    held_out: list[tuple[float, float]] | None = Field(
        None, description="(epoch, loss on the evaluation pairs) after each epoch; None if not measured"
    )
    kept_epoch: Finite | None = Field(
        None, description="the epoch whose adapter was kept; None if it is simply the last one"
    )
    ppl_before: Perplexity | None = None
    ppl_after: Perplexity | None = None
    eval_pairs: Count = 0
    eval_digest: str | None = Field(None, description="SHA-256 of the evaluation pairs; None if there are none")
    leaks: Count | None = Field(
        None, description="evaluation pairs whose instruction or answer is in the training pairs; None if unknown"
    )
    scores_before: Scores | None = Field(
        None, description="answers generated to the first evaluation pairs before training"
    )
    scores_after: Scores | None = Field(None, description="the same after training")
    question_gain: float | None = Field(
        None, description="nats per answer token that the right question saves after training; near 0 it is ignored"
    )
    dtype: str
    hardware: str = Field(default_factory=hardware)
    versions: dict[str, str] = Field(default_factory=versions)
    created: str = Field(default_factory=now)

    @model_validator(mode="after")
    def _possible(self) -> RunRecord:
        """Refuse a part that is larger than its whole, and steps without data."""
        answers = [(f"{name}.count", scores.count) for name in SCORES if (scores := getattr(self, name))]
        wholes: list[tuple[str, int, list[tuple[str, int | None]]]] = [
            ("parameters", self.parameters, [("trainable", self.trainable)]),
            ("train_pairs", self.train_pairs, [("ends", self.ends)]),
            ("eval_pairs", self.eval_pairs, [("leaks", self.leaks), *answers]),
        ]
        for whole, most, parts in wholes:
            for part, value in parts:
                if value is not None and value > most:
                    raise ValueError(f"{part} is {value}, but {whole} is {most}")
        if self.losses and not self.epochs:
            raise ValueError(f"epochs is 0, but losses has {len(self.losses)} steps")
        return self

    @property
    def trainable_percent(self) -> float:
        """Share of the parameters that were trained, in percent."""
        return 100 * self.trainable / self.parameters

    @property
    def loss_ends(self) -> tuple[float, float]:
        """The mean losses of the first and of the last quarter of the steps, in nats; NaN if there are none."""
        return loss_ends(self.losses)

    def save(self, folder: str | Path) -> Path:
        """Write `run.json` into `folder`; it appears whole or not at all."""
        return write_whole(Path(folder) / RECORD_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> RunRecord:
        """Read `run.json` from a run folder. Raises `LoralabError` with one line that says what is wrong."""
        path = Path(folder) / RECORD_FILE
        try:
            return read_json(path, cls)
        except (FileNotFoundError, NotADirectoryError):
            if not Path(folder).is_dir():
                raise LoralabError(f"{folder}: no such run folder") from None
            raise LoralabError(f"{folder}: no {RECORD_FILE} in it; is this the folder of a finished run?") from None
        except OSError as error:
            raise LoralabError(f"{path}: cannot be read ({error.strerror})") from None
