"""The self-checks of exercise 1: a right answer passes, and each wrong one gets the message meant for it."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import nbformat
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from grader.exercises import EXERCISES
from loralab import RunRecord
from loralab.check import ex1 as check
from loralab.selfcheck import NotYet
from tests.conftest import ATTENTION, with_adapter

RECORD = {
    "name": "first-adapter", "base": "a base", "rank": 16, "trainable": 1, "parameters": 2, "train_pairs": 100, "tokens": 1,
    "epochs": 8, "batch_size": 4, "learning_rate": 0.1, "seed": 0, "losses": [1.0], "seconds": 1, "peak_memory": 1,
    "dtype": "float32", "hardware": "none", "versions": {}, "ppl_before": 100.0, "ppl_after": 1.5,
}  # fmt: skip
BASE = SimpleNamespace(epochs=8)


@pytest.fixture(scope="module")
def solved():
    """What the solution's tasks define."""
    scope = {"SEED": 0}
    for cell in nbformat.read(EXERCISES["ex1_first_adapter"].solution, as_version=4).cells:
        if cell.id == "imports" or cell.metadata.get("nbgrader", {}).get("solution"):
            exec(cell.source, scope)
    return SimpleNamespace(**scope)


def refusal(function, *arguments) -> str:
    with pytest.raises(NotYet) as problem:
        function(*arguments)
    return str(problem.value)


# Whatever kind of thing an answer is, the check ends in a message.
ANYTHING = [None, 5, "text", [], {}, (1, 2, 3), {"input_ids": None, "labels": "x"}, torch.ones(2), object(), math.nan]


def raises(*_):
    return {}["labels"]


def empty(*_):
    raise NotImplementedError


# Task 1

ENCODE = {
    "learns the prompt": (lambda ids, labels: (ids, ids), "first token of the prompt has a label"),
    "labels too short": (lambda ids, labels: (ids, labels[:-1]), "79 labels"),
    "no end": (lambda ids, labels: (ids, [*labels[:-1], -100]), "last label is not the end-of-answer token"),
    "shifted": (lambda ids, labels: (ids, [*labels[1:], -100]), "do not line up"),
    "learns nothing": (lambda ids, labels: (ids, [-100] * len(ids)), "the labels spell ''"),
    "masks one token more": (lambda ids, labels: (ids, [-100, *labels[:-1]]), "the prompt reads"),
    "tensors": (lambda ids, labels: (torch.tensor(ids), torch.tensor(labels)), "not a list of token ids"),
}


def test_a_right_encoding_passes(solved, tokenizer, train_pairs, capsys):
    check.encode(solved.encode_pair, tokenizer, train_pairs)
    assert "Task 1 is done." in capsys.readouterr().out


@pytest.mark.parametrize(("spoil", "message"), ENCODE.values(), ids=ENCODE)
def test_a_wrong_encoding(solved, tokenizer, train_pairs, spoil, message):
    def encode_pair(tokenizer, pair):
        right = solved.encode_pair(tokenizer, pair)
        return dict(zip(("input_ids", "labels"), spoil(right["input_ids"], right["labels"]), strict=True))

    assert message in refusal(check.encode, encode_pair, tokenizer, train_pairs)


def test_the_first_pairs_encoding_for_all(solved, tokenizer, train_pairs):
    encoded = solved.encode_pair(tokenizer, train_pairs[0])
    assert "for another pair" in refusal(check.encode, lambda *_: encoded, tokenizer, train_pairs)


@pytest.mark.parametrize("answer", ANYTHING, ids=lambda value: type(value).__name__)
def test_an_encoding_of_any_kind(tokenizer, train_pairs, answer):
    shown = refusal(check.encode, lambda *_: answer, tokenizer, train_pairs)
    assert "not yet" in shown and 'the two lists "input_ids" and "labels"' in shown


def test_code_that_raises_and_no_code(tokenizer, train_pairs):
    assert "your code raised KeyError: 'labels'" in refusal(check.encode, raises, tokenizer, train_pairs)
    assert "Task 1 is still empty" in refusal(check.encode, empty, tokenizer, train_pairs)
    assert "your code raised TypeError" in refusal(check.encode, None, tokenizer, train_pairs)


# Task 2


def of_tokens(model, encoded, shift=1, reduction="sum"):
    logits = model(torch.tensor([encoded["input_ids"]])).logits[0].detach()
    labels = torch.tensor(encoded["labels"])
    logits, labels = (logits[:-1], labels[1:]) if shift else (logits, labels)
    return cross_entropy(logits, labels, reduction=reduction).item(), int((labels != -100).sum())


LOSS = {
    "mean": (lambda m, e: of_tokens(m, e, reduction="mean"), "the mean over the tokens"),
    "not shifted": (lambda m, e: of_tokens(m, e, shift=0), "which token does logits[0, t] predict"),
    "counts the prompt": (lambda m, e: (of_tokens(m, e)[0], len(e["labels"])), "but the answers have"),
    "one number": (lambda m, e: of_tokens(m, e)[0], "return two numbers"),
    "words": (lambda m, e: ("a lot", "many"), "you counted ['many'"),
    "nan": (lambda m, e: (math.nan, of_tokens(m, e)[1]), "the first loss is nan"),
    "raises": (raises, "your code raised KeyError"),
}
PERPLEXITY = {
    "mean of perplexities": (lambda ls: sum(math.exp(a / b) for a, b in ls) / len(ls), "each pair counts the same"),
    "mean of losses": (lambda ls: math.exp(sum(a / b for a, b in ls) / len(ls)), "each pair counts the same"),
    "no exponential": (lambda ls: sum(a for a, _ in ls) / sum(b for _, b in ls), "which sums does it divide"),
    "nothing": (lambda ls: None, "you get None, not 10.31"),
    "raises": (raises, "your code raised KeyError"),
}


def test_right_losses_pass(solved, model, tokenizer, eval_pairs, capsys):
    check.loss(solved.answer_loss, solved.perplexity, solved.encode_pair, model, tokenizer, eval_pairs[:4])
    assert "Task 2 is done." in capsys.readouterr().out


@pytest.mark.parametrize(("answer_loss", "message"), LOSS.values(), ids=LOSS)
def test_a_wrong_loss(solved, model, tokenizer, eval_pairs, answer_loss, message):
    given = answer_loss, solved.perplexity, solved.encode_pair, model, tokenizer, eval_pairs[:2]
    assert message in refusal(check.loss, *given)


@pytest.mark.parametrize(("perplexity", "message"), PERPLEXITY.values(), ids=PERPLEXITY)
def test_a_wrong_perplexity(solved, model, tokenizer, eval_pairs, perplexity, message):
    given = solved.answer_loss, perplexity, solved.encode_pair, model, tokenizer, eval_pairs[:2]
    assert message in refusal(check.loss, *given)


# Task 3

as_asked = partial(with_adapter, dropout=0.05)
ATTACH = {
    "the model itself": (lambda m: m, "attach_adapter returned"),
    "nothing": (lambda m: None, "attach_adapter returned None"),
    "rank": (lambda m: as_asked(m, rank=8, alpha=32), "the rank is 8"),
    "targets": (lambda m: as_asked(m, targets=["q_proj", "v_proj"]), "the adapter is on ['q_proj', 'v_proj']"),
    "alpha": (lambda m: as_asked(m, alpha=16), "alpha is 16"),
    "dropout": (lambda m: with_adapter(m), "dropout is 0.0"),
    "a whole module": (lambda m: as_asked(m, modules_to_save=["lm_head"]), "the base must stay frozen"),
    "no such layer": (
        lambda m: get_peft_model(m, LoraConfig(target_modules=["query"])),
        "Target modules {'query'} not found",
    ),
}


def test_a_right_adapter_passes_and_is_returned(solved, model, capsys):
    assert check.attach(solved.attach_adapter, model).peft_config["default"].r == 16
    assert "Task 3 is done." in capsys.readouterr().out


def test_targets_may_be_a_regular_expression(model, capsys):
    check.attach(lambda m: as_asked(m, targets=f".*({'|'.join(ATTENTION)})"), model)
    assert "Task 3 is done." in capsys.readouterr().out


@pytest.mark.parametrize(("attach_adapter", "message"), ATTACH.values(), ids=ATTACH)
def test_a_wrong_adapter(model, attach_adapter, message):
    assert message in refusal(check.attach, attach_adapter, model)


# Task 4

TRAIN = {
    "nothing returned": (None, "train_adapter returned None"),
    "epochs": (RECORD | {"epochs": 1}, "1 epochs on 100 pairs with seed 0"),
    "pairs": (RECORD | {"train_pairs": 50}, "8 epochs on 50 pairs"),
    "no better": (RECORD | {"ppl_after": 90.0}, "went from 100.0 to 90.0"),
    "not measured": (RECORD | {"ppl_before": None, "ppl_after": None}, "went from nan to nan"),
    "no answers": (RECORD, "no scores of generated answers"),
}


@pytest.mark.parametrize(("record", "message"), TRAIN.values(), ids=TRAIN)
def test_a_wrong_training(model, tokenizer, tmp_path, record, message):
    def train_adapter(*_):
        return record and RunRecord(**record)

    shown = refusal(check.train, train_adapter, with_adapter(model), tokenizer, BASE, tmp_path / "first-adapter")
    assert message in shown
    if record:
        assert "there is no adapter in first-adapter" in shown and "B is still zero" in shown


# Task 5


def variant(solved, **methods):
    """The solution's class with other methods."""
    return type("LoRALinear", (solved.LoRALinear,), methods)


def starts_with(change):
    def init(self, linear, r, alpha):
        self.__class__.__mro__[1].__init__(self, linear, r, alpha)
        change(self)

    return init


def both_random(self):
    self.B.data.normal_()


def both_zero(self):
    self.A.data.zero_()


def not_frozen(self):
    self.linear.requires_grad_(True)


def swapped(self):
    self.A, self.B = self.B, self.A


def plain_tensor(self):
    values = self.A.data
    del self.A
    self.A = values


def scaled(scale):
    return lambda self, x: self.linear(x) + scale * x @ self.A.T @ self.B.T


def merged(change):
    """Merges, with a change to the plain layer."""

    def merge(self):
        plain = copy.deepcopy(self.linear)
        change(self, plain)
        return plain

    return merge


def without_bias(self, plain):
    plain.weight.data += self.scale * self.B.data @ self.A.data
    plain.bias = None


def unscaled(self, plain):
    plain.weight.data += self.B.data @ self.A.data


def transposed(self, plain):
    plain.weight.data += self.scale * (self.A.T @ self.B.T).data


def in_place(self):
    self.linear.weight.data += self.scale * self.B.data @ self.A.data
    return self.linear


LAYER = {
    "B random": ({"__init__": starts_with(both_random)}, "which of the two matrices starts at zero"),
    "A zero": ({"__init__": starts_with(both_zero)}, "neither gets a gradient"),
    "not frozen": ({"__init__": starts_with(not_frozen)}, "['A', 'B', 'linear.bias', 'linear.weight']"),
    "shapes swapped": (
        {"__init__": starts_with(swapped)},
        "A is a tensor of shape (32, 4), not a parameter of shape (4, 48)",
    ),
    "A no parameter": ({"__init__": starts_with(plain_tensor)}, "the trainable parameters are ['B']"),
    "no scale": ({"forward": scaled(1.0)}, "by which factor do alpha and r scale the change?"),
    "alpha only": ({"forward": scaled(12.0)}, "r is missing from the scale"),
    "r only": ({"forward": scaled(1 / 4)}, "alpha is missing from the scale"),
    "no bias": ({"forward": lambda self, x: x @ self.linear.weight.T}, "does the bias still take part"),
    "no change": ({"forward": lambda self, x: self.linear(x)}, "forward differs from peft's own LoRA layer"),
    "nothing": ({"forward": lambda self, x: None}, "forward returned None"),
    "forward raises": ({"forward": lambda self, x: self.linear(x) + x @ self.A}, "your code raised RuntimeError"),
    "merge without bias": ({"merge": merged(without_bias)}, "what became of the bias?"),
    "merge without scale": ({"merge": merged(unscaled)}, "which product of A and B has it, and at which scale?"),
    "merge transposed": ({"merge": merged(transposed)}, "your code raised RuntimeError"),
    "merge in place": ({"merge": in_place}, "applies the change twice"),
    "merge returns the layer": ({"merge": lambda self: self}, "build a new torch.nn.Linear"),
    "merge returns nothing": ({"merge": lambda self: None}, "merge returned None"),
    "merge is empty": ({"merge": empty}, "Task 5 is still empty"),
}


def test_a_right_layer_passes(solved, capsys):
    check.lora_linear(solved.LoRALinear)
    assert "Task 5 is done." in capsys.readouterr().out


@pytest.mark.parametrize(("methods", "message"), LAYER.values(), ids=LAYER)
def test_a_wrong_layer(solved, methods, message):
    assert message in refusal(check.lora_linear, variant(solved, **methods))


@pytest.mark.parametrize("answer", ANYTHING, ids=lambda value: type(value).__name__)
def test_a_layer_of_any_kind(answer):
    assert "it is a subclass of torch.nn.Module" in refusal(check.lora_linear, lambda *_: answer)


def test_a_module_without_forward_is_not_an_empty_task(solved):
    shown = refusal(check.lora_linear, variant(solved, forward=torch.nn.Module.forward))
    assert "your code raised NotImplementedError" in shown


def test_the_check_leaves_the_random_numbers_as_they_were(solved):
    torch.manual_seed(5)
    check.lora_linear(solved.LoRALinear)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
