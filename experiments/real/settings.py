"""What is compared: each setting with the options that make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pivotune.lens.rule import paper_layers
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig

LAYERS = {"gemma": 18, "smol": 30}
MIDDLE = {"gemma": 11, "smol": 17}
"""Where MEXA of the base is highest (`pivotune lens` on Tatoeba pairs)."""
RISE = {"gemma": 8, "smol": 14}
"""Where it begins to rise."""
LATE = {"gemma": 15, "smol": 26}
"""Where the head can read English from an inner state."""

Objectives = Callable[[str], list[Any]]


@dataclass(frozen=True)
class RealSetting:
    """One row of the table.

    Attributes:
        about: for the table.
        objectives: their options for a model of this name.
        replay: the share of the training examples that is English.
        shuffled: the English side is another example's, a control.
    """

    about: str
    objectives: Objectives = field(default=lambda model: [])
    replay: float = 0.0
    shuffled: bool = False


def _supervision(**options: Any) -> Objectives:
    def made(model: str) -> list[Any]:
        i, j = paper_layers(LAYERS[model])
        return [DeepSupervisionConfig(**{"conversion_layer": i, "thinking_layer": j, **options})]

    return made


def _thinking(model: str, layer: int, weight: float, **options: Any) -> list[Any]:
    """English thinking alone."""
    made = {"language_conversion": "off", "conversion_layer": RISE[model], "thinking_layer": layer, **options}
    return [DeepSupervisionConfig(thinking_weight=weight, **made)]


def _contrast(model: str, weight: float = 0.1) -> list[Any]:
    """The target question's last token at the middle layer, told from other questions by its own English question."""
    contrast = {"feature_loss": "contrast", "english_layer": "same", "pooling": "last_token"}
    return _thinking(model, MIDDLE[model], weight, english_thinking="feature", **contrast)


def _late_logits(model: str) -> list[Any]:
    """The strict signal for the answer alone, where the head can read it, at a tenth of the weight."""
    return _thinking(model, LATE[model], 0.1, english_thinking="logits")


_AUTO_WEIGHTS: dict[str, Any] = {"conversion_weight": "auto", "thinking_weight": "auto", "gradient_share": 0.1}


def _logits_in_scale(model: str) -> list[Any]:
    """The strict signal read by a tuned lens, at layers that it can read, its gradient a tenth of the ordinary one."""
    return [DeepSupervisionConfig(reader="tuned_lens", **_AUTO_WEIGHTS)]


def _feature_in_scale(model: str) -> list[Any]:
    """The relaxed signal about the mean of each side, at the middle's rise and its peak."""
    layers: dict[str, Any] = {"conversion_layer": RISE[model], "thinking_layer": MIDDLE[model], "english_layer": "same"}
    feature: dict[str, Any] = {"language_conversion": "feature", "english_thinking": "feature"}
    how: dict[str, Any] = {"feature_loss": "centred_cosine", "pooling": "last_token"}
    return [DeepSupervisionConfig(**layers, **feature, **how, **_AUTO_WEIGHTS)]


def _in_scale(model: str) -> list[Any]:
    return [CCTuningConfig(connection_layer=RISE[model], relative_norm=0.1, english_gradient=False, matrix="per_layer")]


def _gated(model: str) -> list[Any]:
    """As long as the state that it joins, times a learned number that starts at 0.1."""
    scale: dict[str, Any] = {"relative_norm": 1.0, "gate": True}
    matrix: dict[str, Any] = {"matrix": "per_layer", "ridge": "auto"}
    return [CCTuningConfig(connection_layer=RISE[model], english_gradient=False, **scale, **matrix)]


RECOMMENDED = "contrast"
"""Beside plain fine-tuning in `make real`: of what has been measured, what costs least (docs/results/real.md)."""

SETTINGS: Mapping[str, RealSetting] = {
    "base": RealSetting("the base, not trained"),
    "tft": RealSetting("plain fine-tuning (TFT)"),
    "tft_replay": RealSetting("TFT, a fifth of the examples in English", replay=0.2),
    "logits_paper": RealSetting("deep supervision, logits, as in the paper", _supervision()),
    "feature_paper": RealSetting(
        "deep supervision, feature, as in the paper",
        _supervision(language_conversion="feature", english_thinking="feature"),
    ),
    "logits_scale": RealSetting("logits by a tuned lens, weights by the gradient", _logits_in_scale),
    "feature_scale": RealSetting("centred feature in the middle, weights by the gradient", _feature_in_scale),
    "logits_late": RealSetting("English answer by logits at a late layer, weight 0.1", _late_logits),
    "contrast": RealSetting("contrast at the middle layer, weight 0.1", _contrast),
    "contrast_strong": RealSetting("contrast at the middle layer, weight 1", lambda model: _contrast(model, 1.0)),
    "contrast_shuffled": RealSetting("the same as contrast with other questions' English", _contrast, shuffled=True),
    "contrast_replay": RealSetting("contrast, a fifth of the examples in English", _contrast, replay=0.2),
    "cc_paper": RealSetting("CC-Tuning as released", lambda model: [CCTuningConfig()]),
    "cc_scale": RealSetting("CC-Tuning in scale, behind the middle's rise", _in_scale),
    "cc_gate": RealSetting("CC-Tuning with a learned gate, behind the middle's rise", _gated),
    "cc_scale_shuffled": RealSetting("the same with other questions' English", _in_scale, shuffled=True),
    "both": RealSetting("contrast and CC-Tuning in scale", lambda model: [*_contrast(model), *_in_scale(model)]),
}
