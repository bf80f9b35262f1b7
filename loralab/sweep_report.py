"""What a sweep shows: a tidy CSV, plots with error bars as PNG, and one HTML page that holds all of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .files import write_whole
from .plots import COLOURS
from .record import hardware, now, versions

SETTING = ["method", "targets", "rank", "alpha", "dropout"]
MARKERS, LINES = "osD^v", ("-", "--", ":", "-.", (0, (1, 3)))
TEMPLATE = jinja2.Environment(
    loader=jinja2.PackageLoader("loralab", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
COSTS = {  # column: its axis label and what it is divided by
    "loss": ("training loss, last quarter (nats)", 1),
    "seconds": ("training time (s)", 1),
    "peak_memory": ("peak memory (MiB)", 2**20),
    "bytes": ("adapter file (KB)", 1000),
}


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of a sweep's table that have a finite perplexity."""
    done = runs[runs["state"] == "finished"]
    return done[np.isfinite(done["ppl"])] if len(done) else done


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: number of seeds, and mean and standard deviation over them of what was measured.

    Raises `ValueError` if no run has finished with a finite perplexity.
    """
    done = finished(runs)
    if not len(done):
        raise ValueError("no run of this sweep has finished with a finite perplexity: train some first")
    measured = ["trainable", "bytes", "ppl", "loss", "seconds", "peak_memory"]
    groups = done.groupby(SETTING, sort=False)[measured]
    table = groups.mean().join(groups.std().add_suffix("_sd"))
    return table.assign(seeds=groups.size()).reset_index()


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The settings of a summary that no other one beats in both bytes and perplexity, the smallest first."""
    ordered = table.sort_values(["bytes", "ppl"])
    best = ordered["ppl"].cummin().shift(fill_value=np.inf)
    return ordered[ordered["ppl"] < best]


def plot_against_rank(table: pd.DataFrame, column: str, label: str, unit: float = 1, axes: Axes | None = None) -> Axes:
    """A column of a summary against rank, a line for each choice of targets and method, bars of one deviation."""
    axes = axes or plt.subplots(figsize=(8, 4.5), layout="constrained")[1]
    for name, rows, style in _lines(table):
        rows = rows.sort_values("rank")
        bars = rows[f"{column}_sd"].fillna(0) / unit
        axes.errorbar(rows["rank"], rows[column] / unit, yerr=bars, capsize=3, linewidth=2, label=name, **style)
    ranks = sorted(table["rank"].unique())
    axes.set(xlabel="rank r", ylabel=label, xscale="log")
    axes.set_xticks(ranks, ranks)
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    return axes


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """The lines of a plot: a colour for each choice of targets (or method, if all have the same targets), a marker and
    a dash for each method."""
    targets, methods = (list(dict.fromkeys(table[column])) for column in ("targets", "method"))
    for (method, group), rows in table.groupby(["method", "targets"], sort=False):
        which = methods.index(method)
        yield (
            f"{group}, {method}",
            rows,
            {
                "color": COLOURS[(targets.index(group) if len(targets) > 1 else which) % len(COLOURS)],
                "marker": MARKERS[which % len(MARKERS)],
                "linestyle": LINES[which % len(LINES)],
            },
        )


def plot_quality(runs: pd.DataFrame) -> Figure:
    """Held-out perplexity against rank, with the base's own."""
    axes = plot_against_rank(summary(runs), "ppl", "held-out perplexity (lower is better, log scale)")
    before = finished(runs)["ppl_before"].iloc[0]
    axes.set_yscale("log")
    axes.axhline(before, color=COLOURS[6], linestyle=":", label=f"the base untrained: {before:.0f}")
    seeds = int(summary(runs)["seeds"].max())
    spread = f"{seeds} seeds, ± one deviation" if seeds > 1 else "one seed"
    axes.set_title(f"{runs['base'].iloc[0]}: what rank buys ({spread})")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes.figure


def plot_costs(runs: pd.DataFrame) -> Figure:
    """Training loss, time, memory and adapter size against rank."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    table = summary(runs)
    for axes, (column, (label, unit)) in zip(panels.flat, COSTS.items(), strict=True):
        plot_against_rank(table, column, label, unit, axes)
        if column == "bytes":
            axes.set_yscale("log")
        elif column == "seconds":
            axes.set_ylim(bottom=0)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small"
    )
    figure.suptitle("What rank costs")
    return figure


def plot_pareto(runs: pd.DataFrame) -> Figure:
    """Perplexity against the adapter's size; the front joins what no other setting beats in both."""
    table = summary(runs)
    table["bytes"] /= 1000
    front = pareto_front(table)
    axes = plt.subplots(figsize=(8, 4.5), layout="constrained")[1]
    axes.step(
        front["bytes"], front["ppl"], where="post", color=COLOURS[6], linewidth=1.5, zorder=0, label="Pareto front"
    )
    for name, rows, style in _lines(table):
        bars = rows["ppl_sd"].fillna(0)
        axes.errorbar(rows["bytes"], rows["ppl"], yerr=bars, capsize=3, label=name, **style | {"linestyle": "none"})
    for row in front.itertuples():
        axes.annotate(f"r {row.rank}", (row.bytes, row.ppl), (5, 5), textcoords="offset points", fontsize="small")
    axes.set(
        title="The cheapest adapter for a given perplexity",
        xlabel="adapter file (KB, log scale)",
        ylabel="held-out perplexity (log scale)",
        xscale="log",
        yscale="log",
    )
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes.figure


FIGURES = {"perplexity": plot_quality, "costs": plot_costs, "pareto": plot_pareto}


def write_report(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `sweep.csv`, the figures and `sweep.html` into `folder`; returns what was written.

    Without a finished run only the CSV is written.
    """
    csv = write_whole(folder / "sweep.csv", runs.to_csv(index=False))
    if not len(finished(runs)):
        return [csv]
    pictures = [_saved(plot(runs), folder / f"{name}.png") for name, plot in FIGURES.items()]
    page = write_whole(folder / "sweep.html", _page(runs, pictures))
    return [csv, *pictures, page]


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)
    return path


def _page(runs: pd.DataFrame, pictures: Sequence[Path]) -> str:
    done = finished(runs)
    table = summary(runs).sort_values("ppl")
    return TEMPLATE.get_template("sweep.html.j2").render(
        base=runs["base"].iloc[0],
        first=runs.iloc[0],
        before=done["ppl_before"].iloc[0],
        counts=runs["state"].value_counts().to_dict(),
        pairs=list(done["train_pairs"].unique()),
        diverged=int((runs["state"] == "finished").sum() - len(done)),
        failed=runs[runs["state"] == "failed"].to_dict("records"),
        pictures=[(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in pictures],
        rows=table.to_dict("records"),
        front=set(pareto_front(table).index),
        indices=list(table.index),
        hardware=hardware(),
        versions=versions(),
        date=now(),
    )
