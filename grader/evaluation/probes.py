"""What an adapter learned apart from its answers: signs of how it was trained that no run record can hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from loralab import Pair, encode_all
from loralab.measure import LanguageModel, loss_of, token_losses
from loralab.pairs import IGNORED

Encoded = dict[str, list[int]]

# Other prompt formats in common use; the course uses the chat template.
FORMATS = {
    "plain text": "{}\n",
    "question and answer": "Q: {}\nA: ",
    "instruction and response": "### Instruction:\n{}\n\n### Response:\n",
}


@dataclass(frozen=True)
class Probes:
    """Mean losses in nats per token on the same pairs.

    `question`: the customer's words. `answer`: the answer in the chat template, its end included. `first`: the token that
    begins it. `end`: the token that ends it. `formats`: the answer after the same
    question in another prompt format, by the format's name.
    """

    question: float
    answer: float
    first: float
    end: float
    formats: dict[str, float]

    @property
    def best_format(self) -> str:
        """The other prompt format in which the answer is most likely."""
        return min(self.formats, key=self.formats.__getitem__)


def probe(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int) -> Probes:
    """Measure a model on `pairs`."""
    encoded = encode_all(pairs, tokenizer, max_length)
    whole = [{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in encoded]
    losses = token_losses(model, tokenizer, whole)
    prompts = [one["labels"].count(IGNORED) - 1 for one in encoded]  # a text's first token has no loss
    return Probes(
        question=fmean(chain.from_iterable(text[:prompt] for text, prompt in zip(losses, prompts, strict=True))),
        answer=fmean(chain.from_iterable(text[prompt:] for text, prompt in zip(losses, prompts, strict=True))),
        first=fmean(text[prompt] for text, prompt in zip(losses, prompts, strict=True)),
        end=fmean(text[-1] for text in losses),
        formats={
            name: loss_of(model, tokenizer, [_formatted(tokenizer, pair, template) for pair in pairs]).loss
            for name, template in FORMATS.items()
        },
    )


def _formatted(tokenizer: PreTrainedTokenizerBase, pair: Pair, template: str) -> Encoded:
    question = tokenizer(template.format(pair.instruction), add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(pair.output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [IGNORED] * len(question) + answer}
