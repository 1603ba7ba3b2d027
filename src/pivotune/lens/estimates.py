"""Means over examples with 95 % intervals, summed as the examples come; and of differences between two models.

Numbers per example come in tables (N examples, K numbers, usually one per layer). A table of truth values is read as
shares, with Wilson's interval (Wilson 1927); any other as numbers, with Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

_CONFIDENCE = 0.95
_UPPER = (1 + _CONFIDENCE) / 2


class Estimate(NamedTuple):
    """A mean over examples and its 95 % interval; the bounds are NaN where a single example says nothing of others."""

    mean: float
    low: float
    high: float


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

    def estimates(self) -> list[Estimate]:
        """One per column; none where no example came."""
        if not self.count:
            return []
        low_K, high_K = self._wilson() if self._shares else self._student(self._mean, self._squares, self.count)
        return [Estimate(*values) for values in torch.stack([self._mean, low_K, high_K], dim=1).tolist()]

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

    def estimates(self) -> list[Estimate]:
        if not self.count or not self._of_shares:
            return super().estimates()
        # The four half examples: differences 1, -1, 0, 0. They widen the interval; the mean stays as measured.
        count = self.count + 2
        discordant_K = self._squares + self.count * self._mean**2 + 1.0
        mean_K = self._mean * self.count / count
        half_K = float(ndtri(_UPPER)) * ((discordant_K / count - mean_K**2) / count).sqrt()
        low_K, high_K = mean_K - half_K, mean_K + half_K
        return [Estimate(*values) for values in torch.stack([self._mean, low_K, high_K], dim=1).tolist()]


def as_columns(estimates: list[Estimate]) -> dict[str, list[float | None]]:
    """For JSON: {"mean": [...], "low": [...], "high": [...]}, one number per column; None for NaN."""
    return {
        name: [None if math.isnan(value) else round(value, 6) for value in (getattr(one, name) for one in estimates)]
        for name in Estimate._fields
    }


Tables = Mapping[str, Tensor]
"""By name, (N, K) numbers or truth values: what a measure says about the examples that it is done with."""
