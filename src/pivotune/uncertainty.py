"""Uncertainty: scores, intervals and tests; of one run or several seeds of it, of means summed as the examples come.

**Scores of items** (benchmarks, tables of answers). A score rests on a sample of items, and, where a run was trained
with several seeds, on a sample of seeds too: both are drawn anew in the bootstrap. Intervals are percentile intervals
of `scipy.stats.bootstrap`. Percentile and not BCa, because a mean over a hundred items and more is nearly symmetric, so
that BCa corrects next to nothing, while its jackknife grows with the square of the items (14,042 in the largest
benchmark) and its acceleration, taken from three seeds, is mostly noise. The one place where percentiles fail, scores
that are all alike, is treated exactly (`interval`).

Shapes in names: S seeds, C cells (languages of one benchmark, asked the same items), F items. A *block* (S, C, F) holds
items that are drawn together; NaN where a cell does not have an item. Blocks are drawn independently of each other:
benchmarks, say. A table (S, F) is a block of one cell. The score of blocks is the mean over all their cells' means.

**Running means** (`RunningMean`, `RunningDifference`): numbers per example come in tables (N examples, K numbers,
usually one per layer). A table of truth values is read as shares, with Wilson's interval (Wilson 1927); any other as
numbers, with Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.special import ndtri, stdtrit
from torch import Tensor

RESAMPLES = 4_999
FLIPS = 9_999
SEED = 0
ALPHA = 0.05
_UPPER = 1 - ALPHA / 2
_NUMBERS_AT_ONCE = 4_000_000

Blocks = np.ndarray | Sequence[np.ndarray]
Tables = Mapping[str, Tensor]
"""By name, (N, K) numbers or truth values: what a measure says about the examples that it is done with."""


class Interval(NamedTuple):
    """A mean and its 95 % interval; the bounds are NaN where a single example or seed says nothing of others."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """A score over items and, perhaps, seeds.

    Attributes:
        mean: over seeds and items.
        low, high: its 95 % interval, over items and, where there are several, seeds.
        items: how many there are, over all cells.
        seeds: the score of each seed, in the order given.
    """

    mean: float
    low: float
    high: float
    items: int
    seeds: tuple[float, ...]

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds; None of a single one."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else None

    @property
    def minimum(self) -> float:
        return min(self.seeds)

    @property
    def maximum(self) -> float:
        return max(self.seeds)


class Test(NamedTuple):
    """A two-sided p value and the test that it is of: "mcnemar", "sign-flip" or "crossed"."""

    p: float
    name: str


# Blocks ---------------------------------------------------------------------------------------------------------------


def block(cells: Sequence[tuple[Sequence[str], np.ndarray]]) -> np.ndarray:
    """Several cells as a block (S, C, F).

    Args:
        cells: of each the names of its items, and their scores (S, F_cell) or, of one run, (F_cell,).
    """
    column = {name: k for k, name in enumerate(dict.fromkeys(name for names, _ in cells for name in names))}
    tables = [np.atleast_2d(scores_SF) for _, scores_SF in cells]
    out_SCF = np.full((len(tables[0]), len(cells), len(column)), np.nan)
    for c, ((names, _), table_SF) in enumerate(zip(cells, tables, strict=True)):
        out_SCF[:, c, [column[name] for name in names]] = table_SF
    return out_SCF


def contributions(blocks: Blocks) -> np.ndarray:
    """As a table (S, all F) whose mean over items is the mean over all cells' means.

    One column per item of a block, whatever the cells that ask it, so that a test takes an item in all of them at once.
    """
    blocks = _blocks(blocks)
    cells, items = sum(block.shape[1] for block in blocks), sum(block.shape[2] for block in blocks)
    parts = []
    for block_SCF in blocks:
        count_C = (~np.isnan(block_SCF[0])).sum(axis=1)
        parts.append((np.nan_to_num(block_SCF) / count_C[:, None]).sum(axis=1))
    return np.concatenate(parts, axis=1) * items / cells


# Scores and differences ----------------------------------------------------------------------------------------------


def score(blocks: Blocks, *, resamples: int = RESAMPLES) -> Score:
    """Mean, interval, number of items and each seed's own mean."""
    checked = _blocks(blocks)
    cells = sum(block.shape[1] for block in checked)
    seeds_S = np.concatenate([np.nanmean(block, axis=2) for block in checked], axis=1).sum(axis=1) / cells
    mean, low, high = interval(checked, resamples=resamples)
    items = int(sum((~np.isnan(block[0])).sum() for block in checked))
    return Score(mean, low, high, items, tuple(map(float, seeds_S)))


def interval(blocks: Blocks, *, resamples: int = RESAMPLES) -> Interval:
    """Mean of scores between 0 and 1, and its 95 % percentile interval.

    Seeds and items are crossed, each resampled by itself (the pigeonhole bootstrap: Owen, Annals of Applied Statistics
    2007). A single seed counts as the only one there is.

    Where no two items differ, resampling says nothing. Then the interval is that of Clopper and Pearson (1934): from n
    items alike, at most a share u = 1 - 0.025^(1/n) of all items may be otherwise, and these may lie at either end. For
    n right answers of n this is their exact interval.
    """
    return _percentiles([_blocks(blocks)], (0.0, 1.0), resamples)


def difference(blocks: Blocks, others: Blocks, *, resamples: int = RESAMPLES) -> Interval:
    """Mean difference of paired scores and its interval by the same bootstrap.

    The same items are drawn on both sides. So are the seeds where both have as many; a single one stays as it is.
    """
    own, other = _blocks(blocks), _blocks(others)
    if _same_seeds(own, other):
        sides = [[a - b for a, b in zip(own, other, strict=True)]]
    else:
        sides = [own, [-block for block in other]]
    return _percentiles(sides, (-1.0, 1.0), resamples)


def over_seeds(values_S: Sequence[float]) -> Interval:
    """Mean and 95 % t interval over seeds of a number that is no score of items."""
    running = RunningMean()
    running.add(torch.tensor(values_S, dtype=torch.float64)[:, None])
    return running.estimates()[0]


# Tests ---------------------------------------------------------------------------------------------------------------


def paired_test(blocks: Blocks, others: Blocks, *, flips: int = FLIPS) -> Test:
    """The test for what is compared.

    * one run on each side, one cell, right or wrong: exact McNemar;
    * one run on each side otherwise: sign flips. Both speak of these two models;
    * several seeds on a side: the crossed test, which speaks of the method as far as seeds tell.
    """
    own, other = _blocks(blocks), _blocks(others)
    if max(len(own[0]), len(other[0])) > 1:
        return Test(crossed_test(contributions(own), contributions(other)), "crossed")
    if len(own) == 1 and own[0].shape[1] == 1 and _binary(own[0]) and _binary(other[0]):
        return Test(mcnemar(own[0][0, 0], other[0][0, 0]), "mcnemar")
    return Test(sign_flip(contributions(own), contributions(other), flips=flips), "sign-flip")


def mcnemar(right_F: np.ndarray, other_F: np.ndarray) -> float:
    """Two-sided p of the exact McNemar test: are the items that only one side has right evenly divided?"""
    only_own = int(np.sum(np.asarray(right_F) > other_F))
    only_other = int(np.sum(np.asarray(right_F) < other_F))
    if only_own + only_other == 0:
        return 1.0
    return float(stats.binomtest(only_own, only_own + only_other).pvalue)


def sign_flip(right_SF: np.ndarray, other_SF: np.ndarray, *, flips: int = FLIPS) -> float:
    """Two-sided p of the paired permutation test over items, on scores averaged over seeds; exact for few items.

    It speaks of these trained models: what the seeds share over all items it takes for an effect.
    """
    apart_F = np.mean(np.atleast_2d(right_SF), axis=0) - np.mean(np.atleast_2d(other_SF), axis=0)
    apart_F = apart_F[apart_F != 0]  # another sign changes nothing there
    if len(apart_F) < 2:
        return 1.0
    found = stats.permutation_test(
        (apart_F,),
        _sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        batch=max(1, _NUMBERS_AT_ONCE // len(apart_F)),
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def crossed_test(right_SF: np.ndarray, other_SF: np.ndarray) -> float:
    """Two-sided p of a t-test of paired items that takes seeds AND items for samples; NaN without two seeds on a side.

    The variance of the mean difference in a crossed design, and Satterthwaite's degrees of freedom, are those of the
    quasi-F of Clark (Journal of Verbal Learning and Verbal Behavior 1973). It is never taken to be smaller than what
    either sample alone gives. Seeds are paired in their order where both sides have as many; a single seed counts as
    the only one there is; with other numbers of seeds, each side adds the variance of its own.
    """
    own_SF, other_SF = (np.asarray(table, dtype=np.float64) for table in (right_SF, other_SF))
    if max(len(own_SF), len(other_SF)) < 2 or own_SF.shape[1] < 2:
        return float("nan")
    # Items are paired in any case, so their variance is that of the difference.
    apart_F = own_SF.mean(axis=0) - other_SF.mean(axis=0)
    paired = len(own_SF) == len(other_SF) or min(len(own_SF), len(other_SF)) == 1
    sides = [own_SF - other_SF] if paired else [own_SF, other_SF]
    if not sides[0].any() and paired:
        return 1.0
    F = len(apart_F)
    sources = [(float(apart_F.var(ddof=1)) / F, F - 1, 1)]
    for table_SF in sides:
        S = len(table_SF)
        seed_S, item_F = table_SF.mean(axis=1), table_SF.mean(axis=0)
        rest_SF = table_SF - seed_S[:, None] - item_F[None, :] + table_SF.mean()
        rest_df = (S - 1) * (F - 1)
        sources.append((float(seed_S.var(ddof=1)) / S, S - 1, 1))
        sources.append((float((rest_SF**2).sum()) / rest_df / (S * F), rest_df, -1))
    of_items = sources[0][0]
    of_seeds = sum(variance for variance, _, _ in sources[1::2])
    together = max(sum(sign * variance for variance, _, sign in sources), of_items, of_seeds)
    if together <= 0:  # every model, every item: the same difference
        return 1.0 if apart_F.mean() == 0 else 0.0
    freedom = together**2 / sum(variance**2 / df for variance, df, _ in sources)
    return float(2 * stats.t.sf(abs(apart_F.mean()) / np.sqrt(together), max(freedom, 1.0)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (Scandinavian Journal of Statistics 1979), in the order given; NaN is no test."""
    tested = [k for k, value in enumerate(p) if not np.isnan(value)]
    adjusted, largest = list(map(float, p)), 0.0
    for rank, k in enumerate(sorted(tested, key=lambda k: p[k])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p[k]))
        adjusted[k] = largest
    return adjusted


# Running means --------------------------------------------------------------------------------------------------------


class RunningMean:
    """Streaming mean and variance over examples (Welford 1962; by batches, Chan et al. 1979), in float64.

    Attributes:
        count: examples so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)
        self._shares = True

    def add(self, table_NK: Tensor) -> None:
        """Take in N examples: (N, K), numbers or truth values."""
        if not len(table_NK):
            return
        self._shares = self._shares and table_NK.dtype == torch.bool
        table_NK = table_NK.detach().to("cpu", torch.float64)
        added, mean_K = len(table_NK), table_NK.mean(dim=0)
        shift_K, total = mean_K - self._mean, self.count + added
        within_K, between_K = ((table_NK - mean_K) ** 2).sum(dim=0), shift_K**2 * (self.count * added / total)
        self._squares = self._squares + within_K + between_K
        self._mean = self._mean + shift_K * (added / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """(K,)."""
        return self._mean

    def estimates(self) -> list[Interval]:
        """One per column; none where no example came."""
        if not self.count:
            return []
        low_K, high_K = self._wilson() if self._shares else self._student(self._mean, self._squares, self.count)
        return [Interval(*values) for values in torch.stack([self._mean, low_K, high_K], dim=1).tolist()]

    def _wilson(self) -> tuple[Tensor, Tensor]:
        z2 = float(ndtri(_UPPER)) ** 2 / self.count
        centre_K = (self._mean + z2 / 2) / (1 + z2)
        half_K = (z2 * (self._mean * (1 - self._mean) + z2 / 4)).sqrt() / (1 + z2)
        return centre_K - half_K, centre_K + half_K

    @staticmethod
    def _student(mean_K: Tensor, squares_K: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if count < 2:
            return torch.full_like(mean_K, math.nan), torch.full_like(mean_K, math.nan)
        half_K = float(stdtrit(count - 1, _UPPER)) * (squares_K / (count - 1) / count).sqrt()
        return mean_K - half_K, mean_K + half_K


class RunningDifference(RunningMean):
    """Of paired tables: what one model gives minus what the other gives, example by example.

    For shares, the interval is that of Agresti and Min (2005): the normal one, after half an example is added to each
    of the four outcomes (right in both, in one, in the other, in none). Without these, two models that agree throughout
    would differ by exactly nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_shares = False

    def add_pair(self, table_NK: Tensor, other_NK: Tensor) -> None:
        """Take in N examples of both: (N, K) each, row by row the same examples."""
        self._of_shares = table_NK.dtype == other_NK.dtype == torch.bool
        self.add(table_NK.cpu().double() - other_NK.cpu().double())

    def estimates(self) -> list[Interval]:
        if not self.count or not self._of_shares:
            return super().estimates()
        # The four half examples: differences 1, -1, 0, 0. They widen the interval; the mean stays as measured.
        count = self.count + 2
        discordant_K = self._squares + self.count * self._mean**2 + 1.0
        mean_K = self._mean * self.count / count
        half_K = float(ndtri(_UPPER)) * ((discordant_K / count - mean_K**2) / count).sqrt()
        low_K, high_K = mean_K - half_K, mean_K + half_K
        return [Interval(*values) for values in torch.stack([self._mean, low_K, high_K], dim=1).tolist()]


def as_columns(estimates: list[Interval]) -> dict[str, list[float | None]]:
    """For JSON: {"mean": [...], "low": [...], "high": [...]}, one number per column; None for NaN."""
    return {
        name: [None if math.isnan(value) else round(value, 6) for value in (getattr(one, name) for one in estimates)]
        for name in Interval._fields
    }


# Parts ---------------------------------------------------------------------------------------------------------------


def _blocks(blocks: Blocks) -> list[np.ndarray]:
    """As a list of (S, C, F)."""
    given = [blocks] if isinstance(blocks, np.ndarray) else list(blocks)
    tables = [np.asarray(block, dtype=np.float64) for block in given]
    return [table[:, None, :] if table.ndim == 2 else table for table in tables]


def _same_seeds(own: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(own[0]) == len(other[0]) or min(len(own[0]), len(other[0])) == 1


def _binary(block: np.ndarray) -> bool:
    return bool(np.isin(block[~np.isnan(block)], (0.0, 1.0)).all())


def _sum(values: np.ndarray, axis: int) -> Any:
    return values.sum(axis=axis)


def _percentiles(sides: list[list[np.ndarray]], ends: tuple[float, float], resamples: int) -> Interval:
    """Of the sum over sides, each of which has its own seeds; all have the same items."""
    statistic = _statistic(sides)
    seeds = [len(side[0]) for side in sides]
    items = [block.shape[2] for block in sides[0]]
    # What there is only one of cannot be drawn anew.
    data = tuple(np.arange(count) for count in (*seeds, *items) if count > 1)
    fixed = [count == 1 for count in (*seeds, *items)]

    def of_drawn(*drawn: np.ndarray, axis: int) -> np.ndarray:
        one = drawn[0].ndim == 1
        rest: Iterator[np.ndarray] = iter(drawn)
        all_drawn = [np.zeros((1, 1), int) if is_fixed else np.atleast_2d(next(rest)).astype(int) for is_fixed in fixed]
        found = statistic(all_drawn[: len(seeds)], all_drawn[len(seeds) :])
        return found[0] if one else found

    whole = [np.arange(count)[None] for count in (*seeds, *items)]
    mean = float(statistic(whole[: len(seeds)], whole[len(seeds) :])[0])
    spread = 0.0
    if data:
        found = stats.bootstrap(
            data,
            of_drawn,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _NUMBERS_AT_ONCE // sum(map(len, data))),
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
        spread = float(np.ptp(found.bootstrap_distribution))
    if spread < 1e-12:
        unseen = 1 - 0.025 ** (1 / min(items))
        return Interval(mean, mean - unseen * (mean - ends[0]), mean + unseen * (ends[1] - mean))
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))


def _statistic(sides: list[list[np.ndarray]]) -> Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]:
    """A function of drawn seeds, (B, S) for each side, and drawn items, (B, F) for each block: the (B,) scores."""
    there = [[~np.isnan(block[0]) for block in side] for side in sides]
    filled = [[np.nan_to_num(block) for block in side] for side in sides]

    def statistic(seeds: list[np.ndarray], items: list[np.ndarray]) -> np.ndarray:
        total: Any = 0.0
        for side, masks, seeds_BS in zip(filled, there, seeds, strict=True):
            cells = sum(block.shape[1] for block in side)
            for block_SCF, mask_CF, items_BF in zip(side, masks, items, strict=True):
                S = len(block_SCF)
                share_BS = (seeds_BS[:, :, None] == np.arange(S)).mean(axis=1) if S > 1 else None
                for c in range(block_SCF.shape[1]):
                    if share_BS is None:
                        drawn_BF = block_SCF[0, c][items_BF]
                    else:
                        drawn_BF = np.take_along_axis(share_BS @ block_SCF[:, c], items_BF, axis=1)
                    counts: Any = items_BF.shape[1]
                    if not mask_CF[c].all():
                        counts = np.maximum(mask_CF[c][items_BF].sum(axis=1), 1)
                    total = total + drawn_BF.sum(axis=1) / counts / cells
        return np.asarray(total)

    return statistic
