"""The rows of the demo, and everything that all rows share: data, length, schedule, scoring.

A row changes what its name says and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig

TRAINING: Mapping[str, Any] = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,  # pairs at a time that the Transform Matrix is fitted on
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.0,
    "logging_steps": 10,
    "logging_first_step": True,
}
STYLE: Literal["plain"] = "plain"  # of prompts
MAX_LENGTH = 128  # tokens of a prompt and its answer; no question of the lab is longer
EPOCHS = 3.0  # of plain fine-tuning on the target languages; every row makes as many steps as that is
ANSWER_TOKENS = 24  # generated at most
INSIDE_PAIRS = 128  # per language, that the inside of a model is read on


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        name: in tables and on the command line.
        deep_supervision, cc_tuning: its objectives, where it has them; without any it is plain fine-tuning.
        trained: False is the base model.
    """

    name: str
    deep_supervision: DeepSupervisionConfig | None = None
    cc_tuning: CCTuningConfig | None = None
    trained: bool = True

    @property
    def objectives(self) -> list[Any]:
        """Options of its objectives, for `RunConfig`."""
        return [one for one in (self.deep_supervision, self.cc_tuning) if one is not None]

    def at_layers(self, layers: tuple[int, int]) -> Self:
        """With numbers where the layers are `auto`."""
        options = self.deep_supervision
        if options is None:
            return self
        numbers: dict[str, Any] = {
            name: number
            for name, number in zip(("conversion_layer", "thinking_layer"), layers, strict=True)
            if getattr(options, name) == "auto"
        }
        return replace(self, deep_supervision=replace(options, **numbers))


def supervised(**options: Any) -> DeepSupervisionConfig:
    """Deep supervision at the layers that the rule chooses, by its logits signal unless the options say otherwise."""
    return DeepSupervisionConfig(**({"conversion_layer": "auto", "thinking_layer": "auto"} | options))


def by_feature(**options: Any) -> DeepSupervisionConfig:
    """The same by its feature signal."""
    return supervised(**({"language_conversion": "feature", "english_thinking": "feature"} | options))


BASE = Setting("base model", trained=False)
TFT = Setting("TFT")
"""Plain fine-tuning on the target languages."""
LOGITS = Setting("logits", supervised())
FEATURE = Setting("feature", by_feature())
CC = Setting("CC", cc_tuning=CCTuningConfig())
