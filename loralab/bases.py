"""The base models of the course and what each of them needs.

One notebook source runs on all of them; what differs (where it comes from, its learning rate, its
licence) stands in its profile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .data import data_path
from .fourbit import keep_unpacked
from .hardware import Precision, precision

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

    `source` is a hub id or a folder; `learning_rate` and `epochs` are the ones to start LoRA with (a small
    model wants more of both); `max_length` is in tokens; `reason` says why this base was taken.
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
    "smollm2-135m": Base("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 1e-3, "Apache-2.0"),
    "qwen2.5-0.5b": Base("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 2e-4, "Apache-2.0"),
}


def choose_base(name: str = "auto", prefer: str = "smollm2-135m") -> Base:
    """The base called `name`: a profile's name, a hub id, or a local folder.

    "auto" takes `prefer` where there is a GPU and the hub answers, and the embedded base otherwise.
    Raises `ValueError` for a name that is none of these.
    """
    if name == "auto":
        return _automatic(prefer)
    if name in PROFILES:
        return _located(PROFILES[name], "asked for by name")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"the folder {name!r} holds no config.json; give the folder that save_pretrained wrote")
        folder = Path(name).resolve()  # "." has no name of its own
        return Base(folder.name, str(folder), 2e-4, "unknown: check it", reason="a local folder")
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return Base(name.split("/")[1], name, 2e-4, "unknown: see its model card", reason="a model of the hub")
    known = ", ".join(PROFILES)
    raise ValueError(f"unknown base {name!r}: give auto, {known}, a hub id (owner/name) or a folder with a model")


def find_base(name: str) -> Base:
    """`choose_base(name)`, and a look whether the hub has it. Raises `ValueError`, in one line, if it cannot be had."""
    base = choose_base(name)
    if not Path(base.source).is_dir() and not hub_has(base.source):
        raise ValueError(
            f"{base.source}: neither the hub nor its cache here gives a config.json; check the name, log in if the "
            "model asks for it, or give a folder with the model"
        )
    return base


def _automatic(prefer: str) -> Base:
    embedded = PROFILES["embedded"]
    if not torch.cuda.is_available():
        return _located(embedded, "no GPU here, so the small base that comes with the course")
    if not hub_has(PROFILES[prefer].source):
        return _located(embedded, f"a GPU, but the hub did not give {prefer}, so the base that comes with the course")
    return replace(PROFILES[prefer], reason=f"a GPU ({torch.cuda.get_device_name()}) and the hub are here")


def _located(base: Base, reason: str) -> Base:
    source = base.source or str(data_path("base"))
    return replace(base, source=source, reason=reason)


def hub_has(source: str, timeout: float = 5.0) -> bool:
    """Whether the model `source` (a hub id) can be had, from the hub within `timeout` seconds or from its cache."""
    try:
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=timeout)  # asks once; a download, six times
    except Exception:  # offline, no such model, no permission: whatever it is, it cannot be had
        return False
    return True


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right, with a chat template and an end-of-answer token.

    A tokenizer without a chat template gets ChatML (and says so). Raises `ValueError` if it does not
    know ChatML's markers either.
    """
    tokenizer = AutoTokenizer.from_pretrained(base.source)
    tokenizer.padding_side = "right"
    if tokenizer.chat_template is None:
        missing = {"<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys()
        if missing:
            raise ValueError(
                f"{base.name}: its tokenizer has no chat template and no ChatML markers ({', '.join(sorted(missing))}); "
                "set tokenizer.chat_template yourself or take the instruct version of this model"
            )
        tokenizer.chat_template = CHATML
        tokenizer.eos_token = "<|im_end|>"
        print(f"{base.name}: no chat template of its own, so ChatML is set, with <|im_end|> as the end of an answer")
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        spare = "<|endoftext|>" if "<|endoftext|>" in tokenizer.get_vocab() else tokenizer.unk_token
        tokenizer.pad_token = spare or tokenizer.eos_token  # padding is masked by position, never by its id
    return tokenizer


def load_model(
    base: Base, hardware: Precision | None = None, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """The base's weights in the number format of this machine, on its device, loaded without a second copy.

    With `quantization` (see `nf4`) the linear layers of its blocks are held in 4 bits, ready to be trained upon.
    """
    hardware = hardware or precision()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model = AutoModelForCausalLM.from_pretrained(
        base.source,
        dtype=hardware.dtype,
        device_map={"": 0 if hardware.device == "cuda" else "cpu"},
        attn_implementation="sdpa",  # eager attention overflows in fp16 on Qwen2 (transformers#33317)
        quantization_config=quantization,
    )
    return model if quantization is None else keep_unpacked(model)
