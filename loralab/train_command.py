"""`loralab train`: from a file of pairs to a run folder with an adapter, its record, and what it measured."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from subprocess import list2cmdline
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .bases import UNKNOWN_RATE, Base, base_to_train, is_profile, load_model, load_tokenizer
from .checkpoints import StopOnInterrupt, last_checkpoint, step_of
from .errors import LoralabError, first_line
from .files import write_whole
from .fourbit import nf4
from .memory import needed
from .pairs import encode_all
from .record import EVAL_FILE, LARGEST_SEED, RECORD_FILE, RunRecord, duration
from .shapes import adapter_shape, lora_config, modules
from .split import SHARE, Split, read_split
from .sweep import METHODS, check_method, check_numbers, check_pissa
from .training import train

JOB_FILE = "job.json"
CHECKPOINTS: dict[str, Any] = {"save_strategy": "epoch", "save_total_limit": 1}
TIMED_STEPS = 3  # of a dry run; the first one is slower and does not count


@dataclass(frozen=True)
class Plan:
    """A training run that can start: everything is read and checked, but no weights are loaded."""

    base: Base
    tokenizer: PreTrainedTokenizerBase
    data: Split
    eval_file: str | Path | None  # None: nothing is measured
    method: str
    rank: int
    targets: tuple[str, ...]
    epochs: float
    learning_rate: float
    rate_from: str
    batch_size: int
    seed: int
    out: Path
    keep_best: bool = False  # the epoch with the lowest held-out loss instead of the last

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.pairs) / self.batch_size)

    @property
    def steps(self) -> int:
        """The number of optimiser steps, as `Trainer` counts them."""
        return math.ceil(self.epochs * self.steps_per_epoch)

    @cached_property
    def job(self) -> dict[str, Any]:
        """What must be the same for an interrupted run to be resumed, as plain values."""
        return {
            "base": self.base.name,
            "method": self.method,
            "rank": self.rank,
            "targets": list(self.targets),
            "epochs": self.epochs,
            "learning rate": self.learning_rate,
            "batch size": self.batch_size,
            "seed": self.seed,
            "max length": self.base.max_length,
            "training pairs": self.data.train_digest,
            "evaluation pairs": self.data.eval_digest,
            "keep best": self.keep_best,
        }

    def __str__(self) -> str:
        """Describe the data and the training, one fact per line."""
        trainable = adapter_shape(self.base.source, self.rank, self.targets).trainable
        return "\n".join(
            [
                str(self.data),
                f"adapter: {self.method}, rank {self.rank} on {', '.join(self.targets)}, {trainable:,} parameters",
                f"learning rate: {self.learning_rate:g} ({self.rate_from})",
                f"steps: {self.steps} ({self.epochs:g} epochs of {self.steps_per_epoch}, {self.batch_size} pairs each)",
            ]
        )


def plan_training(
    data: str,
    *,
    base: str = "embedded",
    rank: int = 16,
    targets: str = "all",
    method: str = "lora",
    evaluation: str = SHARE,
    out: str | Path | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int = 4,
    seed: int = 0,
    max_length: int | None = None,
    keep_best: bool = False,
) -> Plan:
    """Read the data and check everything that can be checked without weights.

    `data` and `evaluation` take what `load_pairs` reads; `evaluation` may also be the share of the pairs to hold out (0:
    none). `targets` are those of `loralab.shapes.modules`. What is not given is the base's own, and `out` is
    `runs/<name of the data>`. With `keep_best` the run keeps the epoch with the lowest held-out loss, not the last.
    Raises `LoralabError` (for data with one line per problem) for what cannot be trained.
    """
    check_method(method)
    for name, value in {"rank": rank, "batch size": batch_size}.items():
        if value < 1:
            raise LoralabError(f"the {name} is {value}; it must be at least 1")
    if not 0 <= seed <= LARGEST_SEED:
        raise LoralabError(f"the seed is {seed}; it must be 0 to {LARGEST_SEED}")
    chosen, rate, rate_from = _base_and_rate(base, learning_rate)
    chosen = replace(chosen, max_length=max_length or chosen.max_length)
    epochs = float(chosen.epochs if epochs is None else epochs)
    check_numbers(epochs, [rate])
    layers = modules(targets)
    adapter_shape(chosen.source, rank, layers)  # raises if the base lacks one of them
    if method == "pissa":
        check_pissa(chosen, rank, layers)
    tokenizer = load_tokenizer(chosen)
    split = read_split(data, evaluation, tokenizer, chosen.max_length, seed)
    if keep_best and not split.eval_pairs:
        raise LoralabError("--keep-best needs evaluation pairs: give --eval a file or a share above 0")
    folder = Path(out) if out else Path("runs") / _plain_name(data)
    return Plan(
        base=chosen,
        tokenizer=tokenizer,
        data=split,
        eval_file=_eval_file(split, evaluation, folder),
        method=method,
        rank=rank,
        targets=layers,
        epochs=epochs,
        learning_rate=rate,
        rate_from=rate_from,
        batch_size=batch_size,
        seed=seed,
        out=folder,
        keep_best=keep_best,
    )


def _base_and_rate(name: str, learning_rate: float | None) -> tuple[Base, float, str]:
    """Return the base, the learning rate, and where that comes from."""
    base = base_to_train(name)
    if learning_rate is not None:
        return base, learning_rate, "given"
    if is_profile(base):
        return base, base.learning_rate, f"measured for {base.name}"
    if base.learning_rate == UNKNOWN_RATE:
        return base, base.learning_rate, "QLoRA's: the base's config names no hidden size"
    return base, base.learning_rate, "10 times full fine-tuning's, by the base's hidden size; see loralab/bases.py"


def _eval_file(split: Split, evaluation: str, folder: Path) -> str | Path | None:
    """Return what `--eval` of the gate takes: the file or dataset with the evaluation pairs; None if there are none."""
    if not split.eval_pairs:
        return None
    return folder / EVAL_FILE if split.held_out else evaluation


def _plain_name(data: str) -> str:
    """Return the name of a file, folder or dataset without its endings and its split."""
    return re.split("[.:]", Path(data).name)[0] or "run"


def check_out(plan: Plan, resume: bool = False) -> Path | None:
    """Return the checkpoint to resume from, if there is one.

    Raises `LoralabError`, in one line, if the run folder holds something else than the beginning of this very run.
    """
    out = plan.out
    if out.exists() and not out.is_dir():
        raise LoralabError(f"{out} is a file: give another --out")
    if (out / RECORD_FILE).exists():
        end = "there is nothing to resume" if resume else "give another --out, or delete the folder"
        raise LoralabError(f"{out} holds a finished run: {end}")
    started = (out / JOB_FILE).is_file()
    checkpoint = last_checkpoint(out)
    if resume and not started:
        raise LoralabError(f"{out} holds no interrupted run: leave out --resume")
    if not resume and checkpoint:
        raise LoralabError(f"{out} holds an interrupted run: continue it with --resume, or give another --out")
    if not started and out.is_dir() and any(out.iterdir()):
        raise LoralabError(f"{out} is not empty: give another --out")
    if resume:
        _check_same_job(plan)
    return checkpoint


def saved_step(out: Path) -> int | None:
    """Return the number of optimiser steps before the last checkpoint in a run folder."""
    checkpoint = last_checkpoint(out)
    return step_of(checkpoint) if checkpoint else None


def _check_same_job(plan: Plan) -> None:
    path = plan.out / JOB_FILE
    try:
        there = json.loads(path.read_text("utf-8"))
        different = [name for name, value in plan.job.items() if there[name] != value]
    except (ValueError, KeyError, TypeError):
        raise LoralabError(f"{path} cannot be read: train again with another --out") from None
    if not different:
        return
    name = different[0]
    if name.endswith("pairs"):
        raise LoralabError(f"{plan.out} was started with other {name}: --resume needs the same data")
    raise LoralabError(
        f"{plan.out} was started with {name} {there[name]}, not {plan.job[name]}: --resume needs the same settings"
    )


def run_training(
    plan: Plan, resume: bool = False, callbacks: Sequence[TrainerCallback] = (), quiet: bool = False
) -> RunRecord:
    """Train as planned into the run folder and return its record.

    There is a checkpoint after each epoch, and on Ctrl-C, which raises `KeyboardInterrupt`; with `resume` the last one
    is continued. A finished run keeps no checkpoints.
    """
    checkpoint = check_out(plan, resume)
    model = adapted_model(plan)
    write_whole(plan.out / JOB_FILE, json.dumps(plan.job, indent=1) + "\n")
    plan.data.keep_held_out(plan.out)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"of \d+ evaluation pairs")  # the plan has them
        record = train(
            model,
            plan.tokenizer,
            plan.data.pairs,
            plan.out,
            plan.base,
            eval_pairs=plan.data.eval_pairs,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=plan.seed,
            callbacks=[*callbacks, StopOnInterrupt()],
            quiet=quiet,
            keep_best=plan.keep_best,
            **({} if plan.keep_best else CHECKPOINTS),
            resume_from_checkpoint=str(checkpoint) if checkpoint else None,
        )
    for folder in plan.out.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    (plan.out / JOB_FILE).unlink()
    return record


def adapted_model(plan: Plan) -> PeftModel:
    """Load the base and put the adapter of the plan on it."""
    model = load_model(plan.base, quantization=nf4() if plan.method == "qlora" else None)
    torch.manual_seed(plan.seed)
    usual: dict[str, Any] = {"r": plan.rank, "lora_alpha": 2 * plan.rank}
    return get_peft_model(model, lora_config(model, plan.targets, **usual | METHODS[plan.method]))


def show_result(record: RunRecord, plan: Plan) -> str:
    """Say what the run measured, where it is, and which command comes next."""
    lines = []
    if record.ppl_before is not None and record.ppl_after is not None:
        lines.append(
            f"held-out perplexity: {record.ppl_before:.3g} before, {record.ppl_after:.3g} after "
            f"({record.eval_pairs} pairs)"
        )
    if record.kept_epoch is not None and record.held_out:
        lines.append(_kept(record.kept_epoch, record.held_out))
    before, after = record.scores_before, record.scores_after
    if before and after:
        note = "" if after.valid_records else "; for free text it says little, as a right answer may have other words"
        lines.append(
            f"exact match: {before.exact_match} before, {after.exact_match} after, of {after.count} answers "
            f"(95 % intervals){note}"
        )
    if record.question_gain is not None:
        lines.append(
            f"question gain: {record.question_gain:.2f} nats per token, which the right question saves; near 0 the "
            "question is ignored"
        )
    if not plan.data.eval_pairs:
        lines.append("nothing was measured: hold pairs out with --eval 0.1, or give a file")
    size = f", adapter of {record.adapter_bytes / 1e6:.2f} MB" if record.adapter_bytes else ""
    lines.append(f"saved: {plan.out} ({record.seconds:.0f} s of training{size})")
    words: list[str | Path] = ["gate", plan.out, "--eval", plan.eval_file] if plan.eval_file else ["chat", plan.out]
    lines.append(f"next: loralab {list2cmdline(words)}")  # quotes paths with spaces as every shell reads them
    return "\n".join(lines)


def _kept(epoch: float, curve: Sequence[tuple[float, float]]) -> str:
    """Say which epoch was kept, and warn that the perplexity of the pairs that chose it is a little too good."""
    (end, last), best = curve[-1], dict(curve)[epoch]
    if epoch == end:
        return f"kept: the last epoch ({end:g}); no earlier one has a lower held-out loss"
    return (
        f"kept: epoch {epoch:g} of {end:g}, with a held-out loss of {best:.3f} nats per token (the last epoch has "
        f"{last:.3f}); the same pairs chose it, so its figures are a little too good"
    )


def dry_run(plan: Plan) -> str:
    """Say how much memory the training would take, and how long, from a few real steps that leave nothing behind."""
    longest = max(len(one["input_ids"]) for one in encode_all(plan.data.pairs, plan.tokenizer, plan.base.max_length))
    there = _room()
    try:
        wanted = needed(
            plan.base.source,
            plan.method,
            there,
            rank=plan.rank,
            targets=plan.targets,
            batch=plan.batch_size,
            length=longest,
            dropout=0.0,
        )
    except (ValueError, OSError) as error:
        memory, fits = f"memory: unknown ({first_line(error)})", True
    else:
        fits = wanted <= there
        verdict = "it fits" if fits else "it does not fit; see loralab fit"
        memory = f"memory: about {wanted / 1e9:.1f} GB of {there / 1e9:.1f} GB free; {verdict}"
    lines = [memory, f"longest pair: {longest} tokens"]
    if not fits:
        return "\n".join([*lines, "time: not measured, as it would not fit"])
    seconds = _seconds_per_step(plan)
    whole = duration(seconds * plan.steps)
    return "\n".join([*lines, f"time: about {whole} ({seconds:.2f} s per step, measured); evaluation comes on top"])


def _room() -> float:
    """Return the free memory in bytes: the GPU's or, without one, this machine's."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


class _Stopwatch(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def _tick(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    on_train_begin = on_step_end = _tick


def _seconds_per_step(plan: Plan) -> float:
    watch = _Stopwatch()
    with TemporaryDirectory(prefix="loralab-") as folder:
        train(
            adapted_model(plan),
            plan.tokenizer,
            plan.data.pairs,
            folder,
            plan.base,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=plan.seed,
            callbacks=[watch],
            quiet=True,
            max_steps=min(TIMED_STEPS, plan.steps),
        )
    counted = watch.times[1:] if len(watch.times) > 2 else watch.times  # without the first step, if there are others
    return (counted[-1] - counted[0]) / (len(counted) - 1)
