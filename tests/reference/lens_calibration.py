"""Calibration, slow and obvious: one example, one layer, one token at a time; R^2 and kappa by their definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.batches import examples_of, singles
from tests.reference import cc_tuning
from tests.reference.deep_supervision import deep_supervision
from tests.reference.passes import layers_of


@torch.no_grad()
def supervised_quantities(
    model: nn.Module, batch: dict[str, Tensor], *, pooling: str = "mean", final_norm: bool = True
) -> dict[str, list[list[float]]]:
    """The four tables, (N, L) each as lists: every term of deep supervision on every example alone, at every layer.

    Examples without English tokens have no row in the table of those.
    """
    options: dict[str, Any] = dict(pooling=pooling, final_norm=final_norm)
    tables: dict[str, list[list[float]]] = {}
    for alone in singles(batch):
        rows: dict[str, list[float]] = {}
        for layer in range(1, len(layers_of(model)) + 1):
            for signal in ("logits", "feature"):
                terms = deep_supervision(
                    model,
                    alone,
                    language_conversion=signal,
                    english_thinking=signal,
                    conversion_layer=layer,
                    thinking_layer=layer,
                    **options,
                )
                for term, text in (("language_conversion", "question"), ("english_thinking", "answer")):
                    value, count = terms[term]
                    if count and signal == "logits":
                        rows.setdefault(f"{text}_nats", []).append(float(value) / count)
                    elif count:
                        rows.setdefault(f"{text}_cosine", []).append(1 - float(value))
        for name, row in rows.items():
            tables.setdefault(name, []).append(row)
    return tables


@torch.no_grad()
def activations(model: nn.Module, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Of each pair: the feed-forward outputs (L, d) at the last token of the target prompt and of the English one."""
    found = []
    for example in examples_of(batch):
        assert example.english is not None
        found.append(
            tuple(cc_tuning.last_feed_forward(model, text.prompt) for text in (example.target, example.english))
        )
    return found  # type: ignore[return-value]


@torch.no_grad()
def picks(
    model: nn.Module,
    decision_maker: Tensor,
    batch: dict[str, Tensor],
    lent: Sequence[Tensor],
    *,
    selection: str = "hard",
    temperature: float = 1.0,
) -> list[int]:
    """The layer (0-based) whose activation the Decision Maker picks from `lent`, (L, d) per pair.

    With soft selection, the one that weighs most: its weight is found from the mixture, which is solved for it.
    """
    found = []
    for example, v in zip(examples_of(batch), lent, strict=True):
        embedding = cc_tuning.last_embedding(model, example.target.prompt)
        mixed = cc_tuning.choose(
            decision_maker, v, embedding, noise=None, temperature=temperature, selection=selection
        ).numpy()
        weights = np.linalg.lstsq(v.numpy().T, mixed, rcond=None)[0]
        found.append(int(weights.argmax()))
    return found


def r_squared(predicted: np.ndarray, targets: np.ndarray) -> tuple[float, list[float]]:
    """Of (N, G, d): over all groups, and per group."""
    error = ((predicted - targets) ** 2).sum(axis=(0, 2))
    spread = ((targets - targets.mean(axis=0)) ** 2).sum(axis=(0, 2))
    return 1 - error.sum() / spread.sum(), list(1 - error / spread)


def kappa(first: Sequence[int], second: Sequence[int]) -> tuple[float, float | None]:
    """Chance agreement of two raters, and Cohen's kappa."""
    n = len(first)
    one, other = Counter(first), Counter(second)
    chance = sum(one[k] / n * other[k] / n for k in one)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    return chance, None if len(one) == len(other) == 1 and one == other else (observed - chance) / (1 - chance)
