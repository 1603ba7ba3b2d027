"""TruthfulQA as MC1: which of the options is the best answer?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.files import CHECK, Folder, read_records, text, texts
from pivotune.evaluation.benchmarks.harness import HarnessTask, row_of
from pivotune.evaluation.benchmarks.hub import FILES, Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow

# (language, id)
_WITHOUT_WRONG_ANSWER = {("hi", 29)}


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """The right option is `best_answer`; the wrong ones are `incorrect_answers` in the published order, without empty
    ones, repetitions and any that equals the best answer. `correct_answers` other than the best are left out, as MC1
    does. English publishes these very lists as `mc1_targets`.

    Published lists have the right option first, where a tie would count as right. Here the list is rotated so that it
    stands at the question's number modulo the number of options: fixed, and the same in every language with as many.

    One Hindi question is left out: its only wrong answer is translated into the right one.

    The id is the English one. A translated id, "generation/validation/N", is the English id minus 1.
    """
    name = "en" if language == "en" else f"{language}_gen"
    items = []
    for where, record in read_records(folder.find(f"truthfulqa/{name}.json")):
        number = record["id"] if language == "en" and "id" in record else _translated_id(record, where)
        if type(number) is not int:
            raise DataError(where, "bad field", f"field 'id' is {number!r}, expected a number", CHECK)
        best = text(record, "best_answer", where).strip()
        wrong = dict.fromkeys(answer.strip() for answer in texts(record, "incorrect_answers", where))
        options = [best, *(answer for answer in wrong if answer not in ("", best))]
        if (language, number) in _WITHOUT_WRONG_ANSWER:
            continue
        if len(options) < 2:
            raise DataError(where, "bad field", "no incorrect answer differs from the best one", CHECK)
        items.append((where, _item(str(number), number, text(record, "question", where), options, language)))
    return items


def _translated_id(record: dict[str, Any], where: str) -> int:
    matched = re.fullmatch(r"generation/validation/(\d+)", text(record, "id", where))
    if not matched:
        problem = f"field 'id' is {record['id']!r}, expected 'generation/validation/<number>'"
        raise DataError(where, "bad field", problem, CHECK)
    return int(matched[1]) + 1


def _hub_items(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The options as they are but rotated, as those of the files are.

    Translations lack questions here and there and have no ids, so the ids hold the language: row 7 is not one question
    in all languages.
    """
    items = []
    for number, (where, row) in enumerate(rows, start=1):
        targets = row.get("mc1_targets") or {
            "choices": row.get("mc1_targets_choices"),
            "labels": row.get("mc1_targets_labels"),
        }
        options, labels = texts(targets, "choices", where), list(targets["labels"])
        if len(options) < 2 or sorted(labels) != [0] * (len(options) - 1) + [1]:
            problem = f"{len(options)} options with the labels {labels!r:.60}, expected one right one among them"
            raise DataError(where, "bad gold", problem, FILES)
        gold = labels.index(1)
        options = [options[gold], *options[:gold], *options[gold + 1 :]]
        question = text(row, "question", where)
        items.append((where, _item(f"{language}/{number}", number, question, options, language)))
    return items


def _item(key: str, number: int, question: str, options: Sequence[str], language: str) -> Item:
    """Of `options` the first is right, and is rotated to `number` modulo all."""
    gold = number % len(options)
    return Item(
        id=key,
        benchmark="truthfulqa",
        language=language,
        question=question.strip(),
        options=(*options[len(options) - gold :], *options[: len(options) - gold]),
        gold=gold,
        answers=(options[0],),
    )


def _task(items: Sequence[Item], language: str) -> HarnessTask:
    rows = []
    for item in items:
        options = list(item.options or ())
        labels = [int(number == item.gold) for number in range(len(options))]
        if language == "en":
            columns: dict[str, Any] = {"mc1_targets": {"choices": options, "labels": labels}}
        else:  # these tasks read both kinds of targets, and score one
            columns = {f"mc{kind}_targets_choices": options for kind in (1, 2)}
            columns |= {f"mc{kind}_targets_labels": labels for kind in (1, 2)}
        rows.append(row_of(item, question=item.question, gold_index=item.gold, **columns))
    # The harness's files have the right option first, ours do not.
    settings = {"doc_to_target": "gold_index"}
    if language == "en":
        return HarnessTask("truthfulqa_mc1", settings, {"validation": rows})
    return HarnessTask(f"truthfulqa_{language}_mc1", settings, {"val": rows})


TRUTHFULQA = Benchmark(
    name="truthfulqa",
    title="TruthfulQA",
    citation="Lin, Hilton and Evans, TruthfulQA: Measuring How Models Mimic Human Falsehoods, ACL 2022; translations: "
    "Lai et al., Okapi: Instruction-tuned Large Language Models in Multiple Languages, EMNLP 2023",
    languages=("ar", "en", "hi", "id", "ru", "vi", "zh"),
    chance=None,
    task=_task,
    read=_read,
    splits=("validation",),
    source="https://github.com/nlp-uoregon/mlmm-evaluation as truthfulqa/<language>_gen.json, "
    "English from https://github.com/sylinrl/TruthfulQA as truthfulqa/en.json",
    complete=False,
    hub=Hub(
        "alexandrainst/m_truthfulqa",
        "{language}",
        "val",
        _hub_items,
        english=("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    ),
    paper="dft",
    reported=("vi", "ar", "zh"),
)
