"""CC-Tuning: the objective, its Transform Matrix, its connection at inference, and what the lens measures of it."""

from pivotune.objectives.cc_tuning.connection import LinearConnection
from pivotune.objectives.cc_tuning.decision_maker import CCTuningConfig, DecisionMaker
from pivotune.objectives.cc_tuning.objective import CCTuning
from pivotune.objectives.cc_tuning.transform_matrix import TransformMatrix, fit_transform_matrix

__all__ = [
    "CCTuning",
    "CCTuningConfig",
    "DecisionMaker",
    "LinearConnection",
    "TransformMatrix",
    "fit_transform_matrix",
]
