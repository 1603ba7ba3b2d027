"""What a benchmark is: its protocol follows from its fields, and fields that contradict each other are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pivotune.evaluation.benchmarks import BENCHMARKS
from pivotune.evaluation.benchmarks.benchmark import Benchmark

READ: dict[str, Any] = {"read": lambda folder, language, split: []}
GIVEN: dict[str, Any] = dict(name="mine", title="Mine", citation="@misc{mine}", languages=("en", "sw"))


def test_the_protocol_is_that_of_the_field_that_is_given() -> None:
    ranked = Benchmark(**GIVEN, **READ, task=lambda items, language: None)  # type: ignore[arg-type, return-value]
    answered = Benchmark(**GIVEN, **READ, score=lambda item, answer: None)  # type: ignore[arg-type, return-value]
    assert (ranked.protocol, answered.protocol) == ("likelihood", "generation")


@pytest.mark.parametrize("both", [{}, {"task": print, "score": print}])
def test_a_task_or_a_score(both: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mine: give a task \(likelihood\) or a score \(generation\)"):
        Benchmark(**GIVEN, **READ, **both)


def test_it_must_be_readable_from_somewhere() -> None:
    with pytest.raises(ValueError, match="mine: give read, hub or both"):
        Benchmark(**GIVEN, score=print)  # type: ignore[arg-type]


def test_asked_are_those_that_the_paper_reports() -> None:
    assert Benchmark(**GIVEN, **READ, score=print).asked == ("en", "sw")  # type: ignore[arg-type]
    assert Benchmark(**GIVEN, **READ, score=print, reported=("sw",)).asked == ("sw",)  # type: ignore[arg-type]


@pytest.mark.parametrize("one", BENCHMARKS.values(), ids=lambda one: one.name)
def test_fields_of_those_that_there_are_agree(one: Benchmark) -> None:
    assert list(one.languages) == sorted(set(one.languages)) and set(one.reported) <= set(one.languages)
    for figures in one.figures.values():
        assert isinstance(figures, float) or len(figures) == len(one.reported)
    assert one.read is None or one.splits, "what is read from files has splits"
    assert one.chance is None or 0 <= one.chance < 1
