"""Choosing and loading a base."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loralab import Pair, bases, choose_base, encode, load_model, load_tokenizer
from loralab.errors import LoralabError
from loralab.pairs import IGNORED


def test_auto_takes_the_embedded_base_without_a_gpu_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(choose_base("auto")) == (
        "base: embedded (Apache-2.0): no GPU here, so the small base that comes with the course; "
        'BASE="smollm2-135m" runs here too, but slower'
    )


def test_auto_takes_the_preferred_base_with_a_gpu_and_the_hub(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(bases, "hub_has", lambda source: True)
    chosen = choose_base("auto", prefer="qwen2.5-0.5b")
    assert chosen.source == "Qwen/Qwen2.5-0.5B-Instruct"
    assert "Tesla T4" in chosen.reason


@pytest.mark.parametrize("prefer", ["smollm2-135m", "qwen2.5-0.5b"])
def test_auto_falls_back_with_a_gpu_but_neither_hub_nor_package_index(monkeypatch, tmp_path, prefer):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    chosen = choose_base("auto", prefer)  # the tests are offline, so nothing really answers
    assert chosen.name == "embedded"
    assert "because fetching failed: smollm2-135m: pip cannot download it (No matching" in chosen.reason
    assert "\n" not in chosen.reason


@pytest.mark.parametrize("name", ["smollm2", "a/b/c", "./nowhere/at-all"])
def test_an_unknown_base_is_one_line_that_says_what_to_give(name):
    with pytest.raises(ValueError, match="unknown base .*: give auto, embedded") as error:
        choose_base(name)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        choose_base(str(tmp_path))


@pytest.mark.parametrize("settings", [{"model_type": "novel"}, {"model_type": "qwen2", "hidden_size": "wide"}])
def test_a_folder_whose_config_cannot_be_used_is_one_line(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for load in (bases.base_to_train, lambda name: load_model(choose_base(name))):
        with pytest.raises(LoralabError, match="^[^\n]*: its (config|model) cannot be loaded: [^\n]*$"):
            load(str(tmp_path))


def test_a_base_with_a_damaged_file_is_one_line(base, tmp_path):
    damaged = replace(base, source=str(shutil.copytree(base.source, tmp_path / "embedded")))
    for name, load in {"model.safetensors": load_model, "tokenizer.json": load_tokenizer}.items():
        path = tmp_path / "embedded" / name
        path.write_bytes(path.read_bytes()[:1000] if load is load_model else b'{"model": {}}')
        with pytest.raises(LoralabError, match="^embedded: its (model|tokenizer) cannot be loaded: [^\n]*$"):
            load(damaged)


def test_a_folder_has_its_own_name_however_it_is_given(tmp_path, monkeypatch):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(folder)
    for given in (".", "../my-model", str(folder)):
        assert (choose_base(given).name, choose_base(given).source) == ("my-model", str(folder.resolve()))


def test_a_model_that_cannot_be_had_is_one_line_and_one_that_can_is_found(monkeypatch):
    with pytest.raises(
        ValueError, match="no/such: neither the hub nor its cache here gives a config.json; .*"
    ) as error:
        bases.find_base("no/such")
    assert "\n" not in str(error.value)
    assert bases.find_base("embedded") == choose_base("embedded")
    monkeypatch.setattr(bases, "hub_has", lambda source: source == "some/model")
    assert bases.find_base("some/model") == choose_base("some/model")


def test_the_embedded_base_is_small_and_speaks_chatml(base, tokenizer, model):
    assert 2_000_000 <= model.num_parameters() <= 6_000_000
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) <= 4096
    assert model.dtype == torch.float32
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    spans = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(spans["input_ids"], spans["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "b c<|im_end|>"


def other_model(folder, special):
    """A tiny Llama with a tokenizer that has no chat template."""
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefghij"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [])), eos_token=special[0])
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return choose_base(str(folder))


def test_a_tokenizer_without_a_chat_template_gets_chatml_and_says_so(tmp_path, capsys):
    base = other_model(tmp_path, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = load_tokenizer(base)
    assert "ChatML is set" in capsys.readouterr().out
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert load_model(base).config.model_type == "llama"


def test_the_token_that_ends_an_answer_in_the_template_is_the_end_token(base, tmp_path, capsys):
    tokenizer = load_tokenizer(base)  # as Qwen2.5's base models: <|endoftext|> ends texts, <|im_end|> ends answers
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(replace(base, source=str(tmp_path)))
    assert found.eos_token == "<|im_end|>"
    assert "ends an answer with <|im_end|>" in capsys.readouterr().out


CHAT = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' and loop.last %}THOUGHT{% endif %}{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}THOUGHT{% endif %}{% else %}LAST{% endif %}"""


@pytest.mark.parametrize(
    ("thought", "last", "note"),
    [
        ("", "<|endoftext|>", "ends an answer with <|im_end|>"),  # as Phi-3
        ("<think>\n\n</think>\n\n", "", "with enable_thinking=False"),  # as Qwen3
    ],
)
def test_templates_that_end_the_text_or_think_are_used(base, tmp_path, capsys, thought, last, note):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = CHAT.replace("THOUGHT", thought).replace("LAST", last)
    tokenizer.eos_token = last or "<|im_end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(replace(base, source=str(tmp_path)))
    assert note in capsys.readouterr().out
    encoded = encode(Pair(instruction="Where?", output="In shed 2."), found)
    assert found.decode([label for label in encoded["labels"] if label != IGNORED]) == "In shed 2.<|im_end|>"
    assert found.decode(encoded["input_ids"]).endswith(f"<|im_start|>assistant\n{thought}In shed 2.<|im_end|>")


def test_a_tokenizer_that_cannot_speak_chatml_is_refused_with_advice(tmp_path):
    base = other_model(tmp_path, ["</s>"])
    with pytest.raises(ValueError, match="no chat template and no ChatML markers .* take the instruct version"):
        load_tokenizer(base)


def test_the_embedded_base_is_apache_licensed(base):
    assert json.loads((bases.data_path("base/config.json")).read_text())["model_type"] == "qwen2"
    assert base.licence == "Apache-2.0"
    assert "license: apache-2.0" in bases.data_path("base/README.md").read_text()
