"""What the plots show of what they are given."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from loralab import Scores, Share
from loralab.plots import (
    COLOURS,
    draw_factors,
    mark_guesses,
    new_axes,
    plot_capacity,
    plot_choice,
    plot_exact,
    plot_fields,
    plot_frontier,
    plot_intervals,
    plot_levels,
    plot_log_histogram,
    plot_loss,
    plot_ppl,
    plot_ratios,
    plot_repeats,
    plot_stopping,
    step_through,
)
from loralab.record import RunRecord


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(name: str) -> RunRecord:
    return RunRecord.model_construct(name=name, losses=[3.0, 2.0, 1.0])


def test_every_run_has_its_lines_however_many_there_are():
    names = [f"run {i}" for i in range(len(COLOURS) + 2)]
    axes = plot_loss([record(name) for name in names])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names


def test_one_run_needs_no_legend():
    axes = plot_loss(record("alone"))
    assert len(axes.get_lines()) == 2 and axes.get_legend() is None


def test_perplexities_are_labelled_as_numbers_and_what_diverged_is_called_so():
    ppl = {"base": 200.5, "far": 1234.5, "lost": 51_900.0, "infinite": math.inf, "none": math.nan, "good": 3.081}
    axes = plot_ppl(ppl)
    assert [text.get_text() for text in axes.texts] == ["200", "1,234", "diverged", "diverged", "diverged", "3.08"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ppl)
    assert axes.get_xlim()[1] > max(bar.get_width() for bar in axes.patches)


def test_shares_are_labelled_and_have_their_wilson_intervals():
    shares = {"base": Share(0, 100), "trained": Share(73, 100), "perfect": Share(100, 100), "nothing": Share(0, 0)}
    axes = plot_exact(shares)
    assert [text.get_text() for text in axes.texts] == ["0.00", "0.73", "1.00", "no answers"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(shares)
    assert [bar.get_width() for bar in axes.patches] == [0, 0.73, 1, 0]
    segments = axes.collections[0].get_segments()
    for share, segment in zip(list(shares.values())[:3], segments, strict=False):
        assert tuple(segment[:, 0]) == pytest.approx(share.interval)
    low, high = axes.get_xlim()
    assert low == 0 and 1 < high < 1.2


def test_ratios_start_at_one_and_guesses_are_crosses():
    axes = mark_guesses([0.9, 1.1], [0, 1], plot_ratios({"time": 1.5, "loss": 0.8}, new_axes()))
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1, 0.5), (1, pytest.approx(-0.2))]
    assert [text.get_text() for text in axes.texts] == ["1.50", "0.80"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["your guess"]


def test_records_and_fields_have_a_point_each_and_a_guess_its_cross():
    scores = {
        name: Scores(count=100, exact=exact, ended=100, valid=100, fields={"fault": 90, "name": 80})
        for name, exact in (("eval", 70), ("forms", 20))
    }
    axes = plot_fields(scores, {"eval": 0.5, "forms": 0.4})
    assert [label.get_text() for label in axes.get_xticklabels()] == ["whole record", "fault", "name"]
    points = [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() in ("o", "x")]
    assert points == [[0.7, 0.9, 0.8], [0.5], [0.2, 0.9, 0.8], [0.4]]
    assert len(plot_fields(scores).get_legend().get_texts()) == 2


def test_a_choice_has_a_tick_per_setting_every_seed_and_the_guess():
    axes = plot_choice({64: [0.1, 0.2], 4: [0.5, 0.4]}, 16, new_axes())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "64"]
    means, seeds, guess = axes.get_lines()
    assert means.get_ydata().tolist() == pytest.approx([0.45, 0.15])
    assert sorted(seeds.get_ydata().tolist()) == [0.1, 0.2, 0.4, 0.5]
    assert list(guess.get_xdata()) == [16, 16]


def test_an_interval_that_contains_zero_is_grey():
    axes = plot_intervals({"a": (0.2, 0.1, 0.3), "b": (0.1, -0.1, 0.3), "c": (-0.2, -0.3, -0.1)}, new_axes())
    colours = [container.lines[0].get_color() for container in axes.containers]
    assert colours == [COLOURS[0], COLOURS[-1], COLOURS[0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_repeats_have_a_point_each_their_median_and_room_for_what_diverged():
    axes = plot_repeats({"good": [1.2, 1.4, 1.3], "lost": [math.nan, 12_000.0, 50.0]}, new_axes())
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [3, 3]
    assert [text.get_text() for text in axes.texts] == ["median 1.3", "median diverged"]
    low, high = axes.get_xlim()
    assert low == 1 and high > 10_000


def test_early_stopping_has_one_legend_entry_per_name_and_a_ring_at_each_kept_epoch():
    axes = plot_stopping({"held out": [[3.0, 2.0, 2.5], [4.0, 3.0, 2.0]]}, [2, 3], new_axes())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["held out"]
    rings = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(2, 2.0), (3, 2.0)]


def test_each_format_has_a_row_of_marks_with_its_name_under_the_histogram():
    levels = {"int4": [-1.0, 0.0, 1.0], "nf4": [-1.0, -0.2, 0.2, 1.0]}
    axes = plot_levels([0.1, 0.2, -0.3, 1.0], levels)
    assert [text.get_text() for text in axes.texts] == list(levels)
    rows = axes.get_lines()[: len(levels)]
    assert [list(row.get_xdata()) for row in rows] == list(levels.values())
    assert all(max(row.get_ydata()) < 0 for row in rows)


def test_a_log_histogram_leaves_out_zeros_and_shows_its_limit_even_beyond_the_values():
    axes = plot_log_histogram([0.0, 0.01, 0.02, 0.1], 1, "changes", "size")
    assert sum(bar.get_height() for bar in axes.patches) == 3
    assert axes.get_lines()[0].get_xdata()[0] == 1 < axes.get_xlim()[1]


def test_the_drawing_names_what_is_trained_and_how_many_numbers_that_are():
    texts = [text.get_text() for text in draw_factors(704, 256, 16).axes[0].texts]
    assert "full fine-tuning:\nW, trained\n704 × 256" in texts and "LoRA:\nW, frozen\n704 × 256" in texts
    assert "B, trained\n704 × 16" in texts and "×" in texts and "A, trained\n16 × 256" in texts
    assert "180,224\nnumbers" in texts and "15,360 numbers\nin B and A" in texts


def test_the_slider_holds_every_picture_shows_the_first_and_needs_no_network():
    html = step_through({name: np.eye(4) * scale for scale, name in enumerate(("r = 1", "r = 2", "r = 4"), 1)}).data
    assert html.count("<img ") == 3 and html.count(" hidden>") == 2 and 'max="2"' in html
    assert "http" not in html and 'alt="r = 4"' in html


def test_capacity_has_a_point_per_seed_and_a_star_for_the_live_run():
    axes = plot_capacity({"12 epochs": {1000: [900, 1100], 2000: [1500, 1500]}}, (2000, 1400), offered=1952)
    points = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines}
    assert points["o"] == [[1000, 900], [1000, 1100], [2000, 1500], [2000, 1500]] and points["*"] == [[2000, 1400]]


def test_a_path_of_several_seeds_has_bars_and_one_of_a_single_seed_is_dashed():
    several = np.array([[[0.0, 0.1], [1.0, 0.4]], [[0.2, 0.3], [1.0, 0.6]]])
    axes = plot_frontier({"stored": several, "live": several[:1]}, new_axes())
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[0.1, 0.2], [1.0, 0.5]]
    assert [line.get_linestyle() for line in axes.lines if line.get_label() == "live"] == ["--"]
