"""The course's plots. Colours are Okabe and Ito's, distinguishable for the colour-blind and on light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .record import RunRecord
from .scores import Scores, Share

if TYPE_CHECKING:
    from .memory import Memory  # it loads torch, which no plot needs

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
plt.rcParams["axes.formatter.min_exponent"] = 6  # a log axis of perplexities reads 20, 30, 50: not 2 × 10¹
WINDOW = 5  # steps of a running mean
DIVERGED = 10_000.0  # a perplexity that no training is left with which still learns


def show(shown: Figure | Axes, alt: str) -> None:
    """Display a figure, or that of `Axes`, in a notebook with `alt` as its alternative text, and close it.

    The text goes into the output's metadata (`image/png`), where nbconvert and screen readers find it.
    """
    figure = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def new_axes(title: str = "", height: float = 3.2, **labels: Any) -> Axes:
    """Return the axes of a new figure; `labels` are settings of `Axes.set`, such as `xlabel` and `yscale`."""
    axes: Axes = plt.subplots(figsize=(7, height), layout="constrained")[1]
    axes.set(title=title, **labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_curves(curves: Mapping[str, Sequence[float]], x: Sequence[float], axes: Axes) -> Axes:
    """Plot one line per curve over the same `x`."""
    for (name, values), colour in zip(curves.items(), cycle(COLOURS)):
        axes.plot(x, values, "o-", color=colour, linewidth=2, markersize=5, label=name)
    axes.legend(frameon=False)
    return axes


def plot_seeds(runs: Mapping[str, Mapping[float, Sequence[float]]], axes: Axes) -> Axes:
    """Plot one line per group through the means over seeds, with each seed's value as a faint point.

    `runs` maps a group's name to the values of its seeds at each x.
    """
    for (name, by_x), colour in zip(runs.items(), cycle(COLOURS)):
        x = sorted(by_x)
        axes.plot(x, [np.mean(by_x[at]) for at in x], "-", color=colour, linewidth=2, label=name)
        points = [(at, value) for at in x for value in by_x[at]]
        axes.plot(*np.transpose(points), "o", color=colour, alpha=0.45, markersize=4)
    axes.legend(frameon=False)
    return axes


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Return the running mean over the last `WINDOW` steps (fewer at the start)."""
    sums = np.cumsum(np.insert(np.asarray(losses, float), 0, 0.0))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - WINDOW)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def plot_loss(records: RunRecord | Sequence[RunRecord], axes: Axes | None = None) -> Axes:
    """Training loss against optimiser step, one line a run: every step faint, the running mean strong."""
    records = [records] if isinstance(records, RunRecord) else records
    axes = axes or plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
    for record, colour in zip(records, cycle(COLOURS)):
        steps = np.arange(1, len(record.losses) + 1)
        axes.plot(steps, record.losses, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps, smoothed(record.losses), color=colour, linewidth=2, label=record.name)
    axes.set(title="Training loss", xlabel="optimiser step", ylabel="loss (nats per answer token)")
    axes.grid(alpha=0.3)
    if len(records) > 1:
        axes.legend(frameon=False)
    return axes


def plot_ppl(ppl: Mapping[str, float], axes: Axes | None = None, colours: Sequence[str] = COLOURS) -> Axes:
    """Perplexities as labelled horizontal bars on a log scale, in the order given; `colours` are taken in turn.

    A perplexity of `DIVERGED` or more, or one that is no number, is called diverged, and its bar ends there.
    """
    axes = axes or plt.subplots(figsize=(7, 0.5 + 0.45 * len(ppl)), layout="constrained")[1]
    lengths = np.nan_to_num(list(ppl.values()), nan=DIVERGED).clip(max=DIVERGED)
    bars = axes.barh(list(ppl), lengths, color=[colours[i % len(colours)] for i in range(len(ppl))])
    axes.bar_label(bars, [_readable(length) for length in lengths], padding=4)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="held-out perplexity (lower is better, log scale)")
    axes.set_xlim(1, lengths.max(initial=1.0) ** 1.2 * 1.2)  # room for the longest bar's label
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_exact(shares: Mapping[str, Share], axes: Axes | None = None, colours: Sequence[str] = COLOURS) -> Axes:
    """Plot shares of exactly right answers as horizontal bars from 0 to 1, in the order given, with 95 % intervals.

    A share of nothing has no bar. `colours` are taken in turn.
    """
    axes = axes or plt.subplots(figsize=(7, 0.5 + 0.45 * len(shares)), layout="constrained")[1]
    lengths = np.nan_to_num([share.value for share in shares.values()])
    low, high = np.nan_to_num([share.interval for share in shares.values()]).reshape(-1, 2).T
    bars = axes.barh(
        list(shares),
        lengths,
        xerr=[(lengths - low).clip(0), (high - lengths).clip(0)],
        error_kw={"capsize": 3, "elinewidth": 1},
        color=[colours[i % len(colours)] for i in range(len(shares))],
    )
    labels = [f"{share.value:.2f}" if share.of else "no answers" for share in shares.values()]
    axes.bar_label(bars, labels, padding=4)  # beyond the error bar
    axes.invert_yaxis()
    axes.set(xlabel="exact match (higher is better, 95 % interval)", xlim=(0, 1.12))  # room for the label of a full bar
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _readable(ppl: float) -> str:
    if ppl >= DIVERGED:
        return "diverged"
    return f"{ppl:.3g}" if ppl < 1000 else f"{ppl:,.0f}"


def plot_memory(memory: Mapping[str, Memory], limit: float, gpu: str, axes: Axes | None = None) -> Axes:
    """Plot the parts of trainings' memory as stacked bars in GB, against the `limit` of a GPU in bytes."""
    axes = axes or plt.subplots(figsize=(9, 1.2 + 0.36 * len(memory)), layout="constrained")[1]
    left = np.zeros(len(memory))
    for part, colour in zip(asdict(next(iter(memory.values()))), COLOURS, strict=False):
        sizes = np.array([getattr(one, part) for one in memory.values()]) / 1e9
        bars = axes.barh(list(memory), sizes, left=left, color=colour, label=part)
        left += sizes
    over_the_line = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(bars, [f"{total:.1f}" for total in left], padding=4, bbox=over_the_line)
    axes.axvline(limit / 1e9, color="black", linestyle="--", linewidth=1, label=f"{gpu}: {limit / 1e9:.1f} GB")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set(title="Peak memory (estimate)", xlabel="GB")
    axes.figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_fields(
    scores: Mapping[str, Scores], guesses: Mapping[str, float] | None = None, axes: Axes | None = None
) -> Axes:
    """Plot the shares of right records and of right values by field, with 95 % intervals, a colour for each of `scores`.

    `guesses` of the share of right records are crosses at the same places.
    """
    axes = axes or new_axes("What is right, with the 95 % interval", 3.6, ylabel="share", ylim=(0, 1.02))
    for i, ((name, one), colour) in enumerate(zip(scores.items(), cycle(COLOURS))):
        shares = {"whole record": one.exact_match} | one.field_accuracy
        values, bounds = np.array([share.value for share in shares.values()]), [s.interval for s in shares.values()]
        places = np.arange(len(shares)) + 0.2 * (i - (len(scores) - 1) / 2)
        reach = abs(np.transpose(bounds) - values)  # below and above
        axes.errorbar(places, values, reach, fmt="o", color=colour, capsize=4, label=name)
        if guesses:
            axes.plot(places[0], guesses[name], "x", color=colour, markersize=9, label=f"{name}, your guess")
        axes.set_xticks(range(len(shares)), list(shares))
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))  # inside it could hide a point
    return axes


def plot_ratios(ratios: Mapping[str, float], axes: Axes) -> Axes:
    """Plot ratios as horizontal bars that start at 1 (no difference), in the order given."""
    names, values = list(ratios), np.array(list(ratios.values()))
    bars = axes.barh(names, values - 1, left=1, color=COLOURS[0], height=0.5)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=4)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    return axes


def mark_guesses(x: Sequence[float], y: Sequence[float], axes: Axes) -> Axes:
    """Mark guesses at these places with crosses, and name them in the legend."""
    axes.plot(x, y, "x", color="black", markersize=9, markeredgewidth=2, label="your guess", zorder=3)
    axes.legend(framealpha=1)  # with a frame: the cross in it is no guess
    return axes


def plot_choice(values: Mapping[float, Sequence[float]], guess: float, axes: Axes) -> Axes:
    """Plot values, one point per seed, over the setting to choose on a log scale, and the guessed setting."""
    plot_seeds({"measured": values}, axes)
    axes.axvline(guess, color=COLOURS[1], linestyle="--", label="your guess")
    axes.set_xscale("log")
    axes.set_xticks(sorted(values), [f"{at:.2g}" for at in sorted(values)])
    axes.xaxis.minorticks_off()
    axes.legend(frameon=False)
    return axes


def plot_intervals(intervals: Mapping[str, tuple[float, float, float]], axes: Axes) -> Axes:
    """Plot differences (mean, low, high) as points with intervals, one row each in the order given, against zero.

    An interval that contains zero is grey: it shows no difference.
    """
    axes.axvline(0, color="black", linewidth=1)
    for name, (mean, low, high) in intervals.items():
        colour = COLOURS[-1] if low <= 0 <= high else COLOURS[0]
        reach = [[mean - low], [high - mean]]
        axes.errorbar([mean], [name], xerr=reach, fmt="o", capsize=4, linewidth=2, color=colour)
    axes.invert_yaxis()
    axes.margins(y=0.25)
    return axes


def plot_repeats(values: Mapping[str, Sequence[float]], axes: Axes) -> Axes:
    """Plot repeated perplexities, such as those of several seeds, as points in one row per name, on a log scale.

    Each row is labelled with its median. A perplexity of `DIVERGED` or more, or one that is no number, is drawn there.
    """
    for row, (measured, colour) in enumerate(zip(values.values(), cycle(COLOURS))):
        points = np.nan_to_num(measured, nan=DIVERGED).clip(max=DIVERGED)
        axes.plot(points, [row] * len(points), "o", color=colour, alpha=0.6, markersize=8)
        median = f"median {_readable(float(np.median(points)))}"
        axes.annotate(median, (points.max(), row), xytext=(10, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(values)), list(values))
    axes.set(xscale="log", ylim=(len(values) - 0.5, -0.5))
    axes.set_xlim(1, axes.get_xlim()[1] ** 1.3 * 1.3)  # room for the labels
    return axes


def plot_stopping(curves: Mapping[str, Sequence[Sequence[float]]], kept: Sequence[int], axes: Axes) -> Axes:
    """Plot perplexities over the epochs, one colour per name and one line per seed, on a log scale.

    `curves` has, for each name, the curves of the seeds, [seeds, epochs]. A ring marks each seed's epoch in `kept`, counted
    from 1.
    """
    for (name, seeds), colour in zip(curves.items(), cycle(COLOURS)):
        for seed, curve in enumerate(seeds):
            epochs = range(1, len(curve) + 1)
            axes.plot(epochs, curve, color=colour, alpha=0.7, label=None if seed else name)
            axes.plot(kept[seed], curve[kept[seed] - 1], "o", color=colour, markerfacecolor="none", markersize=9)
    axes.set(xlabel="epoch (○: kept)", yscale="log")
    axes.legend(frameon=False)
    return axes


def plot_levels(values: Sequence[float], levels: Mapping[str, Sequence[float]]) -> Axes:
    """Plot a histogram of scaled weights, and under it one row of marks per format at the values that it has."""
    axes = new_axes("Scaled weights, and the values that each format has", xlabel="weight / absmax of its block")
    axes.hist(values, bins=120, density=True, color=COLOURS[5], alpha=0.6)
    for row, ((name, marks), colour) in enumerate(zip(levels.items(), cycle(COLOURS)), start=1):
        y = -0.3 * row
        axes.plot(marks, [y] * len(marks), "|", color=colour, markersize=13, markeredgewidth=2)
        axes.text(1.05, y, name, color=colour, va="center")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="density", yticks=[], xlim=(-1.05, 1.2))
    axes.grid(visible=False)
    return axes


def plot_log_histogram(values: Sequence[float], limit: float, title: str, xlabel: str) -> Axes:
    """Plot a histogram of values above 0 on a log scale, with a dashed line at `limit`."""
    shown = np.asarray(values, float)
    shown = shown[shown > 0]
    low, high = np.quantile(shown, 0.001, method="lower"), max(2 * limit, shown.max())
    axes = new_axes(title, xlabel=xlabel, ylabel="weights", xscale="log", yticks=[])
    axes.hist(shown, bins=np.geomspace(low, high, 80).tolist(), color=COLOURS[5])
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    return axes


def plot_spectrum(values: Mapping[str, np.ndarray], energy: Mapping[str, np.ndarray], rank: int) -> Figure:
    """Plot singular values relative to the first (left), and which share of the energy the first r hold (right).

    Energy is the sum of the squared singular values, as a share of all of it; `rank` is marked on the right.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    sides = {
        left: {name: of / of[0] for name, of in values.items()},
        right: {name: 100 * of for name, of in energy.items()},
    }
    for axes, curves in sides.items():
        for (name, curve), colour in zip(curves.items(), cycle(COLOURS)):
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, linewidth=2, label=name)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    right.axvline(rank, color=COLOURS[-1], linestyle=":", label=f"r = {rank}")
    right.set(title="Energy in the first r terms", xlabel="r", ylabel="% (mean over layers)", ylim=(0, 100))
    left.set(title="Singular values of the first q_proj", xlabel="index i", ylabel="σ_i / σ_1")
    for axes in sides:
        axes.legend(frameon=False)
    return figure


def plot_cut(cut: Mapping[int, tuple[float, Share]], marks: Mapping[str, tuple[float, Share]]) -> Figure:
    """Plot perplexity (left) and exact match with 95 % intervals (right) against the number of terms that are kept.

    Both arguments map to (perplexity, exact match); `marks` are drawn as horizontal lines.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    ppl, shares = zip(*cut.values(), strict=True)
    left.plot(list(cut), ppl, "o-", color=COLOURS[0], linewidth=2)
    values = np.array([share.value for share in shares])
    low, high = np.array([share.interval for share in shares]).T
    right.errorbar(
        list(cut), values, [values - low, high - values], fmt="o-", color=COLOURS[0], label="first r terms kept"
    )
    for (name, (height, share)), colour, style in zip(marks.items(), COLOURS[1:], ("--", "-.", ":"), strict=False):
        left.axhline(height, color=colour, linestyle=style)
        right.axhline(share.value, color=colour, linestyle=style, label=name)
    left.set(title="Held-out perplexity (log scale)", yscale="log")
    right.set(title="Exact match (95 % intervals)", ylim=(-0.03, 1.03))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(cut), [str(r) for r in cut])
        axes.set_xlabel("r (terms kept)")
        axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def draw_factors(d_out: int, d_in: int, rank: int) -> Figure:
    """Draw to scale what full fine-tuning and LoRA train of a weight matrix [d_out, d_in]."""
    figure, axes = plt.subplots(figsize=(10, 4.6), layout="constrained")
    gap, x = d_in / 2, 0.0
    blocks = [
        ("", d_out, d_in, COLOURS[1], f"full fine-tuning:\nW, trained\n{d_out} × {d_in}"),
        ("or", d_out, d_in, COLOURS[-1], f"LoRA:\nW, frozen\n{d_out} × {d_in}"),
        ("+", d_out, rank, COLOURS[0], f"B, trained\n{d_out} × {rank}"),
        ("×", rank, d_in, COLOURS[2], f"A, trained\n{rank} × {d_in}"),
    ]
    for sign, rows, columns, colour, label in blocks:
        if sign:
            axes.text(x + gap / 2, 0, sign, fontsize=18, ha="center", va="center")
            x += gap
        axes.add_patch(Rectangle((x, -rows / 2), columns, rows, facecolor=colour))
        axes.text(x + columns / 2, rows / 2 + gap / 6, label, ha="center", va="bottom", fontsize=10)
        x += columns
    axes.text(d_in / 2, 0, f"{d_out * d_in:,}\nnumbers", color="white", ha="center", va="center")
    axes.text(x - d_in / 2, -gap / 4, f"{rank * (d_out + d_in):,} numbers\nin B and A", ha="center", va="top")
    axes.set(xlim=(-gap / 4, x + gap / 4), ylim=(-d_out / 2, d_out / 2 + 1.6 * gap), aspect="equal")
    axes.axis("off")
    return figure


def draw_matrices(matrices: Mapping[str, np.ndarray], limit: float = 0) -> Figure:
    """Draw matrices in a row, each under its title: red is negative, blue positive, on one scale up to `limit`.

    The default limit is three standard deviations of the widest matrix.
    """
    figure, panels = plt.subplots(
        1, len(matrices), figsize=(2.8 * len(matrices), 2.2), layout="constrained", squeeze=False
    )
    limit = limit or 3 * max(matrix.std() for matrix in matrices.values())
    for axes, (title, matrix) in zip(panels.flat, matrices.items(), strict=True):
        axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_title(title, fontsize="medium")
        axes.set(xticks=[], yticks=[])
    return figure


def step_through(matrices: Mapping[str, np.ndarray]) -> HTML:
    """Return a slider that steps through matrices, drawn as `draw_matrices` does; it needs no network."""
    limit = 3 * max(matrix.std() for matrix in matrices.values())
    pictures: list[str] = []
    for title, matrix in matrices.items():
        file = io.BytesIO()
        figure = draw_matrices({title: matrix}, limit)
        figure.savefig(file, dpi=130)
        plt.close(figure)
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        pictures.append(f'<img src="{source}" alt="{title}" {"hidden" if pictures else ""}>')
    move = "[...this.nextElementSibling.children].forEach((one, i) => one.hidden = i != this.value)"
    slider = f'<input type="range" min="0" max="{len(pictures) - 1}" value="0" oninput="{move}">'
    return HTML(f"<div>{slider}<div>{''.join(pictures)}</div></div>")


def plot_capacity(
    stored: Mapping[str, Mapping[float, Sequence[float]]], live: tuple[float, float], offered: float
) -> Axes:
    """Plot bits stored against trained parameters: a point per run, a line through the means of each group.

    `stored` maps a group's name to the bits of each seed by trained parameters; `live` is one more run, (parameters, bits).
    `offered` is how many bits there are.
    """
    axes = new_axes("Bits stored of random codes", 4, xlabel="trained parameters (log scale)", ylabel="bits")
    axes.axhline(offered, color="black", linestyle=":", label="all bits there are")
    axes.plot(*live, "*", color="black", markersize=12, label="live, one run")
    plot_seeds(stored, axes)
    sizes = sorted({size for by_size in stored.values() for size in by_size})
    axes.set(xscale="log", ylim=(0, 1.05 * offered))
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))  # it would hide a line
    return axes


def plot_frontier(paths: Mapping[str, np.ndarray], axes: Axes) -> Axes:
    """Plot what runs have learned against what they have forgotten, a line per setting through its measurements.

    A path is [seeds, measurements, 2]: (forgotten, learned). Marks are means over the seeds, bars one standard deviation;
    a path of one seed is dashed and has no bars.
    """
    for (name, path), colour in zip(paths.items(), cycle(COLOURS)):
        x, y = path.mean(0).T
        if len(path) > 1:
            x_spread, y_spread = path.std(0, ddof=1).T
            axes.errorbar(x, y, y_spread, x_spread, "o-", color=colour, capsize=2, elinewidth=1, label=name)
        else:
            axes.plot(x, y, "*--", color=colour, markersize=10, label=name)
    axes.legend(frameon=False, fontsize="small")
    return axes
