"""A base of a true shape with random weights, and a few steps of training on it: what memory_cpu and memory_gpu measure.

Memory depends on shapes, not on values, so nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loralab import keep_unpacked  # before bitsandbytes, whose word on a package that it misses it keeps back
from loralab.shapes import adapted, linear_layers, modules

# isort: split
import bitsandbytes as bnb


def random_base(source: str, method: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return the base at `source` with random weights: in 32 bits for "full", in `dtype` for "lora", in NF4 for "qlora".

    It is made tensor by tensor and quantised layer by layer: the whole never exists in 16 bits.
    """
    held = torch.float32 if method == "full" else dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=held)
        if method == "qlora":
            _replace_by_4bit(model, dtype)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, _filled(parameter, device, held))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.ones(buffer.shape, dtype=buffer.dtype, device=device))
    model.tie_weights()
    model.config.use_cache = False
    return model


def _replace_by_4bit(model: PreTrainedModel, dtype: torch.dtype) -> None:
    head = model.get_output_embeddings()
    for name, layer in linear_layers(model).items():
        if layer is not head:
            bias = layer.bias is not None
            small = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias, dtype, quant_type="nf4")
            model.set_submodule(name, small)
    model.is_loaded_in_4bit = True  # peft asks for it
    keep_unpacked(model)


def _filled(parameter: torch.nn.Parameter, device: str, dtype: torch.dtype) -> torch.nn.Parameter:
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    # Norms of nearly 0 would make numbers so small that a CPU takes many times as long for each.
    values.fill_(1) if parameter.dim() == 1 else values.normal_(std=0.02)
    if isinstance(parameter, bnb.nn.Params4bit):
        return bnb.nn.Params4bit(values, requires_grad=False, quant_type="nf4").to(device)  # quantises on the way
    return torch.nn.Parameter(values)


def train_steps(
    model: PreTrainedModel,
    method: str,
    rank: int,
    targets: str,
    batch: int,
    length: int,
    checkpointing: bool,
    dtype: torch.dtype,
    accumulate: tuple[int, ...] = (1, 2),
    after_step: Callable[[], object] = lambda: None,
) -> list[float]:
    """Train it on random tokens, mixed with `dtype`, by AdamW, as `loralab.memory` assumes. The losses.

    `accumulate` has the number of batches of every step, and `after_step` is called at the end of each. From the second
    batch of the second step on everything is there at once: AdamW's averages and the gradients so far.
    """
    device = model.device
    if method != "full":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model = adapted(model, rank, modules(targets), dropout=0.05)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    losses = []
    for batches in accumulate:
        for _ in range(batches):
            tokens = torch.randint(0, model.config.vocab_size, (batch, length), device=device)
            with torch.autocast(device.type, dtype):
                loss = model(input_ids=tokens, labels=tokens).loss
            scaler.scale(loss / batches).backward()
            losses.append(loss.item())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        after_step()
    return losses
