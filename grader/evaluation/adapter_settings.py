"""Reading the untrusted `adapter_config.json`: what it makes on the base, in whichever of peft's many ways it says so.

A setting that changes only the initialisation, or matches nothing, is accepted; one that changes the adapter's form
is refused by name.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypeVar, cast

import regex
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loralab import Base
from loralab.record import CONFIG_FILE
from loralab.shapes import ALL_LINEAR, LINEAR, adapter_shape

from ..errors import Refused
from ..text import display_line, listed

MAX_CONFIG_BYTES = 64_000
MAX_SECONDS = 2.0  # for all regular expressions of a config; a hostile one would run for ever
MAX_SHOWN = 60  # characters of a setting that a message repeats

# Settings that may differ from peft's defaults because they change neither the weights nor what they do.
HARMLESS = {"inference_mode", "lora_dropout", "peft_version", "revision", "task_type", "eva_config"}
# Initialisations that leave the base as it is; others (PiSSA, OLoRA, CorDA, ...) take a part out of its weights.
STARTS = {"gaussian", "orthogonal", "eva"}
# What peft notes of the base's class where a configuration names no task.
OWN_CLASS = re.compile(r"transformers\.models\.\w+\.modeling_\w+")
Number = TypeVar("Number", int, float)
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")

Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=65536)]
Name = Annotated[str, Field(max_length=2_000)]
Names = Name | Annotated[list[Name], Field(min_length=1, max_length=2_000)]


@dataclass(frozen=True)
class LoraSettings:
    """A plain LoRA adapter: its rank, its alpha (the scale is alpha/r), and its target modules in the order of a layer."""

    r: int
    lora_alpha: float
    targets: tuple[str, ...]

    def config(self) -> LoraConfig:
        """Return a new peft config with these settings and nothing else from the submission."""
        alpha = cast(int, self.lora_alpha)  # peft takes any number, whatever its annotation says
        return LoraConfig(
            r=self.r, lora_alpha=alpha, target_modules=list(self.targets), task_type="CAUSAL_LM", bias="none"
        )


class _Config(BaseModel):
    """The entries of the file that decide which layers are adapted, at which rank and on which scale."""

    model_config = ConfigDict(frozen=True, strict=True)

    r: Rank
    lora_alpha: Alpha
    target_modules: Names
    exclude_modules: Names | None = None
    layers_to_transform: int | list[int] | None = None
    rank_pattern: dict[Name, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[Name, Alpha] = Field(default_factory=dict)
    use_rslora: bool = False
    base_model_name_or_path: str | None = None

    def adapts(self, layer: str, until: float) -> bool:
        """Tell whether peft would adapt the layer of this full name."""
        if self.exclude_modules and _matches(self.exclude_modules, layer, until):
            return False
        if not _matches(self.target_modules, layer, until):
            return False
        chosen = self.layers_to_transform
        if chosen is None or chosen == [] or isinstance(self.target_modules, str):
            return True
        number = re.search(r"\.(\d+)\.", layer)
        return number is not None and int(number[1]) in ([chosen] if isinstance(chosen, int) else chosen)


def read_settings(folder: Path, base: Base) -> LoraSettings:
    """Read the settings of the adapter in `folder`, made for `base`. Raises `Refused` if it is not a plain LoRA adapter."""
    raw = _read(folder)
    try:
        config = _Config.model_validate({name: raw[name] for name in _Config.model_fields if raw.get(name) is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(f"{CONFIG_FILE}: {display_line(where, MAX_SHOWN)}: {first['msg']}") from None
    _refuse_other_methods(raw)
    _refuse_another_base(config.base_model_name_or_path, base)
    until = time.monotonic() + MAX_SECONDS
    layers, targets = _adapted(config, base, until)
    rank = _one_value("rank_pattern", config.rank_pattern, config.r, layers, until)
    alpha = _one_value("alpha_pattern", config.alpha_pattern, config.lora_alpha, layers, until)
    # rsLoRA scales by alpha/sqrt(r): it is plain LoRA with another alpha.
    return LoraSettings(rank, alpha * math.sqrt(rank) if config.use_rslora else alpha, targets)


def names_of(base: Base) -> set[str]:
    """Return the names by which a record may call the base: a folder's name for a base in a folder."""
    return {base.name, base.source, Path(base.source).name}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        there = sorted(beside.name for beside in folder.parent.glob("*") if beside.is_dir())
        found = f" (found: {listed(there)})" if there else ""
        raise Refused(f"no run folder {folder.name!r}{found}: it was not submitted, or its training did not finish")
    if not path.is_file() and (folder / "model.safetensors").is_file():
        raise Refused(f"{folder.name!r} holds a whole model (model.safetensors): submit the adapter, before merging")
    if not path.is_file():
        raise Refused(f"no {CONFIG_FILE} in {folder.name!r}: save the adapter with model.save_pretrained(folder)")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise Refused(f"{CONFIG_FILE} has {path.stat().st_size:,} bytes; no adapter's config is that large")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Refused(f"{CONFIG_FILE} is not valid JSON: save the adapter again") from None
    if not isinstance(raw, dict):
        raise Refused(f"{CONFIG_FILE} holds no JSON object: save the adapter again")
    return raw


def _refuse_other_methods(raw: dict[str, Any]) -> None:
    """Refuse any other setting that is neither harmless nor at peft's default (an empty value counts as default)."""
    defaults = LoraConfig(r=1, target_modules=["q_proj"]).to_dict()
    for name, value in raw.items():
        if name in HARMLESS or name in _Config.model_fields or not value:
            continue
        if name == "auto_mapping" and _names_the_class(value):
            continue
        if name == "init_lora_weights" and str(value).lower() in STARTS:
            continue
        default = defaults.get(name)
        default = getattr(default, "value", default)
        if value != default:
            name = display_line(name, MAX_SHOWN)
            raise Refused(
                f"{CONFIG_FILE}: {name} is {_format_value(value)}; this exercise asks for plain LoRA without it"
            )


def _names_the_class(mapping: object) -> bool:
    """Tell whether that is a note of peft's own; nothing here reads it."""
    return (
        isinstance(mapping, dict)
        and mapping.keys() == {"base_model_class", "parent_library"}
        and OWN_CLASS.fullmatch(str(mapping["parent_library"])) is not None
    )


def _refuse_another_base(named: str | None, base: Base) -> None:
    if named and named not in names_of(base) and not _is_its_folder(named, base):
        raise Refused(
            f"{CONFIG_FILE}: base_model_name_or_path is {_format_value(named)}, but {base.name!r} is "
            f"being graded: train on that, and save with loralab.train"
        )


def _is_its_folder(named: str, base: Base) -> bool:
    """Tell whether that is where the base is on the student's machine: in the course, under its name, or in the Hub's cache."""
    parts, own = PureWindowsPath(named).parts, PureWindowsPath(base.source).parts  # they split at / and at \
    if HUB_ID.fullmatch(named):  # "someone/base" may be a model of the Hub
        return parts[-2:] == own[-2:]
    return parts[-1:] == own[-1:] or parts[-1:] == (base.name,) or f"models--{base.source.replace('/', '--')}" in parts


def _adapted(config: _Config, base: Base, until: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the full names of the base's layers that peft adapts with this config, and their target modules."""
    layers = _layers(base)
    adapted = tuple(layer for layer in layers if config.adapts(layer, until))
    kinds = {layer.rpartition(".")[2] for layer in adapted}
    shown = f"{CONFIG_FILE}: target_modules {_format_value(config.target_modules)}"
    if not adapted or (isinstance(config.target_modules, list) and not _all_known(config.target_modules, layers)):
        raise Refused(f"{shown}: only {', '.join(LINEAR)} or the full names of such layers")
    whole = {layer for layer in layers if layer.rpartition(".")[2] in kinds}
    if left_out := sorted(whole - set(adapted)):
        raise Refused(f"{shown}: {left_out[0]} is left out, others of its kind are not: adapt each kind in every layer")
    return adapted, tuple(sorted(kinds, key=LINEAR.index))


def _layers(base: Base) -> list[str]:
    """Return the full names of the base's linear layers."""
    names = adapter_shape(base.source, 1, LINEAR).tensors
    return [name.removeprefix("base_model.model.").partition(".lora_A.")[0] for name in names if ".lora_A." in name]


def _all_known(names: list[str], layers: list[str]) -> bool:
    """Tell whether each name is that of a layer, or ends one; a long list is looked up, not searched."""
    ends = {layer.split(".", cut)[-1] for layer in layers for cut in range(layer.count(".") + 1)}
    return set(names) <= ends


def _matches(wanted: str | list[str], layer: str, until: float) -> bool:
    """Tell whether peft finds this layer by `wanted`: names, or a regular expression for the whole name."""
    if isinstance(wanted, str):
        return (wanted,) == ALL_LINEAR or _fits(wanted, layer, until)
    return layer in wanted or any(layer.endswith(f".{name}") for name in wanted)


def _one_value(
    pattern: str, given: dict[str, Number], default: Number, layers: tuple[str, ...], until: float
) -> Number:
    """Return the one rank or alpha of all adapted layers, whatever a pattern says of layers that do not exist."""
    values = {
        next((value for key, value in given.items() if _fits(rf"(.*\.)?({key})", layer, until)), default)
        for layer in layers
    }
    if len(values) > 1:
        raise Refused(
            f"{CONFIG_FILE}: {pattern} is {_format_value(given)}, which gives the layers {min(values):g} to {max(values):g}; "
            "this exercise asks for plain LoRA with one value for all"
        )
    return values.pop()


def _fits(expression: str, layer: str, until: float) -> bool:
    try:
        if (left := until - time.monotonic()) <= 0:  # each may be quick, and there may be thousands
            raise TimeoutError
        return regex.fullmatch(expression, layer, timeout=left) is not None
    except (regex.error, TimeoutError, RecursionError, MemoryError):
        raise Refused(
            f"{CONFIG_FILE}: {_format_value(expression)} is not a regular expression that can be read: name the target modules"
        ) from None


def _format_value(value: object) -> str:
    return repr(display_line(str(value), MAX_SHOWN))
