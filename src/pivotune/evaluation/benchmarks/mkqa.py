"""MKQA: questions without a passage and with aliases as answers, as DFT and as CC-Tuning ask them."""

from __future__ import annotations

from collections.abc import Sequence

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.cc_release import CC_FILES, cc_benchmark, cc_pairs, occurs, prompted
from pivotune.evaluation.benchmarks.files import CHECK, Folder, aliases, text
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow
from pivotune.evaluation.benchmarks.scoring import text_score
from pivotune.evaluation.metrics import MULTILINGUAL, checked, squad_em, squad_f1, words_of
from pivotune.evaluation.results import ItemResult

CITATION = (
    "Longpre, Lu and Daiber, MKQA: A Linguistically Diverse Benchmark for Multilingual Open Domain Question Answering, "
    "TACL 2021"
)

# (question, answer): the harness has no MKQA, and these are its words for questions on a passage, where it has any.
_WORDS = {
    "ar": ("سؤال", "إجابة"),
    "de": ("Frage", "Antwort"),
    "en": ("Question", "Answer"),
    "ja": ("質問", "回答"),
    "ko": ("질문", "답변"),
    "pt": ("Pergunta", "Resposta"),
    "ru": ("Вопрос", "Ответ"),
    "tr": ("Soru", "Cevap"),
    "vi": ("Câu hỏi", "Trả lời"),
    "zh": ("问题", "回答"),
}


def question_prompt(question: str, language: str) -> str:
    """A question and where its answer begins, in the language."""
    words = _WORDS[language]
    return f"{words[0]}: {question}\n\n{words[1]}:"


def mkqa_f1(prediction: str, answers: Sequence[str | None], language: str) -> float:
    """The official F1 (mkqa_eval.py of apple/ml-mkqa): the best word overlap over all answers and their aliases.

    Args:
        prediction: the model's answer; "" says that there is none.
        answers: all acceptable answers with their aliases, in any order. None and "" mean "no answer", which an empty
            prediction matches.
        language: a BCP-47 tag, or MKQA's own code ("zh_cn").
    """
    texts = _texts(answers)
    if not words_of(prediction, language, MULTILINGUAL):
        return mkqa_em(prediction, texts, language)
    return squad_f1(prediction, texts, language, normalization=MULTILINGUAL)


def mkqa_em(prediction: str, answers: Sequence[str | None], language: str) -> float:
    """The official exact match over all answers and their aliases. Arguments: `mkqa_f1`."""
    return squad_em(prediction, _texts(answers), language, normalization=MULTILINGUAL)


def _texts(answers: Sequence[str | None]) -> list[str]:
    return [answer or "" for answer in checked(answers)]


def _score(item: Item, answer: str) -> ItemResult:
    f1, exact = _f1_em(item, answer)
    return text_score(item, answer, f1, f1, exact)


def _score_cc(item: Item, answer: str) -> ItemResult:
    return text_score(item, answer, occurs(item, answer), *_f1_em(item, answer))


def _f1_em(item: Item, answer: str) -> tuple[float, float]:
    return mkqa_f1(answer, item.answers, item.language), mkqa_em(answer, item.answers, item.language)


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """The 1,000 questions of CC-Tuning's files, without their prompt, in ours."""
    return [
        (where, _item(number, _question(prompt, where), golds, language, place))
        for where, number, prompt, place, golds in _released(folder, language)
    ]


def _read_cc(folder: Folder, language: str, split: str) -> list[Located]:
    """The same with CC-Tuning's prompts."""
    return [
        (where, prompted("cc_mkqa", language, n, p, question=_question(p, where), answers=aliases(golds, place)))
        for where, n, p, place, golds in _released(folder, language)
    ]


def _released(folder: Folder, language: str) -> list[tuple[str, str, str, str, list[str]]]:
    return cc_pairs(folder, "MKQA", "split_sample", "ans_sample", language, list)


def _question(prompt: str, where: str) -> str:
    parts = prompt.split("\n\n")
    if len(parts) < 3:
        raise DataError(where, "wrong file", f"{prompt[:60]!r} has no question between two empty lines", CHECK)
    return "\n\n".join(parts[1:-1]).strip()


def _hub_items(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The questions that have an answer. The others, unanswerable or answered at length, have none to compare with."""
    code = "zh_cn" if language == "zh" else language
    items = []
    for where, row in rows:
        answers = [
            answer
            for one in row["answers"][code]
            for answer in (one["text"], *(one["aliases"] or ()))
            if answer and answer.strip()
        ]
        if answers:
            question = text(row["queries"], code, where).strip()
            items.append((where, _item(str(row["example_id"]), question, answers, language, where)))
    return items


def _item(key: str, question: str, answers: Sequence[str], language: str, where: str) -> Item:
    """`where` is the place of the answers."""
    return Item(
        id=key,
        benchmark="mkqa",
        language=language,
        question=question,
        prompt=question_prompt(question, language),
        answers=aliases(answers, where),
    )


MKQA = Benchmark(
    name="mkqa",
    title="MKQA",
    citation=CITATION,
    languages=("ar", "de", "en", "ja", "ko", "pt", "ru", "tr", "vi", "zh"),
    metric="f1",
    score=_score,
    first_line=True,
    read=_read,
    splits=("test",),
    source=f"{CC_FILES}MKQA/",
    hub=Hub("apple/mkqa", "mkqa", "train", _hub_items),
    paper="dft",
    reported=("vi", "ar", "zh"),
)
CC_MKQA = cc_benchmark(
    "cc_mkqa",
    "MKQA",
    "ar de en ja ko pt ru tr vi zh",
    _read_cc,
    citation=CITATION,
    average=15.94,
    score=_score_cc,
)
