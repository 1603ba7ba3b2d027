"""The rule that chooses layers: planted truths, noise, fallbacks."""

from __future__ import annotations

import numpy as np
import pytest

from pivotune.lens import find_layers
from pivotune.lens.rule import paper_layers

PLANTED = [  # layers, i, j, end of the second drop
    (8, 2, 4, 6),
    (8, 3, 5, 7),
    (26, 3, 12, 18),
    (32, 2, 15, 16),
    (32, 2, 15, 22),
    (32, 2, 15, 32),
    (32, 5, 20, 24),
    (80, 4, 40, 60),
]


def planted(layers: int, i: int, j: int, k: int) -> np.ndarray:
    """9 nats before layer i, 6 from i to j, then a straight fall to 2 at layer k."""
    layer = np.arange(1, layers + 1)
    return np.where(layer < i, 9.0, 6.0) - 4.0 * np.clip((layer - j) / (k - j), 0, 1)


def noisy(curve: np.ndarray, seed: int) -> np.ndarray:
    """Every layer off by up to 5 % of the curve's range (of its level, where it is flat)."""
    size = 0.05 * (np.ptp(curve) or curve.max())
    return curve + np.random.default_rng(seed).uniform(-size, size, len(curve))


@pytest.mark.parametrize(("layers", "i", "j", "k"), PLANTED)
def test_planted_layers_are_found(layers: int, i: int, j: int, k: int) -> None:
    choice = find_layers(planted(layers, i, j, k))
    assert (choice.conversion_layer, choice.thinking_layer, choice.found) == (i, j, True)
    assert choice.confidence is None  # of one curve nothing is known
    assert choice.runner_up is not None
    assert max(abs(choice.runner_up[0] - i), abs(choice.runner_up[1] - j)) > 1
    assert "falls from 9.00 to 6.00 nats" in choice.reason
    assert "again to 2.00" in choice.reason


@pytest.mark.parametrize(("layers", "i", "j", "k"), PLANTED[:-1])
def test_noise_moves_neither_by_more_than_one_layer(layers: int, i: int, j: int, k: int) -> None:
    for seed in range(15):
        choice = find_layers(noisy(planted(layers, i, j, k), seed))
        assert choice.found, f"seed {seed}: {choice.reason}"
        assert abs(choice.conversion_layer - i) <= 1, f"seed {seed}"
        assert abs(choice.thinking_layer - j) <= 1, f"seed {seed}"


def test_curves_that_the_rule_does_not_draw() -> None:
    layer = np.arange(1, 33)
    sloping = planted(32, 2, 15, 22) - 0.02 * layer
    reverting = planted(32, 2, 15, 22) + 0.8 * np.clip((layer - 29) / 3, 0, 1)
    gradual = planted(32, 4, 15, 22) - np.array([0, 1, 2] + [0] * 29)  # 9, 8, 7, 6, 6, ...
    rounded = np.where(layer < 2, 9.0, 6.0) - 4 / (1 + np.exp(-(layer - 18.0)))  # a logistic fall around layer 18
    for curve, i in ((sloping, 2), (reverting, 2), (gradual, 3), (rounded, 2)):
        choice = find_layers(curve)
        assert choice.found
        assert abs(choice.conversion_layer - i) <= 1
        assert abs(choice.thinking_layer - 15) <= 1


@pytest.mark.parametrize(("layers", "i", "j", "k"), [(8, 2, 4, 6), (32, 2, 15, 32)])
def test_noise_of_examples_averages_out(layers: int, i: int, j: int, k: int) -> None:
    draw = np.random.default_rng(0)
    curve = planted(layers, i, j, k)
    values = curve * (1 + 0.05 * draw.normal(size=(100, layers))) + draw.normal(size=(100, 1))
    choice = find_layers(values)
    assert choice.found
    assert abs(choice.conversion_layer - i) <= 1
    assert abs(choice.thinking_layer - j) <= 1
    assert choice.confidence is not None
    assert choice.confidence > 0.9
    assert choice == find_layers(values)  # nothing random is left


def test_confidence_falls_where_examples_disagree() -> None:
    draw = np.random.default_rng(0)
    early, late = planted(32, 2, 12, 18), planted(32, 2, 20, 26)
    mixed = np.where(draw.random((20, 1)) < 0.5, early, late) + draw.normal(size=(20, 32))
    agreed = early + draw.normal(size=(20, 32))
    mixed_confidence, agreed_confidence = find_layers(mixed).confidence, find_layers(agreed).confidence
    assert mixed_confidence is not None
    assert agreed_confidence is not None
    assert mixed_confidence < 0.9 < agreed_confidence


WITHOUT = {
    "flat": lambda layers: np.full(layers, 8.0),
    "straight": lambda layers: np.linspace(9, 2, layers),
    "one drop": lambda layers: planted(layers, 1, layers // 2, layers * 3 // 4),
    "rising": lambda layers: np.linspace(2, 9, layers),
    "ever slower": lambda layers: 2 + 7 * np.exp(-4 * np.arange(layers) / layers),
    "a step, then straight": lambda layers: np.r_[9.0, np.linspace(6, 2, layers - 1)],
    "zero": np.zeros,
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize(("layers", "fallback"), [(32, (2, 15)), (26, (2, 12)), (8, (1, 4)), (80, (5, 38))])
def test_without_two_drops_the_papers_depths(name: str, layers: int, fallback: tuple[int, int]) -> None:
    choice = find_layers(WITHOUT[name](layers))
    assert not choice.found
    assert (choice.conversion_layer, choice.thinking_layer) == fallback == paper_layers(layers)
    assert choice.reason.startswith("no two drops: ")
    assert f"give {fallback[0]} and {fallback[1]} of {layers}" in choice.reason


@pytest.mark.parametrize("name", WITHOUT)
def test_noise_makes_no_drops(name: str) -> None:
    for seed in range(10):
        assert not find_layers(noisy(WITHOUT[name](32), seed)).found, f"seed {seed}"


def test_a_drop_within_the_spread_of_the_examples_does_not_count() -> None:
    draw = np.random.default_rng(0)
    values = np.tile(planted(32, 2, 15, 20), (20, 1))
    values[:, 0] = 6 + np.abs(draw.standard_cauchy(20)) * 5 * draw.choice([-1, 1], 20)
    values[:, 0] += 9 - values[:, 0].mean()
    choice = find_layers(values)
    assert not choice.found
    assert "the first drop" in choice.reason
    assert "within the spread of the examples" in choice.reason
    assert find_layers(values.mean(axis=0)).found


def test_too_few_layers() -> None:
    choice = find_layers(np.array([9.0, 6, 6, 2]))
    assert (choice.conversion_layer, choice.thinking_layer, choice.found) == (1, 2, False)
    assert "the model has 4 layers, too few" in choice.reason
