"""The sweep: planned, trained, resumed, drawn."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, Qwen2Config
from typer.testing import CliRunner

from loralab import Pair, RunRecord, choose_base, load_model, perplexity, read_pairs
from loralab import sweep as sweep_module
from loralab.cli import app
from loralab.memory import GIB, T4_BYTES
from loralab.pairs import digest
from loralab.scores import Scores
from loralab.shapes import TARGETS
from loralab.split import Split
from loralab.sweep import FAILURE_FILE, METHODS, check_memory, plan, record_failure, sweep, table, train_job
from loralab.sweep_report import (
    best_first,
    best_rates,
    finished,
    measure_of,
    pareto_front,
    plot_against_rank,
    plot_pareto,
    plot_quality,
    plot_rates,
    summary,
    write_report,
)
from tests.conftest import CONFIGS

SHORT = 0.04  # epochs: one step
EVALUATED, ANSWERED = 16, 2  # held-out pairs and generated answers of runs that are trained


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(app, ["sweep", *map(str, words)])


@pytest.fixture(scope="module")
def every_method(base, tmp_path_factory):
    """One short run of each method, in processes of their own."""
    out, few = tmp_path_factory.mktemp("sweep"), {"eval_pairs": EVALUATED, "eval_answers": ANSWERED}
    jobs = plan(base, [4], ["qkvo"], list(METHODS), 1, out, SHORT, **few)
    return jobs, {job.method: outcome for job, outcome in sweep(jobs, workers=2)}


def test_all_five_methods_train_and_say_which_they_are(every_method):
    _, outcomes = every_method
    assert {name: record.method for name, record in outcomes.items()} == {name: name for name in METHODS}


def test_a_run_is_measured_on_as_many_pairs_and_answers_as_planned(every_method):
    _, outcomes = every_method
    assert {record.eval_pairs for record in outcomes.values()} == {EVALUATED}
    assert {record.scores_after.count for record in outcomes.values()} == {ANSWERED}


def test_a_saved_adapter_of_each_method_does_what_its_record_says(every_method, base, tokenizer, eval_pairs):
    jobs, outcomes = every_method
    for job in jobs:
        if job.method == "qlora":
            continue
        model = PeftModel.from_pretrained(load_model(base), job.folder)
        again = perplexity(model, tokenizer, eval_pairs[:EVALUATED], base.max_length)
        assert math.isclose(again, outcomes[job.method].ppl_after, rel_tol=1e-3), job.method


def test_finished_runs_are_not_repeated_and_half_done_ones_are(every_method):
    jobs, _ = every_method
    shutil.rmtree(jobs[0].folder)
    jobs[0].folder.mkdir()
    (jobs[0].folder / "adapter_model.safetensors").write_text("half")
    before = {job.name: (job.folder / "run.json").stat().st_mtime_ns for job in jobs[1:]}
    ran = [job.name for job, _ in sweep(jobs)]
    assert ran == [jobs[0].name]
    assert before == {job.name: (job.folder / "run.json").stat().st_mtime_ns for job in jobs[1:]}


def fail_on_rank_2(job):
    if job.rank == 2:
        raise MemoryError("too much")
    return finish(job)


# Exact answers of 100 by rank and seed. Rank 4 is worse than rank 1 in exact match and better in perplexity.
EXACT = {1: (20, 30), 4: (10, 10), 8: (80, 60), 9: (0, 0)}


def finish_with_records(job):
    exact = EXACT[job.rank][job.seed]
    scores = Scores(count=100, exact=exact, ended=100, valid=100)
    record = finish(job).model_copy(update={"scores_after": scores, "question_gain": exact / 100})
    record.save(job.folder)
    return record


def finish(job):
    record = RunRecord(
        name=job.name, base=job.base.name, method=job._wanted()["method"], trainable=job.rank, parameters=100, adapter_bytes=1000 * job.rank,
        train_pairs=7, tokens=10, epochs=job.epochs, batch_size=1, learning_rate=job.learning_rate, seed=job.seed,
        alpha=job.settings.get("lora_alpha", 2 * job.rank), dropout=job.settings.get("lora_dropout", 0), targets=sorted(job.modules), losses=[2.0, 1.0], seconds=1.0, peak_memory=2**20, dtype="float32",
        eval_pairs=len(job.data.eval_pairs), ppl_before=100.0, ppl_after=50.0 / job.rank + job.seed if job.rank < 9 else math.nan,
    )  # fmt: skip
    record.save(job.folder)
    return record


@pytest.fixture
def jobs(base, tmp_path):
    return plan(base, [8, 2, 1, 9], ["qv"], ["lora"], 2, tmp_path)


def test_a_failed_run_is_recorded_and_the_rest_goes_on(jobs):
    outcomes = {job.name: outcome for job, outcome in sweep(jobs, function=fail_on_rank_2)}
    assert len(outcomes) == len(jobs)
    assert isinstance(outcomes["lora-qv-r2-s0"], MemoryError)
    runs = table(jobs)
    assert runs["state"].value_counts().to_dict() == {"finished": 6, "failed": 2}
    assert set(runs["error"].dropna()) == {"MemoryError: too much"}
    assert (jobs[0].out / "lora-qv-r2-s0" / FAILURE_FILE).exists()


def test_a_failure_whose_file_is_cut_off_leaves_a_table_that_can_be_read(jobs, monkeypatch):
    def half(self, content, *_):
        with self.open("w" if isinstance(content, str) else "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, half)
    with pytest.raises(OSError, match="no space left"):
        record_failure(jobs[0], MemoryError("too much"))
    assert set(table(jobs)["state"]) == {"to do"}


def test_the_summary_and_the_front_are_what_the_runs_say(jobs):
    list(sweep(jobs, function=fail_on_rank_2))
    runs = table(jobs)
    means = summary(runs).set_index("rank")
    assert dict(means["ppl"]) == {1: 50.5, 8: 6.75}  # rank 9 diverged
    assert math.isclose(means["ppl_sd"][1], math.sqrt(0.5))
    assert len(finished(runs)) == 4
    worse = pd.DataFrame([{"rank": 3, "bytes": 5000, "ppl": 60.0}, {"rank": 4, "bytes": 1000, "ppl": 70.0}])
    front = pareto_front(pd.concat([summary(runs), worse], ignore_index=True))
    assert list(front["rank"]) == [1, 8]


@pytest.fixture
def with_records(base, tmp_path):
    """The table of a sweep whose runs have exact match; those of rank 9 diverged."""
    jobs = plan(base, [1, 4, 8, 9], ["qv"], ["lora"], 2, tmp_path)
    for job in jobs:
        finish_with_records(job)
    return table(jobs)


def test_the_table_has_exact_match_with_its_interval_and_the_question_gain(with_records):
    run = with_records.set_index("run").loc["lora-qv-r1-s0"]
    assert run["exact"] == 0.2 and run["question_gain"] == 0.2
    assert run["exact_low"] == pytest.approx(0.1334, abs=1e-4)  # Wilson's interval of 20 in 100
    assert run["exact_high"] == pytest.approx(0.2888, abs=1e-4)
    means = summary(with_records).set_index("rank")
    assert dict(means["exact"].round(9)) == {1: 0.25, 4: 0.1, 8: 0.7}
    assert means["exact_sd"][8] == pytest.approx(0.1 * math.sqrt(2))
    assert means["question_gain"][8] == pytest.approx(0.7)


def test_exact_match_decides_the_front_and_the_order_where_it_was_measured(with_records):
    rows = summary(with_records)
    assert measure_of(rows) == "exact"
    assert list(pareto_front(rows)["rank"]) == [1, 8]  # rank 4 is larger and worse than rank 1
    assert list(pareto_front(rows, "ppl")["rank"]) == [1, 4, 8]
    assert list(best_first(rows)["rank"]) == [8, 1, 4]
    assert list(pareto_front(rows).columns) == list(rows.columns)


def test_equal_exact_match_is_ordered_by_perplexity(with_records):
    rows = summary(with_records).assign(exact=0.0)
    assert list(best_first(rows)["rank"]) == [8, 4, 1]
    assert list(pareto_front(rows)["rank"]) == [1]


@pytest.mark.parametrize("without", ["all", "one"])
def test_perplexity_decides_where_a_run_has_no_exact_match(with_records, without):
    with_records.loc[: 0 if without == "one" else None, ["exact", "exact_low", "exact_high"]] = math.nan
    rows = summary(with_records[with_records["seed"] == 0])
    assert measure_of(rows) == "ppl"
    assert list(pareto_front(rows)["rank"]) == [1, 4, 8]
    assert list(best_first(rows)["rank"]) == [8, 4, 1]
    assert [axes.get_ylabel() for axes in plot_quality(with_records[with_records["seed"] == 0]).axes] == [
        "held-out perplexity (lower is better, log scale)"
    ]


def test_answers_that_are_no_records_have_no_exact_match(base, tmp_path):
    (job,) = plan(base, [1], ["qv"], ["lora"], 1, tmp_path)
    record = finish_with_records(job)
    scores = record.scores_after.model_copy(update={"valid": None})
    record.model_copy(update={"scores_after": scores}).save(job.folder)
    (row,) = table([job]).to_dict("records")
    assert math.isnan(row["exact"]) and math.isnan(row["exact_low"])
    assert row["question_gain"] == 0.2


def error_bars(axes):
    """The lower and upper ends of every error bar of a plot, in the order of the marks."""
    (bars,) = [container.lines[2][0] for container in axes.containers]
    return [tuple(segment[:, 1].round(3)) for segment in bars.get_segments()]


def test_bars_are_deviations_over_seeds_and_wilson_intervals_for_one_seed(with_records):
    exact, ppl = plot_quality(with_records).axes
    assert error_bars(exact) == [(0.179, 0.321), (0.1, 0.1), (0.559, 0.841)]
    assert exact.get_ylabel() == "exact match on held-out messages"
    assert error_bars(ppl)[0] == (49.793, 51.207)
    assert ppl.get_title() == "the untrained base: PPL 100"
    alone = with_records[with_records["seed"] == 0]
    exact, ppl = plot_quality(alone).axes
    assert error_bars(exact) == [(0.133, 0.289), (0.055, 0.174), (0.711, 0.867)]
    assert error_bars(ppl)[0] == (50, 50)
    assert error_bars(plot_pareto(alone).axes[0])[0] == (0.133, 0.289)


def test_the_front_is_drawn_over_exact_match_and_over_perplexity_when_asked(with_records):
    (axes,) = plot_pareto(with_records).axes
    assert axes.get_ylabel() == "exact match on held-out messages" and axes.get_yscale() == "linear"
    assert [text.get_text() for text in axes.texts] == ["r 1", "r 8"]
    (axes,) = plot_pareto(with_records, "ppl").axes
    assert axes.get_ylabel().startswith("held-out perplexity") and axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["r 1", "r 4", "r 8"]


def test_the_page_shows_exact_match_and_perplexity(with_records, tmp_path):
    page = write_report(with_records, tmp_path)[-1].read_text()
    assert "<th>exact match</th><th>question gain</th><th>perplexity</th>" in page
    assert "<td>0.25 ± 0.07</td><td>0.25</td><td>50.50 ± 0.71</td>" in page
    assert page.index("<td>0.70 ± 0.14</td>") < page.index("<td>0.25 ± 0.07</td>") < page.index("<td>0.10 ± 0.00</td>")
    assert page.count('class="front"') == 2
    assert set(pd.read_csv(tmp_path / "sweep.csv").columns) >= {"exact", "exact_low", "exact_high", "question_gain"}
    page = write_report(with_records[with_records["seed"] == 0], tmp_path)[-1].read_text()
    assert "<td>0.20 (0.13 to 0.29)</td>" in page


@pytest.mark.parametrize("count", [0, 201])
def test_an_impossible_number_of_held_out_pairs_is_one_line(base, tmp_path, count):
    with pytest.raises(ValueError, match=f"^{count} held-out pairs are impossible: give 1 to 200$"):
        plan(base, [1], ["qv"], ["lora"], 1, tmp_path, eval_pairs=count)


def test_a_sweep_takes_the_base_s_own_epochs(base, tmp_path):
    (job,) = plan(base, [1], ["qv"], ["lora"], 1, tmp_path)
    assert job.epochs == base.epochs
    (job,) = plan(replace(base, epochs=3), [1], ["qv"], ["lora"], 1, tmp_path)
    assert job.epochs == 3


def test_the_report_is_whole_and_needs_no_other_file(jobs, tmp_path):
    list(sweep(jobs, function=fail_on_rank_2))
    written = write_report(table(jobs), tmp_path)
    assert [path.name for path in written] == ["sweep.csv", "quality.png", "costs.png", "pareto.png", "sweep.html"]
    page = written[-1].read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page and 'src="quality' not in page and "<th>exact match</th>" not in page
    assert "2 failed" in page and "2 diverged" in page and "MemoryError: too much" in page
    assert len(pd.read_csv(written[0])) == len(jobs)


def test_every_choice_of_targets_is_drawn_in_one_sweep(base, tmp_path):
    jobs = plan(base, [1, 4], list(TARGETS), ["lora", "rslora"], 1, tmp_path)
    for job in jobs:
        finish(job)
    runs = table(jobs)
    assert len(summary(runs)) == len(jobs)
    labels = plot_against_rank(summary(runs), "ppl", "PPL").get_legend_handles_labels()[1]
    assert labels == [f"{group}, {method}" for method in ("lora", "rslora") for group in TARGETS]
    assert len(write_report(runs, tmp_path)) == 5


def test_alpha_dropout_and_pairs_are_those_of_the_records(base, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", {"lora_alpha": 16, "lora_dropout": 0.25})
    jobs = plan(base, [1, 4], ["qv"], ["mine"], 2, tmp_path)
    for job in jobs[:3]:
        finish(job)
    runs = table(jobs)
    assert list(runs["alpha"].dropna()) == [16] * 3
    assert list(summary(runs)[["rank", "alpha", "dropout", "seeds"]].itertuples(index=False, name=None)) == [
        (1, 16, 0.25, 2),
        (4, 16, 0.25, 1),
    ]
    page = write_report(runs, tmp_path)[-1].read_text()
    assert page.count("<td>16</td><td>0.25</td>") == 2
    assert "trains on the same 7 pairs" in page
    assert "twice the rank" not in page and "no dropout" not in page
    assert set(pd.read_csv(tmp_path / "sweep.csv").columns) >= {"alpha", "dropout", "train_pairs"}


def test_a_summary_of_nothing_is_one_line(jobs):
    with pytest.raises(ValueError, match="no run of this sweep has finished"):
        summary(table(jobs))


def test_nothing_is_drawn_before_a_run_has_finished(jobs, tmp_path):
    assert [path.name for path in write_report(table(jobs), tmp_path)] == ["sweep.csv"]


def test_a_folder_of_another_sweep_is_not_mixed_in(jobs):
    fail_on_rank_2(jobs[-1])
    with pytest.raises(ValueError, match="holds a run with epochs 8, not 3: give another --out"):
        replace(jobs[-1], epochs=3.0).record()
    with pytest.raises(ValueError, match="holds a run with eval_pairs 200, not 50: give another --out"):
        fewer = replace(jobs[-1].data, eval_pairs=jobs[-1].data.eval_pairs[:50])
        replace(jobs[-1], data=fewer).record()


def test_a_run_of_a_method_that_has_changed_since_is_not_taken_for_its_own(every_method):
    job = every_method[0][0]
    assert job.record() is not None
    with pytest.raises(ValueError, match=r"holds a run with alpha 8, not 16: give another --out"):
        replace(job, settings={"lora_alpha": 16}).record()
    with pytest.raises(ValueError, match="holds a run with targets .*, not .*: give another --out"):
        replace(job, modules=("q_proj",)).record()


RATES = (1e-4, 1e-3, 1e-2)


@pytest.fixture
def over_rates(base, tmp_path):
    """The table of a sweep over learning rates; the best one is 1e-3 for rank 1 and 1e-2 for rank 4, at qv and at o."""
    jobs = plan(base, [1, 4], ["qv", "o"], ["lora"], 2, tmp_path, learning_rate=[*RATES, 1e-3])
    for job in jobs:
        best = 1e-3 if job.rank == 1 else 1e-2
        ppl = 5 + job.rank + job.seed + 10 * abs(math.log10(job.learning_rate / best))
        finish(job).model_copy(update={"ppl_after": ppl}).save(job.folder)
    return table(jobs)


def test_several_rates_are_in_the_names_of_the_folders_and_one_is_not(base, tmp_path):
    grid = base, [1], ["qv"], ["lora"], 1, tmp_path
    assert [job.name for job in plan(*grid, learning_rate=[3e-4, 1e-4])] == [
        "lora-qv-r1-lr0.0001-s0",
        "lora-qv-r1-lr0.0003-s0",
    ]
    assert [job.name for job in plan(*grid, learning_rate=[3e-4])] == ["lora-qv-r1-s0"]


def test_targets_mean_the_same_as_for_train_on_any_base(base, tmp_path):
    GPT2Config(n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    grid = [1], ["all", "c_fc+c_attn"], ["lora"], 1, tmp_path / "sweep"
    jobs = plan(replace(base, source=str(tmp_path)), *grid)
    assert [job.modules for job in jobs] == [("c_attn", "c_proj", "c_fc"), ("c_attn", "c_fc")]
    with pytest.raises(ValueError, match="^this model has no layer c_fc; it has down_proj"):
        plan(base, [1], ["q+c_fc"], ["lora"], 1, tmp_path / "sweep")


def test_settings_are_compared_at_their_best_rates(over_rates):
    rows = summary(over_rates)
    assert len(rows) == 2 * 2 * len(RATES) and set(rows["seeds"]) == {2}
    best = best_rates(rows)
    assert list(best[["targets", "rank", "learning_rate"]].itertuples(index=False, name=None)) == [
        ("qv", 1, 1e-3), ("qv", 4, 1e-2), ("o", 1, 1e-3), ("o", 4, 1e-2)
    ]  # fmt: skip
    (axes,) = plot_quality(over_rates).axes
    assert [list(line.lines[0].get_ydata()) for line in axes.containers] == [[6.5, 9.5], [6.5, 9.5]]
    assert "each at its best learning rate" in axes.figure.get_suptitle()


def test_the_measure_is_drawn_against_the_learning_rate_with_a_line_for_each_rank(over_rates):
    figure = plot_rates(over_rates)
    assert [axes.get_title() for axes in figure.axes] == ["qv, lora", "o, lora"]
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.containers}
        assert list(lines) == ["rank 1", "rank 4"]
        assert [list(line.lines[0].get_xdata()) for line in lines.values()] == [list(RATES)] * 2
        assert list(lines["rank 1"].lines[0].get_ydata()) == pytest.approx([16.5, 6.5, 16.5])
        (lower, upper), *_ = [segment[:, 1] for segment in lines["rank 1"].lines[2][0].get_segments()]
        assert upper - lower == pytest.approx(2 * math.sqrt(0.5))  # two seeds, one apart
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank 1", "rank 4", "untrained base"]


def test_a_run_worse_than_the_untrained_base_does_not_squeeze_the_others(over_rates):
    over_rates.loc[0, "ppl"] = 1e30
    assert plot_rates(over_rates).axes[0].get_ylim()[1] == pytest.approx(150)  # the base has 100


def test_the_report_has_the_rates_where_there_are_several(over_rates, tmp_path):
    written = write_report(over_rates, tmp_path)
    assert [path.name for path in written] == [
        "sweep.csv", "quality.png", "rates.png", "costs.png", "pareto.png", "sweep.html"
    ]  # fmt: skip
    page = written[-1].read_text()
    assert "at learning rate 0.0001, 0.001, 0.01." in page and page.count("data:image/png;base64,") == 4
    assert "<th>learning rate</th>" in page and page.count("<td>0.001</td>") == 4


def write_own(path):
    """Thirty different questions with answers in free text."""
    rows = [f'"What is room {i} for?","People meet in room {i}, and nobody else does."' for i in range(30)]
    path.write_text("\n".join(["prompt,completion", *rows]) + "\n")


def test_the_command_sweeps_my_own_data_over_rates_and_takes_no_run_of_other_data(run, tmp_path):
    write_own(tmp_path / "mine.csv")
    words = ("--data", tmp_path / "mine.csv", "--ranks", 1, "--targets", "q+o_proj", "--seeds", 1, "--epochs", 0.1)
    words += ("--learning-rates", "1e-3,5e-3", "--out", tmp_path / "sweep")
    result = run(*words)
    assert result.exit_code == 0, result.output
    for line in ("format: prompt + completion", "pairs: 22 for training, 8 held out", "2 runs on embedded"):
        assert line in result.output
    assert "exact match" not in result.output
    runs = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert list(runs["run"]) == ["lora-q+o_proj-r1-lr0.001-s0", "lora-q+o_proj-r1-lr0.005-s0"]
    assert runs["exact"].isna().all() and runs["ppl"].between(1, 1000).all() and set(runs["train_pairs"]) == {22}
    record = RunRecord.load(tmp_path / "sweep" / runs["run"][0])
    assert record.targets == ["o_proj", "q_proj"]
    assert record.eval_digest == digest(read_pairs(tmp_path / "sweep" / "eval.jsonl"))  # the gate can be given them
    assert "2 of them finished before" in run(*words).output
    other = run(*words, "--eval", 0.5)
    assert other.exit_code == 2 and other.output.count("\n") == 1
    assert "holds a run with other training pairs" in other.output or "holds a run with eval_pairs 8" in other.output


def test_my_own_longest_text_counts_for_the_memory(small_model, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sweep_module, "load_tokenizer", lambda base: tokenizer)
    asked = (Pair(instruction="Where?", output="Here."),)

    def least(words):
        data = Split((Pair(instruction="What?", output="gauge " * words),), asked)
        return needed(plan(small_model, [16], ["qkvo"], ["lora"], 1, tmp_path, data=data))

    assert least(60) > 1.5 * least(5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "no.jsonl"], 1, "no.jsonl: no such file; give a file with training data"),
        (["--data", "mine.csv", "--eval", "0"], 2, "held-out pairs: give --eval a file or a share above 0"),
        (["--data", "mine.csv", "--eval", "0.7"], 2, "--eval 0.7: give the share of pairs to hold out (0 to 0.5)"),
        (["--data", "mine.csv", "--max-length", "5"], 1, "mine.csv: row 1: "),
    ],
)
def test_data_that_cannot_be_used_trains_nothing(run, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    write_own(Path("mine.csv"))
    result = run("--out", "sweep", *words)
    assert result.exit_code == code and message in result.output and "Traceback" not in result.output
    assert not Path("sweep").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0,4"], "rank 0 is impossible"),
        (["--ranks", "4,x"], "'x' is not a rank"),
        (["--ranks", ""], "at least one rank"),
        (["--targets", "qv,nowhere"], "this model has no layer nowhere; it has down_proj"),
        (["--methods", "adalora"], "unknown method 'adalora': there are lora, rslora"),
        (["--methods", "pissa", "--ranks", "129"], "rank 129 is impossible for pissa: v_proj of embedded has 128"),
        (["--base", "nowhere"], "unknown base 'nowhere'"),
        (["--base", "no/such"], "no/such: neither the hub nor its cache here gives a config.json"),
        (["--epochs", "0"], "must be above 0"),
        (["--epochs", "nan"], "epochs (nan) and the learning rate (0.005) must be above 0 and finite"),
        (["--learning-rates", "1e-3,x"], "'x' is not a learning rate: give numbers with commas, such as 1e-4,3e-4"),
        (["--learning-rates", ","], "a sweep needs at least one learning rate"),
        (["--learning-rates", "1e-3,-1"], "the learning rate (-1) must be above 0 and finite"),
        (["--eval", "0.2"], "--eval is for data of your own: give --data, too"),
        (["--learning-rate", "inf"], "the learning rate (inf) must be above 0 and finite"),
    ],
)
def test_impossible_input_is_one_line_before_anything_is_trained(run, tmp_path, words, message):
    result = run("--out", tmp_path / "sweep", *words)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_model_that_does_not_fit_is_one_line(base, tmp_path):
    jobs = plan(base, [64], ["all"], ["lora"], 1, tmp_path)
    check_memory(jobs, available=T4_BYTES)
    with pytest.raises(
        ValueError, match=r"lora-all-r64-s0 does not fit: it needs about .* GiB, and there are 0.1; take a smaller base"
    ):
        check_memory(jobs, available=0.1 * GIB)


def test_a_model_of_which_nothing_can_be_told_is_tried(base, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "base")
    Qwen2Config(hidden_size=64, num_attention_heads=6, num_key_value_heads=4).save_pretrained(tmp_path / "base")
    jobs = plan(replace(base, source=str(tmp_path / "base")), [8], ["qv"], ["lora"], 1, tmp_path)
    check_memory(jobs, available=T4_BYTES)


def needed(jobs, workers=1):
    """The least memory, in GiB, in which the jobs are said to fit."""
    with pytest.raises(ValueError) as refused:
        check_memory(jobs, workers, available=0)
    return float(re.search(r"about ([\d.]+) GiB", str(refused.value))[1])


def test_workers_share_the_memory(base, tmp_path):
    jobs = plan(base, [64], ["all"], ["lora"], 4, tmp_path)
    assert needed(jobs, workers=4) == pytest.approx(4 * needed(jobs), abs=0.3)
    enough_for_one = (needed(jobs) + 0.1) * GIB
    check_memory(jobs, available=enough_for_one)
    with pytest.raises(ValueError, match=r"does not fit 4 times: .*; take fewer at a time, or a smaller base, or --m"):
        check_memory(jobs, 4, available=enough_for_one)


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def small_model():
    """SmolLM2-135M's shape with the tokenizer of the embedded base; the longest text has some 70 of its tokens."""
    return replace(choose_base(str(CONFIGS / "smollm2-135m")), max_length=256)


@pytest.fixture
def longest(monkeypatch, tokenizer):
    """Sets the longest text of the jobs, in tokens."""

    def set_to(tokens):
        sweep_module._longest.cache_clear()
        monkeypatch.setattr(sweep_module, "load_tokenizer", lambda base: tokenizer)
        monkeypatch.setattr(sweep_module, "encode_all", lambda *_: [{"input_ids": [0] * n} for n in (1, tokens)])

    yield set_to
    sweep_module._longest.cache_clear()


def test_what_counts_is_the_longest_text_of_the_jobs(small_model, tmp_path, longest):
    jobs = plan(small_model, [16], ["qkvo"], ["lora"], 1, tmp_path)
    longest(64)
    short = needed(jobs)
    longest(256)
    assert needed(jobs) > 1.5 * short


def test_on_a_gpu_its_own_overhead_counts_and_activations_are_recomputed_where_they_must(
    small_model, tmp_path, longest, a_gpu
):
    """At 4 × 512 tokens and r = 16 on q, k, v, o a trace found 3.5 GB; with recomputing far less."""
    longest(512)
    jobs = plan(small_model, [16], ["qkvo"], ["lora"], 1, tmp_path)
    assert needed(jobs) < 2.6  # recomputed, since it would not fit otherwise
    check_memory(jobs, available=3 * GIB)
    (embedded,) = plan(choose_base("embedded"), [1], ["q"], ["lora"], 1, tmp_path)
    assert needed([embedded]) > 0.5e9 / GIB


def test_runs_that_have_finished_need_no_memory(run, jobs, tmp_path, monkeypatch):
    """They may come from a machine that has more of it."""
    for job in jobs:
        (fail_on_rank_2 if job.rank != 2 else finish)(job)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    words = ("--ranks", "8,2,1,9", "--targets", "qv", "--seeds", 2, "--out", tmp_path)
    assert run(*words).exit_code == 0
    (jobs[0].folder / "run.json").unlink()
    refused = run(*words)
    assert refused.exit_code == 2
    assert f"{jobs[0].name} does not fit" in refused.output


def test_a_report_that_cannot_be_written_is_one_line(run, jobs, tmp_path):
    for job in jobs:
        finish(job)
    (tmp_path / "sweep.csv").mkdir()
    result = run("--ranks", "8,2,1,9", "--targets", "qv", "--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 2 and f"Error: [Errno 21] is a folder: '{tmp_path / 'sweep.csv'}'" in result.output


def test_the_command_says_how_many_runs_would_share_the_memory(run, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    words = ("--ranks", 4, "--targets", "qv", "--seeds", 3, "--out", tmp_path / "sweep", "--workers")
    assert "does not fit 2 times" in run(*words, 2).output
    assert "does not fit 3 times" in run(*words, 9).output  # there are no more than three runs


@pytest.mark.parametrize("below", ["", "deeper/sweep"])
def test_a_file_in_the_folders_place_is_one_line_before_anything_is_trained(run, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    result = run("--ranks", 1, "--targets", "qv", "--seeds", 1, "--out", tmp_path / "file" / below)
    assert result.exit_code == 2
    assert "cannot be a folder" in result.output and result.output.endswith("give another --out\n")
    assert result.output.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_train_job_keeps_the_cause_beside_the_run(base, tmp_path):
    (job,) = plan(base, [4], ["qv"], ["lora"], 1, tmp_path)
    with pytest.raises(ValueError):
        train_job(replace(job, modules=("no_such_layer",)))
    assert "no_such_layer" in (job.folder / FAILURE_FILE).read_text()


def test_the_command_trains_draws_and_repeats_nothing(run, tmp_path):
    words = ("--ranks", 1, "--targets", "qv", "--seeds", 1, "--epochs", SHORT, "--out", tmp_path)
    first = run(*words)
    assert first.exit_code == 0, first.output
    assert "sweep.html are in" in first.output
    assert "1 runs on embedded" in first.output and list(pd.read_csv(tmp_path / "sweep.csv")["exact"]) == [0]
    assert "1 of them finished before" in run(*words).output
