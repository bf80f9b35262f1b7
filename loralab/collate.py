"""Batches of encoded pairs for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .pairs import IGNORED


@dataclass(frozen=True)
class AnswersAtTheEnd:
    """A data collator that pads on the left, so that all answers end together, and has no logits made for prompts.

    The loss needs a row of vocabulary size for each answer token and for nothing else. With every answer at the end,
    `logits_to_keep`, which the models of transformers take, leaves out what stands before the longest one.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> BatchEncoding:
        """`input_ids`, `attention_mask`, `position_ids` [batch, T]; `labels` [batch, kept]; `logits_to_keep` = kept."""
        tokens = {"input_ids": [example["input_ids"] for example in examples]}
        batch = self.tokenizer.pad(tokens, padding_side="left", return_tensors="pt")
        # A text's first token is predicted by nothing, and with padding in front of it something would try.
        wanted = [[IGNORED, *example["labels"][1:]] for example in examples]
        kept = 1 + max(map(_learned, wanted))  # the first is predicted by the token before it
        labels = torch.full((len(examples), kept), IGNORED)
        for row, of_text in zip(labels, wanted, strict=True):
            last = torch.tensor(of_text[-kept:])
            row[-len(last) :] = last
        # Padding in front must not move the text: its first token is at position 0, as in a text alone.
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return BatchEncoding({**batch, "position_ids": positions, "labels": labels, "logits_to_keep": kept})


def _learned(labels: list[int]) -> int:
    """Return how many of the last tokens hold every label that is learned."""
    return next((len(labels) - i for i, label in enumerate(labels) if label != IGNORED), 0)
