"""The paper's rule for the layers to supervise, read off the model itself: entropy falls twice with depth.

The rule (docs/layers.md): among all curves of the form

    level a, layers 1..i-1  |  level b, layers i..j  |  a straight fall from (j, b) to (k, c)  |  level c, layers k..L

with a > b > c and i < j < k, take the one with the least squared distance to the measured curve. `i`, where the first
drop has arrived, is the conversion layer; `j`, where the second drop begins, the thinking layer.

It holds only where both drops are large enough, lie beyond the spread of the examples, and the plateau between them
explains the curve clearly better than any shape without one. Otherwise the paper's relative depths are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

SMALLEST_DROP = 0.1
"""Of the curve's range: each drop must be at least as large."""
FLATTEST = 0.05
"""Of the curve's largest value: a curve whose range is no larger counts as flat."""
ADVANTAGE = 1.7
"""How many times the squared error of the two-drop curve the best curve without a plateau must leave."""
NEGLIGIBLE = 0.01
"""Of the curve's range: errors of this size per layer are no reason to prefer one shape to another."""
FEWEST_LAYERS = 7
"""The two-drop curve has six unknowns."""
RESAMPLES = 400


@dataclass(frozen=True)
class LayerChoice:
    """The two layers, and how far to trust them.

    Attributes:
        conversion_layer: i, 1..L.
        thinking_layer: j, 1..L.
        confidence: the share of bootstrap resamples of the examples that give the same pair within one layer; None
            where nothing was found, and for a single example.
        runner_up: the best (i, j) that differs by more than one layer in i or in j; None where there is none.
        found: whether the rule found what it looks for. If not, the layers are the paper's, at the same relative depth.
        reason: what was found, in words.
    """

    conversion_layer: int
    thinking_layer: int
    confidence: float | None
    runner_up: tuple[int, int] | None
    found: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "conversion_layer": self.conversion_layer,
            "thinking_layer": self.thinking_layer,
            "confidence": self.confidence,
            "runner_up": None if self.runner_up is None else list(self.runner_up),
            "found": self.found,
            "reason": self.reason,
        }


def paper_layers(num_layers: int) -> tuple[int, int]:
    """The paper's layers, 2 and 15 of LLaMA-2-7B's 32, at the same relative depth of a model with this many layers."""
    conversion = max(1, round(num_layers * 2 / 32))
    return conversion, max(conversion, round(num_layers * 15 / 32))


def by_depth(num_layers: int, why: str) -> LayerChoice:
    """The paper's relative depths, where a rule finds nothing; `why`: what is missing."""
    i, j = paper_layers(num_layers)
    depth = f"the paper's relative depths, 2/32 and 15/32, give {i} and {j} of {num_layers}"
    return LayerChoice(i, j, None, None, False, f"{why}; {depth}")


def find_layers(values: np.ndarray, *, seed: int = 0) -> LayerChoice:
    """The two layers from entropies alone.

    Args:
        values: (N, L), the entropy of each example at each layer; or (L,), a single curve.
        seed: of the bootstrap.

    Returns:
        The choice. Where no two drops are found, the fallback, `found` being False; warning of it is up to the caller.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    examples, layers = values.shape
    curve = values.mean(axis=0)
    if layers < FEWEST_LAYERS:
        few = f"the model has {layers} layers, too few to tell a plateau from a slope"
        return by_depth(layers, f"no two drops: {few}")
    shapes = _Shapes(layers)
    error_P, without = shapes.errors(curve[None])
    best = int(error_P[0].argmin())
    why = _shape_problem(curve, error_P[0, best], float(without[0]))
    if not why:
        why = _spread_problem(values, shapes.drops(curve, best))
    if why:
        return by_depth(layers, f"no two drops: {why}")

    confidence = None
    if examples > 1:
        resampled = resampled_means(values, seed)
        errors_BP, without_B = shapes.errors(resampled)
        chosen_B = errors_BP.argmin(axis=1)
        valid_B = np.array(
            [
                not _shape_problem(one, errors[pair], float(other))
                for one, errors, pair, other in zip(resampled, errors_BP, chosen_B, without_B, strict=True)
            ]
        )
        near_B = (np.abs(shapes.pairs[chosen_B] - shapes.pairs[best]) <= 1).all(axis=1)
        confidence = float(np.mean(valid_B & near_B))

    i, j = map(int, shapes.pairs[best])
    others = (np.abs(shapes.pairs - (i, j)) > 1).any(axis=1) & np.isfinite(error_P[0])
    runner_up = None
    if others.any():
        second = shapes.pairs[np.where(others, error_P[0], np.inf).argmin()]
        runner_up = (int(second[0]), int(second[1]))
    a, b, c = shapes.levels(curve, best)
    reason = (
        f"entropy falls from {a:.2f} to {b:.2f} nats by layer {i}, stays there up to layer {j}, and falls again to "
        f"{c:.2f}"
    )
    return LayerChoice(i, j, confidence, runner_up, True, reason)


def resampled_means(values_NL: np.ndarray, seed: int) -> np.ndarray:
    """Curves of bootstrap resamples of the examples: (RESAMPLES, L)."""
    count = len(values_NL)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn @ np.asarray(values_NL, dtype=np.float64) / count


def _shape_problem(curve: np.ndarray, error: float, without: float) -> str:
    """Why a curve has no two drops; empty where it has. `without`: the error of the best shape without a plateau."""
    span = float(np.ptp(curve))
    if span <= FLATTEST * float(curve.max()):
        return f"the curve is flat ({curve.min():.2f} to {curve.max():.2f} nats)"
    if not np.isfinite(error):
        return f"at no pair of layers does entropy fall twice by a tenth of its range ({span:.2f} nats)"
    negligible = len(curve) * (NEGLIGIBLE * span) ** 2
    if without + negligible < ADVANTAGE * (error + negligible):
        return "a curve without a plateau between two drops fits about as well"
    return ""


def _spread_problem(values: np.ndarray, weights_2L: np.ndarray) -> str:
    """Whether a drop's 95 % interval over examples reaches zero; each drop is a weighted sum over layers."""
    if len(values) < 2:
        return ""
    drops_N2 = values @ weights_2L.T
    half = stats.t.ppf(0.975, len(values) - 1) * drops_N2.std(axis=0, ddof=1) / len(values) ** 0.5
    for name, mean, width in zip(("first", "second"), drops_N2.mean(axis=0), half, strict=True):
        if mean - width <= 0:
            return f"the {name} drop, {mean:.2f} nats, is within the spread of the examples (± {width:.2f})"
    return ""


class _Shapes:
    """Least squares over all two-drop curves of L layers, and over the shapes without a plateau.

    Each shape is a basis of three functions of the layer, scaled by its levels, so a fit is a 3 x 3 system.

    Attributes:
        pairs: (P, 2) all (i, j) with 2 <= i < j < L.
    """

    def __init__(self, layers: int):
        self.layers = layers
        self.pairs = np.array([(i, j) for i in range(2, layers - 1) for j in range(i + 1, layers)])

    def errors(self, curves_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared errors: of the best two-drop curve at each pair, (B, P), infinite where none has drops that are
        large enough; and of the best curve without a plateau, (B,)."""
        smallest_B = SMALLEST_DROP * np.ptp(curves_BL, axis=1)
        two = []
        for pair in self.pairs:
            error_CB, levels_CB3 = _fit(self._bases(*pair), curves_BL)
            a, b, c = np.moveaxis(levels_CB3, -1, 0)
            large = (a - b >= smallest_B) & (b - c >= smallest_B)
            two.append(np.where(large, error_CB, np.inf).min(axis=0))
        without = np.concatenate([_fit(bases, curves_BL)[0] for bases in self._without_plateau()])
        return np.stack(two, axis=1), without.min(axis=0)

    def levels(self, curve: np.ndarray, pair: int) -> np.ndarray:
        """(a, b, c) of the best curve at a pair."""
        error, levels = _fit(self._bases(*self.pairs[pair]), curve[None])
        return levels[error[:, 0].argmin(), 0]

    def drops(self, curve: np.ndarray, pair: int) -> np.ndarray:
        """(2, L): the weights that turn a curve into its two drops, a - b and b - c, with the knots fixed."""
        bases = self._bases(*self.pairs[pair])
        basis = bases[_fit(bases, curve[None])[0][:, 0].argmin()]
        return np.array([[1, -1, 0], [0, 1, -1]]) @ np.linalg.pinv(basis)

    def _bases(self, i: int, j: int) -> np.ndarray:
        """(C, L, 3): levels a, b, c for every end k of the second drop."""
        layer = np.arange(1, self.layers + 1)
        return np.stack([_basis(layer < i, np.clip((layer - j) / (k - j), 0, 1)) for k in range(j + 1, len(layer) + 1)])

    def _without_plateau(self) -> Iterator[np.ndarray]:
        """Bases, (C, L, 3): what else may look like two drops."""
        layer = np.arange(1, self.layers + 1)
        for k in range(3, len(layer) + 1):
            # One drop: level, straight fall, level. Its third level is unused: a column of zeros.
            yield np.stack(
                [_basis(layer < 0, np.clip((layer - j) / (k - j), 0, 1)) for j in range(1, k)],
            )
            # A step, then a fall at once.
            yield np.stack([_basis(layer < i, np.clip((layer - i) / (k - i), 0, 1)) for i in range(2, k)])
            # A fall at two rates: from layer 1 to m, and on to k.
            rates = []
            for m in range(2, k):
                first = np.clip((m - layer) / (m - 1), 0, 1)
                last = np.clip((layer - m) / (k - m), 0, 1)
                rates.append(np.stack([first, 1 - first - last, last], axis=1))
            yield np.stack(rates)


def _basis(before: np.ndarray, fallen: np.ndarray) -> np.ndarray:
    """(L, 3): 1 before the first drop; the plateau's share; the last level's share, 0 to 1 through the second drop."""
    return np.stack([before, ~before * (1 - fallen), ~before * fallen], axis=1).astype(np.float64)


def _fit(bases_CL3: np.ndarray, curves_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of every curve in every basis: squared errors (C, B) and levels (C, B, 3)."""
    centre_B = curves_BL.mean(axis=1)  # every basis holds the constant; without it nothing cancels
    centred_BL = curves_BL - centre_B[:, None]
    inverse_C3L = np.linalg.pinv(bases_CL3)
    levels_CB3 = np.einsum("ckl,bl->cbk", inverse_C3L, centred_BL)
    projected_CB3 = np.einsum("clk,bl->cbk", bases_CL3, centred_BL)
    error_CB = (centred_BL**2).sum(axis=1) - (levels_CB3 * projected_CB3).sum(axis=-1)
    return np.maximum(error_CB, 0.0), levels_CB3 + centre_B[:, None]
