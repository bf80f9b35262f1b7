"""Verdicts on exercise 1: the honest run passes, and everything that is not one is refused with its cause."""

import json

import pytest

from grader.evaluation.evaluator import Evaluator
from grader.exercises import EXERCISES
from grader.pipeline import judge
from loralab import data_path, read_pairs
from tests.conftest import with_adapter

EX1 = EXERCISES["ex1_first_adapter"]


@pytest.fixture
def verdict(evaluator):
    return lambda folder: judge(evaluator, EX1, "student", folder.parent)


def failed(verdict) -> dict[str, str]:
    """The messages of the checks that did not pass."""
    assert verdict.state == "graded", verdict.message
    assert not verdict.passed
    return {check.name: check.message for check in verdict.checks if not check.passed}


def edit_record(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_honest_run_passes_with_all_points(verdict, honest):
    result = verdict(honest)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert result.points == 100


def test_grading_leaves_the_base_as_it_was(base, evaluator, honest):
    run = EX1.runs[0]
    plain = Evaluator(base, 123, baselines={("lora", "triage"): evaluator.before("lora", "triage")})
    assert plain.evaluate(run, honest).after.fresh == plain.evaluate(run, honest).after.fresh
    again = plain._measure(plain.models["lora"], "triage")
    assert again.public.ppl == pytest.approx(evaluator.before("lora", "triage").public.ppl)


def test_an_untrained_adapter_is_refused(verdict, honest, model):
    with_adapter(model).save_pretrained(honest)
    messages = failed(verdict(honest))
    assert "B is still all zeros" in messages["lora_B moved"]
    assert "it was saved before training" in messages["lora_B moved"]
    assert "the adapter does not help on new messages" in messages["fresh held-out PPL"]
    assert "recomputed" in messages["claims of run.json"]


def test_a_learning_rate_of_zero_is_refused(verdict, trained):
    messages = failed(verdict(trained("lr-zero", epochs=1, learning_rate=0.0)))
    assert "trained with a learning rate of zero" in messages["lora_B moved"]
    assert "the learning rate 0 is far too small for this base" in messages["fresh held-out PPL"]


def test_a_learning_rate_a_hundred_times_too_small_is_refused(verdict, trained, base):
    messages = failed(verdict(trained("lr-small", epochs=1, learning_rate=base.learning_rate / 100)))
    assert "far too small for this base" in messages["fresh held-out PPL"]


def test_a_wrong_rank_is_refused(verdict, honest, model):
    with_adapter(model, rank=4).save_pretrained(honest)
    messages = failed(verdict(honest))
    assert messages["rank and targets"] == "the adapter has rank 4; set r=16 in LoraConfig"


def test_missing_targets_are_refused(verdict, honest, model):
    with_adapter(model, targets=["q_proj", "v_proj"]).save_pretrained(honest)
    messages = failed(verdict(honest))
    assert messages["rank and targets"] == "target_modules lacks k_proj, o_proj"


def test_an_adapter_trained_on_other_data_is_refused(verdict, trained, train_pairs):
    general = read_pairs(data_path("pairs/general.jsonl"))
    messages = failed(verdict(trained("other", epochs=1, pairs=general)))
    assert messages["fresh held-out PPL"]


def test_a_quarter_of_the_steps_at_the_same_rate_costs_exact_match_and_nothing_else(verdict, trained):
    """Batches of 16 make 56 steps of 200: about one answer in eight is right, though perplexity falls to 1.2."""
    result = verdict(trained("batch", batch_size=16))
    assert list(failed(result)) == ["exact match"]
    (exact,) = [check for check in result.checks if check.name == "exact match"]
    assert 0 < exact.earned < exact.points
    assert result.points == pytest.approx(100 - exact.points + exact.earned, abs=0.01)


def test_a_perplexity_that_is_a_lie_is_refused(verdict, honest):
    edit_record(honest, ppl_after=1.2)
    assert list(failed(verdict(honest))) == ["training loss", "claims of run.json"]
    assert "PPL after 1.20, recomputed" in failed(verdict(honest))["claims of run.json"]


def test_a_rank_that_is_a_lie_is_refused(verdict, honest):
    edit_record(honest, rank=64)
    assert "rank 64 on" in failed(verdict(honest))["claims of run.json"]


def test_a_parameter_count_that_is_a_lie_is_refused(verdict, honest):
    edit_record(honest, trainable=1)
    assert "is the base frozen?" in failed(verdict(honest))["trainable share"]


@pytest.mark.parametrize(
    "losses", [[], [3.0, 2.0, 2.5, 3.5], [3.0, float("nan"), 1.0, 0.5], [3.0, 2.0, 1.0, float("inf")]]
)
def test_a_loss_that_does_not_fall_or_is_not_finite_is_refused(verdict, honest, losses):
    edit_record(honest, losses=losses)
    assert "training loss" in failed(verdict(honest))


def test_a_run_on_another_base_is_refused(verdict, honest):
    edit_record(honest, base="smollm2-135m")
    result = verdict(honest)
    assert (result.state, result.points) == ("submission failed", 0)
    assert "trained on 'smollm2-135m', but 'embedded' is being graded" in result.message


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", '{"name": 1}'])
def test_a_broken_record_is_a_failed_submission_and_not_a_crash(verdict, honest, content):
    (honest / "run.json").write_text(content)
    result = verdict(honest)
    assert (result.state, result.passed) == ("submission failed", False)
    assert "run.json" in result.message


@pytest.mark.parametrize("change", [{"epochs": -8}, {"batch_size": 0}, {"learning_rate": -1}, {"ppl_after": 0.5}])
def test_a_record_of_an_impossible_run_is_a_failed_submission(verdict, honest, change):
    edit_record(honest, **change)
    result = verdict(honest)
    assert (result.state, result.points) == ("submission failed", 0)
    assert f"run.json: {next(iter(change))}: " in result.message


def test_no_adapter_at_all_is_a_failed_submission(verdict, tmp_path):
    result = verdict(tmp_path / "first-adapter")
    assert (result.state, result.passed) == ("submission failed", False)
