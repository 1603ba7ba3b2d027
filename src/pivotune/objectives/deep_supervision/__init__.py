"""Deep supervision (DFT): the objective, its choice of layers, and what the lens measures of it."""

from pivotune.objectives.deep_supervision.objective import DeepSupervision, DeepSupervisionConfig
from pivotune.objectives.deep_supervision.settle import LAYERS_FILE

__all__ = ["LAYERS_FILE", "DeepSupervision", "DeepSupervisionConfig"]
