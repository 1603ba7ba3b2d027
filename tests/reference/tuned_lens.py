"""The tuned lens, slow and obvious: one state, one row of the map, one probability at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.reference.passes import frozen_logits


def mapped(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`h + h A + b` of one state (d,), a row of A at a time."""
    found = state + bias
    for value, row in zip(state, weight, strict=True):
        found = found + value * row
    return found


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """In nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mean_kl(model: nn.Module, states: Tensor, final: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Of the model's own output from what is read of the states (N, d), with `final` (N, d) behind the last layer."""
    found = []
    for state, last in zip(states, final, strict=True):
        own = torch.softmax(frozen_logits(model, last, True), dim=-1).tolist()
        read = torch.softmax(frozen_logits(model, mapped(state, weight, bias), True), dim=-1).tolist()
        found.append(kl(own, read))
    return sum(found) / len(found)


def ridge_map(hidden: Tensor, final: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The least squares by its normal equations, with a column of ones and the penalty as rows of data: A and b."""
    count, size = hidden.shape
    spread = hidden.std(dim=0, correction=0)
    rows = torch.cat([hidden - hidden.mean(dim=0), torch.diag(spread) * (ridge * count) ** 0.5])
    missing = final - hidden
    wanted = torch.cat([missing - missing.mean(dim=0), torch.zeros(size, size, dtype=hidden.dtype)])
    weight = torch.linalg.lstsq(rows, wanted).solution
    return weight, missing.mean(dim=0) - hidden.mean(dim=0) @ weight
