"""Training and the run folder that it leaves."""

import json
import math
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from loralab import (
    Pair,
    Precision,
    RunRecord,
    encode_all,
    load_model,
    perplexity,
    question_control,
    score_answers,
    train,
)
from loralab.errors import LoralabError
from loralab.training import checkpointing_for
from tests.conftest import with_adapter


def test_a_run_leaves_an_adapter_and_its_record(honest):
    assert sorted(file.name for file in honest.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
    ]
    record = RunRecord.load(honest)
    assert (record.rank, record.alpha, record.method) == (16, 32, "lora")
    assert record.adapter_bytes == (honest / "adapter_model.safetensors").stat().st_size
    assert len(record.losses) == 8 * 25  # 100 pairs in batches of 4, eight epochs
    assert record.ppl_after < 0.4 * record.ppl_before


def test_the_saved_adapter_is_the_trained_one(honest, base, tokenizer, eval_pairs):
    reloaded = PeftModel.from_pretrained(load_model(base), honest)
    assert perplexity(reloaded, tokenizer, eval_pairs, base.max_length) == pytest.approx(
        RunRecord.load(honest).ppl_after, rel=1e-4
    )


def test_the_adapter_config_names_the_base_and_no_path_of_this_machine(honest, base):
    config = json.loads((honest / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name


def test_the_same_seed_gives_the_same_run(trained, train_pairs):
    runs = [RunRecord.load(trained("again", pairs=train_pairs[:16], epochs=1, eval_pairs=(), seed=3)) for _ in range(2)]
    assert runs[0].losses == runs[1].losses


def test_training_leaves_attention_and_number_format_as_they_were(base, model, tokenizer, train_pairs, tmp_path):
    attention = model.config._attn_implementation
    train(model, tokenizer, train_pairs[:4], tmp_path, base, epochs=1, learning_rate=0.0, quiet=True)
    assert model.config._attn_implementation == attention
    fresh = load_model(base)
    tokens = torch.arange(20)[None]
    assert torch.equal(model.eval()(tokens).logits, fresh(tokens).logits)


def test_full_fine_tuning_is_recorded_as_such(base, model, tokenizer, train_pairs, tmp_path):
    record = train(model, tokenizer, train_pairs[:8], tmp_path, base, epochs=1, learning_rate=1e-4, quiet=True)
    assert (record.method, record.adapter_bytes) == ("full", None)
    assert record.trainable == record.parameters == model.num_parameters()


def test_a_record_survives_saving_and_says_what_is_wrong_with_a_broken_one(honest, tmp_path):
    record = RunRecord.load(honest)
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record
    (tmp_path / "run.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"run.json: base: Field required"):
        RunRecord.load(tmp_path)
    with pytest.raises(ValueError, match="no such run folder"):
        RunRecord.load(tmp_path / "elsewhere")
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="no run.json in it; is this the folder of a finished run"):
        RunRecord.load(tmp_path)


def test_activations_are_recomputed_only_where_the_estimate_says_that_they_would_not_fit(base, model):
    adapted = with_adapter(model)
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert checkpointing_for(adapted, base, batch_size=4, longest=128, room=16e9) == {}
    assert checkpointing_for(adapted, base, batch_size=64, longest=256, room=2.5e9) == saving
    assert checkpointing_for(load_model(base), base, batch_size=64, longest=256, room=2.5e9) == saving
    assert checkpointing_for(adapted, base, batch_size=4, longest=128) == {}  # nothing is asked of a CPU


def test_recomputing_activations_changes_no_loss(trained, train_pairs):
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    settings = {"pairs": train_pairs[:8], "epochs": 1, "eval_pairs": ()}
    usual, saved = (RunRecord.load(trained("again", **settings, **more)).losses for more in ({}, saving))
    assert saved == pytest.approx(usual, rel=1e-3)


def test_weights_in_fp16_are_refused_where_training_scales_gradients(base, model, tokenizer, train_pairs, monkeypatch):
    t4 = Precision("cpu", torch.float16, torch.float16, "as a T4")
    monkeypatch.setattr("loralab.training.precision_for", lambda model: t4)
    with pytest.raises(LoralabError, match="weights in fp16 cannot be trained on this GPU"):
        train(model.half(), tokenizer, train_pairs[:4], "nowhere", base)


def test_a_run_in_the_current_folder_has_its_name(base, model, tokenizer, train_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = train(with_adapter(model), tokenizer, train_pairs[:4], ".", base, epochs=1, quiet=True)
    assert record.name == tmp_path.name


def test_nothing_to_train_on_is_one_clear_line(base, model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no pairs to train on: give at least one"):
        train(model, tokenizer, [], tmp_path, base)


@pytest.mark.parametrize(
    ("config", "name", "what"),
    [
        (LoraConfig(target_modules=["q_proj"]), "desk", r"has \['desk'\] \(LoraConfig\)"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "default", r"has \['default'\] \(IA3Config\)"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_before_it_is_trained(
    config, name, what, base, model, tokenizer, train_pairs, tmp_path
):
    adapted = get_peft_model(model, config, adapter_name=name)
    with pytest.raises(ValueError, match=what):
        train(adapted, tokenizer, train_pairs[:4], tmp_path / "run", base)
    assert not (tmp_path / "run").exists()


def test_a_base_that_has_lora_layers_already_is_refused(base, model, tokenizer, train_pairs, tmp_path):
    for target in ("q_proj", "v_proj"):
        adapted = get_peft_model(model, LoraConfig(target_modules=[target], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="had LoRA layers already"):
        train(adapted, tokenizer, train_pairs[:4], tmp_path / "run", base)


def test_targets_given_as_a_pattern_are_recorded_by_their_names(base, model, tokenizer, train_pairs, tmp_path):
    adapted = get_peft_model(model, LoraConfig(target_modules=r".*\.(q|v)_proj", task_type="CAUSAL_LM"))
    assert train(adapted, tokenizer, train_pairs[:4], tmp_path / "run", base, epochs=1, quiet=True).targets == [
        "q_proj",
        "v_proj",
    ]


def test_the_ends_of_the_losses_are_the_means_of_their_quarters(honest):
    record = RunRecord.load(honest)
    ends = {(9, 8, 7, 6, 5, 4, 3, 1): (8.5, 2), (3,): (3, 3)}
    assert {losses: record.model_copy(update={"losses": list(losses)}).loss_ends for losses in ends} == ends
    assert all(map(math.isnan, record.model_copy(update={"losses": []}).loss_ends))


def test_a_loss_that_is_no_number_is_recorded_as_such(base, model, tokenizer, train_pairs, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    adapted = with_adapter(model)
    record = train(
        adapted, tokenizer, train_pairs[:8], tmp_path / "spoilt", base, epochs=1, callbacks=[Spoil()], quiet=True
    )
    assert math.isfinite(record.losses[0]) and math.isnan(record.losses[1])


def test_accumulated_batches_are_one_of_the_record(trained, train_pairs):
    settings = {"pairs": train_pairs[:80], "epochs": 1, "eval_pairs": (), "batch_size": 1}
    record = RunRecord.load(trained("accumulated", **settings, gradient_accumulation_steps=4))
    assert (record.batch_size, len(record.losses)) == (4, 20)


def test_the_record_of_a_run_with_nothing_overridden_tells_what_was_asked_for(trained, train_pairs):
    record = RunRecord.load(trained("half", pairs=train_pairs[:20], epochs=0.5, eval_pairs=(), seed=3))
    assert (record.epochs, record.batch_size, record.learning_rate, record.seed) == (0.5, 4, 5e-3, 3)
    assert len(record.losses) == 3  # of 5 steps an epoch


@pytest.mark.parametrize(
    ("settings", "epochs", "batch_size", "steps"),
    [
        ({"max_steps": 3}, 3 / 5, 4, 3),
        ({"epochs": 1, "num_train_epochs": 0.2, "per_device_train_batch_size": 8}, 0.2, 8, 1),
    ],
)
def test_the_record_tells_what_really_ran(settings, epochs, batch_size, steps, trained, train_pairs):
    record = RunRecord.load(trained("overridden", pairs=train_pairs[:20], eval_pairs=(), **settings))
    whole = RunRecord.load(trained("whole", pairs=train_pairs[:20], eval_pairs=(), epochs=1))
    assert (record.epochs, record.batch_size, len(record.losses)) == (pytest.approx(epochs), batch_size, steps)
    assert record.tokens == round(epochs * whole.tokens)


def test_the_record_of_a_run_that_a_callback_stopped_counts_the_epochs_until_then(trained, train_pairs):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    record = RunRecord.load(trained("stopped", pairs=train_pairs[:20], epochs=2, eval_pairs=(), callbacks=[Stop()]))
    assert (record.epochs, len(record.losses)) == (pytest.approx(4 / 5), 4)


def test_the_record_counts_the_examples_that_end_on_the_end_of_answer_token(base, tokenizer, trained, train_pairs):
    examples = encode_all(train_pairs[:4], tokenizer, base.max_length)
    masked, cut = ([*examples[0]["labels"][:-1], -100], examples[1]["labels"][:-1])
    encoded = [
        examples[0] | {"labels": masked},
        {"input_ids": examples[1]["input_ids"][:-1], "labels": cut},
        *examples[2:],
    ]
    settings = {"pairs": train_pairs[:4], "epochs": 1, "eval_pairs": ()}
    assert RunRecord.load(trained("ends", **settings)).ends == 4
    assert RunRecord.load(trained("ends", **settings, encoded=encoded)).ends == 2


def test_a_record_without_a_count_of_ends_can_be_read(honest):
    record = json.loads((honest / "run.json").read_text())
    del record["ends"]
    (honest / "run.json").write_text(json.dumps(record))
    assert RunRecord.load(honest).ends is None


@pytest.fixture(scope="module")
def short(trained, train_pairs, eval_pairs):
    """Two short runs that differ only in the answers that are generated: 6 and none."""
    settings = {"pairs": train_pairs[:16], "epochs": 2, "eval_pairs": eval_pairs[:8], "seed": 3}
    return [trained("short", **settings, eval_answers=count) for count in (6, 0)]


def test_generating_answers_changes_nothing_about_the_training(short):
    some, none = map(RunRecord.load, short)
    assert some.losses == none.losses
    assert (some.ppl_before, some.ppl_after) == (none.ppl_before, none.ppl_after)


def test_the_record_has_the_scores_of_the_first_evaluation_pairs(short, base, tokenizer, eval_pairs):
    record, asked = RunRecord.load(short[0]), eval_pairs[:6]
    model = load_model(base)
    assert record.scores_before == score_answers(model, tokenizer, asked)
    model = PeftModel.from_pretrained(model, short[0])
    assert record.scores_after == score_answers(model, tokenizer, asked)
    assert record.scores_after.count == 6
    control = question_control(model, tokenizer, asked, base.max_length)
    assert record.question_gain == pytest.approx(control.gain, rel=1e-3)


def test_without_answers_the_record_has_no_scores(short):
    record = RunRecord.load(short[1])
    assert (record.scores_before, record.scores_after, record.question_gain) == (None, None, None)
    assert (record.leaks, record.ppl_after is None) == (0, False)


def test_without_evaluation_pairs_nothing_is_measured(trained, train_pairs):
    record = RunRecord.load(trained("bare", pairs=train_pairs[:4], epochs=1, eval_pairs=(), eval_answers=4))
    assert (record.ppl_after, record.scores_after, record.question_gain, record.leaks) == (None, None, None, None)


def test_one_answer_for_all_questions_has_no_question_control(trained, train_pairs):
    same = [Pair(instruction=text, output="Yes.") for text in ("Is it open today?", "Do you repair gauges?")]
    record = RunRecord.load(trained("same", pairs=train_pairs[:4], epochs=1, eval_pairs=same, eval_answers=2))
    assert (record.scores_after.count, record.question_gain) == (2, None)


def test_leaks_are_one_warning_at_the_line_that_trains(base, model, tokenizer, train_pairs, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, tokenizer, train_pairs[:4], tmp_path, base, eval_pairs=train_pairs[:2], epochs=1, quiet=True)
    (warning,) = (one for one in caught if "evaluation pairs" in str(one.message))
    assert warning.filename == __file__
    assert len(str(warning.message).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": 0},
        {"trainable": -1},
        {"train_pairs": 0},
        {"tokens": -1},
        {"batch_size": 0},
        {"epochs": -1.0},
        {"epochs": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": -1e-3},
        {"seconds": 0.0},
        {"seconds": math.nan},
        {"eval_pairs": -1},
        {"leaks": -1},
        {"seed": -1},
        {"seed": 2**32},
        {"tokens": 10**400},
        {"alpha": math.inf},
        {"dropout": 1.5},
        {"losses": [2.0, -1.0]},
        {"ppl_after": 0.5},
        {"scores_after": {"count": 1, "exact": 2, "ended": 1}},
        {"adapter": {"a\nb": 1}},
    ],
)
def test_a_record_that_no_run_leaves_is_refused_by_name(changes, honest):
    record = json.loads((honest / "run.json").read_text())
    (honest / "run.json").write_text(json.dumps(record | changes))
    with pytest.raises(ValueError, match=f"run.json: {next(iter(changes))}[.:]") as error:
        RunRecord.load(honest)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": 10**9}, "trainable is 1000000000, but parameters is"),
        ({"ends": 101}, "ends is 101, but train_pairs is 100"),
        ({"leaks": 10**6}, "leaks is 1000000, but eval_pairs is"),
        ({"scores_after": {"count": 500, "exact": 0, "ended": 0}}, "scores_after.count is 500, but eval_pairs is"),
        ({"epochs": 0}, "epochs is 0, but losses has"),
    ],
)
def test_a_record_whose_figures_contradict_one_another_is_one_line(changes, message, honest):
    record = json.loads((honest / "run.json").read_text())
    (honest / "run.json").write_text(json.dumps(record | changes))
    with pytest.raises(LoralabError, match=message) as caught:
        RunRecord.load(honest)
    assert "\n" not in str(caught.value)


def test_a_run_that_diverged_or_did_not_learn_can_be_read(honest):
    record = json.loads((honest / "run.json").read_text())
    changes = {"losses": [math.nan, math.inf], "ppl_after": math.nan, "question_gain": math.nan, "learning_rate": 0.0}
    (honest / "run.json").write_text(json.dumps(record | changes))
    assert math.isnan(RunRecord.load(honest).ppl_after)


def test_a_record_from_before_the_scores_can_be_read(honest):
    record = json.loads((honest / "run.json").read_text())
    for name in ("leaks", "scores_before", "scores_after", "question_gain"):
        del record[name]
    (honest / "run.json").write_text(json.dumps(record))
    assert RunRecord.load(honest).scores_after is None
