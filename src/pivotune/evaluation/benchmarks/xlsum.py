"""XL-Sum: a summary of an article of the BBC, as CC-Tuning asks for it."""

from __future__ import annotations

from pivotune.evaluation.benchmarks.cc_release import cc_benchmark, cc_pairs, gold_text, prompted
from pivotune.evaluation.benchmarks.files import Folder, read_jsonl, text
from pivotune.evaluation.benchmarks.items import Item, Located
from pivotune.evaluation.metrics import rouge_l
from pivotune.evaluation.results import ItemResult


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """100 articles.

    Each language has articles of its own, so the ids hold the language: line 7 is not one item in all languages.
    """
    return [
        (where, prompted("cc_xlsum", language, f"{language}/{number}", prompt, answers=(gold_text(gold, place),)))
        for where, number, prompt, place, gold in cc_pairs(folder, "XLSum", "split_sample", "ans_sample", language, str)
    ]


def _read_english(folder: Folder, language: str, split: str) -> list[Located]:
    """Machine translations of a language's prompts: the languages are not parallel otherwise."""
    prompts = read_jsonl(folder.find(f"cctuning/XLSum/split_sample_en/{language}.json"), dict)
    return [
        (where, prompted("cc_xlsum", "en", f"{language}/{number}", text(row, "instruction", where)))
        for number, (where, row) in enumerate(prompts, start=1)
    ]


def _score(item: Item, answer: str) -> ItemResult:
    best = max(rouge_l(answer, gold, item.language) for gold in item.answers)
    return ItemResult(id=item.id, score=best, prediction=answer)


CC_XLSUM = cc_benchmark(
    "cc_xlsum",
    "XLSum",
    "ar en fr hi id ru sw tr ur vi",
    _read,
    citation="Hasan et al., XL-Sum: Large-Scale Multilingual Abstractive Summarization for 44 Languages, Findings of "
    "ACL-IJCNLP 2021",
    average=13.05,
    metric="rouge_l",
    score=_score,
    read_english=_read_english,
)
