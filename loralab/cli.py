"""The command line: `loralab --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Tools of the LoRA and QLoRA course.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _main() -> None:
    pass


@app.command()
def heldout(
    seed: Annotated[int, typer.Option(help="The same seed draws the same pairs.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 100,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")] = Path("heldout.jsonl"),
) -> None:
    """Draw fresh held-out pairs in wordings that no training or evaluation file uses."""
    from .desk import draw
    from .pairs import write_pairs

    try:
        pairs = draw(seed, count)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    write_pairs(out, pairs)
    typer.echo(f"{count} pairs with seed {seed} in {out}, for example:\n{pairs[0].model_dump_json(indent=1)}")


@app.command()
def check(pairs: Path, base: str = "embedded") -> None:
    """Check a JSONL file of instruction pairs: format, duplicates, and whether each fits the base."""
    from .bases import choose_base, load_tokenizer
    from .pairs import PairsError, encode, read_pairs

    chosen = choose_base(base)
    tokenizer = load_tokenizer(chosen)
    try:
        good = read_pairs(pairs, tokenizer, chosen.max_length)
    except PairsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    lengths = sorted(len(encode(pair, tokenizer, chosen.max_length)["input_ids"]) for pair in good)
    typer.echo(f"{len(good)} good pairs; {lengths[len(lengths) // 2]} tokens in the median, {lengths[-1]} at most")


@app.command()
def gate(
    run: Path,
    decision: Annotated[str | None, typer.Option(metavar="keep|merge|swap", help="How it will be served.")] = None,
    licence: Annotated[str | None, typer.Option(help="The base's licence, e.g. apache-2.0.")] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on, in a sentence, for its card.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, where the run's own name for it is not found.")] = None,
    eval_file: Annotated[Path | None, typer.Option("--eval", help="JSONL file with the held-out pairs.")] = None,
    recompute: Annotated[bool, typer.Option(help="Measure both perplexities again.")] = False,
) -> None:
    """Judge a finished run by the nine points of the operating gate, and write its model card."""
    from transformers.utils.logging import disable_progress_bar

    from .gate import gate, show

    disable_progress_bar()
    try:
        points = gate(
            run, base=base, decision=decision, licence=licence, data=data, eval_file=eval_file, recompute=recompute
        )
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    show(points, title=run.name)
    if not all(point.passed for point in points):
        raise typer.Exit(1)
