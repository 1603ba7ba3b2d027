"""MKQA."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.evaluation.benchmarks import BENCHMARKS, load
from pivotune.evaluation.benchmarks.mkqa import mkqa_em, mkqa_f1, question_prompt
from pivotune.evaluation.benchmarks.xquad import passage_prompt
from pivotune.evaluation.metrics import MULTILINGUAL, squad_f1


def test_fields(folder: Path) -> None:
    mkqa = load("mkqa", "ar", folder)[0]
    assert (mkqa.question, mkqa.answers) == ("ar who 0", ("Bo", "Al"))
    assert mkqa.prompt == question_prompt("ar who 0", "ar") == "سؤال: ar who 0\n\nإجابة:"
    cc = load("cc_mkqa", "ar", folder)[0]
    assert (cc.prompt, cc.answers) == ("Please answer.\n\nar who 0\n\nAnswer:", ("Bo", "Al"))


@pytest.mark.parametrize("language", BENCHMARKS["mkqa"].languages)
def test_its_words_are_those_of_questions_on_a_passage(language: str) -> None:
    """Where the harness has any."""
    if language in BENCHMARKS["xquad"].languages:
        assert passage_prompt("C", "Q", language).endswith(f"C\n\n{question_prompt('Q', language)}")


def test_mkqa_of_the_hub_in_chinese_and_without_what_has_no_answer(hub: Path) -> None:
    items = load("mkqa", "zh", english=True)
    assert [(item.id, item.question) for item in items] == [
        ("1", "zh_cn who 0"),
        ("2", "zh_cn who 1"),
        ("3", "zh_cn who 2"),
    ]
    assert items[0].answers == ("Bo", "Al") and items[0].prompt == "问题: zh_cn who 0\n\n回答:"


MKQA = [
    ("en", "The Dixie Cups!", "dixie cups", 1, True),
    ("ar", "في الرياض", "رياض", 2 * 1 / (2 + 1), False),
    ("de", "Die Schlacht", "Schlacht", 1, True),
    ("es", "el Nilo", "Nilo", 1, True),
    ("pt", "O Rio de Janeiro", "Rio de Janeiro", 1, True),
    ("pt", "As ilhas", "ilhas do sul", 2 * 1 / (1 + 3), False),
    ("fr", "les chats", "chats", 2 * 1 / (2 + 1), False),  # "le" goes, "s" stays
    ("it", "Italia", "talia", 1, True),  # the article "i" goes even at the beginning of a word
    ("nl", "de hond", "hond", 1, True),
    ("sv", "en hund", "hund", 1, True),
    ("da", "et hus", "hus", 1, True),
    ("no", "ei bok", "bok", 1, True),
    ("fi", "se talo", "talo", 1, True),
    ("hu", "az alma", "alma", 1, True),
    ("ru", "Чедвик Боузман", "Боузман, Чедвик", 1, False),  # the order of the words counts in EM only
    ("tr", "Mansa Musa'nın", "Mansa", 2 * 1 / (2 + 1), False),
    ("vi", "của Việt Nam", "Việt Nam", 1, True),
    ("pl", "nad Wisłą", "Wisłą", 2 * 1 / (2 + 1), False),
    ("zh", "保罗·泽丁", "保罗泽丁", 2 * 4 / (5 + 4), False),  # "·" is no ASCII punctuation
    ("zh_cn", "曼哈顿", "曼哈顿中城", 2 * 3 / (3 + 5), False),
    ("zh-TW", "紐約 市", "紐約市", 1, True),
    ("ja", "ポール", "ポール・ザーディン", 2 * 3 / (3 + 9), False),
    ("ja", "NBA", "ANB", 1, False),  # Latin letters are cut apart too
    ("th", "กรุงเทพ", "เทพ", 2 * 3 / (7 + 3), False),  # seven characters, the vowel sign among them
    ("km", "ភ្នំពេញ", "ភ្នំ", 2 * 4 / (7 + 4), False),
    ("ko", "폴 저딘", "폴", 2 * 1 / (2 + 1), False),
    ("ko", "폴저딘", "폴", 0, False),
]


@pytest.mark.parametrize(("language", "prediction", "gold", "f1", "exact"), MKQA)
def test_mkqa(language: str, prediction: str, gold: str, f1: float, exact: bool) -> None:
    assert mkqa_f1(prediction, [gold], language) == pytest.approx(f1, abs=1e-12)
    assert mkqa_em(prediction, [gold], language) == exact
    assert squad_f1(prediction, [gold], language, normalization=MULTILINGUAL) == pytest.approx(f1, abs=1e-12)


def test_mkqa_without_an_answer() -> None:
    assert mkqa_f1("", [None], "en") == mkqa_em("", [None], "en") == 1
    assert mkqa_f1("", ["Paris", None], "fr") == 1
    assert mkqa_f1("Paris", [None], "fr") == mkqa_em("Paris", [""], "fr") == 0
    # The point is punctuation, so "3.0" is "30" to the official scorer: its "3" has to be among the aliases.
    assert mkqa_f1("3", ["3.0"], "en") == 0
    assert mkqa_f1("3", ["3.0", "3"], "en") == 1
