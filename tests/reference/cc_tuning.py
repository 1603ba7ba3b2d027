"""CC-Tuning (Ye et al., 2025), slow and obvious.

One example at a time; at inference two prefills per prompt and no cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.batches import examples_of
from tests.reference.passes import Connection, answer_loss, run


def cc_tuning(
    model: nn.Module,
    decision_maker: Tensor,
    batch: dict[str, Tensor],
    *,
    noise: Tensor | None = None,
    **options: object,
) -> dict[str, tuple[Tensor, int]]:
    """The language-modelling loss of the connected passes: its sum and its count.

    Args:
        decision_maker: (L, d), the Decision Maker's weight.
        noise: (P, L) Gumbel noise in the order of the English rows; None chooses without noise (evaluation).
        options: english_gradient, temperature, selection, connection_layer, connection_tokens, relative_norm, factor.

    Returns:
        `lm`, the language-modelling loss of the connected passes, and `connection_norm`: how long what is added is
        beside the state that it is added to. The sum and the count of each.
    """
    connections = training_connections(model, decision_maker, batch, noise=noise, **options)
    total, count = next(model.parameters()).sum() * 0.0, 0
    for row, example in enumerate(examples_of(batch)):
        prompt, answer = example.target.prompt, example.target.answer
        labels = batch["labels"][row, len(prompt) : len(prompt + answer)].tolist()
        loss, tokens = answer_loss(run(model, prompt + answer, connections.get(row)), len(prompt), labels)
        total, count = total + loss, count + tokens
    return {"lm": (total, count), "connection_norm": connection_norm(model, batch, connections)}


@torch.no_grad()
def connection_norm(
    model: nn.Module, batch: dict[str, Tensor], connections: dict[int, Connection]
) -> tuple[Tensor, int]:
    """How long what is added is beside the state that it is added to, summed over rows, and their number."""
    total = next(model.parameters()).sum() * 0.0
    examples = examples_of(batch)
    for row, one in connections.items():
        before = run(model, examples[row].target.prompt).hidden[one.layer]
        after = one.made(before)
        found = [(after[at] - before[at]).norm() / before[at].norm() for at in one.positions]
        total = total + sum(found) / len(found)
    return total, len(connections)


def training_connections(
    model: nn.Module,
    decision_maker: Tensor,
    batch: dict[str, Tensor],
    *,
    noise: Tensor | None = None,
    english_gradient: bool = True,
    temperature: float = 1.0,
    selection: str = "hard",
    connection_layer: int = 1,
    connection_tokens: int = 1,
    relative_norm: float | None = None,
    factor: Tensor | None = None,
) -> dict[int, Connection]:
    """For every row with English: what is added to its target pass, where."""
    examples = examples_of(batch)
    connections = {}
    for p, row in enumerate(batch["pair_row"].tolist()):
        if row < 0:
            continue
        english, prompt = examples[row].english, examples[row].target.prompt
        assert english is not None
        activations = last_feed_forward(model, english.prompt)
        if not english_gradient:
            activations = activations.detach()
        pick = choose(
            decision_maker,
            activations,
            last_embedding(model, prompt),
            noise=None if noise is None else noise[p],
            temperature=temperature,
            selection=selection,
        )
        where = last_positions(prompt, connection_tokens)
        connections[row] = Connection(connection_layer, where, pick, relative_norm, factor=factor)
    return connections


def choose(
    decision_maker: Tensor,
    activations: Tensor,
    embedding: Tensor,
    *,
    noise: Tensor | None,
    temperature: float,
    selection: str,
) -> Tensor:
    """The Decision Maker's pick (d,) among `activations` (L, d), given the target prompt's last embedding (d,)."""
    summary = torch.stack([v + embedding for v in activations]).mean(dim=0)
    scores = torch.stack([(row * summary).sum() for row in decision_maker])
    if noise is not None:
        scores = scores + noise
    soft = torch.softmax(scores / temperature, dim=0)
    if selection == "soft":
        weights = soft
    else:
        chosen = torch.zeros_like(soft)
        chosen[int(soft.argmax())] = 1.0
        weights = chosen + soft - soft.detach()  # straight-through
    return sum(weight * v for weight, v in zip(weights, activations, strict=True))


def last_feed_forward(model: nn.Module, prompt: list[int]) -> Tensor:
    """(L, d): every layer's feed-forward output at the prompt's last token."""
    return torch.stack([v[-1] for v in run(model, prompt).feed_forward[1:]])


def last_embedding(model: nn.Module, prompt: list[int]) -> Tensor:
    return run(model, prompt).hidden[0][-1]


def last_positions(prompt: list[int], connection_tokens: int) -> list[int]:
    return list(range(max(0, len(prompt) - connection_tokens), len(prompt)))


def gumbel_noise(rows: int, layers: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(P, L) standard Gumbel noise: minus the logarithm of exponential noise, from the global generator."""
    return -torch.empty(rows, layers, dtype=dtype).exponential_().log()


# Inference -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(
    model: nn.Module,
    decision_maker: Tensor | None,
    prompts: Sequence[list[int]],
    tokens: int,
    *,
    matrix: Tensor | None = None,
    english_prompts: Sequence[list[int]] | None = None,
    selection: str = "hard",
    temperature: float = 1.0,
    connection_layer: int = 1,
    connection_tokens: int = 1,
    relative_norm: float | None = None,
    factor: Tensor | None = None,
) -> list[list[int]]:
    """Greedy answers of exactly `tokens` tokens, one prompt at a time, without any cache.

    The first prefill collects the activations (of the English prompt, or of the prompt itself mapped by `matrix`); then
    every new token is a whole forward pass in which the connection is applied to the prompt's last tokens again.

    Args:
        decision_maker: (L, d), or None for no connection.
        matrix: the Transform Matrix, (d, d) shared by all layers or (L, d, d).
        english_prompts: used instead of the matrix.
    """
    answers = []
    for number, prompt in enumerate(prompts):
        connection = None
        if decision_maker is not None:
            if english_prompts is not None:
                activations = last_feed_forward(model, english_prompts[number])
            else:
                assert matrix is not None
                activations = transformed(last_feed_forward(model, prompt), matrix)
            pick = choose(
                decision_maker,
                activations,
                last_embedding(model, prompt),
                noise=None,
                temperature=temperature,
                selection=selection,
            )
            where = last_positions(prompt, connection_tokens)
            connection = Connection(connection_layer, where, pick, relative_norm, factor=factor)
        text = list(prompt)
        for _ in range(tokens):
            text.append(int(run(model, text, connection).logits[-1].argmax()))
        answers.append(text[len(prompt) :])
    return answers


def transformed(activations: Tensor, matrix: Tensor) -> Tensor:
    """(L, d) -> (L, d): each layer's row times the shared matrix, or times that layer's own."""
    matrices = matrix if matrix.dim() == 3 else [matrix] * len(activations)
    return torch.stack([v @ X for v, X in zip(activations, matrices, strict=True)])


def fit(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, matrix: str = "shared", ridge: float = 0.0) -> np.ndarray:
    """The Transform Matrix by plain least squares: `min ||S X - T||^2 + ridge * mean(diag(S^T S)) * ||X||^2`.

    Args:
        pairs: for every question its feed-forward outputs (L, d) in the target language and in English.
        matrix: "shared" stacks the layers as rows and returns (d, d); "per_layer" returns (L, d, d).
    """
    S = np.stack([s for s, _ in pairs])  # (N, L, d)
    T = np.stack([t for _, t in pairs])
    if matrix == "per_layer":
        return np.stack([_least_squares(S[:, n], T[:, n], ridge) for n in range(S.shape[1])])
    return _least_squares(S.reshape(-1, S.shape[-1]), T.reshape(-1, T.shape[-1]), ridge)


def _least_squares(S: np.ndarray, T: np.ndarray, ridge: float) -> np.ndarray:
    d = S.shape[1]
    strength = ridge * np.mean(np.diag(S.T @ S))
    S = np.concatenate([S, np.sqrt(strength) * np.eye(d)])
    T = np.concatenate([T, np.zeros((d, T.shape[1]))])
    return np.linalg.lstsq(S, T, rcond=None)[0]
