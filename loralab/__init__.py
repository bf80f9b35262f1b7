"""loralab: what the notebooks of the LoRA and QLoRA course import.

Everything a chapter has shown once in plain transformers and peft code may be used from here in the next.
The names are listed in `__init__.pyi`.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings

import lazy_loader

# peft uses names of transformers that version 6 drops; learners cannot do anything about it.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_enable|_kwargs)?` is deprecated", FutureWarning)

# bitsandbytes misses an optional package for fast 4-bit inference on CPUs, which the course does not need.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in record.msg)

# On a CPU it reports every product of an 8-bit layer.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: "inputs will be cast" not in str(record.msg)
)

# Trainer sets the model's padding and end tokens, as it should, and reports it in every run.
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "new PAD/BOS/EOS tokens" not in str(record.msg)
)

# Two checkpoints within a second are not a fault of the file system; transformers then sorts them by their numbers.
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "mtime may not be reliable" not in str(record.msg)
)

# Threads of torch that wait for work spin by default. Two processes with as many threads each as there are processors then
# stall each other (`benchmarks/wait_policy.py` measures it). Without an effect if torch was imported before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `loralab --help` does not load torch.

    Importing torch, transformers and peft creates very many objects and almost no garbage. Collecting it during the imports
    takes much of the time (`benchmarks/start_up.py` measures it), so collection pauses.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        value = _import(name)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    globals()[name] = value
    return value
