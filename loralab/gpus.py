"""The GPUs that `loralab fit` knows, by the names that people give them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .errors import LoralabError
from .memory import GIB, T4_BYTES, verdict

LARGEST_GIB, MOST = 1_000, 1_024  # of one GPU, and GPUs in one training: more is a slip


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: the memory that torch finds on it, in GiB, how we know, and how many of them there are."""

    name: str
    gib: float
    known: str = "given as a number"
    count: int = 1
    note: str = ""

    @property
    def bytes(self) -> float:
        """The memory that torch finds on one of them, in bytes."""
        return self.gib * GIB

    def holds(self, total: float) -> str:
        """Return the verdict on a training run whose tensors take `total` bytes on one of them at their peak."""
        return verdict(total, self.bytes)


# What torch finds is less than the name says. Reported: the total in an out-of-memory message of torch, and where.
GPUS = (
    Gpu("rtx3060-12", 11.75, "reported: github.com/Kunhao-Liu/StyleGaussian/issues/12"),
    Gpu("t4", T4_BYTES / GIB, "reported on Colab"),
    Gpu("a4000", 15.61, "reported: github.com/DengKaiCQ/VGGT-Long/issues/6"),
    Gpu("v100-16", 15.75, "assumed: 16 GB"),
    Gpu("p100-16", 15.75, "assumed: 16 GB"),
    Gpu("a10", 21.99, "reported: github.com/zai-org/CogVLM/issues/236"),
    Gpu("l4", 21.99, "assumed: 24 GB with error correction, as the a10"),
    Gpu("p40", 22.38, "reported: github.com/LinkSoul-AI/Chinese-Llama-2-7b/issues/56"),
    Gpu("rtx4090", 23.61, "reported: github.com/pinokiofactory/flux-webui/issues/11"),
    Gpu("a5000", 23.68, "reported: github.com/zai-org/GLM-4/issues/730"),
    Gpu("rtx3090", 23.69, "reported: github.com/ucwxb/GraphAvatar/issues/4"),
    Gpu("rtx5090", 31.36, "reported: github.com/TrajectoryCrafter/TrajectoryCrafter/issues/20"),
    Gpu("v100-32", 31.74, "reported: github.com/liucongg/ChatGLM-Finetuning/issues/73"),
    Gpu("a100-40", 39.50, "reported: github.com/TianheWu/CoSeR/issues/10"),
    Gpu("l40", 44.40, "reported: github.com/QwenLM/Qwen3-VL/issues/2097"),
    Gpu("l40s", 44.42, "reported: github.com/stepfun-ai/Step-Video-T2V/issues/8"),
    Gpu("a6000", 47.36, "assumed: 48 GB, as the a5000's 24"),
    Gpu("h100-80", 79.11, "reported: github.com/vllm-project/vllm/issues/27508"),
    Gpu("a100-80", 79.14, "reported: github.com/lianqi1008/Control-GIC/issues/6"),
    Gpu("h200", 139.0, "assumed: 141 GB"),
)

FORMS = f"one of {', '.join(gpu.name for gpu in GPUS)}, the memory (24GB; without a unit in GiB), or several (2x t4)"

# Of a name as nvidia-smi or a shop gives it, such as "NVIDIA A100-SXM4-80GB", the words that tell no size.
NOISE = re.compile(r"nvidia|tesla|geforce|quadro|\b(sxm\d?|pcie?|hbm\d?e?|gpus?|rtx)\b|rtx(?=a?\d)")
UNITS = {"": 1, "gib": 1, "gb": 1e9 / GIB, "g": 1e9 / GIB, "mib": 1 / 1024, "mb": 1e6 / GIB}  # in GiB
AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf))\s*([a-z]*)")
SIZED = re.compile(r"(.*\D.*?)[\s:(-]*?(\d+)\s*gi?b\)?")
# "2x t4", "2 t4", "t4 x2", "4*24gb"
SEVERAL = (
    re.compile(r"(?P<count>\d+)\s*(?:[x×*]\s*|\s(?=[a-z]))(?P<gpu>.+)"),
    re.compile(r"(?P<gpu>.+?)\s*[x×*]\s*(?P<count>\d+)"),
)


def find_gpu(asked: str | float) -> Gpu:
    """Return the GPU given by name ("A100-80GB", "rtx 4090"), by memory ("24GB"), or several ("2x t4").

    A number without a unit is in GiB. Raises `LoralabError`, in one line, if it is unknown or impossible.
    """
    text = str(asked).strip().lower()
    if re.search(r"[,;+]", text):
        raise LoralabError(f"--gpu {asked}: give one kind of GPU; several of a kind are written as 2x t4")
    if one := _named(text) or _of_size(text):
        return one
    for pattern in SEVERAL:
        parts = pattern.fullmatch(text)
        if parts and (one := _named(parts["gpu"]) or _of_size(parts["gpu"])):
            if not 1 <= int(parts["count"]) <= MOST:
                raise LoralabError(f"{parts['count']} GPUs are impossible: give 1 to {MOST:,}, such as 2x t4")
            return replace(one, count=int(parts["count"]))
    families = {_key(gpu.name.partition("-")[0]): gpu.name for gpu in reversed(GPUS)}
    meant = ", ".join(families[key] for key in get_close_matches(_key(text), families, cutoff=0.6))
    raise LoralabError(f"unknown GPU {asked!r}{f' (similar: {meant})' if meant else ''}: give {FORMS}")


def smallest_gpu(total: float) -> Gpu | None:
    """Return the smallest GPU of `GPUS` on which a training run of `total` bytes fits, if there is one."""
    return next((gpu for gpu in GPUS if gpu.holds(total) == "fits"), None)


def _key(text: str) -> str:
    """Return what is left of a name without spaces, signs, units and words that tell no size."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=\d)\s*(gib|gb|g)\b", "", NOISE.sub(" ", text.lower())))


def _family(name: str) -> list[Gpu]:
    """Return the GPUs of one name that differ in size, the smallest first."""
    return [gpu for gpu in GPUS if _key(gpu.name.partition("-")[0]) == _key(name)]


def _named(text: str) -> Gpu | None:
    key = _key(text)
    if exact := [gpu for gpu in GPUS if _key(gpu.name) == key]:
        return exact[0]
    if (parts := SIZED.fullmatch(text)) and (family := _family(parts[1])):
        nearest = min(family, key=lambda gpu: abs(gpu.gib - int(parts[2])))
        return nearest if abs(nearest.gib - int(parts[2])) <= 0.1 * int(parts[2]) else None
    family = _family(text)
    if len(family) < 2:
        return family[0] if family else None
    sizes = " or ".join(gpu.name for gpu in family)
    return replace(family[0], note=f"{text} is {sizes}: the smaller is assumed")


def _of_size(text: str) -> Gpu | None:
    parts = AMOUNT.fullmatch(text)
    if parts is None or parts[2] not in UNITS:
        return None
    gib = float(parts[1]) * UNITS[parts[2]]
    if not 0 < gib < LARGEST_GIB:
        raise LoralabError(f"a GPU with {text} {'' if parts[2] else 'GiB '}is impossible: give {FORMS}")
    return Gpu("your GPU", gib)
