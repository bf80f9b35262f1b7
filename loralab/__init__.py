"""loralab: what the notebooks of the LoRA and QLoRA course import.

Everything a chapter has shown once in plain transformers and peft code may be used from here in the next.
"""

import gc
import logging
import warnings

# Importing torch, transformers and peft makes very many objects and next to no garbage. Looking for it meanwhile takes
# a good part of the time (`benchmarks/start_up.py` measures it), and looking through them later is for nothing, too.
_collecting = gc.isenabled()
gc.disable()

# peft asks transformers by names that transformers will drop in its version 6; a learner can do nothing about it.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_enable)?` is deprecated", FutureWarning)

# bitsandbytes misses an optional package for fast 4-bit inference on CPUs; the course trains, and needs it nowhere.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in record.msg)

# Trainer tells the model which tokens pad and end, as it should, and reports it at every run.
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "new PAD/BOS/EOS tokens" not in str(record.msg)
)

try:
    from .answers import Answer, answer, generate_answers
    from .bases import PROFILES, Base, choose_base, load_model, load_tokenizer
    from .data import data_path
    from .fourbit import keep_unpacked, nf4
    from .handin import pack
    from .leaks import find_leaks
    from .measure import (
        HeldOut,
        adapter_bytes,
        held_out,
        parameter_counts,
        peak_memory,
        perplexity,
        reset_peak_memory,
    )
    from .pairs import Pair, PairsError, encode, encode_all, read_pairs, write_pairs
    from .plots import plot_before_after, plot_exact, plot_loss, plot_ppl
    from .precision import Precision, precision
    from .record import RunRecord
    from .scores import Scores, Share, question_control, recall, score, score_answers
    from .training import train

    gc.freeze()
finally:
    if _collecting:
        gc.enable()

__all__ = [
    "PROFILES",
    "Answer",
    "Base",
    "HeldOut",
    "Pair",
    "PairsError",
    "Precision",
    "RunRecord",
    "Scores",
    "Share",
    "adapter_bytes",
    "answer",
    "choose_base",
    "data_path",
    "encode",
    "encode_all",
    "find_leaks",
    "generate_answers",
    "held_out",
    "keep_unpacked",
    "load_model",
    "load_tokenizer",
    "nf4",
    "pack",
    "parameter_counts",
    "peak_memory",
    "perplexity",
    "plot_before_after",
    "plot_exact",
    "plot_loss",
    "plot_ppl",
    "precision",
    "question_control",
    "read_pairs",
    "recall",
    "reset_peak_memory",
    "score",
    "score_answers",
    "train",
    "write_pairs",
]
