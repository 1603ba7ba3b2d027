"""MMMLU."""

from __future__ import annotations

from pathlib import Path

from pivotune.evaluation.benchmarks import load
from tests.evaluation.benchmarks.made_up import LETTERS, put_cc


def test_fields(folder: Path) -> None:
    choice = load("cc_mmmlu", "ar", folder, english=False)[1]
    assert choice.question.endswith("question 1?") and choice.options == tuple(f"option {x}" for x in LETTERS)
    assert (choice.gold, choice.answers) == (2, ("C",))


def test_the_shifted_korean_lines_have_no_english(folder: Path) -> None:
    listed = "\n".join(f"({letter}) option {letter}" for letter in LETTERS)
    for language in ("en", "ko"):
        prompts = [f"p\n\nq{n}\n{listed}\n\nAnswer:" for n in range(430)]
        golds = ["A" if language == "en" or not 417 <= n < 427 else "B" for n in range(430)]
        put_cc(folder, "MMMLU", "split_sample", "ans_sample", language, prompts, golds)
    items = load("cc_mmmlu", "ko", folder)
    assert [int(item.id) for item in items if item.english is None] == list(range(418, 428))


def test_cc_mmmlu_is_sampled_from_mmlu(bench: Path) -> None:
    """The English prompts are questions of MMLU's test split, with its golds."""
    test = {
        (item.question, tuple(option.strip() for option in item.options or ())): item.gold
        for item in load("mmlu", "en", bench, split="test")
    }
    for item in load("cc_mmmlu", "en", bench):
        question = item.question.split("\n\n", 1)[1].strip()
        assert test[question, item.options] == item.gold
