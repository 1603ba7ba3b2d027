"""The benchmarks on the hub: the rows of the data sets that lm-evaluation-harness 0.4.13 asks -> located items.

The harness has no MKQA; its data set is the publisher's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks.files import text, texts
from pivotune.evaluation.benchmarks.readers import (
    Located,
    LocatedRow,
    index_of,
    mc1_item,
    mkqa_item,
    mlqa_items,
    mmlu_items,
    story_item,
    xcopa_items,
    xnli_items,
    xquad_items,
)

# (rows, language, split) -> items
RowReader = Callable[[list[LocatedRow], str, str], list[Located]]

_FILES = "give the folder of its files with --data_dir (docs/benchmarks.md)"


@dataclass(frozen=True)
class Hub:
    """Where a benchmark is on the hub.

    Attributes:
        path: the data set.
        config: its configuration; "{language}" stands for the language.
        split: the split that is scored.
        read: makes items of the rows.
        english: (path, config, split) of English where it is another data set. Its items then share no ids with those
            of the other languages.
    """

    path: str
    config: str
    split: str
    read: RowReader = field(repr=False)
    english: tuple[str, str, str] | None = None

    def of(self, language: str) -> tuple[str, str, str]:
        """(path, config, split) of a language."""
        if language == "en" and self.english is not None:
            return self.english
        return self.path, self.config.format(language=language), self.split

    def items(self, benchmark: str, language: str) -> list[Located]:
        """The items of a language.

        Raises:
            PivotuneError: the data set cannot be had; the message names `benchmark`.
            DataError: a row without what this benchmark's rows have.
        """
        path, config, split = self.of(language)
        rows = _rows(benchmark, path, config, split)
        try:
            return self.read(rows, language, split)
        except (KeyError, TypeError) as error:
            problem = f"its rows have the fields {', '.join(rows[0][1])}, but not as {benchmark} has them ({error!r})"
            raise DataError(f"hub:{path} {config} {split}", "wrong data set", problem, _FILES) from error


def _rows(benchmark: str, path: str, config: str, split: str) -> list[LocatedRow]:
    try:
        rows = _loaded(path, config, split)
    except Exception as error:  # datasets raises many kinds: no network, unknown name or split, a broken file
        raise PivotuneError(
            f"data_dir: not given, and the data set of {benchmark} on the hub, {path} ({config}, {split}), cannot be "
            f"read: {' '.join(str(error).split())}. Check the network, or {_FILES}."
        ) from error
    place = f"hub:{path} {config} {split}"
    if not rows:
        raise DataError(place, "empty data set", "holds no row", _FILES)
    return [(f"{place}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _loaded(path: str, config: str, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        return list(datasets.load_dataset(path, config, split=split))
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        # Some data sets are scripts, which `datasets` 4 does not run. The hub keeps a copy of their rows as Parquet.
        copy = f"hf://datasets/{path}@refs/convert/parquet/{config}/{split}/*.parquet"
        return list(datasets.load_dataset("parquet", data_files=copy, split="train"))


def xquad(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The 1,190 questions of the publisher's files."""
    return xquad_items(rows, language)


def mlqa(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The test split."""
    return mlqa_items(rows, language)


def mkqa(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
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
            items.append((where, mkqa_item(str(row["example_id"]), question, answers, language, where)))
    return items


def truthfulqa(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """MC1, the options as they are but rotated, as those of the files are.

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
            raise DataError(where, "bad gold", problem, _FILES)
        gold = labels.index(1)
        options = [options[gold], *options[:gold], *options[gold + 1 :]]
        question = text(row, "question", where)
        items.append((where, mc1_item(f"{language}/{number}", number, question, options, language)))
    return items


def xnli(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The 2,490 pairs of the development files."""
    return xnli_items(rows, language)


def xcopa(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The ids hold the split: that of English is another one, whose numbers are other questions."""
    return [(where, replace(item, id=f"{split}/{item.id}")) for where, item in xcopa_items(rows, language)]


def xstorycloze(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The ids are row numbers, as those of the files: the rows stand in one order in all languages."""
    items = []
    for number, (where, row) in enumerate(rows, start=1):
        story = " ".join(text(row, f"input_sentence_{sentence}", where) for sentence in range(1, 5))
        endings = (text(row, "sentence_quiz1", where), text(row, "sentence_quiz2", where))
        gold = index_of(str(row.get("answer_right_ending")), ("1", "2"), where)
        items.append((where, story_item(str(number), story, endings, gold, language)))
    return items


def mmlu(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The test split, from Okapi's translations."""
    return mmlu_items(rows, language, split)
