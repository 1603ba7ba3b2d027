"""Scores, intervals and tests, on simulated answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pivotune.uncertainty import (
    contributions,
    crossed_test,
    difference,
    holm,
    interval,
    mcnemar,
    paired_test,
    score,
    sign_flip,
)

F = 150


def answers(draw: np.random.Generator, odds_F: np.ndarray, seeds: int = 1, seed_sd: float = 0.0) -> np.ndarray:
    """(S, F): items differ in difficulty, seeds shift all of their items alike, each answer has luck too."""
    shift_S = draw.normal(scale=seed_sd, size=(seeds, 1))
    return (draw.logistic(size=(seeds, len(odds_F))) < odds_F + shift_S).astype(float)


def pair(
    draw: np.random.Generator, effect: float = 0.0, seeds: int = 1, others: int = 1, seed_sd: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    odds_F = draw.normal(size=F)
    return answers(draw, odds_F + effect, seeds, seed_sd), answers(draw, odds_F, others, seed_sd)


# Intervals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.5, 0.9])
def test_intervals_of_one_run_hold_the_truth_as_often_as_they_say(truth: float) -> None:
    draw = np.random.default_rng(0)
    held = []
    for _ in range(300):
        found = interval((draw.random((1, F)) < truth).astype(float), resamples=999)
        held.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(held) <= 0.98


def test_intervals_of_several_seeds_hold_the_truth_about_other_seeds() -> None:
    draw = np.random.default_rng(1)
    truth = float(np.mean([answers(draw, draw.normal(size=F), 1, 0.4).mean() for _ in range(4000)]))
    held = []
    for _ in range(200):
        found = interval(answers(draw, draw.normal(size=F), 8, 0.4), resamples=999)
        held.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_differences_hold_nothing_where_there_is_nothing() -> None:
    draw = np.random.default_rng(2)
    held = []
    for _ in range(300):
        low, high = difference(*pair(draw), resamples=999)[1:]
        held.append(low <= 0 <= high)
    assert 0.91 <= np.mean(held) <= 0.985


def test_pairing_makes_the_interval_narrower() -> None:
    draw = np.random.default_rng(3)
    odds_F = 4 * draw.normal(size=F)
    own, other = answers(draw, odds_F + 0.5), answers(draw, odds_F)
    paired, mixed = difference(own, other), difference(own, other[:, draw.permutation(F)])
    assert paired.mean == pytest.approx(mixed.mean)
    assert paired.high - paired.low < 0.7 * (mixed.high - mixed.low)


def test_one_sample_is_the_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(4).random((1, 80))
    theirs = stats.bootstrap((values[0],), np.mean, method="percentile", n_resamples=20_000, rng=5).confidence_interval
    found = interval(values, resamples=20_000)
    assert found.low == pytest.approx(theirs.low, abs=0.003) and found.high == pytest.approx(theirs.high, abs=0.003)


@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("items", [1, 10, 400])
def test_answers_all_alike_have_clopper_and_pearsons_interval(right: float, items: int) -> None:
    exact = stats.binomtest(int(right * items), items).proportion_ci(method="exact")
    for seeds in (1, 3):
        found = interval(np.full((seeds, items), right))
        assert found.mean == right and (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_two_models_that_agree_throughout_may_differ_elsewhere() -> None:
    same = answers(np.random.default_rng(5), np.zeros(100))
    mean, low, high = difference(same, same)
    assert mean == 0 and low == pytest.approx(-high) and high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_a_score_says_its_seeds() -> None:
    table = np.array([[1.0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    found = score(table)
    assert found.seeds == (0.5, 0.75, 1.0) and found.items == 4
    assert (found.mean, found.minimum, found.maximum) == (0.75, 0.5, 1.0)
    assert found.sd == pytest.approx(0.25)
    assert score(table[:1]).sd is None


# Means over cells ----------------------------------------------------------------------------------------------------


def test_cells_count_the_same_whatever_their_number_of_items() -> None:
    shared = np.full((1, 2, 6), np.nan)  # two languages, of which the second lacks two items
    shared[0, 0], shared[0, 1, :4] = [1, 1, 1, 0, 0, 0], [1, 0, 0, 0]
    alone = np.array([[1.0, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
    found = score([shared, alone])
    assert found.mean == pytest.approx((0.5 + 0.25 + 0.9) / 3) and found.items == 20
    assert found.seeds == pytest.approx((found.mean,)) and found.low < found.mean < found.high
    own, none = contributions([shared, alone]), contributions([np.zeros((1, 2, 6)), np.zeros((1, 10))])
    assert own.shape == none.shape == (1, 16)
    assert own.mean() == pytest.approx(found.mean) and not none.any()


def test_translations_are_drawn_together() -> None:
    """The same answers in two languages say no more than in one; other answers do."""
    draw = np.random.default_rng(6)
    one, other = answers(draw, np.zeros(F)), answers(draw, np.zeros(F))
    twice = interval(np.stack([one, one], axis=1))
    apart = interval(np.stack([one, other], axis=1))
    single = interval(one)
    assert twice == pytest.approx(single)
    assert apart.high - apart.low < 0.85 * (single.high - single.low)


def test_benchmarks_are_drawn_apart() -> None:
    """A mean over benchmarks is no wider because one of them is harder."""
    easy, hard = np.array([[1.0] * 99 + [0.0]]), np.array([[0.0] * 99 + [1.0]])
    low, high = interval([easy, hard])[1:]
    assert high - low < 0.05


# Tests ---------------------------------------------------------------------------------------------------------------


def test_mcnemar_by_hand() -> None:
    own, other = np.array([1.0] * 9 + [0] + [1] * 20), np.array([0.0] * 9 + [1] + [1] * 20)
    assert mcnemar(own, other) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(own, own) == 1.0


def test_sign_flips_by_hand_and_as_drawn() -> None:
    own, other = np.array([[0.9, 0.8, 0.7, 0.5]]), np.array([[0.1, 0.2, 0.3, 0.5]])
    assert sign_flip(own, other) == pytest.approx(2 / 8)  # +++ and ---; the tie has no sign
    assert sign_flip(own, own) == 1.0
    draw = np.random.default_rng(7)
    one, two = draw.random((1, 200)), draw.random((1, 200)) - 0.04
    assert sign_flip(one, two) == pytest.approx(stats.ttest_rel(one[0], two[0]).pvalue, abs=0.02)


def test_the_test_fits_what_is_compared() -> None:
    draw = np.random.default_rng(8)
    own, other = pair(draw)
    assert paired_test(own, other).name == "mcnemar"
    assert paired_test(own * 0.5, other).name == "sign-flip"
    assert paired_test(np.stack([own, own], axis=1), np.stack([other, other], axis=1)).name == "sign-flip"
    assert paired_test(*pair(draw, seeds=3)).name == "crossed"


@pytest.mark.parametrize(("seeds", "others"), [(5, 5), (5, 3)])
@pytest.mark.parametrize("seed_sd", [0.0, 0.6])
def test_the_test_over_seeds_errs_in_one_of_twenty(seeds: int, others: int, seed_sd: float) -> None:
    draw = np.random.default_rng(9)
    p = [crossed_test(*pair(draw, 0.0, seeds, others, seed_sd)) for _ in range(800)]
    assert 0.005 <= np.mean(np.array(p) < 0.05) <= 0.08


def test_what_seeds_share_misleads_the_test_over_items() -> None:
    draw = np.random.default_rng(10)
    pairs = [pair(draw, 0.0, 5, 5, 0.6) for _ in range(100)]
    assert np.mean([sign_flip(*one, flips=499) < 0.05 for one in pairs]) > 0.2


def test_a_planted_effect_is_found() -> None:
    draw = np.random.default_rng(11)
    assert np.mean([paired_test(*pair(draw, 0.9)).p < 0.05 for _ in range(60)]) > 0.85
    assert np.mean([paired_test(*pair(draw, 0.9, 4, 4, 0.2)).p < 0.05 for _ in range(60)]) > 0.8
    assert np.mean([paired_test(*pair(draw, 0.9, 4, 1)).p < 0.05 for _ in range(60)]) > 0.8


@pytest.mark.parametrize("graded", [False, True])
def test_a_family_without_effects_has_a_false_mark_once_in_twenty(graded: bool) -> None:
    """Twelve tests of nothing at a time: uncorrected, about 40 % of the families would have a mark."""
    draw = np.random.default_rng(12)
    corrected, uncorrected = 0, 0
    families = 60 if graded else 400
    for _ in range(families):
        made = [pair(draw) for _ in range(12)]
        if graded:
            made = [(own * draw.random(own.shape), other * draw.random(other.shape)) for own, other in made]
        p = [paired_test(own, other, flips=1999).p for own, other in made]
        corrected += min(holm(p)) < 0.05
        uncorrected += min(p) < 0.05
    assert corrected <= (8 if graded else 30)  # 0.05 of them, and what luck adds
    assert uncorrected > 3 * corrected


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.20: x 4, x 3, x 2, x 1, and never below the one before
    assert holm([0.03, 0.01, 0.20, 0.02]) == pytest.approx([0.06, 0.04, 0.20, 0.06])
    adjusted = holm([0.04, float("nan"), 0.9, 0.6])
    assert adjusted[0] == pytest.approx(0.12) and np.isnan(adjusted[1]) and adjusted[2:] == [1.0, 1.0]
    assert holm([]) == []


def test_edges() -> None:
    same = answers(np.random.default_rng(13), np.zeros(30), seeds=3)
    assert crossed_test(same, same) == 1.0
    assert crossed_test(np.ones((3, 10)), np.zeros((3, 10))) == 0.0
    assert crossed_test(np.ones((3, 10)), np.zeros((2, 10))) == 0.0
    assert crossed_test(np.ones((3, 10)), np.ones((2, 10))) == 1.0
    assert np.isnan(crossed_test(same[:1], same[1:2])) and np.isnan(crossed_test(same[:, :1], same[:, 1:2]))


def test_one_run_against_several_seeds() -> None:
    draw = np.random.default_rng(14)
    own, base = pair(draw, 1.0, 4, 1)
    for found in (difference(own, base), difference(own, np.concatenate([base, base]))):
        assert found.mean == pytest.approx(own.mean() - base.mean())
        assert found.low < found.mean < found.high


def test_nothing_is_random() -> None:
    own, other = pair(np.random.default_rng(15), 0.3, 3, 3)
    for function in (difference, paired_test, sign_flip):
        assert function(own, other) == function(own.copy(), other.copy())
