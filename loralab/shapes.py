"""What an adapter is made of, worked out from the base's config alone: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from transformers import AutoConfig, AutoModelForCausalLM

# The linear layers of a block, in the order in which it uses them.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """What an adapter with given settings has on a given base: computed, not measured."""

    tensors: dict[str, tuple[int, ...]]
    trainable: int
    parameters: int

    @property
    def trainable_percent(self) -> float:
        """Trainable share of all parameters, adapter included, in percent."""
        return 100 * self.trainable / self.parameters

    def file_bytes(self, dtype: torch.dtype) -> int:
        """The exact size of the safetensors file that peft writes for it."""
        tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in self.tensors.items()}
        return len(save(tensors, metadata={"format": "pt"}))


@cache
def _shape(source: str, rank: int, targets: tuple[str, ...]) -> Shape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        config = LoraConfig(r=rank, target_modules=list(targets), task_type="CAUSAL_LM")
        model = get_peft_model(model, config, low_cpu_mem_usage=True)
    tensors = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model).items()}
    return Shape(tensors, *model.get_nb_trainable_parameters())


def adapter_shape(source: str, rank: int, targets: tuple[str, ...]) -> Shape:
    """The exact shape of a LoRA adapter, from the base's config alone (no weights are loaded)."""
    return _shape(source, rank, tuple(sorted(targets, key=LINEAR.index)))
