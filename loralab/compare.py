"""`loralab compare`: finished runs side by side, and whether their exact match differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .errors import LoralabError
from .plots import plot_exact, plot_ppl
from .record import RunRecord
from .scores import Share, differ


def read_runs(folders: Sequence[str | Path]) -> dict[str, RunRecord]:
    """Return the records of run folders by the shortest names that tell them apart. Raises `LoralabError` in one line."""
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise LoralabError("the same run is given twice")
    if len(paths) < 2:
        raise LoralabError("give at least two run folders")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return {name: RunRecord.load(path) for name, path in zip(names, paths, strict=True)}


def show(runs: Mapping[str, RunRecord], console: Console | None = None) -> None:
    """Print one row per run, and then what can be concluded."""
    console = console or Console(markup=False, highlight=False)
    table = Table()
    for heading in ("run", "method", "rank", "PPL", "exact match (95 %)", "question gain", "seconds", "bytes"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("run", "method") else "right")
    for name, record in runs.items():
        table.add_row(name, *_cells(record))
    console.print(table)
    for line in conclusions(runs):
        console.print(line, soft_wrap=True)


def _cells(record: RunRecord) -> list[str]:
    exact = _exact(record)
    return [
        record.method,
        "-" if record.rank is None else str(record.rank),
        "-" if record.ppl_after is None else f"{record.ppl_after:.3g}",
        "-" if exact is None else str(exact),
        "-" if record.question_gain is None else f"{record.question_gain:.2f}",
        f"{record.seconds:.0f}",
        "-" if record.adapter_bytes is None else f"{record.adapter_bytes:,}",
    ]


def _exact(record: RunRecord) -> Share | None:
    return record.scores_after.exact_match if record.scores_after and record.scores_after.count else None


def _shares(runs: Mapping[str, RunRecord]) -> dict[str, Share]:
    return {name: share for name, record in runs.items() if (share := _exact(record))}


def conclusions(runs: Mapping[str, RunRecord]) -> list[str]:
    """Say whether the best exact match differs from each other one, or why that cannot be compared; then warn."""
    lines = _of_exact_match(runs)
    if len({record.base for record in runs.values()}) > 1:
        lines.append("The bases differ: perplexity counts per token, so do not compare it across tokenizers.")
    for name, record in runs.items():
        if record.leaks:
            lines.append(
                f"{name}: {record.leaks} of {record.eval_pairs} evaluation pairs are in its training pairs, so its "
                "figures measure memory."
            )
    return lines


def _of_exact_match(runs: Mapping[str, RunRecord]) -> list[str]:
    shares = _shares(runs)
    if problem := _incomparable(runs, shares):
        return [f"Exact match cannot be compared: {problem}."]
    best = max(shares, key=lambda name: shares[name].value)
    return [_difference(best, name, shares) for name in shares if name != best]


def _incomparable(runs: Mapping[str, RunRecord], shares: Mapping[str, Share]) -> str | None:
    unmeasured = [name for name in runs if name not in shares]
    if unmeasured:
        return f"no answers were scored for {', '.join(unmeasured)} (train with --eval)"
    unknown = [name for name, record in runs.items() if record.eval_digest is None]
    if unknown:
        return f"the evaluation pairs of {', '.join(unknown)} are not recorded"
    if len({(record.eval_digest, shares[name].of) for name, record in runs.items()}) > 1:
        return "the runs were measured on different evaluation pairs; train them with the same --eval FILE"
    return None


def _difference(best: str, other: str, shares: Mapping[str, Share]) -> str:
    one, two = shares[best], shares[other]
    found = f"is higher than that of {other}" if differ(one, two) else f"and {other} does not differ beyond chance"
    return (
        f"The exact match of {best} {found} ({one.hits} and {two.hits} of {one.of}; Fisher's exact test, 95 % level)."
    )


def plot(runs: Mapping[str, RunRecord], path: str | Path) -> None:
    """Draw perplexity and exact match with its intervals into a file. Raises `LoralabError` or `OSError` in one line."""
    ppl = {name: record.ppl_after for name, record in runs.items() if record.ppl_after is not None}
    shares = _shares(runs)
    if not (ppl or shares):
        raise LoralabError("none of the runs was measured on evaluation pairs, so there is nothing to plot")
    figure = Figure(figsize=(11, 1 + 0.45 * len(runs)), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_ppl(ppl, left)
    plot_exact(shares, right)
    try:
        figure.savefig(path, dpi=150, format=Path(path).suffix[1:] or "png")  # else matplotlib adds a missing ending
    except ValueError as error:  # an ending that is no image format
        raise LoralabError(f"--plot {path}: {error}") from None
