"""Plausible wrong solutions, each refused with its cause named, and honest variants, each accepted.

They are runs of exercise 1; what compares runs is tried on the exercises that have several.
"""

from __future__ import annotations

import json
import shutil

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from grader.exercises import EXERCISES
from grader.pipeline import judge
from loralab import encode_all, load_model, nf4
from loralab.layers import LINEAR

RUN = "first-adapter"
ONE = EXERCISES["ex1_first_adapter"]


@pytest.fixture(scope="session")
def encoded(train_pairs, tokenizer, base):
    return encode_all(train_pairs, tokenizer, base.max_length)


@pytest.fixture(scope="session")
def make(trained):
    """Trains the run, with what a case changes about it, and gives the folder that holds its run folder."""

    def run(name, **changes):
        return trained(name, run=RUN, **changes).parent

    return run


@pytest.fixture
def sound(_honest, tmp_path):
    """The folder that holds a sound run folder of exercise 1, to be spoilt at will."""
    shutil.copytree(_honest, tmp_path / "sound" / RUN)
    return tmp_path / "sound"


@pytest.fixture
def failures(evaluator):
    """The messages of the checks that fail, by the check's name; the state's own if nothing could be checked."""

    def of(runs, exercise=ONE):
        verdict = judge(evaluator, exercise, "student", runs)
        assert not verdict.passed
        if verdict.state != "graded":
            return {verdict.state: verdict.message}
        return {check.name: check.message for check in verdict.checks if not check.passed}

    return of


def plain_text(pair, tokenizer):
    question = tokenizer(f"{pair.instruction}\n", add_special_tokens=False)["input_ids"]
    reply = [*tokenizer(pair.output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": question + reply, "labels": [-100] * len(question) + reply}


def test_prompt_not_masked(failures, make, encoded):
    whole = [{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in encoded]
    found = failures(make("prompt", epochs=2, encoded=whole))
    assert "prompt masked" in found
    assert "the labels of the prompt must be -100" in found["prompt masked"]


@pytest.mark.parametrize(
    "dropped", [pytest.param(True, marks=pytest.mark.slow), False], ids=["end dropped", "end masked"]
)
def test_end_of_answer_not_learned(failures, make, encoded, dropped):
    if dropped:
        endless = [{"input_ids": one["input_ids"][:-1], "labels": one["labels"][:-1]} for one in encoded]
    else:
        endless = [one | {"labels": [*one["labels"][:-1], -100]} for one in encoded]
    found = failures(make("endless", epochs=2, encoded=endless))
    assert "it has not learned to stop" in found["end of answer"]


def test_wrong_template(failures, make, train_pairs, tokenizer):
    found = failures(make("plain", epochs=2, encoded=[plain_text(pair, tokenizer) for pair in train_pairs]))
    assert "it answers better as plain text" in found["chat template"]


def test_a_learning_rate_a_hundred_times_too_large(failures, make, base):
    found = failures(make("rate", epochs=1, learning_rate=100 * base.learning_rate))
    said = found.get("fresh held-out PPL") or found["submission failed"]
    assert "far too large for this base" in said or "the training diverged, lower its learning rate" in said


def test_answers_of_other_messages(evaluator, make, train_pairs):
    """The form of a record is learned, and perplexity falls; the message is not read, and the points say so."""
    answers = [pair.output for pair in train_pairs]
    shuffled = [
        pair.model_copy(update={"output": other})
        for pair, other in zip(train_pairs, answers[1:] + answers[:1], strict=True)
    ]
    verdict = judge(evaluator, ONE, "student", make("shuffled", epochs=4, pairs=shuffled))
    found = {check.name: check.message for check in verdict.checks if not check.passed}
    assert "without reading the question" in found["reads the question"]
    assert "exact match" in found and "gives more right answers than the base" in found["chat template"]
    assert verdict.points < 15


def test_a_merged_model_instead_of_an_adapter(failures, sound, base):
    adapter = sound / RUN
    merged = PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).unlink()
    merged.save_pretrained(adapter)
    assert "holds a whole model" in failures(sound)["submission failed"]


@pytest.fixture(scope="session")
def rank_16(make):
    """A run as exercise 2 asks for."""
    return make("rank-16", epochs=4, adapter={"targets": list(LINEAR)}) / RUN


def test_the_same_adapter_for_all_three_ranks(evaluator, rank_16, tmp_path):
    for rank in (4, 16, 64):
        shutil.copytree(rank_16, tmp_path / f"rank-{rank}")
    verdict = judge(evaluator, EXERCISES["ex2_rank_sweep"], "student", tmp_path)
    assert verdict.points == pytest.approx(30)
    refused = {check.run: check.message for check in verdict.checks if check.name == "can be evaluated"}
    assert list(refused) == ["rank-4", "rank-64"]
    assert all("the same adapter as rank-16" in message for message in refused.values())


def test_one_rank_was_trained_for_fewer_epochs_than_another(failures, make, sound):
    (sound / RUN).rename(sound / "rank-16")
    shutil.copytree(make("r4", adapter={"rank": 4}, epochs=1) / RUN, sound / "rank-4")
    found = failures(sound, EXERCISES["ex2_rank_sweep"])
    assert "epochs differs: rank-4 1, rank-16 8" in found["one thing changed"]


def test_one_missing_run_does_not_cost_the_others_their_points(evaluator, rank_16, tmp_path):
    shutil.copytree(rank_16, tmp_path / "rank-16")
    verdict = judge(evaluator, EXERCISES["ex2_rank_sweep"], "student", tmp_path)
    assert verdict.state == "graded"
    assert verdict.points == pytest.approx(30)
    missing = {check.run: check.message for check in verdict.checks if check.name == "can be evaluated"}
    assert list(missing) == ["rank-4", "rank-64"]
    assert "no run folder 'rank-4'" in missing["rank-4"]


def test_a_quantised_base_that_is_claimed_not_to_be(failures, sound, make, base):
    """Both runs of exercise 4 are trained in 4 bits; the records of one says otherwise."""
    four_bit = make("four-bit", epochs=3, model=load_model(base, quantization=nf4()))
    for name in ("lora", "qlora"):
        shutil.copytree(four_bit / RUN, sound / name)
    record = json.loads((sound / RUN / "run.json").read_text())
    (sound / "lora" / "run.json").write_text(json.dumps(record))
    found = failures(sound, EXERCISES["ex4_qlora"])
    assert (
        "lora: says a base that was not quantised, but its adapter does better on the other"
        in found["trained on its own base"]
    )


HONEST = {
    "seed 1": {"seed": 1},
    "seed 2": {"seed": 2},
    "batch 2": {"batch_size": 2},
    "batch 8": {"batch_size": 8},
    "batch 16, with the rate that goes with it": {"batch_size": 16, "learning_rate": 1e-2},
    "accumulation": {"batch_size": 2, "gradient_accumulation_steps": 4},
    "adafactor": {"optim": "adafactor"},
    "fused AdamW": {"optim": "adamw_torch_fused"},
    "weight decay": {"weight_decay": 0.1},
    "linear decay": {"lr_scheduler_type": "linear"},
    "twice the rate": {"learning_rate": 1e-2},
    "half the rate": {"learning_rate": 2.5e-3},
    "dropout": {"adapter": {"dropout": 0.05}},
    "alpha as the rank": {"adapter": {"alpha": 16}},
    "one epoch more": {"epochs": 9},
    "long warm-up": {"warmup_steps": 0.3},
}


ALWAYS = {"accumulation"}  # the others are run by `make proof`


@pytest.mark.parametrize(
    "changes",
    [pytest.param(c, id=name, marks=[] if name in ALWAYS else pytest.mark.slow) for name, c in HONEST.items()],
)
def test_an_honest_variant_is_accepted(evaluator, make, changes):
    verdict = judge(evaluator, ONE, "student", make("honest", **changes))
    assert verdict.passed, [
        (check.name, check.found) for check in verdict.checks if not check.passed
    ] or verdict.message


def test_packed_pairs_are_accepted(evaluator, make, encoded):
    packed = [{key: a[key] + b[key] for key in a} for a, b in zip(encoded[::2], encoded[1::2], strict=True)]
    verdict = judge(evaluator, ONE, "student", make("packed", encoded=packed))
    assert verdict.passed, [(check.name, check.found) for check in verdict.checks if not check.passed]


def test_an_adapter_stored_in_16_bits_is_accepted(evaluator, sound):
    file = sound / RUN / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    verdict = judge(evaluator, ONE, "student", sound)
    assert verdict.passed, [(check.name, check.found) for check in verdict.checks if not check.passed]
