"""MMLU: questions of 57 subjects with four options, in English and in Okapi's translations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.files import CHECK, Folder, index_of, read_records, read_zipped_csv, text
from pivotune.evaluation.benchmarks.harness import HarnessTask, row_of
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow

LETTERS = ("A", "B", "C", "D")


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """English CSV files in a zip archive, translations as JSON.

    The id is subject/split/row, the row counted from 0 in the English file.
    """
    if language == "en":
        return _items(_english_rows(folder, split), language, split)
    return _items(read_records(folder.find(f"mmlu/{language}_{split}.json")), language, split)


def _items(rows: Iterable[LocatedRow], language: str, split: str) -> list[Located]:
    """Of Okapi's rows, which are those of the hub. Options keep their white space: the harness prints them so."""
    items = []
    for where, row in rows:
        key, answer = text(row, "id", where), text(row, "answer", where)
        if not re.fullmatch(rf"\w+/{split}/\d+", key):
            problem = f"field 'id' is {key!r}, expected '<subject>/{split}/<row>'"
            raise DataError(where, "bad field", problem, CHECK)
        item = Item(
            id=key,
            benchmark="mmlu",
            language=language,
            question=text(row, "instruction", where).strip(),
            subject=key.split("/")[0],
            options=tuple(text(row, f"option_{letter}", where) for letter in "abcd"),
            labels=LETTERS,
            gold=index_of(answer, LETTERS, where),
            answers=(answer,),
        )
        items.append((where, item))
    return items


def _english_rows(folder: Folder, split: str) -> Iterator[LocatedRow]:
    path = folder.find("mmlu/en_mmlu.zip")
    for file, name, rows in read_zipped_csv(path, f"data/{split}"):
        subject = name.removesuffix(f"_{split}")
        for number, row in enumerate(rows):
            where = f"{file}: row {number}"
            if len(row) != 6 or not all(cell.strip() for cell in row):
                problem = f"{len(row)} cells, expected a question, four options and a letter, none empty"
                raise DataError(where, "malformed line", problem, CHECK)
            columns = ("instruction", "option_a", "option_b", "option_c", "option_d", "answer")
            yield where, {"id": f"{subject}/{split}/{number}", **dict(zip(columns, row, strict=True))}


def _task(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [
        row_of(
            item,
            instruction=item.question,
            answer=item.answers[0],
            **{f"option_{letter}": option for letter, option in zip("abcd", item.options or (), strict=True)},
        )
        for item in items
    ]
    return HarnessTask(f"m_mmlu_{language}", {"fewshot_split": None}, {"test": rows})


MMLU = Benchmark(
    name="mmlu",
    title="MMLU",
    citation="Hendrycks et al., Measuring Massive Multitask Language Understanding, ICLR 2021; translations: Lai et "
    "al., Okapi: Instruction-tuned Large Language Models in Multiple Languages, EMNLP 2023",
    languages=("ar", "en", "vi", "zh"),
    chance=1 / 4,
    task=_task,
    read=_read,
    splits=("val", "dev", "test"),
    source="https://github.com/nlp-uoregon/mlmm-evaluation as mmlu/<language>_<split>.json, "
    "English from https://github.com/hendrycks/test as mmlu/en_mmlu.zip",
    complete=False,
    hub=Hub("alexandrainst/m_mmlu", "{language}", "test", _items),
    paper="dft",
    reported=("vi", "ar", "zh"),
    figures={
        "TFT": (33.23, 28.05, 32.34),
        "DFT logits": (32.60, 29.06, 33.19),
        "DFT feature": (32.19, 28.86, 32.82),
    },
)
