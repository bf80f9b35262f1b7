"""The self-checks of exercise 1: your first adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..bases import Base
from ..layers import ATTENTION
from ..measure import held_out, parameter_counts
from ..pairs import IGNORED, Pair
from ..record import ADAPTER_FILE, RunRecord
from ..selfcheck import SelfCheck, brief, close, same_tensor

LAYER = (48, 32, 4, 12)  # d_in, d_out, rank and alpha of the layer that task 5 is tried on


def encode(encode_pair: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> None:
    """Check task 1 on the first pair, then on the three after it: the prompt, the mask, the answer and its end."""
    with SelfCheck("Task 1") as check:
        ids, labels = _encoded(check, check.call(encode_pair, tokenizer, pairs[0]))
        learned = [token for token in labels if token != IGNORED]
        check(
            len(ids) == len(labels),
            "input_ids and labels have the same length",
            f"{len(ids)} input_ids but {len(labels)} labels",
            "every token needs one label, if only -100",
        )
        check(
            labels[:1] == [IGNORED],
            "the prompt is masked",
            "the first token of the prompt has a label",
            "how many tokens has the prompt alone, with add_generation_prompt=True?",
        )
        prompt = _prompt(tokenizer, pairs[0])
        masked = tokenizer.decode(ids[: len(ids) - len(learned)])
        check(
            masked == prompt,
            "the prompt is the chat template's",
            f"the prompt reads {masked!r}, not {prompt!r}",
            "it ends where the answer begins: add_generation_prompt=True",
        )
        check(
            learned[-1:] == [tokenizer.eos_token_id],
            "the end-of-answer token is learned",
            "the last label is not the end-of-answer token",
            "without it the model never learns to stop: see tokenizer.eos_token_id",
        )
        check(
            _answer(tokenizer, labels) == pairs[0].output,
            "the labels spell the answer",
            f"the labels spell {brief(tokenizer.decode(learned))}",
            "decode the labels that are not -100 and compare them with pair.output",
        )
        check(
            all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=False)),
            "each label is at the position of its own token",
            "the labels do not line up with input_ids",
            "the model shifts them by one itself; you need not",
        )
        others = [(pair, _encoded(check, check.call(encode_pair, tokenizer, pair))) for pair in pairs[1:4]]
        check(
            all(_answer(tokenizer, labels) == pair.output for pair, (_, labels) in others),
            "other pairs are right, too",
            "for another pair the labels do not spell its answer",
            "every pair has a prompt of its own length",
        )


def _encoded(check: SelfCheck, found: object) -> tuple[list[int], list[int]]:
    """Return `input_ids` and `labels`; a result that does not have them as lists of tokens ends the task's checks."""
    hint = 'return a dict with the two lists "input_ids" and "labels"'
    check.need(isinstance(found, Mapping), f"encode_pair returned {brief(found)}, which is not a dict", hint)
    assert isinstance(found, Mapping)
    check.need({"input_ids", "labels"} <= set(found), f"the dict has the keys {brief(sorted(map(str, found)))}", hint)
    for name in ("input_ids", "labels"):
        tokens = found[name]
        is_list = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
        check.need(is_list and tokens, f"{name} is {brief(tokens)}, which is not a list of token ids", hint)
    return found["input_ids"], found["labels"]


def _prompt(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> str:
    user = [{"role": "user", "content": pair.instruction}]
    return str(tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False))


def _answer(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> str:
    learned = [token for token in labels if token != IGNORED]
    return str(tokenizer.decode(learned, skip_special_tokens=True)).strip()


def loss(
    answer_loss: Callable[..., Any],
    perplexity: Callable[..., Any],
    encode_pair: Callable[..., Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
) -> None:
    """Check task 2: the losses of `pairs` against the course's own, and the weighting of two made-up losses."""
    with SelfCheck("Task 2") as check:
        wanted = held_out(model, tokenizer, pairs)
        found = [check.call(answer_loss, model, check.call(encode_pair, tokenizer, pair)) for pair in pairs]
        two = all(isinstance(one, tuple | list) and len(one) == 2 for one in found)
        check.need(two, f"answer_loss returned {brief(found[0])}", "return two numbers: the summed loss and the count")
        counts = [count for _, count in found]
        check(
            all(close(count, tokens, 1e-9) for count, tokens in zip(counts, wanted.tokens, strict=True)),
            "the answer tokens are counted right",
            f"you counted {brief(counts)} tokens, but the answers have {list(wanted.tokens)}",
            "which labels take part in the loss? The end-of-answer token is one of them",
        )
        check(
            all(close(nll, true, 0.02) for (nll, _), true in zip(found, wanted.nll, strict=True)),
            "the losses are right",
            f"the first loss is {brief(found[0][0])}, but should be {wanted.nll[0]:.1f} nats",
            _loss_hint(found[0][0], wanted.nll[0], wanted.tokens[0]),
        )
        made_up = check.call(perplexity, [(10.0, 10), (60.0, 20)])
        check(
            close(made_up, math.exp(70 / 30)),
            "perplexity is weighted by tokens",
            f"for losses (10, 10) and (60, 20) you get {brief(made_up)}, not {math.exp(70 / 30):.2f}",
            "here each pair counts the same; should a long answer not count more than a short one?"
            if close(made_up, (math.exp(1) + math.exp(3)) / 2) or close(made_up, math.exp(2))
            else "the formula is above: which sums does it divide, and what comes last?",
        )


def _loss_hint(found: object, true: float, tokens: int) -> str:
    if close(found, true / tokens, 0.02):
        return "that is the mean over the tokens; the task asks for their sum"
    return "which token does logits[0, t] predict, and which positions belong to the answer?"


def attach(attach_adapter: Callable[..., Any], model: PreTrainedModel) -> Any:
    """Check task 3 and return what `attach_adapter` returned: the adapter's settings and what is trainable."""
    attached: Any = None
    with SelfCheck("Task 3") as check:
        attached = check.call(attach_adapter, model)
        is_peft = isinstance(attached, PeftModel)
        check.need(is_peft, f"attach_adapter returned {brief(attached)}", "return what get_peft_model returns")
        config = attached.active_peft_config
        check(
            config.r == 16, "the rank is 16", f"the rank is {config.r}", "what is the rank called in the formula above?"
        )
        targets = {config.target_modules} if isinstance(config.target_modules, str) else set(config.target_modules)
        adapted = [name for name, module in attached.named_modules() if hasattr(module, "lora_A")]
        kinds = {name.rpartition(".")[2] for name in adapted}
        check(
            kinds == set(ATTENTION),
            "all four attention projections are targets",
            f"the adapter is on {brief(sorted(kinds))} (target_modules: {brief(sorted(targets))})",
            "print the model: what are the four layers of an attention block called?",
        )
        check(
            config.lora_alpha == 32,
            "alpha is 32",
            f"alpha is {config.lora_alpha}",
            "help(LoraConfig) lists its settings",
        )
        check(
            config.lora_dropout == 0.05,
            "dropout is 0.05",
            f"dropout is {config.lora_dropout}",
            "help(LoraConfig) lists its settings",
        )
        # Each adapted matrix of shape (d_out, d_in) gets r * d_in parameters in A and d_out * r in B.
        layers = [module for name, module in attached.named_modules() if name in set(adapted)]
        expected = sum(config.r * (layer.in_features + layer.out_features) for layer in layers)
        trainable = parameter_counts(attached)[0]
        check(
            trainable == expected,
            f"exactly the {expected:,} parameters of A and B are trainable",
            f"{trainable:,} parameters are trainable, but A and B have {expected:,}",
            "the base must stay frozen: does your code change requires_grad, or save other modules as well?",
        )
    return attached


def train(
    train_adapter: Callable[..., Any],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    base: Base,
    folder: str | Path,
    seed: int = 0,
) -> Any:
    """Check task 4 and return its record: trained for `base.epochs` epochs on 100 pairs, saved, and better than before."""
    folder, record = Path(folder), None
    with SelfCheck("Task 4") as check:
        record = check.call(train_adapter, model, tokenizer, base, folder)
        check.need(
            isinstance(record, RunRecord),
            f"train_adapter returned {brief(record)}",
            "return what train returns: the run's record",
        )
        assert isinstance(record, RunRecord)
        check(
            (folder / ADAPTER_FILE).exists(),
            "the adapter is saved",
            f"there is no adapter in {folder.name}",
            "in which folder does your code save it?",
        )
        moved = any(p.abs().max().item() > 0 for name, p in model.named_parameters() if "lora_B" in name)
        check(
            moved, "B has moved away from zero", "B is still zero", "was the model trained that has the adapter on it?"
        )
        check(
            (record.epochs, record.train_pairs, record.seed) == (base.epochs, 100, seed),
            f"{base.epochs:g} epochs on 100 pairs with seed {seed}",
            f"{record.epochs:g} epochs on {record.train_pairs} pairs with seed {record.seed}",
            "help(train) lists what can be set; what does the task ask for?",
        )
        before, after = record.ppl_before or math.nan, record.ppl_after or math.nan
        check(
            after < 0.5 * before,
            "perplexity on eval.jsonl fell to less than half",
            f"perplexity on eval.jsonl went from {before:.1f} to {after:.1f}",
            "was it measured, and was it trained on your own encoding, at the base's own learning rate?",
        )
        check(
            record.scores_after is not None,
            "100 answers were generated and scored",
            "there are no scores of generated answers",
            "train scores the answers to the pairs that it is given for evaluation",
        )
    return record


def lora_linear(layer_class: Callable[..., Any]) -> None:
    """Check task 5: no change at the start, what is trainable, peft's forward for the same A and B, and the merge."""
    d_in, d_out, rank, alpha = LAYER
    with SelfCheck("Task 5") as check, torch.random.fork_rng():
        torch.manual_seed(0)
        linear, x = nn.Linear(d_in, d_out), torch.randn(2, 3, d_in)
        plain = linear(x).detach()
        layer = check.call(layer_class, linear, rank, alpha)
        _shapes(check, layer)
        start = check.call(layer, x)
        check.need(
            isinstance(start, torch.Tensor) and start.shape == plain.shape,
            f"for inputs of shape {tuple(x.shape)} forward returned {brief(start)}",
            f"W x has the shape {tuple(plain.shape)}; x may have any number of dimensions before its last",
        )
        check(
            same_tensor(start, plain),
            "a new layer changes nothing",
            "a new layer does not return what the plain linear layer returns",
            "which of the two matrices starts at zero? And does the bias still take part?",
        )
        check(
            layer.A.detach().abs().max() > 0,
            "A starts at random values",
            "A is zero at the start",
            "where A and B are both zero, neither gets a gradient",
        )
        trainable = sorted(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
        check(
            trainable == ["A", "B"],
            "A and B are trainable and the base is frozen",
            f"the trainable parameters are {brief(trainable)}",
            "A and B are nn.Parameter; requires_grad_ freezes a layer",
        )
        _forward(check, layer, linear, x, (rank, alpha))
        _merge(check, layer, x)


def _shapes(check: SelfCheck, layer: Any) -> None:
    """End the task's checks if the layer is not a module with A of shape (r, d_in) and B of shape (d_out, r)."""
    d_in, d_out, rank, _ = LAYER
    check.need(isinstance(layer, nn.Module), f"LoRALinear made {brief(layer)}", "it is a subclass of torch.nn.Module")
    for name, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
        found = getattr(layer, name, None)
        check.need(
            isinstance(found, torch.Tensor) and tuple(found.shape) == shape,
            f"{name} is {brief(found)}, not a parameter of shape {shape}",
            "A takes the inputs down to r numbers, B takes these up to the outputs",
        )


def _forward(check: SelfCheck, layer: Any, linear: nn.Linear, x: torch.Tensor, size: tuple[int, int]) -> None:
    """Compare `layer(x)` with what peft computes for the same A and B, both random."""
    rank, alpha = size
    with torch.no_grad():
        layer.A.copy_(torch.randn(layer.A.shape) / 7)
        layer.B.copy_(torch.randn(layer.B.shape) / 2)
        found, wanted = check.call(layer, x), peft_forward(linear, layer.A, layer.B, alpha, x)
        change = wanted - linear(x)
        hints = {
            1.0: "by which factor do alpha and r scale the change?",
            1.0 / rank: "alpha is missing from the scale of the change",
            float(alpha): "r is missing from the scale of the change",
        }
        scale = next((s for s in hints if same_tensor(found, wanted + (s * rank / alpha - 1) * change)), None)
    check(
        same_tensor(found, wanted),
        "forward equals peft's own LoRA layer for the same A, B, alpha and r",
        "forward differs from peft's own LoRA layer for the same A, B, alpha and r",
        hints[scale] if scale else "compute W x and the change on its own, and compare each with the formula above",
    )


def peft_forward(linear: nn.Linear, a: torch.Tensor, b: torch.Tensor, alpha: int, x: torch.Tensor) -> torch.Tensor:
    """Return what peft's own LoRA layer around `linear` gives for x (..., d_in), with A (r, d_in) and B (d_out, r)."""
    config = LoraConfig(r=len(a), lora_alpha=alpha, target_modules=["0"])
    model = inject_adapter_in_model(config, nn.Sequential(deepcopy(linear))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(a if "lora_A" in name else b)
        result: torch.Tensor = model(x)
    return result


def _merge(check: SelfCheck, layer: Any, x: torch.Tensor) -> None:
    """Compare a layer with what its `merge` returns, and with itself afterwards."""
    with torch.no_grad():
        before = check.call(layer, x)
        merged = check.call(layer.merge)
        is_linear = type(merged) is nn.Linear
        check.need(is_linear, f"merge returned {brief(merged)}", "build a new torch.nn.Linear and return it")
        found, after = check.call(merged, x), check.call(layer, x)
    check(
        same_tensor(found, before),
        "the merged layer gives the same outputs",
        "the merged layer gives other outputs",
        _merge_hint(layer, merged),
    )
    check(
        same_tensor(after, before),
        "merging leaves the layer itself as it was",
        "after merge the layer itself gives other outputs",
        "adding in place to the weight of the base applies the change twice",
    )


def _merge_hint(layer: Any, merged: nn.Linear) -> str:
    if merged.bias is None:
        return "what became of the bias?"
    return (
        f"the weight has the shape {tuple(merged.weight.shape)}: which product of A and B has it, and at which scale?"
    )
