"""Compare the functions of a submission with the reference solution's, on inputs drawn from the secret seed."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from pydantic import BaseModel, TypeAdapter, ValidationError

from loralab import Base
from loralab.bases import asked_for
from loralab.layers import LINEAR
from loralab.triage import draw

from ..exercises import EXERCISES, Exercise
from ..text import display_line
from . import call_functions

SCRIPT = Path(call_functions.__file__)
BROKEN_RUNS = SCRIPT.with_name("broken_runs.json")
CALLS = 3  # of each function
TOLERANCE = 5e-5  # relative, of a returned number; in float32 sums differ by 1e-6
MAX_NUMBER = 1e300
SHOWN = 120  # characters of a call and of a value in a message
NOT_CALLED = "could not be called: the notebook's process ended, or took too long"


@dataclass(frozen=True)
class Call:
    """A Python expression that tries the function or class `name`."""

    name: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """Whether a function is right in every call, and if not what is wrong with it."""

    name: str
    right: bool
    why: str = ""


class _Answer(BaseModel):
    """What a call returned, as the notebook's kernel noted it."""

    value: Any = None
    error: str = ""


def draw_calls(exercise: Exercise, base: Base, heldout_seed: int, digest: str) -> list[Call]:
    """Draw the calls for the submission with this digest: another submission is asked other things.

    Student code sees them when it is called. So the secret seed must not be found from them by trying all seeds.
    """
    seed = hashlib.scrypt(str(heldout_seed).encode(), salt=digest.encode(), n=2**14, r=8, p=1)  # 16 MiB each try
    rng = random.Random(seed)
    names = [name for name in exercise.functions for _ in range(CALLS)]
    return [Call(name, f"{TRIED_BY.get(name, name)}({DRAWN[name](rng, asked_for(base))})") for name in names]


def compare(exercise: Exercise, calls: Sequence[Call], answers: bytes | None) -> list[Outcome]:
    """Say of every function whether what it returned is what the reference solution's returns.

    `answers` is the file that the notebook's kernel wrote, which is not trusted; None if there is none.
    """
    texts = [call.text for call in calls]
    wanted = call_functions.call_all(texts, _reference(exercise.id))
    found = _read(answers, len(calls))
    wrong: dict[str, str] = {}
    for call, right, answer in zip(calls, wanted, found, strict=True):
        if why := _difference(call, right["value"], answer):
            wrong.setdefault(call.name, why)
    return [Outcome(name, name not in wrong, wrong.get(name, "")) for name in exercise.functions]


def _read(answers: bytes | None, count: int) -> list[_Answer]:
    try:
        found = TypeAdapter(list[_Answer]).validate_python(json.loads(answers or b""))
    except (ValueError, ValidationError, RecursionError):
        found = []
    return found if len(found) == count else [_Answer(error=NOT_CALLED)] * count


def _difference(call: Call, wanted: Any, answer: _Answer) -> str:
    """Say in a line what is wrong with an answer; "" if nothing is."""
    if answer.error == NOT_CALLED:
        return NOT_CALLED
    if answer.error:
        return f"raised {display_line(answer.error, SHOWN)} when called as {display_line(call.text, SHOWN)}"
    if _same(wanted, answer.value):
        return ""
    wanted, found = _differing(wanted, answer.value)
    return f"returned {_shown(found)}, not {_shown(wanted)}: {display_line(call.text, SHOWN)}"


def _differing(wanted: Any, found: Any) -> tuple[Any, Any]:
    """Return both values; of two dicts only what differs, as far as both have it."""
    if not (isinstance(wanted, dict) and isinstance(found, dict) and wanted.keys() <= found.keys()):
        return wanted, found
    names = [name for name in wanted if not _same(wanted[name], found[name])]
    return {name: wanted[name] for name in names}, {name: found[name] for name in names}


def _shown(value: Any) -> str:
    try:
        return display_line(str(value), SHOWN)
    except RecursionError:
        return "a value nested too deep to show"


def _same(wanted: Any, found: Any) -> bool:
    """Tell whether two values are equal: counts exactly, other numbers nearly, of a dict what is wanted of it."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(name in found and _same(wanted[name], found[name]) for name in wanted)
    if isinstance(wanted, list):
        same_length = isinstance(found, list) and len(found) == len(wanted)
        return same_length and all(map(_same, wanted, found))
    if isinstance(wanted, float):
        is_number = isinstance(found, int | float) and abs(found) < MAX_NUMBER  # a larger int fits no float
        return is_number and math.isclose(wanted, found, rel_tol=TOLERANCE, abs_tol=1e-6)
    return bool(wanted == found)


@cache
def _reference(exercise: str) -> dict[str, Any]:
    """Return the functions of the solved notebook: the cell of its imports and the cells of its tasks, run here."""
    import matplotlib

    matplotlib.use("agg")
    scope: dict[str, Any] = {"SEED": 0}
    for cell in nbformat.read(EXERCISES[exercise].solution, as_version=4).cells:
        solution = cell.metadata.get("nbgrader", {}).get("solution")
        if cell.cell_type == "code" and (solution or cell.id == "imports"):
            exec(cell.source, scope)  # the course's own code
    return {name: scope[name] for name in EXERCISES[exercise].functions}


# What the functions are called with: by their names, a function that draws the arguments as Python text.


def _pair(rng: random.Random, base: str) -> str:
    (pair,) = draw(rng.randrange(2**62), 1)
    return f"a_tokenizer({base!r}), a_pair({pair.instruction!r}, {pair.output!r})"


def _encoded(rng: random.Random, base: str) -> str:
    ids = [rng.randrange(64) for _ in range(rng.randint(12, 30))]
    prompt = rng.randint(3, 9)
    encoded = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
    return f"{_model(rng)}, {encoded}"


def _losses(rng: random.Random, base: str) -> str:
    return str([(round(rng.uniform(1, 90), 2), rng.randint(3, 60)) for _ in range(rng.randint(3, 6))])


def _model(rng: random.Random) -> str:
    heads, size = rng.choice((2, 4)), 8 * rng.randint(2, 6)
    sizes = {"vocab_size": 64, "hidden_size": size, "intermediate_size": 8 * rng.randint(3, 12)}
    sizes |= {"num_hidden_layers": rng.randint(1, 4), "num_attention_heads": heads, "num_key_value_heads": heads // 2}
    return f"a_model({rng.randrange(2**31)}, **{sizes})"


def _targets(rng: random.Random) -> str:
    return str(rng.sample(LINEAR, rng.randint(1, len(LINEAR) - 1)))


def _model_targets_and_rank(rng: random.Random, base: str) -> str:
    return f"{_model(rng)}, {_targets(rng)}, {rng.randint(1, 99)}"


def _config(rng: random.Random) -> str:
    """Return the config of a small model; half of the kinds may have heads that are together wider than the model."""
    kv, share, width = rng.randint(1, 4), rng.randint(2, 4), rng.choice((8, 16, 32))
    sizes = {"num_key_value_heads": kv, "num_attention_heads": kv * share, "hidden_size": kv * share * width}
    sizes |= {"intermediate_size": 8 * rng.randint(3, 60), "num_hidden_layers": rng.randint(2, 9)}
    kind = rng.choice(("llama", "qwen2", "qwen3", "mistral"))
    if kind in ("qwen3", "mistral"):
        sizes["head_dim"] = rng.choice((24, 48, 64))
    return f"a_config({kind!r}, {', '.join(f'{name}={size}' for name, size in sizes.items())})"


def _config_and_targets(rng: random.Random, base: str) -> str:
    return f"{_config(rng)}, {_targets(rng)}"


def _config_targets_and_budget(rng: random.Random, base: str) -> str:
    return f"{_config(rng)}, {_targets(rng)}, {rng.choice((1, *(rng.randint(20_000, 900_000) for _ in range(3))))}"


def _rates_and_losses(rng: random.Random, base: str) -> str:
    """Draw losses whose lowest is often at an edge of the rates; the largest rates may have diverged."""
    factor, count = rng.choice((2, 3, 4, 5)), rng.randint(2, 5)
    start = round(rng.uniform(0.001, 0.01), 5)
    rates = [start * factor**i for i in range(count)]
    losses = [str(round(rng.uniform(1, 3), 3)) for _ in rates]
    losses[rng.choice((0, 0, count - 1, count - 1, rng.randrange(count)))] = "0.5"
    measured = rng.sample(list(zip(rates, losses, strict=True)), count)
    diverged = [(rates[-1] * factor ** (i + 1), "float('nan')") for i in range(rng.choice((0, 1, 2)))]
    measured = rng.choice((measured + diverged, diverged + measured))
    return f"{{{', '.join(f'{rate}: {loss}' for rate, loss in measured)}}}, {factor}"


def _paired_losses(rng: random.Random, base: str) -> str:
    seeds = range(rng.randint(3, 6))
    return ", ".join(str([round(rng.uniform(0.1, 2), 3) for _ in seeds]) for _ in range(2))


def _by_seed(rng: random.Random, means: Sequence[float]) -> list[list[float]]:
    """Draw losses around each mean, one per seed: what a seed does to all of them is larger than what it does to one."""
    seeds = [rng.uniform(-0.15, 0.15) for _ in range(rng.randint(3, 5))]
    return [[round(mean + of_all + rng.gauss(0, 0.006), 4) for of_all in seeds] for mean in means]


def _losses_by_rank(rng: random.Random, base: str) -> str:
    """Draw losses that fall with the rank down to a plateau; the largest rank may be worse again."""
    ranks = sorted(rng.sample(range(1, 200), rng.randint(4, 6)))
    start = rng.randint(1, len(ranks) - 2)  # of the plateau
    means = [0.4 + 0.025 * max(0, start - i) for i in range(len(ranks))]
    means[-1] += rng.choice((0, 0.04))
    drawn = list(zip(ranks, _by_seed(rng, means), strict=True))
    rng.shuffle(drawn)
    return str(dict(drawn))


def _losses_and_statements(rng: random.Random, base: str) -> str:
    groups = [f"group {letter}" for letter in rng.sample("abcdefgh", 4)]
    losses = _by_seed(rng, [0.4 + rng.choice((0, 0.01, 0.03, 0.06)) for _ in groups])
    statements = [tuple(rng.sample(groups, 2)) for _ in range(8)]
    return f"{dict(zip(groups, losses, strict=True))}, {statements}"


def _block_sizes(rng: random.Random, base: str) -> str:
    double = rng.choice((None, 2 ** rng.randint(5, 10)))
    return f"{2 ** rng.randint(4, 9)}, {double}"


def _config_and_bits(rng: random.Random, base: str) -> str:
    heads, size = rng.choice((4, 8)), 32 * rng.randint(2, 40)
    sizes = {"vocab_size": rng.randint(10**3, 10**5), "hidden_size": size, "intermediate_size": rng.randint(100, 9_000)}
    sizes |= {"num_hidden_layers": rng.randint(1, 60), "num_attention_heads": heads, "num_key_value_heads": heads // 2}
    words = ", ".join(f"{name}={value}" for name, value in sizes.items())
    return f"a_config('llama', {words}, tie_word_embeddings={rng.random() < 0.5}), {round(rng.uniform(2, 16), 2)}"


def _four_bit_layer_and_adapter(rng: random.Random, base: str) -> str:
    rows, columns = rng.sample((16, 32, 48, 64), 2)  # never square: a transposed change must not fit
    rank = rng.randint(1, 6)
    layer = f"a_four_bit_layer({rng.randrange(2**31)}, {rows}, {columns})"
    return f"{layer}, {_of_shape(rng, rank, columns)}, {_of_shape(rng, rows, rank)}, {round(rng.uniform(0.5, 4), 2)}"


def _of_shape(rng: random.Random, rows: int, columns: int) -> str:
    return f"a_tensor({[[round(rng.gauss(0, 1), 3) for _ in range(columns)] for _ in range(rows)]})"


def _matrix(rng: random.Random, base: str) -> str:
    return _of_shape(rng, rng.randint(3, 8), rng.randint(3, 8))


def _three_perplexities(rng: random.Random, base: str) -> str:
    before, after = round(rng.uniform(100, 900), 1), round(rng.uniform(2, 90), 1)
    return f"{before}, {after}, {round(rng.uniform(1.1, 2), 3)}"


def _nats(rng: random.Random, base: str) -> str:
    return str(round(rng.uniform(0, 95), 2))  # from 85 on nothing is stored


@cache
def _broken_runs() -> dict[str, list[dict[str, Any]]]:
    """Return the records of real runs by the fault that each was trained with; tools/broken_runs.py writes them."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(BROKEN_RUNS.read_text("utf-8")):
        runs.setdefault(one["fault"], []).append(one["record"])
    return runs


def _one_run_of_each_kind(rng: random.Random, base: str) -> str:
    records = [rng.choice(runs) for runs in _broken_runs().values()]
    rng.shuffle(records)
    return f"diagnose, [{', '.join(f'a_record(**{record})' for record in records)}]"


def _lora_linear(rng: random.Random, base: str) -> str:
    d_in, d_out = rng.sample(range(5, 40), 2)  # never square: a transposed merge must differ
    r, alpha = rng.sample(range(2, 9), 2)
    sizes = f"d_in={d_in}, d_out={d_out}, r={r}, alpha={alpha}, bias={rng.random() < 0.5}"
    return f"LoRALinear, {sizes}, seed={rng.randrange(2**31)}"


# What is not called once with plain values is tried by a function of `call_functions`, which is given it.
TRIED_BY = {"LoRALinear": call_functions.try_lora_linear.__name__, "diagnose": call_functions.try_each.__name__}

DRAWN: dict[str, Callable[[random.Random, str], str]] = {
    "encode_pair": _pair,
    "answer_loss": _encoded,
    "perplexity": _losses,
    "LoRALinear": _lora_linear,
    "adapter_parameters": _model_targets_and_rank,
    "next_rate": _rates_and_losses,
    "paired_difference": _paired_losses,
    "smallest_enough": _losses_by_rank,
    "cost_of_rank": _config_and_targets,
    "rank_for": _config_targets_and_budget,
    "carried": _losses_and_statements,
    "bits_per_weight": _block_sizes,
    "model_bytes": _config_and_bits,
    "merge_weight": _four_bit_layer_and_adapter,
    "energy_shares": _matrix,
    "share_of_gain": _three_perplexities,
    "bits_stored": _nats,
    "diagnose": _one_run_of_each_kind,
}
