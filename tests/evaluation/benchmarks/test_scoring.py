"""Scores of generated answers by hand."""

from __future__ import annotations

from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.scoring import choice_score, overlap_score
from pivotune.evaluation.metrics import SQUAD

CHOICE = Item(id="1", benchmark="b", language="en", prompt="?", options=("a cat", "a dog"), labels=("A", "B"), gold=1)
FREE = Item(id="2", benchmark="b", language="en", prompt="?", answers=("the cat", "a black cat"))


def test_a_choice_is_right_where_the_gold_and_no_other_is_named() -> None:
    for answer, score, choice in (("B", 1.0, 1), ("A", 0.0, 0), ("a dog", 1.0, 1), ("neither", 0.0, None)):
        result = choice_score(CHOICE, answer)
        assert (result.score, result.choice, result.gold, result.prediction) == (score, choice, 1, answer)
    assert choice_score(CHOICE, "A or B").ambiguous


def test_the_answer_that_fits_best_counts() -> None:
    result = overlap_score(FREE, "black cat", SQUAD)
    assert result.score == 1.0 and result.scores == {"f1": 1.0, "exact_match": 1.0}  # articles do not count
    result = overlap_score(FREE, "cat food", SQUAD)
    assert result.scores is not None and result.scores["exact_match"] == 0.0
    assert result.score == result.scores["f1"] == 2 * 0.5 * 1 / 1.5
