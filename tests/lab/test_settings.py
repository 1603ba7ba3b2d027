"""The rows that the lab compares."""

from __future__ import annotations

from dataclasses import replace

from pivotune.lab.settings import BASE, CC, FEATURE, LOGITS, TFT, supervised


def test_the_sections_that_are_there_are_the_method() -> None:
    assert BASE.objectives == TFT.objectives == [] and not BASE.trained and TFT.trained
    assert [type(one).__name__ for one in LOGITS.objectives] == ["DeepSupervisionConfig"]
    assert [type(one).__name__ for one in CC.objectives] == ["CCTuningConfig"]
    both = replace(CC, deep_supervision=supervised())
    assert [type(one).__name__ for one in both.objectives] == ["DeepSupervisionConfig", "CCTuningConfig"]


def test_layers_are_put_where_they_are_automatic() -> None:
    made = FEATURE.at_layers((2, 5)).deep_supervision
    assert made is not None and (made.conversion_layer, made.thinking_layer) == (2, 5)
    given = replace(FEATURE, deep_supervision=supervised(conversion_layer=1)).at_layers((2, 5)).deep_supervision
    assert given is not None and (given.conversion_layer, given.thinking_layer) == (1, 5)
    assert TFT.at_layers((2, 5)) is TFT
