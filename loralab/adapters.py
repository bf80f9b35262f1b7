"""Read the folder of a LoRA adapter: its configuration and its tensors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from peft import LoraConfig
from peft.utils import WEIGHTS_NAME
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from .bases import PROFILES
from .errors import LoralabError, first_line, one_line
from .files import read_json
from .record import ADAPTER_FILE, CONFIG_FILE

Name = TypeVar("Name", str, str | None)
Rank = Annotated[int, Field(ge=1)]
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # may continue, as pissa_niter_16 does


class _Settings(BaseModel):
    """The part of `adapter_config.json` that is checked here, as peft takes it as it comes."""

    model_config = ConfigDict(strict=True)  # peft would keep "16" as a text

    peft_type: Literal["LORA"]
    r: Rank
    rank_pattern: dict[str, Rank] | None = None
    lora_alpha: float
    alpha_pattern: dict[str, float] | None = None
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as its folder holds it."""

    settings: LoraConfig
    weights: dict[str, torch.Tensor]


def changes_the_base(settings: LoraConfig) -> bool:
    """Tell whether the adapter's start changed the base's own weights, so that it does not belong on the original ones."""
    return str(settings.init_lora_weights).lower().startswith(CHANGE_THE_BASE)


def base_name(settings: LoraConfig, recorded: Name) -> Name:
    """Return the name to find the base by: a recorded profile's, or else the configuration's, or else the recorded one."""
    return recorded if recorded in PROFILES else settings.base_model_name_or_path or recorded


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that `save_pretrained` wrote. Raises `LoralabError`, in one line, if there is none."""
    if not folder.is_dir():
        raise LoralabError(f"{folder}: no such run folder")
    for name in (CONFIG_FILE, ADAPTER_FILE):
        if not (folder / name).is_file():
            what = "give the folder into which an adapter was saved"
            if name == ADAPTER_FILE and (folder / WEIGHTS_NAME).is_file():
                what = f"{WEIGHTS_NAME} is a pickle, which may run code: load it with peft, and save it again"
            raise LoralabError(f"{folder}: no {name} in it; {what}")
    read_json(folder / CONFIG_FILE, _Settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of fields that it does not know
            settings = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # a damaged configuration can fail anywhere inside peft
        raise LoralabError(f"{folder / CONFIG_FILE}: not a LoRA configuration ({one_line(error)})") from None
    try:
        weights = load_file(folder / ADAPTER_FILE)
    except SafetensorError as error:
        raise LoralabError(f"{folder / ADAPTER_FILE}: truncated or not safetensors ({first_line(error)})") from None
    return Adapter(settings, weights)
