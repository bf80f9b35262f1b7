"""The best learning rate of a sweep, and 95 % intervals over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .errors import LoralabError


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval; formatted, every number has the same format: `f"{estimate:.2f}"`."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def interval(values: Iterable[float]) -> Estimate:
    """Return the mean of one value per seed and its 95 % interval by the t distribution.

    Raises `LoralabError` for fewer than two values.
    """
    from scipy import stats  # slow to import

    values = [float(value) for value in values]
    if len(values) < 2:
        raise LoralabError(f"an interval needs at least two seeds: {len(values)} given")
    mean = statistics.fmean(values)
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - reach, mean + reach)


def ratio_interval(values: Iterable[float]) -> Estimate:
    """Return the geometric mean of one positive value per seed and its 95 % interval."""
    return Estimate(*(float(np.exp(log)) for log in interval(np.log(list(values)))))


def best_rate(rates: Iterable[float], losses: Iterable[float]) -> float:
    """Return the learning rate with the lowest loss, between the rates that were tried.

    It is the vertex of a parabola, in log rate, fitted to the losses of up to 1.5 times the lowest one, and to the two
    neighbours of that one. A run that diverged (NaN) is worse than any other; beside one, the rate with the lowest loss
    itself is returned. Raises `LoralabError` if the lowest loss is at the smallest or the largest rate: the best one may
    then be outside.
    """
    x, y = np.array(sorted(zip(rates, losses, strict=True)), float).T
    y[np.isnan(y)] = np.inf
    x, best = np.log(x), int(y.argmin())
    if best in (0, len(y) - 1):
        raise LoralabError(f"the lowest loss is at the edge of the rates, {np.exp(x[best]):.2g}: try rates beyond it")
    if not np.isfinite(y[best - 1 : best + 2]).all():
        return float(np.exp(x[best]))
    near = (y <= 1.5 * y[best]) | (abs(np.arange(len(y)) - best) <= 1)
    curvature, slope, _ = np.polyfit(x[near] - x[best], y[near], 2)
    return float(np.exp(x[best] - slope / (2 * curvature)))
