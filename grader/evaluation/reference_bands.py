"""Bands: what honest runs of a solution measure, with how far the next honest run may be from them.

A band is a two-sided normal tolerance interval: with 95 % confidence it covers 99 % of all runs that differ by seed
alone (Howe's approximation of the factor). For perplexity ratios it is on the logarithm, for shares on the log-odds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from scipy import stats

from loralab import Base
from loralab.bases import asked_for, weights_of

from ..exercises import FRESH_PAIRS

FOLDER = Path(__file__).parent / "bands"
COVERAGE, CONFIDENCE = 0.99, 0.95


class Band(BaseModel):
    """Reference values of one measure, and the interval in which an honest run falls."""

    model_config = ConfigDict(frozen=True)

    values: list[float]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Band:
        """Return the band of at least two ratios, on a log scale; `mean` is geometric."""
        return cls._on_scale(values, math.log, math.exp)

    @classmethod
    def shares(cls, values: list[float]) -> Band:
        """Return the band of at least two shares of the fresh pairs, on the scale of log-odds, so that it stays within 0 and 1.

        Half a count is added on both sides, so that 0 and 1 have log-odds.
        """
        return cls._on_scale(
            values,
            lambda share: math.log((share * FRESH_PAIRS + 0.5) / (FRESH_PAIRS - share * FRESH_PAIRS + 0.5)),
            lambda odds: 1 / (1 + math.exp(-odds)),
        )

    @classmethod
    def linear(cls, values: list[float]) -> Band:
        """Return the band of at least two values that are not ratios."""
        return cls._on_scale(values, float, float)

    @classmethod
    def _on_scale(cls, values: list[float], to: Callable[[float], float], back: Callable[[float], float]) -> Band:
        scaled = [to(value) for value in values]
        mean, sd = statistics.fmean(scaled), statistics.stdev(scaled)
        reach = tolerance_factor(len(values)) * sd
        return cls(values=values, mean=back(mean), low=back(mean - reach), high=back(mean + reach))


def tolerance_factor(n: int) -> float:
    """Return the half-width of a two-sided tolerance interval from `n` values, in standard deviations (Howe 1969)."""
    z = stats.norm.ppf((1 + COVERAGE) / 2)
    chi2 = stats.chi2.ppf(1 - CONFIDENCE, n - 1)
    return float(z * math.sqrt((n - 1) * (1 + 1 / n) / chi2))


class RunBands(BaseModel):
    """The bands of one run of an exercise.

    Perplexity after over before on fresh pairs; the share of exact answers on them, and the question control's gain in
    nats per token; perplexity after over before on drawn general questions.
    """

    fresh_ratio: Band
    exact: Band
    question_gain: Band
    forgetting: Band


class BaseBands(BaseModel):
    """The bands of one exercise on one base, run by run, and where they come from."""

    status: str = "measured"
    runs: dict[str, RunBands]
    seeds: list[int]
    hardware: str
    versions: dict[str, str]
    base_sha256: str
    measured: str


class ExerciseBands(BaseModel):
    """`bands/<exercise>.json`: bands by how a notebook asks for the base; not every base has been measured."""

    bases: dict[str, BaseBands] = {}

    @classmethod
    def load(cls, exercise: str) -> ExerciseBands:
        path = FOLDER / f"{exercise}.json"
        return cls.model_validate_json(path.read_text("utf-8")) if path.exists() else cls()

    def of(self, base: Base) -> BaseBands | None:
        """Return the bands that were measured on `base`; None if there are none, or if it had other weights then."""
        found = self.bases.get(asked_for(base))
        return found if found and found.base_sha256 == weights_of(base) else None

    def save(self, exercise: str) -> Path:
        path = FOLDER / f"{exercise}.json"
        path.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
        return path
