"""A number per layer, with its interval."""

from __future__ import annotations

import numpy as np
from scipy import stats

from pivotune.lens.curve import LayerCurve


def test_the_intervals() -> None:
    values = np.random.default_rng(0).normal(5, 1, size=(12, 3))
    for layer, interval in enumerate(LayerCurve(values).intervals):
        low, high = stats.ttest_1samp(values[:, layer], 0).confidence_interval(0.95)
        np.testing.assert_allclose(interval, (values[:, layer].mean(), low, high))
    shares = values > 5
    for layer, interval in enumerate(LayerCurve(shares).intervals):
        low, high = stats.binomtest(int(shares[:, layer].sum()), 12).proportion_ci(method="wilson")
        np.testing.assert_allclose(interval, (shares[:, layer].mean(), low, high))
    assert LayerCurve(values[:1]).as_dict()["low"] == [None] * 3
