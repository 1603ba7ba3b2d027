"""Scores, intervals and tests for answers of several seeds to the same items.

A score rests on two samples: of seeds (another seed trains another model) and of items (other facts could have been
asked). Both are drawn anew where an interval or a test speaks of the method and not only of these models.

Shapes in names: S seeds, F items, B resamples. A table of answers is (S, F), 1 where right; tables of several
languages come weighted (`macro`), so that a mean is always the mean over all cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from pivotune.evaluation.statistics import crossed_test, holm

__all__ = ["Interval", "crossed_test", "difference", "holm", "interval", "macro", "over_seeds", "ratio", "sign_flip"]

RESAMPLES = 10_000
FLIPS = 9_999
SEED = 0


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def macro(tables: Sequence[tuple[Sequence[str], np.ndarray]]) -> tuple[list[str], np.ndarray]:
    """Several languages as one table whose mean is the mean of the languages' means.

    One column per item, whatever the languages that ask for it, so that resampling an item takes it in all of them.

    Args:
        tables: per language the items' names and the answers, (S, F_language).
    """
    names = sorted({name for items, _ in tables for name in items})
    column = {name: k for k, name in enumerate(names)}
    out_SF = np.zeros((len(tables[0][1]), len(names)))
    for items, right_SF in tables:
        out_SF[:, [column[name] for name in items]] += right_SF * len(names) / (len(items) * len(tables))
    return names, out_SF


def interval(right_SF: np.ndarray) -> Interval:
    """Mean and 95 % percentile interval of the two-level bootstrap.

    Seeds and items are crossed, each resampled by itself (the pigeonhole bootstrap: Owen, Annals of Applied Statistics
    2007). It counts the luck of single answers up to three times, so where that is most of the spread the interval is
    too wide, and may hold 0 where `crossed_test` rejects it; five seeds that differ much make it a little too narrow.
    A single seed counts as the only one there is.
    """
    right_SF = np.asarray(right_SF, dtype=np.float64)
    return _percentiles(float(right_SF.mean()), _resampled(right_SF))


def ratio(right_SF: np.ndarray, weight_F: np.ndarray) -> Interval:
    """`interval` of a table from `macro` whose languages have not all been asked the same items: a resample that holds
    more of the items of many languages would otherwise count as a better score. `weight_F`: the same table of ones."""
    weights_1F = np.asarray(weight_F, dtype=np.float64)[None]
    right_SF = np.asarray(right_SF, dtype=np.float64)
    mean_B = _resampled(right_SF) / _resampled(np.repeat(weights_1F, len(right_SF), axis=0))
    return _percentiles(float(right_SF.mean() / weights_1F.mean()), mean_B)


def difference(right_SF: np.ndarray, other_SF: np.ndarray) -> Interval:
    """Mean difference and its interval by the same bootstrap: the same items and, where both have as many, the same
    seeds are drawn on both sides."""
    right_SF, other_SF = (np.asarray(table, dtype=np.float64) for table in (right_SF, other_SF))
    if len(right_SF) == len(other_SF):
        return interval(right_SF - other_SF)
    mean = float(right_SF.mean() - other_SF.mean())
    return _percentiles(mean, _resampled(right_SF) - _resampled(other_SF))


def sign_flip(right_SF: np.ndarray, other_SF: np.ndarray) -> float:
    """Two-sided p of the paired permutation test over items, on answers averaged over seeds.

    As `scipy.stats.permutation_test` of one sample; the flips are drawn once for all tests, which makes it fast. It
    speaks of these trained models: what the seeds share over all items it takes for an effect.
    """
    apart_F = np.mean(right_SF, axis=0) - np.mean(other_SF, axis=0)
    flipped_B = _signs(len(apart_F)) @ apart_F
    as_far = np.abs(flipped_B) >= np.abs(apart_F.sum()) - 1e-9  # sums in another order differ by rounding
    return float((1 + as_far.sum()) / (1 + FLIPS))


def over_seeds(value_S: Sequence[float]) -> Interval:
    """Mean and 95 % t interval over seeds of a number that is no answer to an item."""
    values = np.asarray(value_S, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(mean, mean - half, mean + half)


def _resampled(right_SF: np.ndarray) -> np.ndarray:
    """(B,) means, items and seeds drawn with replacement. Tables of one shape share their draws."""
    seeds_BS, items_BF = _draws(*right_SF.shape)
    return ((seeds_BS @ right_SF) * items_BF).sum(axis=1)


@lru_cache(maxsize=8)
def _draws(seeds: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each item is drawn, as shares: (B, S), (B, F)."""
    draw = np.random.default_rng(SEED)
    items_BF = draw.multinomial(items, np.full(items, 1 / items), size=RESAMPLES) / items
    return np.random.default_rng(SEED + 1).multinomial(
        seeds, np.full(seeds, 1 / seeds), size=RESAMPLES
    ) / seeds, items_BF


@lru_cache(maxsize=8)
def _signs(items: int) -> np.ndarray:
    """(B, F): 1 or -1."""
    return np.random.default_rng(SEED).choice(np.array([-1.0, 1.0]), size=(FLIPS, items))


def _percentiles(mean: float, mean_B: np.ndarray) -> Interval:
    low, high = np.percentile(mean_B, [2.5, 97.5])
    return Interval(mean, float(low), float(high))
