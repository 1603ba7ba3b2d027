"""Questions on a passage in SQuAD's format: one JSON file per language, or the hub's rows of the same fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.files import CHECK, Folder, aliases, read_json, records, text
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow


def squad_rows(folder: Folder, relative: str) -> Iterator[LocatedRow]:
    """The questions of a file as the hub's rows: id, context, question and answers."""
    path = folder.find(relative)
    articles = records(read_json(path, dict), "data", str(path))
    if not articles:
        raise DataError(str(path), "empty file", "holds no article", CHECK)
    number = 0
    for nth, article in enumerate(articles, start=1):
        for paragraph in records(article, "paragraphs", f"{path}: article {nth}"):
            for asked in records(paragraph, "qas", f"{path}: article {nth}"):
                number += 1
                where = f"{path}: question {number}"
                answers = [text(answer, "text", where) for answer in records(asked, "answers", where)]
                yield where, {**asked, "context": text(paragraph, "context", where), "answers": {"text": answers}}


def passage_items(
    benchmark: str, rows: Iterable[LocatedRow], language: str, prompt: Callable[[str, str], str]
) -> list[Located]:
    """Items of such rows; `prompt` makes the text that is asked of (context, question)."""
    items = []
    for where, row in rows:
        context, question = text(row, "context", where), text(row, "question", where)
        item = Item(
            id=text(row, "id", where),
            benchmark=benchmark,
            language=language,
            context=context,
            question=question,
            prompt=prompt(context, question),
            answers=aliases(row["answers"]["text"], where),
        )
        items.append((where, item))
    return items
