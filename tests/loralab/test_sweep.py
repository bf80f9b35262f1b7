"""The sweep: planned, trained, resumed, drawn."""

import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from peft import PeftModel
from typer.testing import CliRunner

from loralab import RunRecord, load_model, perplexity
from loralab.cli import app
from loralab.memory import T4_BYTES
from loralab.sweep import FAILURE_FILE, METHODS, check_memory, plan, sweep, table, train_job
from loralab.sweep_report import finished, pareto_front, summary, write_report

SHORT = 0.04  # epochs: one step


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(app, ["sweep", *map(str, words)])


@pytest.fixture(scope="module")
def every_method(base, tmp_path_factory):
    """One short run of each method, in processes of their own."""
    jobs = plan(base, [4], ["qkvo"], list(METHODS), 1, tmp_path_factory.mktemp("sweep"), SHORT)
    return jobs, {job.method: outcome for job, outcome in sweep(jobs, workers=2)}


def test_all_five_methods_train_and_say_which_they_are(every_method):
    _, outcomes = every_method
    assert {name: record.method for name, record in outcomes.items()} == {name: name for name in METHODS}


def test_a_saved_adapter_of_each_method_does_what_its_record_says(every_method, base, tokenizer, eval_pairs):
    jobs, outcomes = every_method
    for job in jobs:
        if job.method == "qlora":
            continue
        model = PeftModel.from_pretrained(load_model(base), job.folder)
        again = perplexity(model, tokenizer, eval_pairs, base.max_length)
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
    record = RunRecord(
        name=job.name, base=job.base.name, trainable=job.rank, parameters=100, adapter_bytes=1000 * job.rank,
        train_pairs=1, tokens=10, epochs=job.epochs, batch_size=1, learning_rate=job.learning_rate, seed=job.seed,
        alpha=2 * job.rank, dropout=0, targets=sorted(job.modules), losses=[2.0, 1.0], seconds=1.0, peak_memory=2**20, dtype="float32",
        ppl_before=100.0, ppl_after=50.0 / job.rank + job.seed if job.rank < 9 else math.nan,
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


def test_the_report_is_whole_and_needs_no_other_file(jobs, tmp_path):
    list(sweep(jobs, function=fail_on_rank_2))
    written = write_report(table(jobs), tmp_path)
    assert [path.name for path in written] == ["sweep.csv", "perplexity.png", "costs.png", "pareto.png", "sweep.html"]
    page = written[-1].read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page and 'src="perplexity' not in page
    assert "2 failed" in page and "2 diverged" in page and "MemoryError: too much" in page
    assert len(pd.read_csv(written[0])) == len(jobs)


def test_nothing_is_drawn_before_a_run_has_finished(jobs, tmp_path):
    assert [path.name for path in write_report(table(jobs), tmp_path)] == ["sweep.csv"]


def test_a_folder_of_another_sweep_is_not_mixed_in(jobs):
    fail_on_rank_2(jobs[-1])
    with pytest.raises(ValueError, match="holds a run with epochs 2, not 3: give another --out"):
        replace(jobs[-1], epochs=3.0).record()


def test_a_run_of_a_method_that_has_changed_since_is_not_taken_for_its_own(every_method):
    job = every_method[0][0]
    assert job.record() is not None
    with pytest.raises(ValueError, match=r"holds a run with alpha 8\.0, not 16: give another --out"):
        replace(job, settings={"lora_alpha": 16}).record()
    with pytest.raises(ValueError, match="holds a run with targets .*, not .*: give another --out"):
        replace(job, modules=("q_proj",)).record()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0,4"], "rank 0 is impossible"),
        (["--ranks", "4,x"], "'x' is not a rank"),
        (["--ranks", ""], "at least one rank"),
        (["--targets", "qv,nowhere"], "unknown target 'nowhere': there are q, k, v, o, qv"),
        (["--methods", "adalora"], "unknown method 'adalora': there are lora, rslora"),
        (["--methods", "pissa", "--ranks", "129"], "rank 129 is impossible for pissa: v_proj of embedded has 128"),
        (["--base", "nowhere"], "unknown base 'nowhere'"),
        (["--epochs", "0"], "must be above 0"),
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
    check_memory(jobs, T4_BYTES)
    with pytest.raises(
        ValueError, match=r"lora-all-r64-s0 does not fit: it needs about .* GiB, and there are 0.1; take"
    ):
        check_memory(jobs, 0.1 * 2**30)


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
    assert "1 of them finished before" in run(*words).output
