"""What is compared: every row of every grid. Read this file to know the experiment.

A row changes what its name says and nothing else: model, data, steps, schedule and scoring are those of all others
(`pivotune.lab.settings`). The learning rate is the one thing that is tuned, for each method by itself, from the same
list.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pivotune.lab import settings
from pivotune.lab.settings import Setting, by_feature, supervised

LEARNING_RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
TUNING_SEEDS = 1000  # the first seed of the runs that choose the learning rate: none of them is reported

Recipe = Literal["target", "english", "with english", "shuffled"]
"""What a row trains on: questions in the target languages; their English counterparts instead; both; or the questions
with the English of another question each."""

Budget = Literal["steps", "flops"]
"""As many steps as plain fine-tuning on the target languages (TFT), or as many as its FLOPs pay for."""


@dataclass(frozen=True)
class GridSetting(Setting):
    """One row of a grid.

    Attributes:
        recipe: what it trains on.
        rate_of: the row that chose its learning rate; itself where empty.
        passes: over the target questions relative to TFT, where the budget is in steps.
    """

    recipe: Recipe = "target"
    rate_of: str = ""
    passes: float = 1.0

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

    def content(self) -> dict[str, Any]:
        """What makes it this row, whatever it is called."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in ("name", "rate_of")}


# The demo's rows are those of the grids.
BASE, TFT, LOGITS, FEATURE, CC = (
    GridSetting(**vars(one)) for one in (settings.BASE, settings.TFT, settings.LOGITS, settings.FEATURE, settings.CC)
)

METHODS = (
    replace(TFT, name="SFT (English only)", recipe="english"),
    TFT,
    replace(TFT, name="TFT + English", recipe="with english"),
    LOGITS,
    GridSetting("logits, position-wise", supervised(reading="position_wise")),
    FEATURE,
    GridSetting("feature, last token", by_feature(pooling="last_token")),
    CC,
    replace(LOGITS, name="CC + logits", cc_tuning=CC.cc_tuning),
    replace(FEATURE, name="CC + feature", cc_tuning=CC.cc_tuning),
)
"""The methods: each has its own learning rate, and is compared with TFT at equal steps and at equal FLOPs."""

PARTS = (
    GridSetting("logits, LC only", supervised(english_thinking="off"), rate_of="logits"),
    GridSetting("logits, ET only", supervised(language_conversion="off"), rate_of="logits"),
    GridSetting("feature, LC only", by_feature(english_thinking="off"), rate_of="feature"),
    GridSetting("feature, ET only", by_feature(language_conversion="off"), rate_of="feature"),
)
"""One supervised layer instead of two."""

BROKEN = tuple(
    replace(one, name=f"{one.name}, shuffled", recipe="shuffled", rate_of=one.name) for one in (LOGITS, FEATURE, CC)
)
"""Each question with the English of another one. Where these gain as much, the English is not what helps."""

HEADLINE = METHODS + PARTS + BROKEN


def _changed(of: str, what: str, **options: Any) -> GridSetting:
    """The method `of` with one option changed."""
    setting = by_name(of)
    group = "cc_tuning" if setting.cc_tuning is not None else "deep_supervision"
    changed: Any = replace(getattr(setting, group), **options)
    return replace(setting, name=f"{of}: {what}", rate_of=of, **{group: changed})


def by_name(name: str) -> GridSetting:
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


def reference_of(setting: GridSetting) -> GridSetting:
    """The row that an ablation is compared with."""
    return by_name(setting.tuned_as)


def layer_pairs(setting: GridSetting, num_layers: int) -> dict[tuple[int, int], GridSetting]:
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
