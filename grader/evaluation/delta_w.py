"""The change that an adapter makes to each matrix, ΔW = (α/r)·B·A, looked at through its thin factors alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import torch

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by matrix: A [r, d_in], and (α/r)·B [d_out, r]


def factors(weights: Mapping[str, torch.Tensor], scaling: float) -> Factors:
    """Return the factors of every adapted matrix; `scaling` is α/r."""
    halves = {name.partition(".lora_A.")[0]: name for name in weights if ".lora_A." in name}
    return {
        matrix: (weights[name], scaling * weights[name.replace(".lora_A.", ".lora_B.")])
        for matrix, name in halves.items()
    }


def likeness(one: Factors, other: Factors) -> float:
    """Return the cosine between two changes over the matrices that both adapt; 0 if there are none.

    Padding with zeros, copying columns, another α and leaving matrices out do not change it.
    """
    both = one.keys() & other.keys()
    size = math.sqrt(max(0.0, _inner(one, one, both))) * math.sqrt(max(0.0, _inner(other, other, both)))
    return _inner(one, other, both) / size if size else 0.0


def contained(one: Factors, other: Factors) -> float:
    """Return the cosine of two changes within the row and column spaces of one of them, whichever is higher.

    If one is the other with a change in other directions added, it is 1, however large what was added.
    """
    return max(likeness(one, _inside(other, one)), likeness(_inside(one, other), other))


def _inside(change: Factors, spaces: Factors) -> Factors:
    """Project `change` onto the row and column spaces of `spaces`, in the matrices of both."""
    projected = {}
    for name in change.keys() & spaces.keys():
        a, b = change[name]
        rows, columns = (torch.linalg.qr(half).Q for half in (spaces[name][0].T, spaces[name][1]))
        projected[name] = (a @ rows @ rows.T, columns @ (columns.T @ b))
    return projected


def _inner(one: Factors, other: Factors, matrices: set[str]) -> float:
    """Return ⟨B₁A₁, B₂A₂⟩ = ⟨B₁ᵀB₂, A₁A₂ᵀ⟩, so that no matrix is larger than rank times rank."""
    pairs = ((*one[name], *other[name]) for name in matrices)
    return sum(((b1.T @ b2) * (a1 @ a2.T)).sum().item() for a1, b1, a2, b2 in pairs)


def narrowest(change: Factors) -> float:
    """Return the smallest singular value of a change over the largest; the median over the matrices.

    It is 0 if nothing changes, and 0 but for rounding if the rank is not used: columns of B that are zero, or copies.
    """
    return median(_narrowest(a, b) for a, b in change.values())


def _narrowest(a: torch.Tensor, b: torch.Tensor) -> float:
    # With B = QR and Aᵀ = PS the singular values of BA are those of RSᵀ.
    values = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
    return (values[-1] / values[0]).item() if values[0] else 0.0
