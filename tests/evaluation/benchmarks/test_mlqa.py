"""MLQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pivotune.evaluation.benchmarks import BENCHMARKS, Item, load
from pivotune.evaluation.benchmarks.mlqa import MLQA_WORDS
from pivotune.evaluation.metrics import squad_em, squad_f1
from tests.evaluation.benchmarks.made_up import harness_template


def test_fields(folder: Path) -> None:
    prompt = "Context: vi1 is in the context.\n\nQuestion:  vi question 1? \n\nAnswer:"  # as the harness prints it
    second = load("mlqa", "vi", folder, english=False)[1]
    raw: dict[str, Any] = dict(context="vi1 is in the context.", question=" vi question 1? ", answers=("vi1",))
    assert second == Item(id="q1", benchmark="mlqa", language="vi", prompt=prompt, **raw)


@pytest.mark.parametrize("language", BENCHMARKS["mlqa"].languages)
def test_mlqa_is_asked_as_the_harness_asks_the_rows_of_the_file(language: str, bench: Path) -> None:
    """Its data set on the hub has contexts and questions with their white space."""
    template = harness_template("mlqa/mlqa_common_yaml")
    path = bench / f"mlqa_dev/dev-context-{language}-question-{language}.json"
    asked = {
        qa["id"]: template.render(context=paragraph["context"], question=qa["question"])
        for article in json.loads(path.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }
    assert {item.id: item.prompt for item in load("mlqa", language, bench, english=False)} == asked


# language, prediction, gold, F1, whether it is an exact match
MLQA = [
    ("en", "the Eiffel Tower in Paris", "Eiffel Tower", 2 * 2 / (4 + 2), False),
    ("en", "An APPLE!", "the apple", 1, True),
    ("en", "Paris", "London", 0, False),
    ("es", "la Ciudad de México.", "ciudad de México", 1, True),  # "de" is no article
    ("es", "unos gatos negros", "los gatos", 2 * 1 / (2 + 1), False),
    ("de", "Der Rhein", "dem Rhein", 1, True),
    ("de", "durch die Straße", "Straße", 2 * 1 / (2 + 1), False),
    ("vi", "những con mèo", "con mèo", 1, True),
    ("vi", "thủ đô của Việt Nam", "Việt Nam", 2 * 2 / (4 + 2), False),
    ("ar", "الكتاب الجديد", "كتاب", 2 * 1 / (2 + 1), False),
    ("ar", "العالم", "عالم", 1, True),  # both become "ع م": the letters of the article go inside of words too
    ("ar", "في عام ١٩٩٩؟", "عام ١٩٩٩", 2 * 2 / (3 + 2), False),
    ("hi", "नई दिल्ली।", "दिल्ली", 2 * 1 / (2 + 1), False),
    ("hi", "“नई दिल्ली”", "नई दिल्ली", 1, True),
    ("zh", "在北京大学", "北京大学", 2 * 4 / (5 + 4), False),
    ("zh", "北京，中国。", "北京中国", 1, True),
    ("zh", "2008年 奥运会", "2008年奥运会", 1, True),
    ("zh", "iPhone手机", "手机", 2 * 2 / (3 + 2), False),
]


@pytest.mark.parametrize(("language", "prediction", "gold", "f1", "exact"), MLQA)
def test_mlqa(language: str, prediction: str, gold: str, f1: float, exact: bool) -> None:
    assert squad_f1(prediction, [gold], language, normalization=MLQA_WORDS) == pytest.approx(f1, abs=1e-12)
    assert squad_em(prediction, [gold], language, normalization=MLQA_WORDS) == exact
