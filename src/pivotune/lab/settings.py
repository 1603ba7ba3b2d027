"""What is compared: every row of every grid, and everything that all rows share. Read this file to know the experiment.

A row changes what its name says and nothing else: model, data, steps, schedule and scoring are those of all others.
The learning rate is the one thing that is tuned, for each method by itself, from the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

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
LEARNING_RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
TUNING_SEEDS = 1000  # the first seed of the runs that choose the learning rate: none of them is reported

Recipe = Literal["target", "english", "with english", "shuffled"]
"""What a row trains on: questions in the target languages; their English counterparts instead; both; or the questions
with the English of another question each."""

Budget = Literal["steps", "flops"]
"""As many steps as plain fine-tuning on the target languages (TFT), or as many as its FLOPs pay for."""


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        name: in tables and on the command line.
        deep_supervision, cc_tuning: its objectives, where it has them; without any it is plain fine-tuning.
        recipe: what it trains on.
        rate_of: the row that chose its learning rate; itself where empty.
        passes: over the target questions relative to TFT, where the budget is in steps.
        trained: False is the base model.
    """

    name: str
    deep_supervision: DeepSupervisionConfig | None = None
    cc_tuning: CCTuningConfig | None = None
    recipe: Recipe = "target"
    rate_of: str = ""
    passes: float = 1.0
    trained: bool = True

    @property
    def objectives(self) -> list[Any]:
        """Options of its objectives, for `RunConfig`."""
        return [one for one in (self.deep_supervision, self.cc_tuning) if one is not None]

    @property
    def tuned_as(self) -> str:
        return self.rate_of or self.name

    @property
    def terms(self) -> dict[str, str]:
        """The supervised terms and their signals, e.g. {"language_conversion": "logits"}."""
        options = self.deep_supervision
        if options is None:
            return {}
        signals = {
            "language_conversion": options.language_conversion,
            "english_thinking": options.english_thinking,
        }
        return {name: signal for name, signal in signals.items() if signal != "off"}

    def at_layers(self, layers: tuple[int, int]) -> Setting:
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

    def content(self) -> dict[str, Any]:
        """What makes it this row, whatever it is called."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in ("name", "rate_of")}


def _supervised(**options: Any) -> DeepSupervisionConfig:
    return DeepSupervisionConfig(**({"conversion_layer": "auto", "thinking_layer": "auto"} | options))


def _feature(**options: Any) -> DeepSupervisionConfig:
    return _supervised(**({"language_conversion": "feature", "english_thinking": "feature"} | options))


LOGITS, FEATURE, CONNECTION = _supervised(), _feature(), CCTuningConfig()

BASE = Setting("base model", trained=False)
TFT = Setting("TFT")

METHODS = (
    Setting("SFT (English only)", recipe="english"),
    TFT,
    Setting("TFT + English", recipe="with english"),
    Setting("logits", LOGITS),
    Setting("logits, position-wise", _supervised(reading="position_wise")),
    Setting("feature", FEATURE),
    Setting("feature, last token", _feature(pooling="last_token")),
    Setting("CC", None, CONNECTION),
    Setting("CC + logits", LOGITS, CONNECTION),
    Setting("CC + feature", FEATURE, CONNECTION),
)
"""The methods: each has its own learning rate, and is compared with TFT at equal steps and at equal FLOPs."""

PARTS = (
    Setting("logits, LC only", _supervised(english_thinking="off"), rate_of="logits"),
    Setting("logits, ET only", _supervised(language_conversion="off"), rate_of="logits"),
    Setting("feature, LC only", _feature(english_thinking="off"), rate_of="feature"),
    Setting("feature, ET only", _feature(language_conversion="off"), rate_of="feature"),
)
"""One supervised layer instead of two."""

BROKEN = (
    Setting("logits, shuffled", LOGITS, recipe="shuffled", rate_of="logits"),
    Setting("feature, shuffled", FEATURE, recipe="shuffled", rate_of="feature"),
    Setting("CC, shuffled", None, CONNECTION, recipe="shuffled", rate_of="CC"),
)
"""Each question with the English of another one. Where these gain as much, the English is not what helps."""

HEADLINE = METHODS + PARTS + BROKEN


def _changed(of: str, what: str, **options: Any) -> Setting:
    """The method `of` with one option changed."""
    setting = by_name(of)
    group = "cc_tuning" if setting.cc_tuning is not None else "deep_supervision"
    changed = replace(getattr(setting, group), **options)
    return replace(setting, name=f"{of}: {what}", rate_of=of, **{group: changed})


def by_name(name: str) -> Setting:
    """A row of the headline grid."""
    return next(setting for setting in HEADLINE if setting.name == name)


def _weights(value: float) -> dict[str, float]:
    return {"conversion_weight": value, "thinking_weight": value}


ABLATIONS = (
    _changed("logits", "weights 0.3", **_weights(0.3)),
    _changed("logits", "weights 3", **_weights(3.0)),
    _changed("logits", "no final norm", final_norm=False),
    _changed("feature", "weights 0.3", **_weights(0.3)),
    _changed("feature", "weights 3", **_weights(3.0)),
    _changed("feature", "gradient through English", stop_gradient=False),
    _changed("CC", "English fixed", english_gradient=False),
    _changed("CC", "soft selection", selection="soft"),
    _changed("CC", "a matrix per layer", matrix="per_layer"),
    _changed("CC", "no ridge", ridge=0.0),
    replace(by_name("TFT + English"), name="TFT + English: as many target passes", rate_of="TFT + English", passes=2.0),
)
"""The options that the papers leave open, one at a time, each beside the row that it changes."""


def reference_of(setting: Setting) -> Setting:
    """The row that an ablation is compared with."""
    return by_name(setting.tuned_as)


def layer_pairs(setting: Setting, num_layers: int) -> dict[tuple[int, int], Setting]:
    """The row at all pairs of layers 1 <= i < j <= L."""
    assert setting.deep_supervision is not None
    return {
        (i, j): replace(
            setting,
            name=f"{setting.name}, i={i}, j={j}",
            rate_of=setting.tuned_as,
            deep_supervision=replace(setting.deep_supervision, conversion_layer=i, thinking_layer=j),
        )
        for i in range(1, num_layers + 1)
        for j in range(i + 1, num_layers + 1)
    }
