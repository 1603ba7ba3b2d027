"""log P(continuation | context) with a connection, slow and obvious: one pair at a time, two whole passes, no cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.cc_tuning import choose, last_embedding, last_feed_forward, last_positions, transformed
from tests.reference.passes import Connection, run


@torch.no_grad()
def continuation_logits(
    model: nn.Module,
    decision_maker: Tensor | None,
    context: list[int],
    continuation: list[int],
    *,
    matrix: Tensor | None = None,
    english: list[int] | None = None,
    selection: str = "hard",
    temperature: float = 1.0,
    connection_layer: int = 1,
    connection_tokens: int = 1,
    relative_norm: float | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """(C, V): the logits from which each of the continuation's C tokens is predicted.

    Args:
        decision_maker: (L, d), or None for no connection.
        matrix: the Transform Matrix, (d, d) shared by all layers or (L, d, d).
        english: the English counterpart of the context, used instead of the matrix.
    """
    connection = None
    if decision_maker is not None:
        if english is not None:
            activations = last_feed_forward(model, english)
        else:
            assert matrix is not None
            activations = transformed(last_feed_forward(model, context), matrix)
        embedding = last_embedding(model, context)
        pick = choose(decision_maker, activations, embedding, noise=None, temperature=temperature, selection=selection)
        where = last_positions(context, connection_tokens)
        connection = Connection(connection_layer, where, pick, relative_norm, factor=factor)
    logits = run(model, context + continuation, connection).logits
    return logits[len(context) - 1 : len(context) + len(continuation) - 1]


def log_likelihood(logits: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Sum of the tokens' log-probabilities in nats, and whether each is the most likely one."""
    total, greedy = 0.0, True
    for row, token in zip(logits, continuation, strict=True):
        total += float(torch.log_softmax(row, dim=-1)[token])
        greedy = greedy and int(row.argmax()) == token
    return total, greedy
