"""TruthfulQA."""

from __future__ import annotations

import json
from pathlib import Path

from pivotune.evaluation.benchmarks import load


def test_truthfulqa_options(folder: Path) -> None:
    english = load("truthfulqa", "en", folder)
    # Rotated by the id; neither the empty wrong answer nor the repeated one nor the right one among the wrong.
    assert [item.options for item in english] == [
        ("wrong two", "best", "wrong one"),
        ("wrong one", "wrong two", "best"),
        ("best", "wrong one", "wrong two"),
    ]
    assert [item.id for item in load("truthfulqa", "vi", folder)] == ["3", "1"]  # the English id minus 1
    assert all(item.options and item.gold is not None and item.options[item.gold] == "best" for item in english)


def test_english_mc1_is_the_published_one(bench: Path) -> None:
    published = json.loads((bench / "truthfulqa/en.json").read_text("utf-8"))
    for item, row in zip(load("truthfulqa", "en", bench), published, strict=True):
        options = dict.fromkeys(option.strip() for option in row["mc1_targets"]["choices"] if option.strip())
        assert item.options is not None and item.gold is not None
        assert set(item.options) == set(options)
        assert item.options[item.gold] == next(iter(options)) and row["mc1_targets"]["labels"].index(1) == 0


def test_truthfulqa_translations_are_one_less_than_english(bench: Path) -> None:
    items = load("truthfulqa", "vi", bench)
    by_id = {item.id: item for item in items}
    assert by_id["1"].english is not None and "dưa hấu" in by_id["1"].question  # watermelon
    same = [item for item in items if item.english and len(item.options or ()) == len(item.english.options or ())]
    assert len(same) / len(items) > 0.95  # any other shift leaves about a quarter


def test_truthfulqa_of_the_hub(hub: Path) -> None:
    """Its rows have no ids, and translations lack some of them."""
    english, translated = load("truthfulqa", "en"), load("truthfulqa", "vi")
    assert [item.id for item in english] == ["en/1", "en/2", "en/3"]
    assert [(item.id, item.question, item.english) for item in translated] == [
        ("vi/1", "q3", None),
        ("vi/2", "q1", None),
    ]
    for items in (english, translated):
        assert [item.gold for item in items] == [1, 2, 0][: len(items)]
        assert [item.options for item in items] == [
            ("wrong two", "best", "wrong one"),
            ("wrong one", "wrong two", "best"),
            ("best", "wrong one", "wrong two"),
        ][: len(items)]
