"""`loralab env`: what the course runs on here, and what keeps it from running."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .errors import first_line, one_line

ASKED = "HuggingFaceTB/SmolLM2-135M"  # a small public model
TIMEOUT = 5.0  # seconds for the Hub to answer
SPACE = 2e9  # bytes: a base of half a billion parameters and its adapters


@dataclass(frozen=True)
class Finding:
    """One line about the environment; `passed` is None for what is neither needed nor wrong."""

    name: str
    text: str
    passed: bool | None = True

    def __str__(self) -> str:
        mark = {True: "[OK]", False: "[FAIL]", None: "[--]"}[self.passed]
        return f"{mark:<7}{self.name}: {self.text}"


def examine(online: bool = False) -> Iterator[Finding]:
    """Yield what is found, part by part; a part that raises is a failed finding. The Hub is asked only with `online`."""
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("packages", _packages),
        ("hardware", _hardware),
        ("data", _data),
        ("caches", _caches),
        ("Hub", lambda: _hub(online)),
    ]
    for name, part in parts:
        try:
            yield from part()
        except Exception as error:  # a broken installation fails anywhere, and this command is to say where
            yield Finding(name, one_line(error), False)


def _packages() -> Iterator[Finding]:
    python = platform.python_version()
    allowed = _allows(metadata("loralab")["Requires-Python"], python)
    yield Finding("Python", f"{python} ({sys.executable})", allowed)
    yield Finding("loralab", f"{version('loralab')} ({Path(__file__).parent})")
    needed = map(Requirement, requires("loralab") or ())
    for wanted in (one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})):
        remedy = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Finding(wanted.name, f"missing: {remedy}", False)
            continue
        fits = _allows(str(wanted.specifier), found)
        yield Finding(wanted.name, found if fits else f"{found}, but {wanted.specifier} is needed: {remedy}", fits)


def _allows(specifier: str, found: str) -> bool:
    return SpecifierSet(specifier).contains(found, prereleases=True)


def _hardware() -> Iterator[Finding]:
    import psutil

    from .pool import allowed_threads, processors

    memory = psutil.virtual_memory()
    yield Finding("CPU", f"{platform.machine()}, {processors()} processors, {allowed_threads()} threads for training")
    yield Finding("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free")
    import torch

    from .hardware import precision

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        several = f", the first of {torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else ""
        yield Finding("GPU", f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB{several}")
    else:
        yield Finding("GPU", "none; the embedded base trains on a CPU", None)
    yield Finding("precision", precision().reason)


def _data() -> Iterator[Finding]:
    from .data import data_path

    for name in ("base/model.safetensors", "pairs/train.jsonl"):
        path = data_path(name)
        yield Finding(name, f"{path.stat().st_size / 1e6:.1f} MB")


def _caches() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from .fetch import MODELS, cache_folder, find_damage

    for name, folder in {"cache of loralab": cache_folder(), "cache of the Hub": Path(HF_HUB_CACHE)}.items():
        yield _folder(name, folder)
    for name in MODELS:
        damage = find_damage(name, hashes=False)
        if damage:
            yield Finding(name, f"damaged ({damage}): run loralab fetch {name}", False)
        else:
            text = "fetched" if damage is None else f"not fetched; loralab fetch {name} does it"
            yield Finding(name, text, damage is None or None)


def _folder(name: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding(name, f"{folder} cannot be written: make it writable, or choose another folder", False)
    free = shutil.disk_usage(there).free
    if free < SPACE:
        return Finding(name, f"{folder}: only {free / 1e9:.1f} GB free; free {SPACE / 1e9:.0f} GB", False)
    return Finding(name, f"{folder}, {free / 1e9:.0f} GB free")


def _hub(online: bool) -> Iterator[Finding]:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", "switched off by HF_HUB_OFFLINE", None)
        return
    if not online:
        yield Finding("Hub", f"{constants.ENDPOINT}, not asked: add --online", None)
        return
    try:
        get_hf_file_metadata(hf_hub_url(ASKED, "config.json"), timeout=TIMEOUT)
    except Exception as error:  # no network, no name, no certificate, a proxy's page
        yield Finding(
            "Hub", f"{constants.ENDPOINT} does not answer ({first_line(error)}); the embedded base needs none", False
        )
    else:
        yield Finding("Hub", f"{constants.ENDPOINT} answers")
