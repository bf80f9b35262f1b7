"""Measuring a model: perplexity, trainable parameters, adapter size, peak memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import psutil
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .collate import AnswersAtTheEnd
from .hardware import precision_for, weights_cast_once
from .pairs import IGNORED, Pair, encode_all
from .record import ADAPTER_FILE

if TYPE_CHECKING:
    from peft import PeftModel

LanguageModel: TypeAlias = "PreTrainedModel | PeftModel"  # a base, alone or with an adapter


@dataclass(frozen=True)
class HeldOut:
    """A model's loss on a list of pairs: per pair the summed negative log-likelihood of its answer
    (in nats, end-of-answer token included) and the number of its answer tokens."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return sum(self.nll) / sum(self.tokens)

    @property
    def ppl(self) -> float:
        """Perplexity, token-weighted: exp of the summed loss over the number of answer tokens."""
        return math.exp(min(self.loss, 700.0))


def same_ppl(reported: float, recomputed: float) -> bool:
    """Tell whether two perplexities can be of the same weights, measured in different precision.

    Their losses may differ by 10 % and 0.02 nats, but by no more than 0.05 nats: near a perplexity of 1, where good runs
    are, 5 % of the perplexity would be more than the whole loss. False for NaN and for numbers that are not positive.
    """
    if not (0 < reported < math.inf and 0 < recomputed < math.inf):
        return False
    true = math.log(recomputed)
    return abs(math.log(reported) - true) <= min(0.05, 0.02 + 0.1 * abs(true))


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode and keeps no gradients; afterwards it is as it was.

    It multiplies in the number format in which this machine trains it.
    """
    was_training = model.training
    model.eval()
    try:
        with weights_cast_once(model), torch.inference_mode(), precision_for(model).autocasting():
            yield
    finally:
        model.train(was_training)


def held_out(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int = 512,
    batch_size: int = 16,
) -> HeldOut:
    """Return the model's loss on the answers of `pairs`, each given its instruction.

    The mean over batches that `Trainer` reports as eval_loss depends on the batch size; these sums do not.
    """
    return loss_of(model, tokenizer, encode_all(pairs, tokenizer, max_length), batch_size)


def loss_of(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[dict[str, list[int]]],
    batch_size: int = 16,
) -> HeldOut:
    """Return the model's loss on the labels of encoded texts (see `encode`); -100 leaves a token out."""
    losses = token_losses(model, tokenizer, encoded, batch_size)
    return HeldOut(tuple(sum(text) for text in losses), tuple(len(text) for text in losses))


def token_losses(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[dict[str, list[int]]],
    batch_size: int = 16,
) -> list[list[float]]:
    """Return for each text the negative log-likelihood, in nats, of every token that has a label, in their order.

    A text's first token is predicted by nothing: it has none, whatever its label.
    """
    collate = AnswersAtTheEnd(tokenizer)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    losses: list[list[float]] = [[] for _ in encoded]
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([encoded[i] for i in rows]).to(model.device)
            labels = batch.pop("labels")[:, 1:]  # [batch, kept-1]: the token after each position
            logits = model(**batch).logits[:, :-1]  # [batch, kept-1, vocabulary]
            counted = labels != IGNORED
            of_tokens = cross_entropy(logits[counted].float(), labels[counted], reduction="none")
            for i, text in zip(rows, of_tokens.split(counted.sum(1).tolist()), strict=True):
                losses[i] = text.tolist()
    return losses


def perplexity(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int = 512
) -> float:
    """Return the token-weighted perplexity of the answers of `pairs`; see `HeldOut`."""
    return held_out(model, tokenizer, pairs, max_length).ppl


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Return (trainable, all) parameters, adapters included in both. 4-bit weights count as what they stand for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(_true_size(p) for p in model.parameters())


def _true_size(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit weights into a byte
    return math.prod(state.shape) if state is not None else parameter.numel()


def adapter_bytes(folder: str | Path) -> int:
    """Return the size on disk of the adapter in `folder`, in bytes."""
    return (Path(folder) / ADAPTER_FILE).stat().st_size


def reset_peak_memory() -> None:
    """Start a new measurement for `peak_memory` (on a CPU this works on Linux only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # not Linux, or not permitted: the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the peak memory in bytes: allocated by torch on a GPU, resident in this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, IndexError):  # Linux
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
