"""What an adapter is made of, worked out from the base's config alone: no weights are loaded."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .errors import LoralabError, one_line
from .layers import ALL_LINEAR as ALL_LINEAR
from .layers import ATTENTION as ATTENTION
from .layers import LINEAR as LINEAR
from .layers import TARGETS as TARGETS

LinearLayer = torch.nn.Linear | Conv1D


def modules(words: str) -> tuple[str, ...]:
    """Return the layers that `words` name: keys of `TARGETS` or names of layers, with commas; `all`: every linear layer.

    Raises `LoralabError` if there is no word.
    """
    named = [word.strip() for word in words.split(",") if word.strip()]
    if not named:
        raise LoralabError(f"targets are {words!r}: give {', '.join(TARGETS)}, or names of layers with commas")
    if {"all", *ALL_LINEAR} & set(named):
        return ALL_LINEAR
    return tuple(dict.fromkeys(layer for word in named for layer in TARGETS.get(word, (word,))))


def tensor_shapes(model: PeftModel, embeddings: bool | Literal["auto"] = "auto") -> dict[str, tuple[int, ...]]:
    """Return the shapes of what peft saves of an adapter, by name: with the base's embeddings, without them, or as needed."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Shape:
    """What an adapter with given settings has on a given base: computed, not measured."""

    tensors: dict[str, tuple[int, ...]]
    trainable: int
    parameters: int

    @classmethod
    def of(cls, model: PeftModel) -> Shape:
        """Return the shape of the adapter that this model wears."""
        return cls(tensor_shapes(model), *model.get_nb_trainable_parameters())

    @property
    def trainable_percent(self) -> float:
        """Trainable share of all parameters, adapter included, in percent."""
        return 100 * self.trainable / self.parameters

    def file_bytes(self, dtype: torch.dtype) -> int:
        """Return the exact size of the safetensors file that peft writes for it."""
        tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in self.tensors.items()}
        return len(save(tensors, metadata={"format": "pt"}))


def without_weights(config: PretrainedConfig, settings: LoraConfig) -> PeftModel:
    """Return a base with an adapter on the meta device: layers, shapes and factors, but no weights.

    Raises `LoralabError`, in one line, if peft cannot put such an adapter on such a base.
    """
    settings = copy(settings)
    settings.inference_mode = False  # else nothing would count as trainable
    settings.init_lora_weights = True  # other starts need the base's weights; the shape is the same
    settings.base_model_name_or_path = None  # else peft warns that the base has another name
    try:
        with torch.device("meta"):
            return get_peft_model(AutoModelForCausalLM.from_config(config), settings, low_cpu_mem_usage=True)
    except Exception as error:  # a damaged configuration can fail anywhere inside peft
        raise LoralabError(f"the adapter cannot be put on its base ({one_line(error)})") from None


def linear_layers(model: PreTrainedModel) -> dict[str, LinearLayer]:
    """Return the linear layers by their full names (GPT-2 has them under the name of a convolution)."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LinearLayer)}


def adapted(model: PreTrainedModel, rank: int, targets: tuple[str, ...], dropout: float = 0.0) -> PeftModel:
    """Return the model with a LoRA adapter; on the meta device the adapter has no weights either.

    Raises `LoralabError`, in one line, for a target that this model does not have.
    """
    if targets != ALL_LINEAR:
        check_targets(model, targets)
    config = lora_config(model, targets, r=rank, lora_dropout=dropout)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # nothing is merged here
        return get_peft_model(model, config, low_cpu_mem_usage=model.device.type == "meta")


def lora_config(model: PreTrainedModel, targets: tuple[str, ...], **settings: Any) -> LoraConfig:
    """Return the configuration of an adapter on `targets` of this model, with further arguments of `LoraConfig`."""
    return LoraConfig(
        target_modules=targets[0] if targets == ALL_LINEAR else list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear_layers(model).values()),
        task_type="CAUSAL_LM",
        **settings,
    )


def check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """Raise `LoralabError`, in one line, for a target that is no linear layer of this model."""
    known = {name.rpartition(".")[2] for name in linear_layers(model)}
    tables = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    if wrong := sorted(set(targets) & tables):
        raise LoralabError(
            f"{', '.join(wrong)} is an embedding: only linear layers get an adapter here, which are {', '.join(sorted(known))}"
        )
    unknown = sorted(set(targets) - known)
    if unknown:
        raise LoralabError(f"this model has no layer {', '.join(unknown)}; it has {', '.join(sorted(known))}")


@cache
def _shape(source: str, rank: int, targets: tuple[str, ...]) -> Shape:
    with torch.device("meta"):
        return Shape.of(adapted(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)), rank, targets))


def adapter_shape(source: str, rank: int, targets: tuple[str, ...]) -> Shape:
    """Return the exact shape of a LoRA adapter, from the base's config alone (no weights are loaded).

    `source` is a folder with a config.json, or a hub id; `targets` are names of layers, or `ALL_LINEAR`.
    """
    return _shape(source, rank, tuple(sorted(targets)))
