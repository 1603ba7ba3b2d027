"""The methods, one file each: a module that owns the model and whose forward returns the loss and its named terms."""

from pivotune.methods.base import Method, MethodOutput, Term
from pivotune.methods.both import ConnectedSupervision
from pivotune.methods.cc_tuning import CCTuning, CCTuningConfig, DecisionMaker
from pivotune.methods.deep_supervision import DeepSupervision, DeepSupervisionConfig
from pivotune.methods.sft import SFT

__all__ = [
    "SFT",
    "CCTuning",
    "CCTuningConfig",
    "ConnectedSupervision",
    "DecisionMaker",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "Method",
    "MethodOutput",
    "Term",
]
