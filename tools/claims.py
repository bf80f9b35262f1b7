"""The ledger of claims: what is usually said about LoRA, what is true of it, and how we know.

`chapters/claims.toml` holds the claims. A claim that can be computed names one of the functions in `CHECKS`, which
computes it from the models' configs in `data/configs/`, on the meta device: no weights, no network, no GPU.
`make generate` renders the ledger as `docs/claims.md`. Throughout, 1 GB is 1e9 bytes and 1 MB is 1e6.
"""

from __future__ import annotations

import inspect
import math
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
import transformers
import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loralab.fit import fit
from loralab.memory import Memory, at_rest
from loralab.quantized import NF4_BITS
from loralab.shapes import LINEAR, Shape, adapter_shape, modules

ROOT = Path(__file__).parents[1]
LEDGER, PAGE, CONFIGS = ROOT / "chapters" / "claims.toml", ROOT / "docs" / "claims.md", ROOT / "data" / "configs"

Verdict = Literal["holds", "partly", "wrong", "unsupported", "breaks"]
Basis = Literal["computed", "measured", "cited"]
Chapter = Literal[
    "01_concept", "02_peft_sft", "03_qlora", "04_hyperparameters", "05_merge_or_keep", "06_pitfalls", "07_lab"
]
Text = Annotated[str, Field(min_length=8)]
Number = bool | int | float

SECTIONS = {
    1: "Concept: why low rank is enough",
    2: "Why use it",
    3: "Supervised fine-tuning with peft in thirty lines",
    4: "QLoRA: a 4-bit base",
    5: "Standard hyperparameters",
    6: "Merge the adapter or keep it apart",
    7: "What often breaks",
    8: "The operating gate",
    9: "Exercises",
}
MEANINGS = {
    "holds": "true as stated",
    "partly": "true in part, or under conditions that it does not name",
    "wrong": "not true; the correct statement follows",
    "unsupported": "nothing is given to check it by",
    "breaks": "the line raises an error on today's versions",
}


class Claim(BaseModel):
    """One checkable statement of the source chapter and what became of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    section: Annotated[int, Field(ge=1, le=9)]
    claim: Annotated[str, Field(pattern=r"^[^\n]{8,200}\.$")]
    verdict: Verdict
    truth: Text
    basis: Basis
    source: Text
    chapter: Chapter
    note: Text | None = None
    check: str | None = None
    args: dict[str, Any] | list[dict[str, Any]] | None = None
    expected: Number | list[Number] | None = None

    @model_validator(mode="after")
    def _checkable(self) -> Self:
        """Check that a computed claim has a check, and that a check is known and has its arguments and result."""
        parts = [self.check, self.args, self.expected]
        if self.basis == "computed" and self.check is None:
            raise ValueError(f"{self.id}: a computed claim needs a check")
        if any(part is not None for part in parts) and any(part is None for part in parts):
            raise ValueError(f"{self.id}: check, args and expected go together")
        if self.check is not None and self.check not in CHECKS:
            raise ValueError(f"{self.id}: no check is called {self.check!r}")
        if isinstance(self.args, list) and len(self.args) != len(self.expected_values):
            raise ValueError(f"{self.id}: one expected value for each of the {len(self.args)} calls")
        return self

    @property
    def expected_values(self) -> list[Number]:
        """What is expected, as a list; empty where there is no check."""
        if self.expected is None:
            return []
        return self.expected if isinstance(self.expected, list) else [self.expected]

    def recomputed(self) -> list[Any]:
        """Return what the check gives today, as a list. Raises `ValueError` if the claim has none."""
        if self.check is None or self.args is None:
            raise ValueError(f"{self.id} has no check")
        calls = self.args if isinstance(self.args, list) else [self.args]
        results = [CHECKS[self.check](**args) for args in calls]
        return results[0] if len(results) == 1 and isinstance(results[0], list) else results

    def agrees(self) -> bool:
        """Tell whether the check gives what is expected, to the last digit that is written down?"""
        found = self.recomputed()
        return len(found) == len(self.expected_values) and all(map(_same, found, self.expected_values))


class Rerun(BaseModel):
    """One published finding on why LoRA works, and what the same measurement gives on the embedded base."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    finding: Text
    published: Text
    source: Text
    ours: Text
    agrees: Literal["yes", "no", "partly", "not decided"]
    chapter: Chapter


def _same(found: Any, expected: Number) -> bool:
    """Tell whether both agree: counts and answers are equal, a float rounds to the digits of the expected one."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int):
        return found == expected
    decimals = len(str(float(expected)).partition(".")[2])
    return math.isclose(round(found, decimals), expected, rel_tol=1e-12)


def load(path: Path = LEDGER) -> list[Claim]:
    """All claims in their order. Raises `ValueError` on a malformed claim and on an id that repeats."""
    claims = [Claim.model_validate(raw) for raw in tomllib.loads(path.read_text("utf-8"))["claim"]]
    repeated = [name for name, times in Counter(claim.id for claim in claims).items() if times > 1]
    if repeated:
        raise ValueError(f"{path.name}: more than one claim is called {', '.join(repeated)}")
    return claims


# What a model is, from its config.


@cache
def _model(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CONFIGS / name))


def _shape(model: str, rank: int, targets: str) -> Shape:
    """Return the adapter's shape; targets are written `q,v` for q_proj and v_proj, `all` for every linear layer."""
    return adapter_shape(str(CONFIGS / model), rank, modules(targets))


def _at_rest(model: str, method: str, rank: int = 16, targets: str = "all", upcast: bool = False) -> Memory:
    """Return what a training run holds between two steps; targets are written as in `_shape`."""
    return at_rest(str(CONFIGS / model), method, rank, modules(targets), upcast)


def _linear_parameters(model: str, modules: tuple[str, ...] = LINEAR) -> int:
    """Weights of linear layers of the blocks, without biases."""
    named = _model(model).named_modules()
    return sum(layer.weight.numel() for name, layer in named if name.rpartition(".")[2] in modules)


# Counting parameters.


def base_parameters(model: str) -> int:
    """Parameters of the base, a tied output head counted once."""
    return sum(parameter.numel() for parameter in _model(model).parameters())


def trainable_parameters(model: str, rank: int, targets: str) -> int:
    """Parameters of a LoRA adapter: r * (d_in + d_out) summed over the layers that it adapts."""
    return _shape(model, rank, targets).trainable


def all_parameters(model: str, rank: int, targets: str) -> int:
    """Return what peft prints as "all params": base and adapter together."""
    return _shape(model, rank, targets).parameters


def trainable_percent(model: str, rank: int, targets: str) -> float:
    """Return what peft prints as "trainable%": the adapter's share of base and adapter together."""
    return _shape(model, rank, targets).trainable_percent


def factor_shapes(model: str, target: str, rank: int) -> list[int]:
    """Rows and columns of A, then of B, for one matrix of the first block."""
    tensors = _shape(model, rank, target).tensors
    a, b = (next(tensors[name] for name in sorted(tensors) if f"lora_{part}" in name) for part in "AB")
    return [*a, *b]


def matrix_percent(model: str, target: str, rank: int) -> float:
    """Return the adapter of one matrix, in percent of that matrix: r * (d_in + d_out) / (d_in * d_out)."""
    _, d_in, d_out, _ = factor_shapes(model, target, rank)
    return 100 * rank * (d_in + d_out) / (d_in * d_out)


def target_ratio(model: str, rank: int, targets: str, over: str) -> float:
    """How many times the parameters one choice of targets trains compared with another at the same rank."""
    return trainable_parameters(model, rank, targets) / trainable_parameters(model, rank, over)


def ffn_percent(model: str) -> float:
    """Return the feed-forward layers' share of the weights of all linear layers, in percent."""
    return 100 * _linear_parameters(model, ("gate_proj", "up_proj", "down_proj")) / _linear_parameters(model)


# Bytes on disk and in memory.


def adapter_file_bytes(model: str, rank: int, targets: str, dtype: str = "float32") -> int:
    """Exact size of the adapter_model.safetensors that peft writes."""
    return _shape(model, rank, targets).file_bytes(getattr(torch, dtype))


def adapter_megabytes(model: str, rank: int, targets: str) -> float:
    """MB of the adapter's tensors in fp32, without the file's header (about 0.03 MB)."""
    return trainable_parameters(model, rank, targets) * 4 / 1e6


def checkpoint_gigabytes(model: str) -> float:
    """GB of the base's weights in bf16 or fp16, two bytes per parameter."""
    return base_parameters(model) * 2 / 1e9


def state_comparison(model: str, rank: int, targets: str) -> list[float]:
    """GB of weights, gradients and Adam's two moments in full and with LoRA, and the one divided by the other.

    In full: fp32, 16 bytes per parameter. LoRA: 2 bytes per frozen parameter, 16 per trainable one. No activations.
    """
    full, lora = (_at_rest(model, method, rank, targets).total / 1e9 for method in ("full", "lora"))
    return [full, lora, full / lora]


def nf4_bits(double: bool = True) -> float:
    """Bits a parameter of NF4: 4, and a scale for each block of 64 parameters.

    A scale is an fp32 number; with double quantisation it is 8 bits, and one fp32 number for each block of 256 scales.
    """
    return NF4_BITS if double else 4 + 32 / 64


def nf4_cost() -> list[float]:
    """Bits a parameter of NF4 with double quantisation, and how many times fewer these are than 16."""
    return [nf4_bits(), 16 / nf4_bits()]


def nf4_base_gigabytes(model: str, prepared: bool = False) -> float:
    """GB of a base in NF4 with double quantisation; embeddings, norms, biases and the output head stay in 16 bits.

    `prepared`: after `prepare_model_for_kbit_training`, which casts all that stayed up to fp32.
    """
    return _at_rest(model, "qlora", upcast=prepared).weights / 1e9


def nf4_comparison(model: str) -> list[float]:
    """GB of the base in 16 bits, in NF4, in NF4 once prepared, and how many times smaller the latter two are."""
    full, nf4, prepared = checkpoint_gigabytes(model), nf4_base_gigabytes(model), nf4_base_gigabytes(model, True)
    return [full, nf4, prepared, full / nf4, full / prepared]


def training_gigabytes(model: str) -> list[float]:
    """GB of the base in 16 bits and in NF4; then of the estimated peaks with LoRA and QLoRA, r=16 on q,k,v,o.

    The peaks are those of 4 × 512 tokens, and of 1 × 512 tokens with gradient checkpointing.
    """
    peaks = [
        fit(model, method, 16, "q,k,v,o", batch, 512, checkpointing=checkpointing).memory.total / 1e9
        for batch, checkpointing in ((4, False), (1, True))
        for method in ("lora", "qlora")
    ]
    return [*nf4_comparison(model)[:2], *peaks]


def upcast_gigabytes(model: str) -> float:
    """GB that `prepare_model_for_kbit_training` adds by casting what is not quantised from 16 bits to fp32."""
    return nf4_base_gigabytes(model, prepared=True) - nf4_base_gigabytes(model)


def logits_gigabytes(model: str, batch: int, length: int) -> float:
    """GB of the fp32 logits of one batch: batch * length * vocabulary * 4 bytes."""
    return batch * length * _model(model).config.vocab_size * 4 / 1e9


# Steps and tokens.


def optimizer_steps(pairs: int, epochs: int) -> int:
    """Return the updates that Trainer makes of 4 batches of 4 pairs; what is left over in an epoch makes one as well."""
    return epochs * math.ceil(math.ceil(pairs / 4) / 4)


def warmup_percent(pairs: int, epochs: int, warmup_steps: int) -> float:
    """Share of all updates in which the learning rate still rises."""
    return 100 * warmup_steps / optimizer_steps(pairs, epochs)


def padding_percent(tokens: int, length: int) -> float:
    """Share of a row padded to `length` that is padding."""
    return 100 * (1 - tokens / length)


def accepts(name: str, argument: str) -> bool:
    """Tell whether this class of the installed transformers takes the argument."""
    return argument in inspect.signature(getattr(transformers, name)).parameters


CHECKS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        accepts,
        adapter_file_bytes,
        adapter_megabytes,
        all_parameters,
        base_parameters,
        checkpoint_gigabytes,
        factor_shapes,
        ffn_percent,
        logits_gigabytes,
        matrix_percent,
        nf4_base_gigabytes,
        nf4_bits,
        nf4_comparison,
        nf4_cost,
        optimizer_steps,
        padding_percent,
        state_comparison,
        target_ratio,
        trainable_parameters,
        trainable_percent,
        training_gigabytes,
        upcast_gigabytes,
        warmup_percent,
    )
}


def load_reruns() -> list[Rerun]:
    """Return the published findings that the course reran. Raises `ValueError` on a malformed one."""
    return [Rerun.model_validate(raw) for raw in tomllib.loads(LEDGER.read_text("utf-8")).get("rerun", [])]


# The page.


def page(claims: list[Claim], reruns: list[Rerun]) -> str:
    """Return the ledger as Markdown: how many claims hold, a table for each section, and the reruns."""
    counts = Counter(claim.verdict for claim in claims)
    lines = [
        "# What is usually said about LoRA, checked",
        "",
        f"This course follows an introduction to LoRA and QLoRA that makes {len(claims)} checkable claims. "
        "Each is listed with its verdict and the chapter that deals with it.",
        "",
        "| verdict | claims | it means |",
        "| --- | ---: | --- |",
        *(f"| {verdict} | {counts[verdict]} | {MEANINGS[verdict]} |" for verdict in get_args(Verdict)),
        "",
        "*Computed*: a test computes it from the model's config. *Measured*: run on what is named. "
        "*Cited*: taken from the publication that is named. 1 GB is 1e9 bytes; r is the rank of the adapter. "
        "`python tools/claims.py` writes this page from `chapters/claims.toml`.",
    ]
    for number, title in SECTIONS.items():
        rows = [_row(claim) for claim in claims if claim.section == number]
        if rows:
            lines += ["", f"## {number}. {title}", ""]
            lines += ["| claim | verdict | truth | shown in |", "| --- | --- | --- | --- |", *rows]
    lines += ["", "## Published findings, rerun here", ""]
    lines += ["What others found about why LoRA works, and what the embedded base gives over three seeds or more.", ""]
    lines += ["| finding | published | here | agrees | shown in |", "| --- | --- | --- | --- | --- |"]
    for one in reruns:
        published = f"{one.published}<br><sub>{one.source}</sub>"
        lines.append(_cells(one.finding, published, one.ours, one.agrees, _link(one.chapter)))
    return "\n".join(lines) + "\n"


def _link(chapter: str) -> str:
    return f"[{chapter[:2]}](../chapters/{chapter}.ipynb)"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(claim: Claim) -> str:
    basis = f"{claim.basis.capitalize()}: {claim.source}" + (f" {claim.note}" if claim.note else "")
    return _cells(claim.claim, claim.verdict, f"{claim.truth}<br><sub>{basis}</sub>", _link(claim.chapter))


def main() -> None:
    """Render docs/claims.md from chapters/claims.toml."""
    claims, reruns = load(), load_reruns()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(claims, reruns), "utf-8")
    typer.echo(f"{PAGE.relative_to(ROOT)}: {len(claims)} claims, {len(reruns)} findings rerun")


if __name__ == "__main__":
    typer.run(main)
