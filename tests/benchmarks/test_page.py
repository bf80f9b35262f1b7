"""What `make bench` makes of its measurements: medians, ratios and one page."""

import json

import pytest

from benchmarks import page, training

ABOUT = {"hardware": "2 cores", "versions": {"torch": "2"}, "measured": "2026-01-02T03:04:05"}


def one_round(source: float, padded: float, ours: float) -> dict:
    speeds = {"source": source, "dynamic padding": padded, training.OURS: ours}
    return {
        name: {"tokens_per_second": speed, "ppl": 40.0, "peak_memory": 10**9, "matmul_share": speed / 4000}
        for name, speed in speeds.items()
    }


ROUNDS = [one_round(100, 500, 1000), one_round(50, 300, 800), one_round(200, 800, 1000)]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    found = training.summarise(ROUNDS, training.ladder("embedded"))
    of_source = found["recipes"]["source"]
    assert (of_source["lowest"], of_source["tokens_per_second"], of_source["highest"]) == (50, 100, 200)
    assert of_source["loralab_is_faster_by"] == 10  # of 10, 16 and 5
    assert found["each_step_is_faster_by"] == {"dynamic padding": 5}  # of 5, 6 and 4; what was not run is left out


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("PAGE", "FIGURES", "RESULTS"):
        monkeypatch.setattr(page, name, tmp_path / name.lower())
    monkeypatch.setattr(page, "ROOT", tmp_path)
    page.RESULTS.mkdir()
    return tmp_path


def test_without_results_the_page_says_what_is_missing(place):
    page.main()
    assert "Not yet measured" in page.PAGE.read_text() and "## Training" not in page.PAGE.read_text()


def test_the_page_shows_what_was_measured(place):
    result = (
        {"base": "embedded", "rounds": ROUNDS, "pairs": 3, "epochs": 2}
        | training.summarise(ROUNDS, training.ladder("embedded"))
        | ABOUT
    )
    (page.RESULTS / "training.json").write_text(json.dumps(result))
    page.main()
    shown = page.PAGE.read_text()
    assert "| source | " in shown and "| 50 to 200 | 10.00 | 2% | 40.00 |" in shown
    assert "2 cores; torch 2; 2026-01-02" in shown and (page.FIGURES / "training.png").stat().st_size > 10_000
    assert "| padded to the longest text of its batch | ×5.00 | ×5.0 |" in shown
    assert (
        "10.0 times as fast as the source's recipe (held-out perplexity 40.00), at perplexity 40.00: medians over 3 rounds"
        in shown
    )


def test_a_gpus_measurements_have_a_section(place):
    settings = {"method": "qlora", "rank": 16, "targets": "all", "batch": 1, "length": 512, "checkpointing": True}
    case = {"model": "a", "settings": settings, "estimate": 2e9, "verdict": "fits", "deviation_percent": None}
    fitted = case | {"fitted": True, "allocated": 1.9e9, "tokens_per_second": 123.4, "deviation_percent": 5.3}
    cases = [fitted, case | {"fitted": None, "error": "no"}]
    (page.RESULTS / "memory_gpu.json").write_text(json.dumps({"cases": cases, "limit": 2**34} | ABOUT))
    page.main()
    shown = page.PAGE.read_text()
    assert "held to 16.00 GiB" in shown and "| 2.00 | 1.90 | yes | +5.3 % | 123 |" in shown
    assert "| 2.00 |  | failed |  |  |" in shown and "Not yet measured" not in shown


def test_dropout_and_waiting_threads_have_sections(place):
    run = {"exact": 0.75, "ppl": 1.05, "seconds": 3.0}
    dropout = {
        "runs": {"0.0": [run], "0.05": [run]},
        "messages": 200,
        "exact_without_minus_with": [0.01, -0.02, 0.04],
        "faster_without_by": 1.2,
    }
    waiting = {"two_against_alone": {"spin": 50.0, "sleep": 2.1}, "sleep_against_spin_alone": 1.01}
    for name, result in {"dropout": dropout, "wait_policy": waiting}.items():
        (page.RESULTS / f"{name}.json").write_text(json.dumps(result | ABOUT))
    page.main()
    shown = page.PAGE.read_text()
    assert "minus with it: +0.010 (95 % interval -0.020 to +0.040)" in shown and "| 0.05 | 0.750 | 1.0500 |" in shown
    assert "| spin | ×50.0 |" in shown and "takes 1.01 times as long" in shown
