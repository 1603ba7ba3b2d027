"""Rules for the layers to supervise where the entropy has no two drops, one per signal (docs/layers.md).

Feature signal, `find_middle`: representations of a question and of its translation meet in the middle of the model.
From MEXA per layer: `j` is where it peaks, `i` where it begins: from there to the peak it is at least half way up.

Logits signal, `find_readable`: a layer is of use where the head can read English from it. From nats per English token,
of the question (`i`) and of the answer (`j`): the first layer from which on they are at most half way between guessing,
ln V, and the best layer. The last layer does not count: it is the model's own output, which the ordinary loss trains.

Shapes in names: N examples, L layers, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from pivotune.lens.rule import LayerChoice, by_depth, resampled_means

HALF_WAY = 0.5
"""Of a rise: what counts as having begun."""


def find_middle(mexa_NL: np.ndarray, *, seed: int = 0) -> LayerChoice:
    """Where the shared middle begins and where it peaks.

    Args:
        mexa_NL: (N, L) truth values: whether a question and its translation found each other among the others.
        seed: of the bootstrap.

    Returns:
        The choice; the paper's depths where MEXA does not rise beyond the spread of the pairs.
    """
    pairs, layers = mexa_NL.shape
    curve_L = mexa_NL.mean(axis=0)
    i, j = _middle(curve_L)
    floor = int(curve_L[: j + 1].argmin())
    if not _rises(mexa_NL[:, j].astype(float) - mexa_NL[:, floor], layers):
        return by_depth(
            layers,
            f"no shared middle: the highest MEXA, {100 * curve_L[j]:.0f} % at layer {j + 1}, is within the spread of "
            f"the {pairs} pairs from the {100 * curve_L[floor]:.0f} % at layer {floor + 1}",
        )
    reason = (
        f"questions and their translations meet at layer {j + 1}: MEXA {100 * curve_L[j]:.0f} % of {pairs} pairs; from "
        f"layer {i + 1} on it is at least half way up from the {100 * curve_L[floor]:.0f} % at layer {floor + 1}"
    )
    return LayerChoice(i + 1, j + 1, _agreement(mexa_NL, _middle, (i, j), seed), None, True, reason)


def find_readable(question_NL: np.ndarray, answer_ML: np.ndarray, vocab_size: int, *, seed: int = 0) -> LayerChoice:
    """Where the head can read the English question, and where the English answer.

    Args:
        question_NL: nats per token of each English question, at each layer.
        answer_ML: the same of English answers, of as many examples as have one; where there is none, what is found of
            the question stands for both.
        vocab_size: V.
        seed: of the bootstrap.

    Returns:
        The choice; the paper's depths where at no layer below the last a text is read better than by guessing. `j` is
        never below `i`.
    """
    layers, guess = question_NL.shape[1], math.log(vocab_size)
    found, reasons, confidences = [], [], []
    for name, values in (("question", question_NL), ("answer", answer_ML if len(answer_ML) else question_NL)):
        curve_L = values.mean(axis=0)
        best = int(curve_L[:-1].argmin())
        if not _rises(guess - values[:, best], layers):
            return by_depth(
                layers,
                f"below the last layer the head reads the English {name} no better than by guessing: "
                f"{curve_L[best]:.1f} nats at best, layer {best + 1}, against ln V = {guess:.1f}",
            )
        at = _readable(curve_L, guess)
        found.append(at + 1)
        reasons.append(f"the English {name} from layer {at + 1} on ({curve_L[at]:.1f} nats there)")
        confidences.append(_agreement(values, lambda curve: (_readable(curve, guess),), (at,), seed))
    i, j = found
    confidence = None if None in confidences else min(one for one in confidences if one is not None)
    reason = f"the head reads {' and '.join(reasons)}; guessing takes {guess:.1f}"
    return LayerChoice(i, max(i, j), confidence, None, True, reason)


def _middle(curve_L: np.ndarray) -> tuple[int, int]:
    """Where it begins and where it peaks, 0-based."""
    peak = int(curve_L.argmax())
    floor = curve_L[: peak + 1].min()
    return _first(curve_L >= floor + HALF_WAY * (curve_L[peak] - floor), peak), peak


def _readable(curve_L: np.ndarray, guess: float) -> int:
    """The first layer, 0-based, from which up to the best one below the last it is at most half way from guessing."""
    best = int(curve_L[:-1].argmin())
    return _first(curve_L <= guess + HALF_WAY * (curve_L[best] - guess), best)


def _first(holds_L: np.ndarray, last: int) -> int:
    """The first place from which on it holds, up to `last`, where it does."""
    fails = np.flatnonzero(~holds_L[: last + 1])
    return int(fails[-1]) + 1 if len(fails) else 0


def _rises(gain_N: np.ndarray, layers: int) -> bool:
    """Whether a mean gain lies above zero, at the 2.5 % level for the best of so many layers (Bonferroni)."""
    if len(gain_N) < 2:
        return False
    error = gain_N.std(ddof=1) / len(gain_N) ** 0.5
    return bool(gain_N.mean() > stats.t.ppf(1 - 0.025 / layers, len(gain_N) - 1) * error)


def _agreement(
    values_NL: np.ndarray, rule: Callable[[np.ndarray], tuple[int, ...]], found: tuple[int, ...], seed: int
) -> float | None:
    """The share of resamples in which the rule gives the same layers, each within one."""
    if len(values_NL) < 2:
        return None
    near = [
        all(abs(one - other) <= 1 for one, other in zip(rule(curve_L), found, strict=True))
        for curve_L in resampled_means(values_NL, seed)
    ]
    return float(np.mean(near))
