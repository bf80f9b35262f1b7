"""Plots as inline SVG and bars for the grader's pages: they take the page's colours, and a class has thousands of them.

Drawn here and not by matplotlib: a picture costs 1 ms and 5 KB instead of 200 ms and 60 KB, names in it are plain text
and not formulas, and no claimed loss can break it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ..verdict import MAX_POINTS

WIDTH, HEIGHT = 640, 310
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 20, 58  # room for the larger letters on a narrow screen
MAX_DRAWN = 300  # points per line; of longer runs, means over that many stretches
MAX_LOSS = 1000.0  # nats per token; a guess among a million tokens has 14, so anything beyond is not drawn
MAX_LINES = 12


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, its first and last value (None if that is no number), and what is not drawn."""

    name: str
    first: float | None
    last: float | None
    steps: int
    undrawn: int


@dataclass(frozen=True)
class LossPlot:
    """Losses against steps; without a picture if there is no finite loss."""

    svg: Markup
    series: list[Series]


@dataclass(frozen=True)
class Bar:
    """A bar of `percent` of the width; without one if there is no finite value."""

    name: str
    value: float
    percent: float | None
    strong: bool


def loss_plot(losses: Mapping[str, Sequence[float]]) -> LossPlot:
    """Plot the training losses of each run as running means; of a single run also every step."""
    drawn, series = [], []
    for name, values in list(losses.items())[:MAX_LINES]:
        raw = np.asarray(values, float)
        kept = np.where(np.abs(raw) <= MAX_LOSS, raw, np.nan)  # NaN compares false, too
        first, last = (float(x) if math.isfinite(x) else None for x in (kept[[0, -1]] if len(raw) else [np.nan] * 2))
        series.append(Series(name, first, last, len(raw), int(np.isnan(kept).sum())))
        drawn.append(_thinned(kept))
    finite = [y[np.isfinite(y)] for _, y in drawn]
    if not any(len(y) for y in finite):
        return LossPlot(Markup(), series)
    low, high = min(y.min() for y in finite if len(y)), max(y.max() for y in finite if len(y))
    steps = _ticks(0, max(x[-1] for x, _ in drawn if len(x)), whole=True)
    levels = _ticks(low, high)
    frame = _Frame((steps[0], steps[-1]), (levels[0], levels[-1]))
    parts = [frame.axes(steps, levels, "optimiser step", "loss, nats per token")]
    for number, (x, y) in enumerate(drawn):
        colour = f"line c{number % 7}"
        if len(drawn) == 1:
            parts.append(frame.line(x, y, f"{colour} faint"))
        parts.append(frame.line(x, _running_mean(y), colour))
    return LossPlot(_svg(parts, "Training loss against optimiser step"), series)


def perplexity_bars(perplexities: Mapping[str, float]) -> list[Bar]:
    """Return perplexities as bars on a log scale that starts at 1."""
    logs = {name: math.log(value) for name, value in perplexities.items() if math.isfinite(value) and value > 0}
    percents = {name: 100 * max(0.0, log) / max(1.0, *logs.values()) for name, log in logs.items()}
    return [Bar(name, value, percents.get(name), not name.endswith("before")) for name, value in perplexities.items()]


def histogram(points: Sequence[float], failed: int) -> Markup:
    """Plot how many submissions have how many points; full marks have a bar of their own, failed ones are in the first."""
    bins = 11
    counts = [0] * bins
    for one in points:
        counts[min(bins - 1, int(one * (bins - 1) / MAX_POINTS))] += 1
    top = max([*counts[1:], counts[0] + failed, 1])
    levels = _ticks(0, top, whole=True)
    frame = _Frame((0, bins), (0, 1.1 * levels[-1]))  # room for the number above the highest bar
    parts = [frame.axes([], levels, "points", "submissions")]
    for i, count in enumerate(counts):
        below = failed if i == 0 else 0
        parts.append(frame.bar(i, 0, below, "bar bad") + frame.bar(i, below, count, "bar c0"))
        x = frame.x(i + 0.5)
        # Each bar begins at its number of points; the last one has those with all of them.
        at = x if i == bins - 1 else frame.x(i)
        parts.append(_text(at, HEIGHT - BOTTOM + 20, f"{MAX_POINTS * i // 10}", "middle"))
        if count + below:
            parts.append(_text(x, frame.y(count + below) - 4, str(count + below), "middle", "count"))
    return _svg(parts, "Distribution of points")


@dataclass(frozen=True)
class _Frame:
    """Where a value lies in the picture."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.across
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.up
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def axes(self, steps: Sequence[float], levels: Sequence[float], below: str, beside: str) -> Markup:
        parts = []
        for level in levels:
            y = self.y(level)
            parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
            parts.append(_text(LEFT - 6, y + 4, f"{level:g}", "end"))
        parts += [_text(self.x(step), HEIGHT - BOTTOM + 20, f"{step:,.0f}", "middle") for step in steps[:-1]]
        parts += [_text(self.x(step), HEIGHT - BOTTOM + 20, f"{step:,.0f}", "end") for step in steps[-1:]]
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, below, "middle"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = Markup('<text text-anchor="middle" transform="translate(18 {}) rotate(-90)">{}</text>')
        parts.append(turned.format(middle, beside))
        return Markup().join(parts)

    def line(self, xs: np.ndarray, ys: np.ndarray, kind: str) -> Markup:
        """Draw a line with a gap wherever a value is missing; a single value between gaps is a dot."""
        words, pen_down = [], False
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen_down = False
                continue
            words.append(f"{'L' if pen_down else 'M'}{self.x(x):.1f} {self.y(y):.1f}{'' if pen_down else 'h0'}")
            pen_down = True
        return Markup('<path class="{}" d="{}"/>').format(kind, "".join(words))

    def bar(self, i: int, start: float, height: float, kind: str) -> Markup:
        if not height:
            return Markup()
        left, right, high, low = self.x(i + 0.08), self.x(i + 0.92), self.y(start + height), self.y(start)
        return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            kind, left, high, right - left, low - high
        )


def _svg(parts: list[Markup], title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup().join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _thinned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values, at most `MAX_DRAWN` of them."""
    steps = np.arange(1, len(values) + 1, dtype=float)
    if len(values) <= MAX_DRAWN:
        return steps, values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is a gap
        steps, values = (np.array([np.nanmean(s) for s in np.array_split(x, MAX_DRAWN)]) for x in (steps, values))
    return steps, values


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last five values (fewer at the start), as in the chapters; missing ones are left out."""
    from pandas import Series  # slow to import

    return Series(values).rolling(5, min_periods=1).mean().where(np.isfinite(values)).to_numpy()


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers, about five of them, from `low` or below to `high` or above."""
    span = max(high - low, abs(high) * 1e-3, 1e-3)
    raw = max(span / 4, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]
