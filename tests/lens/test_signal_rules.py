"""The rules of the two signals: planted truths, noise, nothing to find."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pivotune.lens.rule import paper_layers
from pivotune.lens.signal_rules import find_middle, find_readable

VOCAB = 50_000


def middle(layers: int, begins: int, peaks: int, top: float = 0.7) -> np.ndarray:
    """2 % up to the layer before the beginning, then a straight rise to the peak, then a fall to half of it."""
    layer = np.arange(1, layers + 1)
    return np.interp(layer, [1, begins - 1, peaks, layers], [0.02, 0.02, top, top / 2])


def drawn(shares_L: np.ndarray, pairs: int = 256, seed: int = 0) -> np.ndarray:
    """Truth values with these shares; a pair that is easy at one layer is easy at all."""
    ease = np.random.default_rng(seed).random((pairs, 1))
    return np.asarray(ease < shares_L)


@pytest.mark.parametrize(("layers", "begins", "peaks"), [(18, 8, 11), (26, 6, 14), (32, 10, 20), (8, 3, 5)])
def test_the_middle_is_found(layers: int, begins: int, peaks: int) -> None:
    for seed in range(5):
        choice = find_middle(drawn(middle(layers, begins, peaks), seed=seed))
        assert choice.found, choice.reason
        assert abs(choice.thinking_layer - peaks) <= 1
        half = begins - 1 + (peaks - begins + 1) / 2  # where a straight rise is half way up
        assert abs(choice.conversion_layer - half) <= 1.5
        assert choice.confidence is not None and choice.confidence > 0.8


def test_the_middle_of_gemma() -> None:
    """A curve like that of Gemma-3-270M on Chinese, last token."""
    shares = np.array([0, 0, 1, 2, 3, 4, 8, 28, 36, 55, 68, 58, 55, 52, 50, 48, 47, 46]) / 100
    choice = find_middle(drawn(shares))
    assert abs(choice.conversion_layer - 9) <= 1
    assert choice.thinking_layer == 11
    assert f"meet at layer {choice.thinking_layer}" in choice.reason


@pytest.mark.parametrize("shares", [np.full(30, 0.03), np.linspace(0.5, 0.1, 30), np.zeros(30)])
def test_without_a_middle_the_papers_depths(shares: np.ndarray) -> None:
    for seed in range(5):
        independent = np.random.default_rng(seed).random((64, 30)) < shares
        choice = find_middle(np.asarray(independent))
        assert not choice.found, choice.reason
        assert (choice.conversion_layer, choice.thinking_layer) == paper_layers(30)
        assert choice.confidence is None and choice.reason.startswith("no shared middle: ")


def nats(curve: list[float], examples: int = 64, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.array(curve) * draw.normal(1.0, 0.2, (examples, 1))


def test_where_the_head_reads() -> None:
    guess = math.log(VOCAB)  # 10.8
    question = nats([100, 30, 20, 12, 9, 8, 6, 5, 4, 4])
    answer = nats([100, 30, 20, 15, 14, 12, 9, 6, 3, 2], seed=1)
    choice = find_readable(question, answer, VOCAB)
    assert (choice.conversion_layer, choice.thinking_layer, choice.found) == (7, 8, True)
    assert f"guessing takes {guess:.1f}" in choice.reason
    assert choice.confidence is not None
    alone = find_readable(question, answer[:0], VOCAB)
    assert (alone.conversion_layer, alone.thinking_layer) == (7, 7)


def test_a_layer_that_reads_by_chance_below_does_not_count() -> None:
    choice = find_readable(nats([5, 30, 20, 12, 9, 8, 6, 5, 4, 4]), nats([5, 30, 5, 30, 8, 8, 6, 5, 4, 4]), VOCAB)
    assert (choice.conversion_layer, choice.thinking_layer) == (7, 7)


@pytest.mark.parametrize("top", [12.0, 4.0])
def test_where_only_the_top_reads_the_papers_depths(top: float) -> None:
    """The last layer is the model's own output, which the ordinary loss trains."""
    sound, silent = nats([20, 15, 9, 8, 7, 6]), nats([20.0] * 5 + [top])
    for question, answer, name in ((silent, sound, "question"), (sound, silent, "answer")):
        choice = find_readable(question, answer, VOCAB)
        assert not choice.found
        assert (choice.conversion_layer, choice.thinking_layer) == paper_layers(6)
        assert f"the English {name}" in choice.reason and "10.8" in choice.reason
