"""A number per layer over some examples, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pivotune.uncertainty import Interval, RunningMean, as_columns


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """Of each layer, the mean over examples.

    Attributes:
        values: (N, L), a number or a truth value for each example at each layer.
    """

    values: np.ndarray

    @property
    def examples(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> np.ndarray:
        """(L,): the curve."""
        return self.values.mean(axis=0)

    @property
    def intervals(self) -> list[Interval]:
        """Of each layer, the mean and its 95 % interval over examples: Student's t, of truth values Wilson's. The
        bounds are NaN for a single example of numbers."""
        means = RunningMean()
        means.add(torch.from_numpy(self.values))
        return means.estimates()

    def as_dict(self) -> dict[str, Any]:
        """For JSON: layers 1..L in order."""
        return {"examples": self.examples, **as_columns(self.intervals)}
