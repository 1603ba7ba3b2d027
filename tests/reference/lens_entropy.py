"""Entropy of the logit lens, slow and obvious: one prompt, one layer, one token, one probability at a time."""

from __future__ import annotations

import math

import torch
from torch import nn

from tests.reference.passes import frozen_logits, run


def entropy(probabilities: list[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@torch.no_grad()
def lens_entropy(model: nn.Module, tokens: list[int], span: tuple[int, int]) -> list[float]:
    """For layers 1..L: the mean over the tokens [start, end) of a prompt."""
    done = run(model, tokens)
    curve = []
    for states in done.hidden[1:]:
        found = [
            entropy(torch.softmax(frozen_logits(model, states[position], True), dim=-1).tolist())
            for position in range(*span)
        ]
        curve.append(sum(found) / len(found))
    return curve
