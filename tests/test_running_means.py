"""Means and intervals against scipy and by hand; summed as they come or at once; how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pivotune.uncertainty import Interval, RunningDifference, RunningMean, as_columns

Z = 1.959963984540054


def estimated(table: torch.Tensor, sizes: list[int] | None = None) -> list[Interval]:
    running = RunningMean()
    for part in table.split(sizes or [len(table)]):
        running.add(part)
    assert running.count == len(table)
    return running.estimates()


def differing(table: torch.Tensor, other: torch.Tensor, sizes: list[int] | None = None) -> list[Interval]:
    running = RunningDifference()
    for pair in zip(*(one.split(sizes or [len(one)]) for one in (table, other)), strict=True):
        running.add_pair(*pair)
    return running.estimates()


def numbers(seed: int = 0, n: int = 12, k: int = 3) -> torch.Tensor:
    return torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 5


def shares(seed: int = 0, n: int = 40, chance: tuple[float, ...] = (0.05, 0.5, 0.9)) -> torch.Tensor:
    return torch.rand(n, len(chance), generator=torch.Generator().manual_seed(seed)) < torch.tensor(chance)


# Means ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 12, 200])
def test_numbers_have_students_interval(n: int) -> None:
    table = numbers(n=n)
    for column, found in zip(table.T, estimated(table), strict=True):
        interval = stats.ttest_1samp(column, 0).confidence_interval(0.95)
        assert found == pytest.approx((float(column.mean()), *interval), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 40, 500])
def test_truth_values_have_wilsons_interval(n: int) -> None:
    table = shares(n=n)
    for column, found in zip(table.T, estimated(table), strict=True):
        right = int(column.sum())
        interval = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((right / n, *interval), rel=1e-9, abs=1e-12)


def test_what_comes_in_as_numbers_is_no_share() -> None:
    table = shares()
    as_numbers = torch.cat([table, table]).double()
    for parts in ((table, table.double()), (table.double(), table)):
        running = RunningMean()
        for part in parts:
            running.add(part)
        np.testing.assert_allclose(running.estimates(), estimated(as_numbers), rtol=1e-12)
    assert estimated(as_numbers)[0].low != pytest.approx(estimated(torch.cat([table, table]))[0].low, rel=1e-3)


@pytest.mark.parametrize("sizes", [[1] * 40, [39, 1], [7, 0, 20, 13]])
def test_streaming_equals_at_once(sizes: list[int]) -> None:
    for table, other in ((shares(0), shares(1)), (numbers(0, 40), numbers(1, 40))):
        for streamed, whole in (
            (estimated(table, sizes), estimated(table)),
            (differing(table, other, sizes), differing(table, other)),
        ):
            for found, expected in zip(streamed, whole, strict=True):
                assert found == pytest.approx(expected, rel=1e-12)


def test_small_spread_far_from_zero_keeps_its_digits() -> None:
    table = 0.5 + 1e-7 * numbers(n=50)
    for column, found in zip(table.T, estimated(table, [1, 9, 20, 20]), strict=True):
        half = stats.t.ppf(0.975, 49) * float(column.std()) / math.sqrt(50)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-6)


def test_memory_does_not_grow_with_the_examples() -> None:
    def retained(batches: int) -> int:
        running = RunningDifference()
        for _ in range(batches):
            running.add_pair(numbers(n=2), numbers(1, n=2))
        return sum(value.numel() if isinstance(value, torch.Tensor) else 1 for value in vars(running).values())

    assert retained(2) == retained(200)


def test_low_precision_is_summed_in_float64() -> None:
    table = numbers().to(torch.bfloat16)
    assert estimated(table) == estimated(table.double())


def test_one_number_has_no_interval_and_nothing_no_estimate() -> None:
    (found,) = estimated(torch.tensor([[3.0]]))
    assert found.mean == 3.0 and math.isnan(found.low) and math.isnan(found.high)
    (found,) = differing(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    assert found.mean == 2.0 and math.isnan(found.low) and math.isnan(found.high)
    assert RunningMean().estimates() == RunningDifference().estimates() == []


def test_columns_for_json() -> None:
    assert as_columns([Interval(1.23456789, 0.0, math.nan)]) == {"mean": [1.234568], "low": [0.0], "high": [None]}
    assert as_columns([]) == {"mean": [], "low": [], "high": []}


# Differences ---------------------------------------------------------------------------------------------------------


def test_differences_of_numbers_are_paired() -> None:
    table, other = numbers(0), numbers(1)
    for column, found in enumerate(differing(table, other)):
        interval = stats.ttest_rel(table[:, column], other[:, column]).confidence_interval(0.95)
        assert found == pytest.approx((float((table - other)[:, column].mean()), *interval), rel=1e-12)


def outcomes(both: int, run: int, against: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right in both, in the one, in the other, in none: two (N, 1) tables."""
    kinds = torch.tensor([[1, 1]] * both + [[1, 0]] * run + [[0, 1]] * against + [[0, 0]] * neither, dtype=torch.bool)
    return kinds[:, :1], kinds[:, 1:]


def agresti_min(both: int, run: int, against: int, neither: int) -> tuple[float, float]:
    """Agresti and Min (2005), section 4: Wald's interval of the table with 0.5 added to each of its four cells."""
    b, c, n = run + 0.5, against + 0.5, both + run + against + neither + 2
    half = Z * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return (b - c) / n - half, (b - c) / n + half


@pytest.mark.parametrize("cells", [(20, 6, 2, 12), (5, 0, 0, 5), (0, 3, 0, 0), (0, 0, 0, 1), (50, 1, 30, 9)])
def test_differences_of_shares_are_agresti_and_mins(cells: tuple[int, int, int, int]) -> None:
    (found,) = differing(*outcomes(*cells))
    assert found == pytest.approx(((cells[1] - cells[2]) / sum(cells), *agresti_min(*cells)), rel=1e-12, abs=1e-12)


def test_a_small_table_by_hand() -> None:
    # 10 examples: b = 3, c = 1. With half an example each: b = 3.5, c = 1.5, n = 12.
    # (b - c) / n = 1/6; variance: (5 - 4 / 12) / 144 = 7/216; 1.96 * sqrt(7/216) = 0.352834
    (found,) = differing(*outcomes(4, 3, 1, 2))
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((1 / 6 - 0.352834, 1 / 6 + 0.352834), abs=1e-6)


def test_two_models_that_agree_throughout_may_still_differ() -> None:
    (found,) = differing(*outcomes(10, 0, 0, 10))
    assert found.mean == 0.0 and found.low == -found.high and 0.05 < found.high < 0.15


# How often the interval holds the truth ------------------------------------------------------------------------------


def test_coverage_of_means() -> None:
    draw, held = np.random.default_rng(0), []
    for _ in range(40):
        table = torch.from_numpy(draw.normal(3.0, 2.0, size=(8, 100)))  # 100 experiments of 8 examples
        held += [low <= 3.0 <= high for _, low, high in estimated(table)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [10, 40])
def test_coverage_of_shares(n: int) -> None:
    """Exact: every possible count, weighted with its probability, over all true shares."""
    found = [estimated(torch.arange(n)[:, None] < right)[0] for right in range(n + 1)]
    covered = []
    for truth in np.linspace(0.02, 0.98, 49):
        held = np.array([one.low <= truth <= one.high for one in found])
        covered.append(float(stats.binom.pmf(np.arange(n + 1), n, truth) @ held))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015) and min(covered) > 0.8


def test_coverage_of_differences_of_shares() -> None:
    """Exact: every possible table of 12 examples. The method is known to err on the safe side with few."""
    n = 12
    tables = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    found = [differing(*outcomes(0, b, c, n - b - c))[0] for b, c in tables]
    for chance in ((0.1, 0.1), (0.3, 0.1), (0.4, 0.2), (0.05, 0.3)):
        truth = chance[0] - chance[1]
        law = stats.multinomial(n, [*chance, 1 - sum(chance)])
        covered = sum(
            law.pmf([b, c, n - b - c])
            for (b, c), one in zip(tables, found, strict=True)
            if one.low <= truth <= one.high
        )
        assert 0.93 < covered <= 1.0, (chance, covered)
