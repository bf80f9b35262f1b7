"""Sweeps: one training run per rank, learning rate, choice of targets, method and seed; an interrupted one resumes."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from .bases import Base, load_model, load_tokenizer
from .cluster import at_once, on_this_machine, run_all
from .data import data_path
from .errors import LoralabError, one_line
from .files import write_whole
from .fourbit import nf4, same_quantization
from .memory import GIB, Untraceable, needed
from .pairs import encode_all
from .pool import portable
from .reading import read_pairs
from .record import RECORD_FILE, AdapterSettings, RunRecord, now
from .scores import Share
from .shapes import adapter_shape, modules
from .split import Split
from .training import adapter_settings, method_of, train

FAILURE_FILE = "failure.json"
# What each method changes about plain LoRA with alpha = 2r: arguments of peft.LoraConfig. Add your own.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    # It divides by the root of r and wants the same alpha for every rank: 8 / sqrt(16) is LoRA's 2r / r.
    "rslora": {"use_rslora": True, "lora_alpha": 8},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "qlora": {},  # plain LoRA; its base is held in 4 bits
}
TRAIN_PAIRS, EVAL_PAIRS, EVAL_ANSWERS = 100, 200, 100


@dataclass(frozen=True)
class Job:
    """One training run of a sweep, in the run folder `<out>/<name>/`.

    `method` is a name in `METHODS`, and `targets` has names in `TARGETS` or of layers, joined with "+"; `settings`
    (arguments of peft.LoraConfig) and `modules` are what the two stood for when the sweep was planned. The run is measured
    on the held-out pairs of its `data` and on generated answers to the first `eval_answers` of them. `name_rate` puts
    the learning rate into the name of the run folder.
    """

    base: Base
    method: str
    settings: Mapping[str, Any]
    targets: str
    modules: tuple[str, ...]
    rank: int
    seed: int
    epochs: float
    learning_rate: float
    out: Path
    data: Split
    eval_answers: int = EVAL_ANSWERS
    name_rate: bool = False

    @property
    def name(self) -> str:
        rate = f"-lr{self.learning_rate:g}" if self.name_rate else ""
        return f"{self.method}-{self.targets}-r{self.rank}{rate}-s{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def record(self) -> RunRecord | None:
        """Return the job's record if it has finished. Raises `LoralabError` if its folder holds a different run."""
        if not (self.folder / RECORD_FILE).exists():
            return None
        record = RunRecord.load(self.folder)
        for field, wanted in self._wanted().items():
            there = getattr(record, field)
            if there is not None and not _equal(there, wanted):  # records of earlier versions lack some fields
                raise LoralabError(
                    f"{self.folder} holds a run with {_in_words(field, there, wanted)}: give another --out"
                )
        answers, count = record.scores_after, min(self.eval_answers, len(self.data.eval_pairs))
        if answers is not None and answers.count != count:
            raise LoralabError(
                f"{self.folder} holds a run with {answers.count} answers, not {count}: give another --out"
            )
        return record

    @property
    def config(self) -> LoraConfig:
        """The adapter's configuration: plain LoRA with alpha = 2r, unless the method's settings change it."""
        usual: dict[str, Any] = {
            "r": self.rank,
            "lora_alpha": 2 * self.rank,
            "target_modules": list(self.modules),
            "task_type": "CAUSAL_LM",
        }
        return LoraConfig(**usual | dict(self.settings))

    @property
    def quantization(self) -> BitsAndBytesConfig | None:
        return nf4() if self.method == "qlora" else None

    def _wanted(self) -> dict[str, Any]:
        """Return the fields of the record that the job decides."""
        quantization, config = self.quantization, self.config
        return {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "eval_pairs": len(self.data.eval_pairs),
            "base": self.base.name,
            "rank": self.rank,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "targets": sorted(self.modules),
            "adapter": adapter_settings(config),
            "method": "qlora" if quantization else method_of(config),
            "quantization": quantization.to_dict() if quantization else {},
            "seed": self.seed,
            "train_digest": self.data.train_digest,
            "eval_digest": self.data.eval_digest,
        }


def _equal(there: object, wanted: object) -> bool:
    if isinstance(there, float) and isinstance(wanted, int | float):
        return math.isclose(there, wanted)
    if isinstance(there, dict) and isinstance(wanted, dict):
        return same_quantization(there, wanted)
    return there == wanted


def _in_words(field: str, there: object, wanted: object) -> str:
    """Name a field of the record that differs, with both values if they can be read."""
    if field.endswith("_digest"):
        return f"other {'training' if field == 'train_digest' else 'evaluation'} pairs ({field} {str(there)[:12]})"
    if isinstance(there, AdapterSettings) and isinstance(wanted, AdapterSettings):
        name = next(name for name in AdapterSettings.model_fields if getattr(there, name) != getattr(wanted, name))
        return _in_words(name, getattr(there, name), getattr(wanted, name))
    if field == "quantization":
        return f"another quantization ({there or 'none'})"
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in (there, wanted)]
    return f"{field} {shown[0]}, not {shown[1]}"


def plan(
    base: Base,
    ranks: Sequence[int],
    targets: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    out: Path,
    epochs: float | None = None,
    learning_rate: float | Sequence[float] | None = None,
    eval_pairs: int | None = None,
    eval_answers: int = EVAL_ANSWERS,
    data: Split | None = None,
) -> list[Job]:
    """Return every job of a sweep, seed by seed, so that an interrupted sweep has tried each setting.

    `epochs` and `learning_rate` (one or several) default to the base's own: with fewer epochs the embedded base learns
    little of the task, and exact match stays near zero. `data` defaults to the course's pairs. With fewer `eval_pairs`
    (default: all) and `eval_answers` (0: no exact match) a run takes less time, and its measures are coarser. Raises
    `LoralabError`, in one line, for what cannot be trained.
    """
    epochs = base.epochs if epochs is None else epochs
    rates = _rates(base.learning_rate if learning_rate is None else learning_rate)
    check_numbers(epochs, rates)
    _check_grid(ranks, targets, methods, seeds)
    layers = {group: _layers(base, group) for group in targets}
    if "pissa" in methods:
        for group in layers.values():
            check_pissa(base, max(ranks), group)
    data = _measured_on(data or course_data(), eval_pairs)
    grid = itertools.product(range(seeds), dict.fromkeys(methods), layers, rates, sorted(set(ranks)))
    return [
        Job(
            base=base,
            method=method,
            settings=METHODS[method],
            targets=group,
            modules=layers[group],
            rank=rank,
            seed=seed,
            epochs=epochs,
            learning_rate=rate,
            out=Path(out),
            data=data,
            eval_answers=eval_answers,
            name_rate=len(rates) > 1,
        )
        for seed, method, group, rate, rank in grid
    ]


def _rates(given: float | Sequence[float]) -> list[float]:
    """Return the different learning rates, the smallest first; those that are written alike count once."""
    several = [given] if isinstance(given, int | float) else given
    return sorted({f"{rate:g}": float(rate) for rate in several}.values())


def check_method(method: str) -> None:
    if method not in METHODS:
        raise LoralabError(f"unknown method {method!r}: there are {', '.join(METHODS)}")


def check_numbers(epochs: float, rates: Sequence[float]) -> None:
    """Raise `LoralabError` unless the epochs and each learning rate can be trained with."""
    for rate in rates:
        if not all(math.isfinite(value) and value > 0 for value in (epochs, rate)):
            raise LoralabError(f"epochs ({epochs:g}) and the learning rate ({rate:g}) must be above 0 and finite")
    if not rates:
        raise LoralabError("a sweep needs at least one learning rate")


def _check_grid(ranks: Sequence[int], targets: Sequence[str], methods: Sequence[str], seeds: int) -> None:
    for method in methods:
        check_method(method)
    if not (ranks and targets and methods) or seeds < 1:
        raise LoralabError("a sweep needs at least one rank, one target, one method and one seed")
    for rank in ranks:
        if rank < 1:
            raise LoralabError(f"rank {rank} is impossible: a rank is at least 1")


def _layers(base: Base, group: str) -> tuple[str, ...]:
    """Return the names of the layers that a choice of targets means on this base."""
    found = adapter_shape(base.source, 1, modules(group.replace("+", ","))).tensors
    return tuple(dict.fromkeys(name.split(".")[-3] for name in found))


def _measured_on(data: Split, count: int | None) -> Split:
    """Return the data with its first `count` held-out pairs only."""
    most = len(data.eval_pairs)
    if not most:
        raise LoralabError("a sweep compares runs on held-out pairs: give --eval a file or a share above 0")
    if count is None:
        return data
    if not 1 <= count <= most:
        raise LoralabError(f"{count} held-out pairs are impossible: give 1 to {most}")
    return replace(data, eval_pairs=data.eval_pairs[:count])


@cache
def course_data() -> Split:
    """Return the course's own pairs, as its exercises use them."""
    pairs, asked = (read_pairs(data_path(f"pairs/{name}.jsonl")) for name in ("train", "eval"))
    return Split(tuple(pairs[:TRAIN_PAIRS]), tuple(asked[:EVAL_PAIRS]))


def check_pissa(base: Base, rank: int, modules: tuple[str, ...]) -> None:
    """PiSSA starts from the largest singular values of the weights: raise `LoralabError` if a matrix has fewer than `rank`."""
    for name, shape in adapter_shape(base.source, 1, modules).tensors.items():
        if rank > max(shape):  # A of rank 1 is as long as the layer is wide, and B as it is high
            layer = name.split(".")[-3]
            raise LoralabError(
                f"rank {rank} is impossible for pissa: {layer} of {base.name} has {max(shape)} singular values"
            )


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that have still to be trained. Raises `LoralabError` as `Job.record` does."""
    return [job for job in jobs if job.record() is None]


def check_memory(jobs: Sequence[Job], workers: int = 1, available: float | None = None) -> None:
    """Raise `LoralabError`, in one line, if `workers` runs at a time of a method's largest job will not fit.

    They share `available` bytes: by default the GPU's memory or, without one, what this machine has free.
    """
    if available is None:
        on_gpu = torch.cuda.is_available()
        available = torch.cuda.mem_get_info()[1] if on_gpu else psutil.virtual_memory().available
    for method in dict.fromkeys(job.method for job in jobs):
        largest = max((job for job in jobs if job.method == method), key=lambda job: _trainable(job))
        try:
            wanted = workers * _needed(largest, available)
        except Untraceable:  # it may fit all the same: a run that does not will say so
            continue
        if wanted > available:
            ways = ["fewer at a time"] * (workers > 1) + ["a smaller base"] + ["--methods qlora"] * (method != "qlora")
            raise LoralabError(
                f"{largest.name} does not fit{f' {workers} times' if workers > 1 else ''}: it needs about "
                f"{wanted / GIB:.1f} GiB, and there are {available / GIB:.1f}; take {', or '.join(ways)}"
            )


def _needed(job: Job, room: float) -> float:
    """Return the bytes of a job at its peak, where one run at a time has `room` bytes."""
    return needed(
        job.base.source,
        job.method,
        room,
        rank=job.rank,
        targets=job.modules,
        batch=4,
        length=_longest(job.data, job.base),
        dropout=job.settings.get("lora_dropout", 0),
    )


@cache
def _longest(data: Split, base: Base) -> int:
    """Return the number of tokens of the longest text that the jobs train on."""
    return max(len(one["input_ids"]) for one in encode_all(data.pairs, load_tokenizer(base), base.max_length))


def check_memory_there(jobs: Sequence[Job], cluster: str, gpu: bool = False) -> None:
    """`check_memory` on a worker of a cluster, whichever it is. Raises `LoralabError` as that does, or `run_all`."""
    task = jobs, at_once(cluster, gpu)
    for _, outcome in run_all(_check_away, [task], cluster=cluster, gpu=gpu):
        if isinstance(outcome, Exception):
            raise LoralabError(str(outcome) if isinstance(outcome, ValueError) else one_line(outcome))


def _check_away(task: tuple[Sequence[Job], int]) -> None:
    jobs, workers = task
    check_memory([replace(job, base=on_this_machine(job.base)) for job in jobs], workers)


def _trainable(job: Job) -> int:
    return adapter_shape(job.base.source, job.rank, job.modules).trainable


def train_job(job: Job) -> RunRecord:
    """Train one job into its folder; a failure leaves `failure.json` there and is raised again."""
    shutil.rmtree(job.folder, ignore_errors=True)  # whatever an interrupt left half-done
    try:
        return _train(job)
    except Exception as error:
        shutil.rmtree(job.folder, ignore_errors=True)
        record_failure(job, error)
        raise


def _train(job: Job) -> RunRecord:
    disable_progress_bar()  # the sweep has one
    tokenizer = load_tokenizer(job.base)
    model = load_model(job.base, quantization=job.quantization)
    torch.manual_seed(job.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"of \d+ evaluation pairs")  # the command reports leaks once, not per run
        return train(
            get_peft_model(model, job.config),
            tokenizer,
            job.data.pairs,
            job.folder,
            job.base,
            eval_pairs=job.data.eval_pairs,
            eval_answers=job.eval_answers,
            epochs=job.epochs,
            learning_rate=job.learning_rate,
            seed=job.seed,
            quiet=True,
        )


def record_failure(job: Job, error: Exception) -> None:
    """Write `failure.json` into the job's folder: what failed, why, and where in the code."""
    trace = "".join(traceback.format_exception(error))
    failure = {"name": job.name, "error": one_line(error), "traceback": trace, "created": now()}
    write_whole(job.folder / FAILURE_FILE, json.dumps(failure, indent=1) + "\n")


def sweep(
    jobs: Sequence[Job],
    workers: int = 1,
    function: Callable[[Job], RunRecord] = train_job,
    cluster: str | None = None,
    gpu: bool = False,
) -> Iterator[tuple[Job, RunRecord | Exception]]:
    """Train the jobs that have not finished yet; as each ends, the job and its record or why it failed.

    `workers`, `cluster` and `gpu` are those of `loralab.cluster.run_all`. On a cluster a run is trained in a folder of
    the machine that trains it, and its files are brought here.
    """
    left = unfinished(jobs)
    if cluster is None:
        outcomes = run_all(function, left, workers)
    else:
        tasks = [(function, job) for job in left]
        outcomes = map(_bring_home, run_all(train_away, tasks, cluster=cluster, gpu=gpu))
    for job, outcome in outcomes:
        if isinstance(outcome, Exception) and not (job.folder / FAILURE_FILE).exists():
            record_failure(job, outcome)  # the worker died before writing it
        yield job, outcome


@dataclass(frozen=True)
class Away:
    """What came of a job on another machine: its record, or why it failed, and the files of its run folder."""

    outcome: RunRecord | Exception
    files: dict[str, bytes]


def train_away(task: tuple[Callable[[Job], RunRecord], Job]) -> Away:
    """Train a job for another machine, in a temporary folder."""
    function, job = task
    with tempfile.TemporaryDirectory(prefix="sweep-") as out:
        job = replace(job, base=on_this_machine(job.base), out=Path(out))
        outcome: RunRecord | Exception
        try:
            outcome = function(job)
        except Exception as error:
            outcome = portable(error)
        files = [path for path in sorted(job.folder.rglob("*")) if path.is_file()]
        return Away(outcome, {path.relative_to(job.folder).as_posix(): path.read_bytes() for path in files})


def _bring_home(ended: tuple[Any, Away | Exception]) -> tuple[Job, RunRecord | Exception]:
    (_, job), away = ended
    shutil.rmtree(job.folder, ignore_errors=True)  # whatever an interrupt or a failure left there
    if isinstance(away, Exception):
        return job, away
    arriving = job.out / f"{job.name}.part"
    shutil.rmtree(arriving, ignore_errors=True)
    for name, content in away.files.items():
        (arriving / name).parent.mkdir(parents=True, exist_ok=True)
        (arriving / name).write_bytes(content)
    if away.files:
        arriving.rename(job.folder)
    return job, away.outcome


def table(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per job: its settings, `state` (finished, failed or to do), and what it measured.

    `exact` is the share of held-out messages whose record is entirely right, `exact_low` and `exact_high` its 95 %
    Wilson interval; all three are NaN if the data have no records. `question_gain` is in nats per token, `loss` the
    mean of the last quarter of the steps, `bytes` the size of the adapter's file.
    """
    return pd.DataFrame([_row(job) for job in jobs])


def _row(job: Job) -> dict[str, Any]:
    row = {
        "run": job.name,
        "base": job.base.name,
        "method": job.method,
        "targets": job.targets,
        "rank": job.rank,
        "seed": job.seed,
        "epochs": job.epochs,
        "learning_rate": job.learning_rate,
    }
    if record := job.record():
        return row | {
            "state": "finished",
            "alpha": record.alpha,
            "dropout": record.dropout,
            "train_pairs": record.train_pairs,
            "trainable": record.trainable,
            "bytes": record.adapter_bytes,
            **_accuracy(record),
            "ppl_before": record.ppl_before,
            "ppl": record.ppl_after,
            "loss": record.loss_ends[1],
            "seconds": record.seconds,
            "tokens_per_second": record.tokens / record.seconds,
            "peak_memory": record.peak_memory,
        }
    failure = job.folder / FAILURE_FILE
    if failure.exists():
        return row | {"state": "failed", "error": json.loads(failure.read_text("utf-8"))["error"]}
    return row | {"state": "to do"}


def _accuracy(record: RunRecord) -> dict[str, float]:
    """Return exact match with its interval, and the question gain; NaN for what was not measured."""
    share = record_match(record)
    exact, (low, high) = (share.value, share.interval) if share else (math.nan, (math.nan, math.nan))
    gain = math.nan if record.question_gain is None else record.question_gain
    return {"exact": exact, "exact_low": low, "exact_high": high, "question_gain": gain}


def record_match(record: RunRecord) -> Share | None:
    """Return exact match; None if it was not measured, or the right answers are no records and may have other words."""
    scores = record.scores_after
    return scores.exact_match if scores and scores.valid_records else None
