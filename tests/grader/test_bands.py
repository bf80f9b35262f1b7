"""The statistics of the bands."""

import math

import numpy as np
import pytest

from grader.evaluation.reference_bands import Band, ExerciseBands, tolerance_factor
from grader.exercises import EXERCISES
from loralab.bases import weights_of


def test_the_tolerance_factor_is_that_of_the_tables():
    assert tolerance_factor(10) == pytest.approx(
        4.433, rel=0.01
    )  # ISO 16269-6: two-sided, 95 % confidence, 99 % coverage
    assert tolerance_factor(30) == pytest.approx(3.350, rel=0.01)


def test_a_band_covers_what_it_claims():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        band = Band.of(list(np.exp(rng.normal(-2, 0.1, 10))))
        fresh = np.exp(rng.normal(-2, 0.1, 1000))
        covered.append(np.mean((band.low <= fresh) & (fresh <= band.high)) >= 0.99)
    assert np.mean(covered) >= 0.93


def test_a_band_is_geometric():
    band = Band.of([0.05, 0.2])
    assert band.mean == pytest.approx(0.1)
    assert math.sqrt(band.low * band.high) == pytest.approx(0.1)


def test_a_band_of_shares_stays_within_them_and_follows_a_coin():
    weak = Band.shares([0.38, 0.4, 0.26, 0.48, 0.56, 0.26, 0.37, 0.35, 0.46, 0.23])
    assert 0 < weak.low < 0.23 and 0.56 < weak.high < 1
    edge = Band.shares([0.0, 0.0, 0.01, 0.02])
    assert 0 < edge.low < edge.high < 1
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        band = Band.shares(list(rng.binomial(100, 0.75, 10) / 100))
        inside.append(
            np.mean(abs(rng.binomial(100, 0.75, 500) / 100 - (band.low + band.high) / 2) <= (band.high - band.low) / 2)
        )
    assert np.mean(np.array(inside) >= 0.99) >= 0.9


def test_a_band_of_differences_is_linear():
    band = Band.linear([0.7, 0.8, 0.75])
    assert band.mean == pytest.approx(0.75)
    assert band.high - 0.75 == pytest.approx(0.75 - band.low) == pytest.approx(tolerance_factor(3) * 0.05)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_stored_bands_follow_from_their_values(exercise):
    stored = ExerciseBands.load(exercise).bases["embedded"]
    assert len(stored.seeds) >= 8
    assert list(stored.runs) == [run.name for run in EXERCISES[exercise].runs]
    for run in stored.runs.values():
        for band in (run.fresh_ratio, run.forgetting):
            assert band == Band.of(band.values)
        assert run.exact == Band.shares(run.exact.values)
        assert run.question_gain == Band.linear(run.question_gain.values)
        lengths = {len(band.values) for name, band in run if name != "forgetting"}
        assert lengths == {len(stored.seeds)}
        assert len(run.forgetting.values) >= 3
        assert run.fresh_ratio.mean < 1
        assert run.question_gain.mean > 0


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_bands_were_measured_on_the_base_in_this_repository(exercise, base):
    stored = ExerciseBands.load(exercise).bases["embedded"]
    assert stored.base_sha256 == weights_of(base), "the base changed: run `make bands`"
