"""Report a sweep: a tidy CSV, plots with error bars as PNG, and one self-contained HTML page."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .errors import LoralabError
from .files import write_whole
from .plots import COLOURS
from .record import hardware, now, versions

SETTING = ["method", "targets", "rank", "alpha", "dropout", "learning_rate"]
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
EXACT = "exact match on held-out messages"
UNTRAINED = "untrained base"
PPL = "held-out perplexity (lower is better, log scale)"


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a sweep's table that have a finite perplexity."""
    done = runs[runs["state"] == "finished"]
    return done[np.isfinite(done["ppl"])] if len(done) else done


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per setting: number of seeds, and mean and standard deviation (`_sd`) of each measure over them.

    Raises `LoralabError` if no run has finished with a finite perplexity.
    """
    done = finished(runs)
    if not len(done):
        raise LoralabError("no run of this sweep has finished with a finite perplexity: train some first")
    measured = ["trainable", "bytes", "exact", "question_gain", "ppl", "loss", "seconds", "peak_memory"]
    groups = done.groupby(SETTING, sort=False)[measured]
    table = groups.mean().join(groups.std().add_suffix("_sd"))
    intervals = done.groupby(SETTING, sort=False)[["exact_low", "exact_high"]].mean()  # drawn for one seed only
    return table.join(intervals).assign(seeds=groups.size()).reset_index()


def measure_of(table: pd.DataFrame) -> str:
    """Return the column that ranks settings: `exact` if every row has it, `ppl` otherwise."""
    return "exact" if table["exact"].notna().all() else "ppl"


def best_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort a summary by exact match and, where that is equal or missing, by perplexity."""
    keys = ["exact", "ppl"] if measure_of(table) == "exact" else ["ppl"]
    return table.sort_values(keys, ascending=[key == "ppl" for key in keys])


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a summary that have the best learning rate of their setting: so settings compare fairly."""
    others = [name for name in SETTING if name != "learning_rate"]
    return best_first(table).drop_duplicates(others).sort_index()


def pareto_front(table: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    """Return the settings of a summary that no other one beats in both bytes and `measure`, the smallest first.

    `measure` is `exact` or `ppl`; the default is what `measure_of` returns.
    """
    loss = table["ppl"] if (measure or measure_of(table)) == "ppl" else -table["exact"]
    ordered = table.assign(loss=loss).sort_values(["bytes", "loss"])
    best = ordered["loss"].cummin().shift(fill_value=np.inf)
    return table.loc[ordered.index[ordered["loss"] < best]]


def plot_against_rank(table: pd.DataFrame, column: str, label: str, unit: float = 1, axes: Axes | None = None) -> Axes:
    """Plot a column of a summary against rank, one line per choice of targets and method, with error bars.

    A bar is one standard deviation over the seeds. A setting with one seed has a bar for exact match only: its 95 %
    Wilson interval.
    """
    axes = axes or plt.subplots(figsize=(8, 4.5), layout="constrained")[1]
    for name, rows, style in _lines(table):
        rows = rows.sort_values("rank")
        bars = _bars(rows, column) / unit
        axes.errorbar(rows["rank"], rows[column] / unit, yerr=bars, capsize=3, linewidth=2, label=name, **style)
    ranks = sorted(table["rank"].unique())
    axes.set(xlabel="rank r", ylabel=label, xscale="log")
    axes.set_xticks(ranks, ranks)
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    return axes


def _bars(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return the error bars of a column, [2, rows]: their lengths below and above the marks."""
    deviation = rows[f"{column}_sd"].fillna(0)
    if column != "exact":
        return np.array([deviation, deviation])
    alone = rows["seeds"] == 1
    below, above = rows["exact"] - rows["exact_low"], rows["exact_high"] - rows["exact"]
    return np.array([below.where(alone, deviation), above.where(alone, deviation)])


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Yield the lines of a plot: a colour per choice of targets (or per method, if all have the same targets), a
    marker and a dash per method."""
    targets, methods = (list(dict.fromkeys(table[column])) for column in ("targets", "method"))
    for (method, group), rows in table.groupby(["method", "targets"], sort=False):
        which = methods.index(method)
        colour = COLOURS[(targets.index(group) if len(targets) > 1 else which) % len(COLOURS)]
        style = {"color": colour, "marker": MARKERS[which % len(MARKERS)], "linestyle": LINES[which % len(LINES)]}
        yield f"{group}, {method}", rows, style


def plot_quality(runs: pd.DataFrame) -> Figure:
    """Plot exact match, if it was measured, and held-out perplexity against rank, at the best learning rate."""
    table = best_rates(summary(runs))
    columns = ["exact", "ppl"] if measure_of(table) == "exact" else ["ppl"]
    figure, panels = plt.subplots(
        1, len(columns), figsize=(3 + 4.5 * len(columns), 4.5), layout="constrained", squeeze=False
    )
    for axes, column in zip(panels.flat, columns, strict=True):
        plot_against_rank(table, column, EXACT if column == "exact" else PPL, axes=axes)
        if column == "exact":
            axes.set_ylim(-0.03, 1.03)
    before = finished(runs)["ppl_before"].iloc[0]
    axes.set(yscale="log", title=f"the untrained base: PPL {before:.0f}")  # as a line it would squeeze the others
    figure.suptitle(f"{runs['base'].iloc[0]}: what rank buys ({_spread(table, columns)}{_at_best(runs)})")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    return figure


def _spread(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Say what the error bars are."""
    seeds = int(table["seeds"].max())
    if seeds > 1:
        return f"{seeds} seeds, ± one deviation"
    return "one seed, 95 % intervals of exact match" if "exact" in columns else "one seed"


def _at_best(runs: pd.DataFrame) -> str:
    return ", each at its best learning rate" if several_rates(runs) else ""


def several_rates(runs: pd.DataFrame) -> bool:
    """Tell whether the runs of a sweep were planned with more than one learning rate."""
    return bool(runs["learning_rate"].nunique() > 1)


def plot_rates(runs: pd.DataFrame) -> Figure:
    """Plot exact match, or else perplexity, against learning rate, one line per rank.

    There is a row of panels per method and a column per choice of targets. Perplexity is cut off well above that of the
    untrained base.
    """
    table = summary(runs)
    measure = measure_of(table)
    methods, targets, ranks = (list(dict.fromkeys(table[name])) for name in ("method", "targets", "rank"))
    before = finished(runs)["ppl_before"].iloc[0]
    figure, panels = plt.subplots(
        len(methods),
        len(targets),
        figsize=(3 + 4 * len(targets), 0.8 + 3.7 * len(methods)),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for axes, (method, group) in zip(panels.flat, itertools.product(methods, targets), strict=True):
        _draw_rates(axes, table[(table["method"] == method) & (table["targets"] == group)], measure, sorted(ranks))
        axes.set_title(f"{group}, {method}", fontsize="medium")
        if measure == "ppl":
            axes.axhline(before, color=COLOURS[6], linestyle=":", zorder=0, label=UNTRAINED)
    _scale_rates(panels[0, 0], table, measure, before)
    figure.supylabel(EXACT if measure == "exact" else PPL, fontsize="medium")
    figure.supxlabel("learning rate (log scale)", fontsize="medium")
    figure.suptitle(f"{runs['base'].iloc[0]}: which learning rate ({_spread(table, [measure])})")
    drawn: dict[str, Any] = {}
    for axes in panels.flat:
        lines, labels = axes.get_legend_handles_labels()
        drawn |= dict(zip(labels, lines, strict=True))
    shown = sorted(drawn, key=lambda label: label == UNTRAINED)  # the others stay in their order
    figure.legend([drawn[label] for label in shown], shown, loc="outside right center", frameon=False, fontsize="small")
    return figure


def _draw_rates(axes: Axes, table: pd.DataFrame, measure: str, ranks: Sequence[int]) -> None:
    for rank, rows in table.groupby("rank"):
        which = ranks.index(rank)
        rows = rows.sort_values("learning_rate")
        axes.errorbar(
            rows["learning_rate"],
            rows[measure],
            yerr=_bars(rows, measure),
            capsize=3,
            linewidth=2,
            label=f"rank {rank}",
            color=COLOURS[which % len(COLOURS)],
            marker=MARKERS[which % len(MARKERS)],
        )
    axes.grid(alpha=0.3)


def _scale_rates(axes: Axes, table: pd.DataFrame, measure: str, before: float) -> None:
    """Set the axes that all panels share; runs that are worse than the untrained base are cut off."""
    rates = sorted(table["learning_rate"].unique())
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.minorticks_off()
    if measure == "exact":
        axes.set_ylim(-0.03, 1.03)
        return
    axes.set_yscale("log")
    if table["ppl"].max() > 1.5 * before:
        axes.set_ylim(top=1.5 * before)


def plot_costs(runs: pd.DataFrame) -> Figure:
    """Plot training loss, time, memory and adapter size against rank, at the best learning rate."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    table = best_rates(summary(runs))
    for axes, (column, (label, unit)) in zip(panels.flat, COSTS.items(), strict=True):
        plot_against_rank(table, column, label, unit, axes)
        if column == "bytes":
            axes.set_yscale("log")
        elif column == "seconds":
            axes.set_ylim(bottom=0)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small"
    )
    figure.suptitle(f"What rank costs{_at_best(runs)}")
    return figure


def plot_pareto(runs: pd.DataFrame, measure: str | None = None) -> Figure:
    """Plot `measure` (see `pareto_front`) against the adapter's size; the front joins the settings that nothing beats
    in both. Each setting is drawn at its best learning rate."""
    table = best_rates(summary(runs))
    table["bytes"] /= 1000
    measure = measure or measure_of(table)
    front = pareto_front(table, measure)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.step(
        front["bytes"], front[measure], where="post", color=COLOURS[6], linewidth=1.5, zorder=0, label="Pareto front"
    )
    for name, rows, style in _lines(table):
        bars, style = _bars(rows, measure), style | {"linestyle": "none"}
        axes.errorbar(rows["bytes"], rows[measure], yerr=bars, capsize=3, label=name, **style)
    for rank, size, value in front[["rank", "bytes", measure]].itertuples(index=False):
        axes.annotate(f"r {rank:.0f}", (size, value), (5, 5), textcoords="offset points", fontsize="small")
    goal, label, scale = ("perplexity", PPL, "log") if measure == "ppl" else ("exact match", EXACT, "linear")
    axes.set(
        title=f"The smallest adapter for a given {goal}{_at_best(runs)}",
        xlabel="adapter file (KB, log scale)",
        ylabel=label,
        xscale="log",
        yscale=scale,
    )
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURES = {"quality": plot_quality, "rates": plot_rates, "costs": plot_costs, "pareto": plot_pareto}


def write_report(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `sweep.csv`, the figures and `sweep.html` into `folder`; return their paths.

    Without a finished run only the CSV is written, and with one learning rate there is no figure of it.
    """
    csv = write_whole(folder / "sweep.csv", runs.to_csv(index=False))
    if not len(finished(runs)):
        return [csv]
    drawn = {name: plot for name, plot in FIGURES.items() if name != "rates" or several_rates(runs)}
    pictures = [_saved(plot(runs), folder / f"{name}.png") for name, plot in drawn.items()]
    page = write_whole(folder / "sweep.html", _page(runs, pictures))
    return [csv, *pictures, page]


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)
    return path


def _page(runs: pd.DataFrame, pictures: Sequence[Path]) -> str:
    done = finished(runs)
    table = best_first(summary(runs))
    return TEMPLATE.get_template("sweep.html.j2").render(
        base=runs["base"].iloc[0],
        epochs=runs["epochs"].iloc[0],
        rates=sorted(runs["learning_rate"].unique()),
        before=done["ppl_before"].iloc[0],
        counts=runs["state"].value_counts().to_dict(),
        pairs=list(done["train_pairs"].unique()),
        diverged=int((runs["state"] == "finished").sum() - len(done)),
        failed=runs[runs["state"] == "failed"].to_dict("records"),
        pictures=[(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in pictures],
        rows=table.to_dict("records"),
        exact=measure_of(table) == "exact",
        front=set(pareto_front(table).index),
        indices=list(table.index),
        hardware=hardware(),
        versions=versions(),
        date=now(),
    )
