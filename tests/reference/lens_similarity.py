"""Similarity, retrieval, MEXA and CKA, one pair of texts at a time, from every vector of the data at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from tests.batches import Example, Text
from tests.reference.passes import run

TIE = 1e-9


def question_vectors(model: nn.Module, examples: Sequence[Example], pooling: str) -> tuple[np.ndarray, np.ndarray]:
    """(L, N, d) for the questions and for their English translations, of the examples that have one."""
    pairs = [(example.target, example.english) for example in examples if example.english is not None]
    sides = [np.stack([_vectors(model, pair[side], pooling) for pair in pairs], axis=1) for side in (0, 1)]
    return sides[0], sides[1]


def _vectors(model: nn.Module, text: Text, pooling: str) -> np.ndarray:
    start, end = text.question
    vectors = []
    for hidden in run(model, text.prompt).hidden[1:]:
        tokens = [hidden[t].detach().numpy() for t in range(start, end)]
        vectors.append(tokens[-1] if pooling == "last_token" else sum(tokens) / len(tokens))
    return np.stack(vectors)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norms if norms else 0.0


def compare(x: np.ndarray, y: np.ndarray, block: int) -> dict[str, list[float]]:
    """(N, d) each; one number per pair. Pair i is compared with the pairs of its block; the last, incomplete block is
    filled up with the pairs just before it."""
    n = len(x)
    found: dict[str, list[float]] = {
        name: [] for name in ("parallel", "non_parallel", "mexa", "retrieval_to_english", "retrieval_from_english")
    }
    for i in range(n):
        start = i // block * block
        if start + block > n:
            start = max(0, n - block)
        others = [j for j in range(start, min(start + block, n)) if j != i]
        own = cosine(x[i], y[i])
        to_english = [cosine(x[i], y[j]) for j in others]
        from_english = [cosine(x[j], y[i]) for j in others]
        found["parallel"].append(own)
        found["non_parallel"].append(sum(to_english + from_english) / (2 * len(others)))
        found["retrieval_to_english"].append(float(all(own - other > TIE for other in to_english)))
        found["retrieval_from_english"].append(float(all(own - other > TIE for other in from_english)))
        found["mexa"].append(float(all(own - other > TIE for other in to_english + from_english)))
    return found


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA by the Gram matrices of the examples (HSIC): a road that never forms X'X."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, l = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre  # noqa: E741 - the names of the paper

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return sum(float(a[i, j] * b[i, j]) for i in range(n) for j in range(n))

    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
