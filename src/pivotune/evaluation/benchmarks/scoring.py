"""Results of generated answers, of the kinds that several benchmarks share. Scores are between 0 and 1."""

from __future__ import annotations

from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.extraction import extract_choice
from pivotune.evaluation.metrics import Normalization, squad_em, squad_f1
from pivotune.evaluation.results import ItemResult


def choice_score(item: Item, answer: str) -> ItemResult:
    """1 where the gold option, and no other, is named."""
    assert item.options is not None
    choice = extract_choice(answer, item.options, item.labels, item.language)
    return ItemResult(
        id=item.id,
        score=float(choice.index == item.gold),
        prediction=answer,
        choice=choice.index,
        gold=item.gold,
        ambiguous=choice.ambiguous,
    )


def overlap_score(item: Item, answer: str, normalization: Normalization) -> ItemResult:
    """F1 with the accepted answer that fits best; exact match is kept beside."""
    f1 = squad_f1(answer, item.answers, item.language, normalization=normalization)
    exact = squad_em(answer, item.answers, item.language, normalization=normalization)
    return text_score(item, answer, f1, f1, exact)


def text_score(item: Item, answer: str, score: float, f1: float, exact_match: float) -> ItemResult:
    """This score of free text, F1 and exact match beside."""
    return ItemResult(id=item.id, score=score, prediction=answer, scores={"f1": f1, "exact_match": exact_match})
