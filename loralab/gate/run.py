"""Read a finished run: its adapter, what is known of its training, and the pairs to judge it on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig
from pydantic import BaseModel
from transformers import BitsAndBytesConfig
from transformers.trainer import TRAINER_STATE_NAME

from ..adapters import base_name, read_adapter
from ..data import data_path
from ..errors import LoralabError
from ..files import read_json, write_whole
from ..fourbit import nf4, recorded_quantization
from ..pairs import Pair, digest
from ..reading import read_pairs
from ..record import EVAL_FILE, RECORD_FILE, RunRecord
from ..training import method_of

CHOICES_FILE = "gate.json"
DECISIONS = {
    "keep": "adapter and base stay apart: for a 4-bit base, or one base with many tasks",
    "merge": "one model without the adapter's arithmetic: for one task, or where answers must be fast",
    "swap": "one base in memory, adapters loaded in turn: for many tasks that run one at a time",
}
UNSLOTH = re.compile(r"(.+?)(-unsloth)?-bnb-4bit", re.IGNORECASE)  # a copy in NF4; the group is the one in 16 bits
SHOWN_DIGITS = 12  # of a digest
FEWEST_RATES = 4  # entries of a log, that show the highest learning rate: it decays between the entries


class Choices(BaseModel):
    """What only a person knows about a run; kept beside it in `gate.json`."""

    decision: str | None = None
    licence: str | None = None
    data: str | None = None


class _Entry(BaseModel):
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None


class _TrainerState(BaseModel):
    """The part of `trainer_state.json` about the progress of training."""

    epoch: float | None = None
    log_history: list[_Entry] = []


@dataclass(frozen=True)
class Training:
    """What is known about a training run; None, or empty, for the rest.

    `losses` were logged during training, in its order, and `curve` has the loss on held-out data by epoch.
    """

    losses: Sequence[float] = ()
    learning_rate: float | None = None
    epochs: float | None = None
    curve: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Run:
    """A finished run; `record` is None if its adapter was not trained with loralab. `pairs` may be empty."""

    folder: Path
    record: RunRecord | None
    training: Training
    settings: LoraConfig
    weights: dict[str, torch.Tensor]
    choices: Choices
    pairs: list[Pair]

    @property
    def name(self) -> str:
        return self.record.name if self.record else self.folder.resolve().name

    @property
    def base_name(self) -> str | None:
        """The name under which the base can be found; None if the run names none."""
        return base_name(self.settings, self.record.base if self.record else None)

    @property
    def method(self) -> str:
        """The method's name, as in a record."""
        if self.record:
            return self.record.method
        return "qlora" if self.quantization else method_of(self.settings)

    @property
    def quantization(self) -> BitsAndBytesConfig | None:
        """The settings of bitsandbytes that the base was loaded with; None if it was not quantised, as far as is known."""
        if self.record:
            return recorded_quantization(self.record)
        return nf4() if UNSLOTH.fullmatch(self.base_name or "") else None

    @cached_property
    def digest(self) -> str | None:
        """The digest of `pairs`; None if there are none."""
        return digest(self.pairs) if self.pairs else None

    @property
    def measured(self) -> bool:
        """Whether the training measured its adapter on held-out pairs."""
        return self.record is not None and self.record.eval_pairs > 0

    @property
    def leaks(self) -> int | None:
        """The number of evaluation pairs that were trained on; None if it is unknown."""
        if self.record is None:
            return None
        return len(self.pairs) if self.digest and self.digest == self.record.train_digest else self.record.leaks


def read_run(folder: Path, eval_file: str | Path | None = None) -> Run:
    """Read the run in `folder`, and the pairs in `eval_file`, by default the course's.

    Raises `LoralabError`, in one line, if `folder` holds no LoRA adapter, or if the pairs are not those of the run.
    """
    record = RunRecord.load(folder) if (folder / RECORD_FILE).is_file() else None
    adapter = read_adapter(folder)
    choices = read_json(folder / CHOICES_FILE, Choices) if (folder / CHOICES_FILE).is_file() else Choices()
    pairs = _eval_pairs(folder, record, eval_file)
    return Run(folder, record, _training(folder, record), adapter.settings, adapter.weights, choices, pairs)


def with_choices(run: Run, given: dict[str, str]) -> Run:
    """Return the run with these fields of its choices, and save them for later calls."""
    choices = run.choices.model_copy(update=given)
    write_whole(run.folder / CHOICES_FILE, choices.model_dump_json(indent=1) + "\n")
    return replace(run, choices=choices)


def _training(folder: Path, record: RunRecord | None) -> Training:
    path = folder / TRAINER_STATE_NAME
    state = read_json(path, _TrainerState) if path.is_file() else _TrainerState()
    log = state.log_history
    curve = [(e.epoch, e.eval_loss) for e in log if e.epoch is not None and e.eval_loss is not None]
    if record:
        return Training(record.losses, record.learning_rate, record.epochs, record.held_out or curve)
    rates = [entry.learning_rate for entry in log if entry.learning_rate is not None]
    losses = [entry.loss for entry in log if entry.loss is not None]
    rate = max(rates) if len(rates) >= FEWEST_RATES else None
    return Training(losses, rate, state.epoch, curve)


def _eval_pairs(folder: Path, record: RunRecord | None, eval_file: str | Path | None) -> list[Pair]:
    """Return the pairs in `eval_file`; without it those that the run was measured on, if they can be found."""
    if eval_file is not None:
        pairs = read_pairs(eval_file)
        _check_pairs(pairs, eval_file, folder, record)
        return pairs
    if record is None or record.eval_pairs == 0:
        return []
    own = _own_pairs(folder, record)
    if own is not None:
        return own
    known = f" (digest {record.eval_digest[:SHOWN_DIGITS]})" if record.eval_digest else ""
    raise LoralabError(
        f"{folder}: measured on {record.eval_pairs} pairs{known} that are not the course's; give them with --eval FILE"
    )


def _own_pairs(folder: Path, record: RunRecord) -> list[Pair] | None:
    """Return the pairs that the run was measured on; None if they are not the course's, nor where loralab keeps them."""
    for path in (data_path("pairs/eval.jsonl"), folder / EVAL_FILE, folder.resolve().parent / EVAL_FILE):
        with suppress(LoralabError, OSError):  # `train` keeps held-out pairs in the run folder, and `sweep` above it
            if digest(pairs := read_pairs(path)) == record.eval_digest:
                return pairs
    return None


def _check_pairs(pairs: list[Pair], eval_file: str | Path, folder: Path, record: RunRecord | None) -> None:
    """Raise `LoralabError` if the record says that the run was measured on other pairs."""
    if record is None or record.eval_pairs == 0:
        return
    if record.eval_digest is None:
        if record.eval_pairs != len(pairs):
            raise LoralabError(
                f"{eval_file}: {len(pairs)} pairs, but the run was measured on {record.eval_pairs}; give those with --eval"
            )
        return
    found = digest(pairs)
    if found != record.eval_digest:
        raise LoralabError(
            f"{eval_file}: not the pairs that the run was measured on (digest {found[:SHOWN_DIGITS]}, the run's "
            f"{record.eval_digest[:SHOWN_DIGITS]}); "
            + ("give those" if _own_pairs(folder, record) is None else "leave out --eval, since those are there")
        )
