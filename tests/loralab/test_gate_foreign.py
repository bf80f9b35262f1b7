"""Adapters that were trained without loralab: judged by what their folder holds, and never blamed for a missing record."""

import json
import os
import pickle
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from loralab import ability, encode_all, load_model, perplexity, write_pairs
from loralab.collate import AnswersAtTheEnd
from loralab.gate import gate, trial
from loralab.gate.run import read_run
from loralab.gate.trial import try_on_base
from tests.conftest import with_adapter

ADAPTER = "adapter_model.safetensors"
NO_RECORD = "cannot be judged: no record"
UNSLOTH = "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit"


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch):
    """Time only: the gate measures 20 samples and 100 pairs."""
    monkeypatch.setattr(ability, "SAMPLES", 4)
    monkeypatch.setattr(ability, "MEASURED", 8)
    monkeypatch.setattr(trial, "MEASURED", 8)


def by_name(points):
    return {point.name: point for point in points}


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def saved(model, folder):
    """Save an adapter on the embedded base as any library does, with an effect and without a record."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path="embedded")
    return folder


@pytest.fixture(scope="module")
def _checkpoint(base, tokenizer, train_pairs, tmp_path_factory):
    """The checkpoint of a plain Trainer."""
    folder = tmp_path_factory.mktemp("plain")
    rows = encode_all(train_pairs[:12], tokenizer, base.max_length)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=base.learning_rate,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="epoch",
        eval_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(
        model=with_adapter(load_model(base)),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        data_collator=AnswersAtTheEnd(tokenizer),
        processing_class=tokenizer,
    ).train()
    change(folder / "checkpoint-6" / "adapter_config.json", base_model_name_or_path="embedded")
    return folder / "checkpoint-6"


@pytest.fixture
def checkpoint(_checkpoint, tmp_path):
    return shutil.copytree(_checkpoint, tmp_path / "checkpoint-6")


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_is_judged_by_its_tensors_and_its_log(checkpoint, tmp_path):
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "unpickled")))
    points = by_name(gate(checkpoint, decision="keep"))
    assert not [point for point in points.values() if point.passed is False]
    assert points["hyperparameters"].passed and "learning rate 0.005, 2 epochs" in points["hyperparameters"].found
    assert points["trained"].passed and "in 6 entries of the log" in points["trained"].found
    assert points["trainable parameters"].passed and "114,688 of 4,116,736" in points["trainable parameters"].found
    for name in ("chat template and EOS", "PPL before", "PPL after and samples"):
        assert points[name].passed is None and NO_RECORD in points[name].found
    for name in ("PPL before", "PPL after and samples"):
        assert "--eval FILE" in points[name].advice
    assert not (tmp_path / "unpickled").exists()


def test_pairs_measure_a_checkpoint_and_fill_its_card(checkpoint, base, tokenizer, eval_pairs, tmp_path):
    write_pairs(tmp_path / "eval.jsonl", eval_pairs[:8])
    points = by_name(gate(checkpoint, decision="keep", eval_file=tmp_path / "eval.jsonl"))
    before = perplexity(load_model(base), tokenizer, eval_pairs[:8], base.max_length)
    assert f"PPL {before:.2f} on 8 held-out pairs" in points["PPL before"].found
    assert points["PPL before"].passed is None and "find_leaks" in points["PPL before"].advice
    after = points["PPL after and samples"]
    assert after.passed is False and "answers are exactly right" in after.advice  # six steps teach next to nothing
    assert "exact match 0.00 to 0.00" in after.found and eval_pairs[0].instruction in after.details
    card = ModelCard.load(checkpoint / "README.md")  # peft's empty form is gone
    assert card.data.base_model == "embedded"
    assert [result.metric_type for result in card.data.eval_results] == ["perplexity", "perplexity", "exact_match"]
    assert "q_proj" in card.text and "## Made with" not in card.text
    text = (checkpoint / "README.md").read_text()
    assert "kept as it is" in by_name(gate(checkpoint))["model card"].found  # without pairs there is nothing to show
    assert (checkpoint / "README.md").read_text() == text


def test_a_template_that_refuses_the_pairs_is_reported_in_the_points(checkpoint, eval_pairs, tmp_path):
    (checkpoint / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    write_pairs(tmp_path / "eval.jsonl", eval_pairs[:8])
    points = by_name(gate(checkpoint, eval_file=tmp_path / "eval.jsonl"))
    for name in ("chat template and EOS", "PPL after and samples"):
        assert "chat template fails on it: TemplateError: no system message" in points[name].found


def test_without_a_log_the_losses_cannot_be_judged(checkpoint):
    (checkpoint / "trainer_state.json").unlink()
    points = by_name(gate(checkpoint))
    for name in ("hyperparameters", "trained"):
        assert points[name].passed is None and NO_RECORD in points[name].found
    weights = load_file(checkpoint / ADAPTER)
    save_file({n: w * 0 if ".lora_B." in n else w for n, w in weights.items()}, checkpoint / ADAPTER)
    assert by_name(gate(checkpoint))["trained"].passed is False


def test_the_held_out_curve_of_a_log_decides_about_the_epochs(checkpoint):
    change(checkpoint / "trainer_state.json", epoch=100.0)
    assert by_name(gate(checkpoint))["hyperparameters"].passed  # many epochs, but the held-out loss kept falling
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    risen = [*log, {"epoch": 3.0, "eval_loss": 1.5 * next(e["eval_loss"] for e in log if "eval_loss" in e)}]
    change(checkpoint / "trainer_state.json", log_history=risen)
    point = by_name(gate(checkpoint))["hyperparameters"]
    assert point.passed is False
    assert "the held-out loss rose" in point.advice and "in epoch 2" in point.advice


SETTINGS = [
    {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    {"target_modules": r".*self_attn\.(q|v)_proj"},
    {"target_modules": "all-linear"},
    {"target_modules": None},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 16}},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj"], "bias": "all"},
    {"target_modules": ["q_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_configuration_is_accepted_if_the_tensors_fit_it(settings, model, tmp_path):
    folder = saved(get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings)), tmp_path / "run")
    points = by_name(gate(folder, decision="keep"))
    assert points["trainable parameters"].passed, points["trainable parameters"]
    assert points["hyperparameters"].passed is None and NO_RECORD in points["hyperparameters"].found
    weights = load_file(folder / ADAPTER)
    lost = next(name for name in weights if "lora_" in name)
    save_file({name: weight for name, weight in weights.items() if name != lost}, folder / ADAPTER)
    point = by_name(gate(folder))["trainable parameters"]
    assert point.passed is False and lost in point.advice


@pytest.mark.parametrize("settings", [SETTINGS[5], SETTINGS[6], SETTINGS[7]], ids=str)
def test_an_adapter_of_the_embeddings_is_measured_as_it_was_trained(
    settings, model, base, tokenizer, eval_pairs, tmp_path
):
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    folder = saved(adapted, tmp_path / "run")
    write_pairs(tmp_path / "eval.jsonl", eval_pairs[:8])
    found = try_on_base(read_run(folder, tmp_path / "eval.jsonl"))
    assert found.after is not None, found.trouble
    assert found.after.ppl == pytest.approx(perplexity(adapted, tokenizer, eval_pairs[:8], base.max_length), rel=1e-3)


def test_a_vocabulary_that_has_grown_is_named_as_the_cause(model, tmp_path):
    model.resize_token_embeddings(4100, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    folder = saved(get_peft_model(model, config), tmp_path / "run")
    point = by_name(gate(folder))["trainable parameters"]
    assert point.passed is False
    assert "its vocabulary has 4100 rows, the base's 4096" in point.advice and "--base" in point.advice


def test_a_pattern_that_gives_some_layers_an_unusual_factor_fails(model, tmp_path):
    settings = {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 64}}
    folder = saved(get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings)), tmp_path / "run")
    assert "alpha/rank is 16" in by_name(gate(folder))["hyperparameters"].advice


def test_for_the_base_names_of_unsloth_the_base_to_give_is_named(checkpoint, monkeypatch, eval_pairs, tmp_path):
    change(checkpoint / "adapter_config.json", base_model_name_or_path=UNSLOTH)
    point = by_name(gate(checkpoint))["base and licence"]
    assert point.passed is False
    assert "--base unsloth/Qwen2.5-0.5B-Instruct," in point.advice
    loaded = []

    def load(base, quantization=None):
        loaded.append(quantization)
        return load_model(base, quantization=quantization)

    monkeypatch.setattr(trial, "load_model", load)
    write_pairs(tmp_path / "eval.jsonl", eval_pairs[:4])
    assert by_name(gate(checkpoint, base="embedded", eval_file=tmp_path / "eval.jsonl"))["base and licence"].passed
    assert loaded[0].bnb_4bit_quant_type == "nf4"


def test_a_card_that_somebody_wrote_is_kept(checkpoint):
    mine = "---\nbase_model: embedded\nlibrary_name: peft\nlicense: mit\n---\n# Mine\n"
    (checkpoint / "README.md").write_text(mine)
    assert by_name(gate(checkpoint))["model card"].passed
    assert (checkpoint / "README.md").read_text() == mine
