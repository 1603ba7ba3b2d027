"""Deep supervision and CC-Tuning in one run: the supervised layers are those of the connected pass."""

from __future__ import annotations

from torch import nn

from pivotune.methods.base import Method
from pivotune.methods.cc_tuning import CCTuning, CCTuningConfig
from pivotune.methods.deep_supervision import DeepSupervision, DeepSupervisionConfig


class ConnectedSupervision(CCTuning, DeepSupervision):
    """Fine-tuning with a cross-lingual connection and with supervised inner layers.

    The English pass is shared: it runs once for the activations that are lent and for the states that the feature
    signal points at. States read from the ordinary pass (feature, position_wise) are those of the connected pass; the
    extra passes of the teacher-forced logits signal run without a connection.

    Args:
        model: a causal LM, possibly wrapped by PEFT.
        deep_supervision, cc_tuning: the options of the two methods.
    """

    def __init__(self, model: nn.Module, deep_supervision: DeepSupervisionConfig, cc_tuning: CCTuningConfig):
        Method.__init__(self, model)
        self._supervise(deep_supervision)
        self._connect(cc_tuning)
