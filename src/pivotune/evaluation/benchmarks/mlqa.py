"""MLQA: questions on a passage, both in one language, each question in some of seven languages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Located, LocatedRow
from pivotune.evaluation.benchmarks.scoring import overlap_score
from pivotune.evaluation.benchmarks.squad import passage_items, squad_rows
from pivotune.evaluation.metrics import ARTICLES, Normalization, is_punctuation

LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")

MLQA_WORDS = Normalization(
    name="mlqa",
    articles={code: ARTICLES[code] for code in LANGUAGES if code in ARTICLES},
    is_mark=is_punctuation,
    ideographs=("zh",),
    languages=LANGUAGES,
)
"""As mlqa_evaluation_v1.py of facebookresearch/MLQA: the articles of the language, punctuation of every script, each
Chinese character a word. Defined for the seven languages only."""


def _prompt(context: str, question: str) -> str:
    """That of the harness's tasks mlqa_*, in English in every language."""
    return f"Context: {context}\n\nQuestion: {question}\n\nAnswer:"


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """With the white space at the ends of questions, as on the hub."""
    rows = squad_rows(folder, f"mlqa_dev/{split}-context-{language}-question-{language}.json")
    return _items(rows, language, split)


def _items(rows: Iterable[LocatedRow], language: str, split: str) -> list[Located]:
    return passage_items("mlqa", rows, language, _prompt)


MLQA = Benchmark(
    name="mlqa",
    title="MLQA",
    citation="Lewis, Oguz, Rinott, Riedel and Schwenk, MLQA: Evaluating Cross-lingual Extractive Question Answering, "
    "ACL 2020",
    languages=LANGUAGES,
    metric="f1",
    score=partial(overlap_score, normalization=MLQA_WORDS),
    first_line=True,
    read=_read,
    splits=("dev",),
    source="https://github.com/facebookresearch/MLQA, the folder dev of MLQA_V1.zip as mlqa_dev/",
    complete=False,
    hub=Hub("facebook/mlqa", "mlqa.{language}.{language}", "test", _items),
    paper="dft",
    reported=("vi", "ar", "zh"),
    figures={
        "TFT": (28.80, 21.62, 23.86),
        "DFT logits": (31.54, 28.26, 25.68),
        "DFT feature": (32.19, 29.51, 25.29),
    },
)
