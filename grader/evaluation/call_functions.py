"""Calls functions that a notebook defines and notes what they return: in the notebook's own kernel, after its last cell.

It stands alone, for nothing else of the grader is there to be imported. The student's code can change whatever is done
here, so nothing but the returned values is taken from it. The grader calls the reference solution's functions with it.
"""

from __future__ import annotations

import io
import json
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

MAX_ENTRIES = 20_000  # of one returned value
SECONDS = 15  # of one call: one that never ends costs the others nothing
MAX_LENGTH = 100_000  # characters of one answer: all of them must fit into what the grader reads


def call_all(calls: Sequence[str], functions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluate each call, a Python expression over `functions` and the builders below.

    An answer has the key "value", or "error" with one line that says why there is none.
    """
    scope = dict(functions) | {build.__name__: build for build in BUILDERS}
    return [_answer(call, scope) for call in calls]


def main(calls: str, answers: str, functions: Mapping[str, Any]) -> None:
    """Read the calls from a file and write the answers to another."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = call_all(json.loads(Path(calls).read_text("utf-8")), functions)
    Path(answers).write_text(json.dumps(found), "utf-8")


def _answer(call: str, scope: dict[str, Any]) -> dict[str, Any]:
    try:
        with _time_limit():
            answer = {"value": plain(eval(call, dict(scope)))}
        if (length := len(json.dumps(answer))) > MAX_LENGTH:
            raise ValueError(f"returned {length:,} characters as JSON")
        return answer
    except (Exception, SystemExit) as error:  # whatever one call does, the others keep their answers
        return {"error": " ".join("".join(traceback.format_exception_only(error)).split())[:300]}


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise `TimeoutError` after `SECONDS`, in a main thread on a system that has alarms."""

    def end(*_: object) -> None:
        raise TimeoutError(f"did not end within {SECONDS} seconds")

    try:
        before = signal.signal(signal.SIGALRM, end)
    except (AttributeError, ValueError):  # Windows; another thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tensors and arrays as lists.

    Raises `TypeError` for what is none of these.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        return {str(name): plain(value[name]) for name in value.keys()}  # noqa: SIM118 (not always a dict)
    if isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
        return [plain(one) for one in value]
    raise TypeError(f"returned a {type(value).__name__}")


def a_tokenizer(base: str) -> Any:
    """Return the tokenizer of a base, by what BASE must be for it."""
    from loralab import choose_base, load_tokenizer

    return load_tokenizer(choose_base(base))


def a_pair(instruction: str, output: str) -> Any:
    """Return a pair of a message and its record."""
    from loralab import Pair

    return Pair(instruction=instruction, output=output)


def a_model(seed: int, **sizes: Any) -> Any:
    """Return a small language model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def a_config(kind: str, **sizes: Any) -> Any:
    """Return the config of a model of this kind."""
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **sizes)


def a_four_bit_layer(seed: int, d_out: int, d_in: int) -> Any:
    """Return a linear layer of random weights in NF4 with double quantisation, on the CPU."""
    from loralab.check.ex4 import small_layer

    return small_layer(d_out, d_in, seed)


def a_tensor(rows: list[list[float]]) -> Any:
    """Return a matrix of floats."""
    import torch

    return torch.tensor(rows)


def a_record(**fields: Any) -> Any:
    """Return a run record with these fields."""
    from loralab import RunRecord

    usual = {"name": "a run", "base": "a base", "trainable": 1, "parameters": 10**9, "train_pairs": 1, "tokens": 1}
    usual |= {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "seed": 0, "losses": [1.0], "seconds": 1}
    return RunRecord(**usual | {"peak_memory": 1, "dtype": "float32", "hardware": "none", "versions": {}} | fields)


def try_each(function: Any, arguments: list[Any]) -> list[Any]:
    """Return what a function returns for each of these."""
    return [function(one) for one in arguments]


def try_lora_linear(
    layer_class: Any, seed: int, d_in: int, d_out: int, r: int, alpha: int, bias: bool
) -> dict[str, Any]:
    """Return what a LoRA layer around a linear one gives: new, with other A and B, and merged."""
    import torch

    torch.manual_seed(seed)
    linear, x = torch.nn.Linear(d_in, d_out, bias=bias), torch.randn(2, 2, d_in).double()
    a, b = torch.randn(r, d_in), torch.randn(d_out, r)
    layer = layer_class(linear, r, alpha).double()  # in float32 the order of sums would show
    found = {"a new layer": layer(x)}
    with torch.no_grad():
        layer.A.copy_(a)
        layer.B.copy_(b)
        found["forward"], merged = layer(x), layer.merge()
        found["merged"] = merged.double()(x)
        found["forward after merge"] = layer(x)
    trainable = sum(parameter.numel() for parameter in layer.parameters() if parameter.requires_grad)
    return found | {"trainable": trainable, "type of merged": type(merged).__name__}


BUILDERS = (a_tokenizer, a_pair, a_model, a_config, a_four_bit_layer, a_tensor, a_record, try_each, try_lora_linear)
