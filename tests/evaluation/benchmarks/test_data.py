"""The publishers' own files of all fourteen benchmarks: how many items, whether the languages line up, what is odd."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS, Item, Preset, chance_level, load

# (benchmark, split): items per language, or one number for all of them.
COUNTS: dict[tuple[str, str], int | dict[str, int]] = {
    ("xquad", "validation"): 1190,
    ("mlqa", "dev"): {"ar": 517, "de": 512, "en": 1148, "es": 500, "hi": 507, "vi": 511, "zh": 504},
    ("mkqa", "test"): 1000,
    ("truthfulqa", "validation"): {"ar": 785, "en": 817, "hi": 789, "id": 789, "ru": 793, "vi": 794, "zh": 792},
    ("xnli", "dev"): 2490,
    ("xcopa", "val"): 100,
    ("xstorycloze", "eval"): 1511,
    ("mmlu", "val"): {"ar": 1433, "en": 1531, "vi": 1456, "zh": 1421},
    ("mmlu", "dev"): {"ar": 274, "en": 285, "vi": 271, "zh": 271},
    ("mmlu", "test"): {"en": 14042},
    ("cc_xnli", "test"): 1000,
    ("cc_xstorycloze", "test"): 1511,
    ("cc_mmmlu", "test"): 1000,
    ("cc_xquad", "test"): 1190,
    ("cc_mkqa", "test"): 1000,
    ("cc_xlsum", "test"): 100,
}


@pytest.mark.parametrize(("name", "split"), COUNTS, ids=[f"{name} {split}" for name, split in COUNTS])
def test_counts_golds_and_english(name: str, split: str, bench: Path) -> None:
    expected = COUNTS[name, split]
    counts = expected if isinstance(expected, dict) else dict.fromkeys(BENCHMARKS[name].languages, expected)
    english = {item.id: item for item in load(name, "en", bench, split=split)}
    for language, count in counts.items():
        items = load(name, language, bench, split=split)
        assert len(items) == count, language
        without = [item for item in items if item.english is None]
        assert len(without) == (count if language == "en" else 10 if (name, language) == ("cc_mmmlu", "ko") else 0)
        for item in items:
            assert item.answers and all(answer.strip() for answer in item.answers)
            if item.english is not None and name != "cc_xlsum":
                assert item.english == english[item.id]
            if item.options is not None and item.gold is not None:
                assert item.answers == ((item.labels or item.options)[item.gold],)
            if BENCHMARKS[name].protocol == "generation":
                assert item.prompt and item.prompt.strip() and item.prompt != item.question
            if name in ("xquad", "mlqa", "cc_xquad"):
                assert all(answer in item.context for answer in item.answers)


def test_translations_that_repeat_the_right_option(bench: Path) -> None:
    """These cannot be answered: all that are known, so that a wrong split of the options would show."""
    repeated = {
        (name, language): [item.id for item in load(name, language, bench, english=False) if repeats(item)]
        for name in ("xcopa", "xstorycloze", "truthfulqa", "mmlu", "cc_xnli", "cc_mmmlu")
        for language in BENCHMARKS[name].languages
    }
    assert {where: ids for where, ids in repeated.items() if ids} == {
        ("xstorycloze", "ar"): ["157", "482"],
        ("mmlu", "ar"): ["elementary_mathematics/val/19", "miscellaneous/val/9"],
        ("mmlu", "en"): ["miscellaneous/val/9"],
        ("mmlu", "vi"): ["conceptual_physics/val/12", "nutrition/val/27", "miscellaneous/val/9"],
        ("mmlu", "zh"): ["business_ethics/val/9", "miscellaneous/val/9"],
        ("cc_mmmlu", "ar"): ["50", "828"],
        ("cc_mmmlu", "id"): ["522"],
        ("cc_mmmlu", "ko"): ["13", "64"],
        ("cc_mmmlu", "sw"): ["46", "203", "261", "887"],
    }


def repeats(item: Item) -> bool:
    options = [option.strip() for option in item.options or ()]
    return item.gold is not None and options.count(options[item.gold]) > 1


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_language_of_the_papers_is_there(preset: Preset, bench: Path) -> None:
    for name, languages in preset.languages.items():
        for language in languages:
            items = load(name, language, bench, limit=20)
            assert len(items) == 20
            chance = BENCHMARKS[name].chance
            assert chance is None or chance_level(items) == pytest.approx(chance)


def test_answers_are_spread_over_the_options(bench: Path) -> None:
    """Always naming the same option scores about chance, so a broken model cannot look good."""
    for name in ("xnli", "xcopa", "xstorycloze", "mmlu", "cc_xnli", "cc_xstorycloze", "cc_mmmlu", "truthfulqa"):
        items = load(name, "en", bench)
        most = Counter(item.gold for item in items).most_common(1)[0][1] / len(items)
        assert most == pytest.approx(chance_level(items), abs=0.1 if name == "truthfulqa" else 0.07), name


CC_FILES = {
    "xstorycloze": ("split", "ans", "XStoryCloze"),
    "cc_xstorycloze": ("split", "ans", "XStoryCloze"),
    "mkqa": ("split_sample", "ans_sample", "MKQA"),
    "cc_mkqa": ("split_sample", "ans_sample", "MKQA"),
    "cc_xnli": ("split_sample", "ans_sample", "XNLI"),
    "cc_mmmlu": ("split_sample", "ans_sample", "MMMLU"),
    "cc_xlsum": ("split_sample", "ans_sample", "XLSum"),
}


def golds_in_the_files(bench: Path, name: str, language: str) -> dict[str, tuple[str, str]]:
    """Of each id, a text that is asked and its gold, read without the package, in the plainest way."""

    def lines(path: str) -> list[Any]:
        return [json.loads(line) for line in (bench / path).read_text("utf-8").split("\n") if line]

    if name in ("xquad", "cc_xquad", "mlqa"):
        path = f"mlqa_dev/dev-context-{language}-question-{language}" if name == "mlqa" else f"xquad/xquad.{language}"
        articles = json.loads((bench / f"{path}.json").read_text("utf-8"))["data"]
        asked = [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
        return {qa["id"]: (qa["question"], qa["answers"][0]["text"]) for qa in asked}
    if name == "xnli":
        rows = [row.split("\t") for row in (bench / f"xnli_dev/dev-{language}.tsv").read_text("utf-8").split("\n")]
        return {str(n): (row[1], row[2].strip()) for n, row in enumerate(rows, start=1) if len(row) == 3}
    if name == "xcopa":
        rows = lines(f"xcopa/val-{language}.jsonl")
        return {str(row["idx"]): (row["premise"], row[f"choice{row['label'] + 1}"]) for row in rows}
    if name == "truthfulqa":
        rows = json.loads((bench / f"truthfulqa/{language}_gen.json").read_text("utf-8"))
        return {str(int(row["id"].split("/")[-1]) + 1): (row["question"], row["best_answer"]) for row in rows}
    if name == "mmlu":
        rows = json.loads((bench / f"mmlu/{language}_val.json").read_text("utf-8"))
        return {row["id"]: (row["instruction"], row["answer"]) for row in rows}
    split, ans, folder = CC_FILES[name]
    prompts, golds = (lines(f"cctuning/{folder}/{part}/{language}.json") for part in (split, ans))
    found = {}
    for n, (row, gold) in enumerate(zip(prompts, golds, strict=True), start=1):
        prompt = row["instruction"]
        if name == "xstorycloze":  # its gold is a number, and what is ranked are the texts
            story, first, second = prompt.rpartition("\n\n")[0].replace("\n(2)", "\n(1)").rsplit("\n(1)", 2)
            prompt, gold = story, {"1": first, "2": second}[gold]
        elif name == "mkqa":
            prompt = prompt.split("\n\n")[1]
        found[f"{language}/{n}" if name == "cc_xlsum" else str(n)] = prompt, gold[0] if isinstance(gold, list) else gold
    return found


# The next question of the file is the same one, with another answer.
ASKED_AGAIN = {("cc_xquad", "th"): ["56d704430d65d214001982e0"]}


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_golds_of_the_files_score_1(name: str, bench: Path, tmp_path: Path) -> None:
    """In every language of the paper, through engine, extraction and scorer; the readers' own golds are not used."""
    pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")
    from tests.evaluation.test_runner import cells_of

    for language in PRESETS[BENCHMARKS[name].paper].languages[name]:
        golds = golds_in_the_files(bench, name, language)

        def gold(item: Item, golds: dict[str, tuple[str, str]] = golds) -> str:
            asked, right = golds[item.id]
            assert letters(asked) in letters(f"{item.context}{item.question}\n{item.prompt}")
            return right.strip()

        def log_p(item: Item, option: int, gold: Callable[[Item], str] = gold) -> float:
            return -1.0 if (item.labels or item.options or ())[option] == gold(item) else -2.0

        (cell,) = cells_of(bench, name, [language], tmp_path, gold, log_p)
        assert len(cell.results) == 50
        assert [one.id for one in cell.results if one.score != 1.0] == ASKED_AGAIN.get((name, language), []), language
