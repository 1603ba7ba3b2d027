"""XCOPA."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks import BENCHMARKS, harness_task, load


def test_fields(folder: Path) -> None:
    copa = load("xcopa", "vi", folder, english=False)[1]
    assert (copa.id, copa.context, copa.question, copa.gold) == ("1", "It rained.", "effect", 1)
    assert copa.options == ("It got wet.", "It got dry.")
    assert harness_task(load("xcopa", "en", folder)).name == "copa"


def test_english_is_another_data_set() -> None:
    assert BENCHMARKS["xcopa"].hub is not None
    assert BENCHMARKS["xcopa"].hub.of("en") == ("aps/super_glue", "copa", "validation")
    assert BENCHMARKS["xcopa"].hub.of("vi") == ("cambridgeltl/xcopa", "vi", "test")


def test_withheld_golds_are_not_taken_for_golds(folder: Path) -> None:
    with pytest.raises(DataError, match=r"all 30 labels are 0.*use split 'val'"):
        load("xcopa", "vi", folder, split="test")


@pytest.mark.parametrize("language", BENCHMARKS["xcopa"].languages)
def test_xcopa_test_files_have_no_golds(language: str, bench: Path) -> None:
    with pytest.raises(DataError, match=r"all 500 labels are 0"):
        load("xcopa", language, bench, split="test")
