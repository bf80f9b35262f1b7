"""Choosing and loading a base."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loralab import bases, choose_base, load_model, load_tokenizer, precision


def test_auto_takes_the_embedded_base_without_a_gpu_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(choose_base("auto")) == (
        "base: embedded (Apache-2.0): no GPU here, so the small base that comes with the course"
    )


def test_auto_takes_the_preferred_base_with_a_gpu_and_the_hub(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(bases, "hub_has", lambda source: True)
    chosen = choose_base("auto", prefer="qwen2.5-0.5b")
    assert chosen.source == "Qwen/Qwen2.5-0.5B-Instruct"
    assert "Tesla T4" in chosen.reason


def test_auto_falls_back_with_a_gpu_but_no_hub(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = choose_base("auto", prefer="smollm2-135m")  # the tests are offline, so the hub really does not answer
    assert chosen.name == "embedded"
    assert "the hub did not give smollm2-135m" in chosen.reason


@pytest.mark.parametrize("name", ["smollm2", "a/b/c", "./nowhere/at-all"])
def test_an_unknown_base_is_one_line_that_says_what_to_give(name):
    with pytest.raises(ValueError, match="unknown base .*: give auto, embedded") as error:
        choose_base(name)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        choose_base(str(tmp_path))


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


def test_a_tokenizer_that_cannot_speak_chatml_is_refused_with_advice(tmp_path):
    base = other_model(tmp_path, ["</s>"])
    with pytest.raises(ValueError, match="no chat template and no ChatML markers .* take the instruct version"):
        load_tokenizer(base)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_precision_follows_the_compute_capability_alone(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as it says on a T4, where it is emulated
    assert precision(capability).dtype == dtype


@pytest.mark.parametrize(
    ("amx", "width", "bf16"), [(True, 576, True), (True, 256, False), (True, 0, False), (False, 576, False)]
)
def test_a_cpu_holds_fp32_and_trains_wide_models_in_bf16_if_it_has_amx(monkeypatch, amx, width, bf16):
    abilities = {"avx512_bf16": True, "amx_bf16": amx}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert precision(width=width).dtype == torch.float32
    assert precision(width=width).autocast == {"bf16": bf16, "fp16": False}


def test_the_embedded_base_is_apache_licensed(base):
    assert json.loads((bases.data_path("base/config.json")).read_text())["model_type"] == "qwen2"
    assert base.licence == "Apache-2.0"
    assert "license: apache-2.0" in bases.data_path("base/README.md").read_text()
