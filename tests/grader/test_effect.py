"""What a change does to the inputs that the layers get, against the matrices themselves, and students' adapters that are alike."""

import pytest
import torch

from grader.evaluation.delta_w import likeness
from grader.evaluation.effect import effects, sketch
from grader.evaluation.evaluator import PROBE_PAIRS
from grader.reports.alike import LIMIT, Alike, alike
from loralab import encode_all
from loralab.triage import draw
from tests.verdicts import graded

RUN = "first-adapter"
MATRICES = [f"base_model.model.model.layers.{i}.self_attn.{name}_proj" for i in (0, 3) for name in "qo"]


@pytest.fixture(scope="module")
def texts(base, tokenizer):
    return [one["input_ids"] for one in encode_all(draw(5, PROBE_PAIRS), tokenizer, base.max_length)]


def change(seed: int, rank: int = 16):
    random = torch.Generator().manual_seed(seed)
    return {
        m: tuple(torch.randn(shape, generator=random).double() for shape in ((rank, 256), (256, rank)))
        for m in MATRICES
    }


def noisy(one, share: float):
    random = torch.Generator().manual_seed(1)
    return {
        m: tuple(half + share * half.std() * torch.randn(half.shape, generator=random).double() for half in halves)
        for m, halves in one.items()
    }


def test_an_effect_is_the_product_of_the_change_and_the_layers_inputs(model, texts):
    """Against a hook that adds the change: the output of the matrix moves by exactly that."""
    one, (short, *_) = change(0), texts
    effect = effects(model, [short], {"x": one})["x"]
    for matrix, (a, b) in one.items():
        layer = model.get_submodule(matrix.removeprefix("base_model.model."))
        outputs = []
        keep = layer.register_forward_hook(
            lambda module, inputs, output, kept=outputs: kept.append((inputs[0], output))
        )
        with torch.inference_mode():
            model(input_ids=torch.tensor([short]))
        keep.remove()
        ((x, y),) = outputs
        bias = 0 if layer.bias is None else layer.bias.double()
        moved = x[0].double() @ (layer.weight.double() + b @ a).T + bias - y[0].double()
        ax, scaled = effect[matrix]
        assert torch.allclose((scaled @ ax).T, moved, atol=1e-3)


def test_what_is_added_where_the_inputs_have_no_energy_hides_no_copy(model, texts):
    original, copy = change(0), {}
    inputs = effects(model, texts, {"x": {m: (torch.eye(256).double(), torch.eye(256).double()) for m in MATRICES}})[
        "x"
    ]
    for matrix, (a, b) in original.items():
        quiet = torch.linalg.eigh(inputs[matrix][0] @ inputs[matrix][0].T).eigenvectors[:, :32].T
        random = torch.Generator().manual_seed(2)
        loud = torch.randn((256, 32), generator=random).double()
        copy[matrix] = torch.cat([a, quiet]), torch.cat([b, 3 * loud * (b @ a).norm() / loud.norm()], 1)
    both = effects(model, texts, {"original": original, "copy": copy})
    assert likeness(original, copy) < 0.5
    assert likeness(both["original"], both["copy"]) > 0.9


def test_a_sketch_keeps_the_cosines_of_what_is_alike(model, texts):
    one = change(0)
    changes = {"one": one, "near": noisy(one, 0.05), "far": change(1), "nothing": noisy(one, 0)}
    changes["nothing"] = {m: (a, 0 * b) for m, (a, b) in one.items()}
    found = effects(model, texts, changes)
    sketches = {name: sketch(effect) for name, effect in found.items()}
    assert sketches["nothing"] == ""
    verdicts = [graded(name).model_copy(update={"sketches": {RUN: text}}) for name, text in sketches.items()]
    (group,) = alike(verdicts)
    exact = likeness(found["one"], found["near"])
    assert exact > LIMIT
    assert group == Alike("ex1_first_adapter", RUN, ("near", "one"), group.cosine)
    assert group.cosine == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("sketches", [{}, {RUN: ""}, {RUN: "?"}, {RUN: "AAA="}, {RUN: "AHwAfAB8"}])
def test_what_is_no_sketch_is_like_nothing(sketches):
    verdicts = [graded(name).model_copy(update={"sketches": sketches}) for name in ("Ann", "Ben")]
    assert alike(verdicts) == []
