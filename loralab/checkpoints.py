"""Checkpoints of a training run: what resumes from them, what keeps time across them, and what writes one on Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .errors import LoralabError
from .files import write_whole


def checkpoint_to_resume(asked: bool | str | Path | None, folder: str | Path) -> str | None:
    """Return the checkpoint to resume from. Raises `LoralabError` if there is none."""
    if not asked:
        return None
    found = last_checkpoint(folder) if asked is True else Path(asked)
    if found is None:
        raise LoralabError(f"{folder}: no checkpoint to resume from; train without resume_from_checkpoint")
    if not (found / TRAINER_STATE_NAME).is_file():
        raise LoralabError(f"{found}: no checkpoint to resume from, as it has no {TRAINER_STATE_NAME}")
    return str(found)


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the last complete checkpoint in a run folder, if there is one: `Trainer` writes its own state last."""
    complete = (path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"))
    numbered = (path for path in complete if path.name.rpartition("-")[2].isdecimal())
    return max(numbered, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimiser steps before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoint_at(args: TrainingArguments, step: int | None) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


class BestHere(TrainerCallback):
    """Finds the best checkpoint in the run folder if that was moved, where `Trainer` expects it at its old path."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        best = _checkpoint_at(args, state.best_global_step)
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class Clock(TrainerCallback):
    """Counts the seconds of training and keeps them in every checkpoint, so that a resumed run adds those before it."""

    FILE = "seconds.txt"

    def __init__(self, checkpoint: str | None) -> None:
        path = Path(checkpoint, self.FILE) if checkpoint else None
        self.earlier = float(path.read_text()) if path and path.is_file() else 0.0
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        folder = _checkpoint_at(args, state.global_step)
        if folder.is_dir():
            write_whole(folder / self.FILE, str(self.seconds))


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C, ends the step, writes a checkpoint, and then raises `KeyboardInterrupt` from `train`.

    A second Ctrl-C stops at once. It has an effect in the main thread only.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._usual: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGINT, self._stop)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.interrupted and state.global_step < state.max_steps and not float(state.epoch).is_integer():
            control.should_evaluate = False  # it ends inside an epoch, where an uninterrupted run measures nothing

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give Ctrl-C back its usual effect."""
        if self._usual is not None:
            signal.signal(signal.SIGINT, self._usual)
            self._usual = None

    def _stop(self, number: int, frame: object) -> None:
        self.interrupted = True
        self.restore()  # another Ctrl-C ends at once
