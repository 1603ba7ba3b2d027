"""The statistics on simulated answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import crossed_test, difference, holm, interval, macro, over_seeds, sign_flip

S, F = 5, 120


def answers(
    draw: np.random.Generator, effect: float = 0.0, seed_sd: float = 0.0, items_F: np.ndarray | None = None
) -> np.ndarray:
    """(S, F) answers: items differ in difficulty, seeds shift all of their items alike, each answer has luck too."""
    difficulty_F = draw.normal(size=F) if items_F is None else items_F
    ability_S = draw.normal(scale=seed_sd, size=S) + effect
    return (draw.logistic(size=(S, F)) < 1.5 * difficulty_F + ability_S[:, None]).astype(float)


def two_methods(draw: np.random.Generator, effect: float = 0.0, seed_sd: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    difficulty_F = draw.normal(size=F)
    own = answers(draw, effect, seed_sd, difficulty_F + draw.normal(scale=0.5, size=F))
    return own, answers(draw, 0.0, seed_sd, difficulty_F + draw.normal(scale=0.5, size=F))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    truth = answers_truth(0.3)
    held = [low <= truth <= high for _, low, high in (interval(answers(draw, 0.3, 0.3)) for _ in range(300))]
    assert 0.90 <= np.mean(held) <= 0.99


def answers_truth(seed_sd: float) -> float:
    draw = np.random.default_rng(99)
    return float(np.mean([answers(draw, 0.3, seed_sd).mean() for _ in range(3000)]))


def test_a_difference_holds_nothing_where_there_is_nothing() -> None:
    draw = np.random.default_rng(1)
    held = [low <= 0 <= high for _, low, high in (difference(*two_methods(draw, seed_sd=0.3)) for _ in range(300))]
    assert 0.90 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("seed_sd", [0.0, 0.5])
def test_the_test_of_methods_errs_in_one_of_twenty(seed_sd: float) -> None:
    draw = np.random.default_rng(2)
    p = [crossed_test(*two_methods(draw, seed_sd=seed_sd)) for _ in range(1000)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.075


def test_the_test_of_models_errs_in_one_of_twenty_where_seeds_do_not_matter() -> None:
    draw = np.random.default_rng(3)
    p = [sign_flip(*two_methods(draw)) for _ in range(1000)]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07


def test_what_seeds_share_misleads_the_test_of_models_alone() -> None:
    """Why there are two tests: a seed that shifts all of its items looks like an effect to a test over items."""
    draw = np.random.default_rng(4)
    pairs = [two_methods(draw, seed_sd=0.6) for _ in range(1000)]
    assert np.mean([sign_flip(*pair) < 0.05 for pair in pairs]) > 0.25
    assert np.mean([crossed_test(*pair) < 0.05 for pair in pairs]) <= 0.075


def test_a_planted_effect_is_found() -> None:
    draw = np.random.default_rng(5)
    pairs = [two_methods(draw, effect=0.8, seed_sd=0.2) for _ in range(60)]
    assert np.mean([crossed_test(*pair) < 0.05 for pair in pairs]) > 0.8
    assert np.mean([sign_flip(*pair) < 0.05 for pair in pairs]) > 0.9
    assert np.mean([difference(*pair).low > 0 for pair in pairs]) > 0.8


def test_pairing_by_item_matters() -> None:
    """The same answers, the items of one side in another order: the mean is the same, what is known of it is not."""
    draw = np.random.default_rng(6)
    difficulty_F = 4 * draw.normal(size=F)
    own, other = answers(draw, 0.8, items_F=difficulty_F), answers(draw, items_F=difficulty_F)
    mixed = other[:, draw.permutation(F)]
    paired, unpaired = difference(own, other), difference(own, mixed)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)
    assert sign_flip(own, other) < 0.01 < 0.05 < sign_flip(own, mixed)
    assert crossed_test(own, other) < 0.05 < crossed_test(own, mixed)


def test_sign_flips_are_those_of_scipy() -> None:
    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return values.mean(axis=axis)

    own, other = np.array([[1.0, 1.0, 1.0, 0.0]]), np.zeros((1, 4))
    assert sign_flip(own, other) == pytest.approx(2 * 2 / 16, abs=0.02)  # +++0 and ---0, and 0 has two signs
    draw = np.random.default_rng(10)
    for effect in (0.0, 0.2, 0.4):
        own, other = two_methods(draw, effect)
        theirs = stats.permutation_test(
            (own.mean(axis=0) - other.mean(axis=0),), mean, permutation_type="samples", vectorized=True, rng=draw
        )
        assert sign_flip(own, other) == pytest.approx(theirs.pvalue, abs=0.02)


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.20: x 4, x 3, x 2, x 1, and never below the one before
    assert holm([0.03, 0.01, 0.20, 0.02]) == pytest.approx([0.06, 0.04, 0.20, 0.06])
    adjusted = holm([0.04, float("nan"), 0.9, 0.6])
    assert adjusted[0] == pytest.approx(0.12) and np.isnan(adjusted[1]) and adjusted[2:] == [1.0, 1.0]
    assert holm([]) == []


def test_nothing_is_random() -> None:
    pair = two_methods(np.random.default_rng(7), effect=0.3)
    for function in (difference, sign_flip, crossed_test):
        assert function(*pair) == function(*(table.copy() for table in pair))
    assert interval(pair[0]) == interval(pair[0].copy())


def test_edges() -> None:
    same = answers(np.random.default_rng(8))
    assert difference(same, same) == (0.0, 0.0, 0.0)
    assert sign_flip(same, same) == crossed_test(same, same) == 1.0
    assert crossed_test(np.ones((3, 10)), np.zeros((3, 10))) == 0.0
    assert np.isnan(crossed_test(same[:1], same[1:2]))  # one seed says nothing of others
    assert np.isnan(over_seeds([1.0]).low)
    mean, low, high = over_seeds([1.0, 2.0, 3.0])
    assert (mean, low, high) == (2.0, pytest.approx(2 - 2.484, abs=1e-3), pytest.approx(2 + 2.484, abs=1e-3))


def test_one_seed_against_several() -> None:
    """The base model has no seeds: only the items are drawn, the same for both."""
    draw = np.random.default_rng(9)
    own, base = two_methods(draw, effect=1.0)
    gap = difference(own, base[:1])
    assert gap.mean == pytest.approx(own.mean() - base[0].mean())
    assert gap.low < gap.mean < gap.high


def test_languages_count_the_same_and_items_stay_together() -> None:
    items, table = macro([(["a", "b", "c"], np.array([[1.0, 0, 1]])), (["b"], np.array([[1.0]]))])
    assert items == ["a", "b", "c"]
    assert table.mean() == pytest.approx((2 / 3 + 1) / 2)
    np.testing.assert_allclose(table, [[0.5, 1.5, 0.5]])
