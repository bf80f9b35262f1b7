"""The change that an adapter makes, against the matrices themselves."""

import pytest
import torch

from grader.evaluation.delta_w import contained, factors, likeness, narrowest

MATRICES = ("q_proj", "v_proj")


def adapter(rank, seed, matrices=MATRICES):
    random = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, 32), "B": (24, rank)}
    return {
        f"{matrix}.lora_{half}.weight": torch.randn(shape, generator=random)
        for matrix in matrices
        for half, shape in shapes.items()
    }


def padded(weights, rank):
    def grown(name, tensor):
        missing = rank - tensor.shape[0 if ".lora_A." in name else 1]
        return torch.nn.functional.pad(tensor, (0, 0, 0, missing) if ".lora_A." in name else (0, missing))

    return {name: grown(name, tensor) for name, tensor in weights.items()}


def whole(weights):
    return torch.cat([(weights[f"{m}.lora_B.weight"] @ weights[f"{m}.lora_A.weight"]).flatten() for m in MATRICES])


def test_likeness_is_the_cosine_of_the_whole_matrices():
    one, other = adapter(4, 0), adapter(8, 1)
    wanted = torch.cosine_similarity(whole(one), whole(other), dim=0).item()
    assert likeness(factors(one, 2), factors(other, 0.5)) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted) < 0.5


@pytest.mark.parametrize(
    "disguised",
    [
        lambda weights: factors(padded(weights, 16), 0.5),
        lambda weights: factors({name: tensor for name, tensor in weights.items() if "v_proj" in name}, 2),
        lambda weights: factors({name: -tensor for name, tensor in weights.items()}, 2),
        lambda weights: factors({name: tensor.half().float() for name, tensor in weights.items()}, 2),
    ],
)
def test_a_copy_is_like_its_original_whatever_was_done_to_it(disguised):
    weights = adapter(4, 0)
    assert likeness(factors(weights, 2), disguised(weights)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("noise", [0.1, 1, 10])
def test_a_copy_is_found_under_noise_in_other_directions(noise):
    weights, random = adapter(4, 0), adapter(12, 1)
    for name, tensor in random.items():
        space = weights[name] if ".lora_A." in name else weights[name].T
        rows = torch.linalg.qr(space.T).Q
        loud = noise * (tensor if ".lora_A." in name else tensor.T)
        both = torch.cat([space, loud - loud @ rows @ rows.T])
        random[name] = both if ".lora_A." in name else both.T
    copy, original = factors(random, 1), factors(weights, 2)
    assert contained(original, copy) == pytest.approx(1, abs=1e-4)
    assert contained(copy, original) == pytest.approx(1, abs=1e-4)
    assert noise < 1 or likeness(original, copy) < 0.9


def test_two_adapters_that_share_nothing_do_not_contain_each_other():
    assert abs(contained(factors(adapter(4, 0), 2), factors(adapter(8, 1), 1))) < 0.5
    assert contained(factors(adapter(4, 0), 2), factors(adapter(4, 0, ("k_proj",)), 2)) == 0


def test_adapters_of_other_layers_and_untrained_ones_are_like_none():
    one = factors(adapter(4, 0), 2)
    assert likeness(one, factors(adapter(4, 0, ("k_proj",)), 2)) == 0
    zero = factors({name: tensor * (".lora_A." in name) for name, tensor in adapter(4, 0).items()}, 2)
    assert likeness(one, zero) == likeness(zero, zero) == narrowest(zero) == 0


def test_the_narrowest_direction_is_that_of_the_whole_matrix():
    weights = adapter(4, 0, ("q_proj",))
    values = torch.linalg.svdvals(weights["q_proj.lora_B.weight"] @ weights["q_proj.lora_A.weight"])
    assert narrowest(factors(weights, 2)) == pytest.approx((values[3] / values[0]).item(), rel=1e-4)
    assert narrowest(factors(padded(weights, 8), 2)) < 1e-6
