"""The best rate between those that were tried, and intervals over seeds."""

import math

import pytest

from loralab.errors import LoralabError
from loralab.tuning import best_rate, interval, ratio_interval

RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


def test_the_best_rate_is_the_vertex_of_a_parabola_in_log_rate_whatever_the_order():
    losses = [(math.log(rate) - math.log(5e-3)) ** 2 for rate in RATES]
    assert best_rate(RATES, losses) == pytest.approx(5e-3)
    assert best_rate(RATES[::-1], losses[::-1]) == pytest.approx(5e-3)


@pytest.mark.parametrize("losses", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
def test_a_lowest_loss_at_the_edge_is_an_error_that_names_the_rate(losses):
    edge = "0.001" if losses[0] == 1 else "0.016"
    with pytest.raises(LoralabError, match=f"{edge}: try rates beyond it"):
        best_rate(RATES, losses)


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_a_run_that_diverged_is_the_worst_and_no_point_of_the_parabola(diverged):
    assert best_rate([1e-3, 4e-3, 1.6e-2, 6.4e-2], [2.0, 1.1, 2.0, diverged]) == pytest.approx(4e-3)
    assert best_rate([1e-3, 4e-3, 1.6e-2], [2.0, 1.1, diverged]) == pytest.approx(4e-3)  # nothing to interpolate
    with pytest.raises(LoralabError, match="edge of the rates, 0.001: try rates beyond it"):
        best_rate([1e-3, 4e-3, 1.6e-2], [diverged] * 3)


def test_intervals_are_those_of_the_t_distribution():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-3)  # 4.3027 / sqrt(3)
    middle, low, high = ratio_interval([1.0, 10.0, 100.0])
    assert middle == pytest.approx(10) and low * high == pytest.approx(100)
    with pytest.raises(LoralabError, match="at least two seeds"):
        interval([1.0])
