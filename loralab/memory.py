"""The memory of a training run, part by part, computed from the base's config alone.

A base with one and with two blocks, at its true width, goes through one training step on fake tensors, which have a
shape and no storage; every tensor that is alive is counted, and the rest of the depth is added in proportion.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from .errors import LoralabError, one_line
from .measure import LanguageModel
from .quantized import NF4, Quantization, stored_quantization
from .shapes import LINEAR, adapted, adapter_shape, linear_layers

# What cannot be traced is reported in one line; torch would print the whole stack.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

METHODS = ("lora", "qlora", "full")
GIB = 2**30
T4_BYTES = int(14.75 * GIB)  # what Colab's T4 reports as usable
# A GPU holds more than torch's tensors: CUDA's context, its libraries' work space, gaps between tensors. In bytes, from
# the least to the most of it: what fits beside the most fits, and what fits only beside less than that is tight.
OVERHEAD = (0.5e9, 1.5e9)
Peak = tuple[int, int]  # bytes of activations and of logits, at the moment when their sum is largest
Lora = tuple[int, tuple[str, ...], bool]  # rank, targets, whether there is dropout
SHALLOW, DEEP = 1, 2  # blocks in the two models that are traced; 2 and 4 give the same, to within 0.3 %


class Untraceable(LoralabError):
    """A base whose shape goes through no training step on fake tensors, so its memory cannot be estimated."""


@dataclass(frozen=True)
class Memory:
    """The parts of a training run's peak memory on a GPU, in bytes. Its context and gaps (0.5 to 1.5 GB) are not in it."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float = 0
    logits: float = 0

    @property
    def total(self) -> float:
        """The peak, in bytes."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.logits

    def on_cpu(self, method: str) -> float:
        """Return the peak on a CPU, where weights and activations take 32 bits; weights in 4 bits stay as they are."""
        return self.total + self.activations + self.logits + (0 if method == "qlora" else self.weights)


def estimate(
    source: str,
    method: str = "lora",
    rank: int = 16,
    targets: tuple[str, ...] | list[str] | str = LINEAR,
    batch: int = 1,
    length: int = 512,
    dropout: float = 0.05,
    checkpointing: bool = True,
    upcast: bool = False,
) -> Memory:
    """Estimate the peak memory of training the base at `source` (a folder with a config.json, or a hub id) with AdamW.

    "lora": the base in 16 bits, the adapter in 32. "qlora": the linear layers of the blocks in NF4 with double
    quantisation; a backward pass reads them back one at a time. "full": mixed precision, where weights, gradients and
    AdamW's two averages take 16 bytes per parameter and a 16-bit copy of the weights is among the activations; the
    gradients count as if they were always there, as when they are accumulated. `targets` may be "all-linear".
    `batch` texts of `length` tokens go through at once; `dropout` is the adapter's (any but 0 keeps a copy of what
    goes into each adapted layer); `checkpointing` keeps only each block's input; `upcast` is what
    peft's prepare_model_for_kbit_training does: everything that is not quantised in 32 bits. A base whose weights are
    stored quantised is counted as it is, with "lora" and with "qlora".
    Raises `LoralabError` for settings that are impossible, and `Untraceable` for such a base.
    """
    config = AutoConfig.from_pretrained(source)
    _check(config, method, rank, batch, length)
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    lora = None if method == "full" else (rank, targets, dropout > 0)
    with _tracing():
        resting = at_rest(source, method, rank, targets, upcast)
        shallow, deep = (_traced(source, blocks, lora, batch, length, checkpointing) for blocks in (SHALLOW, DEEP))
    depth = config.get_text_config().num_hidden_layers
    # A shallow base may have its peak in the backward pass and a deep one in the forward pass: extend each by itself.
    activations, logits = max((_extended(*peaks, depth) for peaks in zip(shallow, deep, strict=True)), key=sum)
    if quantization := quantization_for(source, method):  # a layer in 16 bits again, beside the one before it
        activations += 2 * 2 * _weights(source, quantization).largest
    return replace(resting, activations=activations, logits=logits)


def verdict(total: float, room: float) -> str:
    """Return "fits", "tight" or "does not fit" for tensors of `total` bytes on a GPU on which torch finds `room` bytes."""
    least, most = OVERHEAD
    if total + most <= room:
        return "fits"
    return "tight" if total + least <= room else "does not fit"


def needed(source: str, method: str, room: float, **settings: Any) -> float:
    """Return the bytes that `train` takes here at its peak, with these settings of `estimate`, where it has `room` bytes.

    On a GPU it recomputes activations if the run would not fit otherwise, and the GPU's own share counts at its least.
    Methods other than "qlora" count as "lora".
    """
    method = "qlora" if method == "qlora" else "lora"
    plain = estimate(source, method, checkpointing=False, **settings)
    if not torch.cuda.is_available():
        return plain.on_cpu(method)
    fits = verdict(plain.total, room) == "fits"
    return OVERHEAD[0] + (plain if fits else estimate(source, method, checkpointing=True, **settings)).total


@contextmanager
def _tracing() -> Iterator[None]:
    try:
        yield
    except LoralabError:
        raise
    except Exception as error:  # sizes that do not go together, or an operation that needs real numbers
        raise Untraceable(f"a model of this shape cannot be traced without its weights: {one_line(error)}") from None


def at_rest(source: str, method: str, rank: int, targets: tuple[str, ...], upcast: bool = False) -> Memory:
    """Return what a training run holds between two steps: `estimate` without activations and logits, by arithmetic alone."""
    quantization = quantization_for(source, method)
    base = _weights(source, quantization)
    if method == "full":
        return Memory(4 * base.parameters, 0, 4 * base.parameters, 8 * base.parameters)
    rest = (base.parameters - base.quantized) * (4 if upcast and quantization else 2)
    weights = base.bytes + rest
    trainable = adapter_shape(source, rank, targets).trainable
    return Memory(weights, 4 * trainable, 4 * trainable, 8 * trainable)


def _extended(shallow: Peak, deep: Peak, depth: int) -> tuple[float, float]:
    """Return the peak at `depth` blocks, on the line through those at SHALLOW and at DEEP."""
    share = (depth - SHALLOW) / (DEEP - SHALLOW)
    return shallow[0] + share * (deep[0] - shallow[0]), shallow[1] + share * (deep[1] - shallow[1])


def _check(config: PreTrainedConfig, method: str, rank: int, batch: int, length: int) -> None:
    if method not in METHODS:
        raise LoralabError(f"unknown method {method!r}: give one of {', '.join(METHODS)}")
    for name, value in {"rank": rank, "batch": batch, "length": length}.items():
        if value < 1:
            raise LoralabError(f"{name} is {value}; it must be at least 1")
    longest = getattr(config.get_text_config(), "max_position_embeddings", length)
    if length > longest:
        raise LoralabError(f"length is {length}, but this model reads {longest} tokens at most")


def quantization_for(source: str, method: str) -> Quantization | None:
    """Return how a training run with this method holds the linear layers of the base; None if in 16 or 32 bits.

    Raises `LoralabError`, in one line, if the weights are stored in a form that the method cannot train.
    """
    stored = stored_quantization(AutoConfig.from_pretrained(source))
    if stored and method == "full":
        raise LoralabError(
            f"its weights are quantised ({stored.name}), so they cannot be trained: give --method lora, or the model that "
            "is not quantised"
        )
    return stored or (NF4 if method == "qlora" else None)


@dataclass(frozen=True)
class _Weights:
    """The weights of a base: numbers of all, of the quantised ones, of those in the largest quantised layer, and bytes."""

    parameters: int
    quantized: int
    largest: int
    bytes: float  # of the quantised ones


@cache
def _weights(source: str, quantization: Quantization | None) -> _Weights:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    parameters, head = sum(p.numel() for p in model.parameters()), model.get_output_embeddings()
    if quantization is None:
        return _Weights(parameters, 0, 0, 0)
    shared = head is not None and head.weight is model.get_input_embeddings().weight
    found = [
        layer
        for name, layer in linear_layers(model).items()
        if not (layer is head and shared) and quantization.converts(name, layer is head)
    ]
    sizes = [layer.weight.numel() for layer in found]
    rows = [layer.weight.shape[0 if isinstance(layer, Conv1D) else 1] for layer in found]
    held = sum(quantization.bytes(size, row) for size, row in zip(sizes, rows, strict=True))
    return _Weights(parameters, sum(sizes), max(sizes, default=0), held)


@cache
def _traced(
    source: str, blocks: int, lora: Lora | None, batch: int, length: int, checkpointing: bool
) -> tuple[Peak, Peak]:
    """Return the peaks of the forward and of the backward pass of one step of the base, cut to so many blocks."""
    config = AutoConfig.from_pretrained(source)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    text.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if lora else torch.float32)
        if lora:
            rank, targets, dropout = lora
            model = adapted(model, rank, targets, 0.05 * dropout)
    with FakeTensorMode():
        _materialise(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients are counted apart
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        model.train()
        tokens = torch.zeros(batch, length, dtype=torch.long)
        gradients = {p.shape for p in model.parameters() if p.requires_grad}
        with _Alive(text.vocab_size, gradients) as alive:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            forward, alive.peak = alive.peak, (0, 0)
            loss.backward()
    return forward, alive.peak


def _materialise(model: LanguageModel) -> None:
    """Turn meta tensors into fake ones of a CPU, where autocast and attention behave as on a device.

    Weights that are tied stay so.
    """
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[parameter] = torch.nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still alive, logits apart.

    A 32-bit tensor of a trainable parameter's shape is its gradient, which is counted elsewhere.
    """

    def __init__(self, vocabulary: int, gradients: set[torch.Size]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.vocabulary = vocabulary
        self.gradients = gradients
        self.seen: set[int] = set()
        self.now = [0, 0]
        self.peak = (0, 0)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, given)
        return outputs

    def _count(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or key in given or (tensor.dtype == torch.float32 and tensor.shape in self.gradients):
            return
        kind = int(self.vocabulary in tensor.shape)
        self.seen.add(key)
        self.now[kind] += size
        if sum(self.now) > sum(self.peak):
            self.peak = (self.now[0], self.now[1])
        weakref.finalize(storage, self._freed, key, size, kind)

    def _freed(self, key: int, size: int, kind: int) -> None:
        self.seen.discard(key)
        self.now[kind] -= size
