"""The objectives: the one table of them. A run has any of these beside the ordinary loss, or none."""

from __future__ import annotations

from typing import Any

from pivotune.errors import PivotuneError
from pivotune.objectives.base import Connection, Objective
from pivotune.objectives.cc_tuning import CCTuning, CCTuningConfig
from pivotune.objectives.deep_supervision import DeepSupervision, DeepSupervisionConfig

OBJECTIVES: dict[str, type[Objective]] = {one.name: one for one in (DeepSupervision, CCTuning)}
"""By name. The order is that of terms in logs and of passes in a step; nothing else depends on it."""


def objective_of(options: Any) -> type[Objective]:
    """The objective that these options are of.

    Raises:
        PivotuneError: they are of none.
    """
    for objective in OBJECTIVES.values():
        if type(options) is objective.Options:
            return objective
    known = ", ".join(one.Options.__name__ for one in OBJECTIVES.values())
    raise PivotuneError(f"objectives: got {options!r}; give instances of {known}.")


__all__ = [
    "OBJECTIVES",
    "CCTuning",
    "CCTuningConfig",
    "Connection",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "Objective",
    "objective_of",
]
