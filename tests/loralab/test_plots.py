"""What the plots show of what they are given."""

import math

import matplotlib.pyplot as plt
import pytest

from loralab.plots import COLOURS, plot_loss, plot_ppl
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
