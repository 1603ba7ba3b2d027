"""MMLU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pivotune.evaluation.benchmarks import harness_task, load
from tests.evaluation.benchmarks.made_up import LETTERS, harness_template


def test_fields(folder: Path) -> None:
    mmlu = load("mmlu", "vi", folder, english=False)[1]
    assert (mmlu.id, mmlu.subject, mmlu.labels, mmlu.gold) == ("anatomy/val/1", "anatomy", LETTERS, 3)
    assert mmlu.options == (" vi a", " vi b", " vi c", " vi d")
    assert load("mmlu", "en", folder)[0].question == "anatomy 0, what?"
    assert load("mmlu", "en", folder, split="dev")[2].id == "virology/dev/0"


@pytest.mark.parametrize("language", ["vi", "ar", "zh"])
def test_mmlu_is_asked_as_the_harness_asks_the_rows_of_the_file(language: str, bench: Path) -> None:
    template = harness_template("okapi/mmlu_multilingual/_default_yaml")
    rows = json.loads((bench / f"mmlu/{language}_val.json").read_text("utf-8"))
    task = harness_task(load("mmlu", language, bench, english=False))
    assert [template.render(row) for row in task.rows["test"]] == [template.render(row) for row in rows]
