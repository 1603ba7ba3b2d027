"""XCOPA: which of two sentences is the cause, or the effect, of a third?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.files import CHECK, Folder, gold_of, index_of, read_jsonl, text
from pivotune.evaluation.benchmarks.harness import HarnessTask, row_of
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow

# Fewer rows than this may share one label by chance.
_ROWS_TO_JUDGE = 20


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """XCOPA and English COPA: JSON lines.

    Raises:
        DataError: also where all labels are the same. The test files of the publisher's folder are so: COPA's test
            labels are withheld there, and the zeros in their place are no golds.
    """
    path = folder.find(f"xcopa/{split}-{language}.jsonl")
    items = _items(read_jsonl(path, dict), language)
    if len(items) >= _ROWS_TO_JUDGE and len({item.gold for _, item in items}) == 1:
        problem = f"all {len(items)} labels are {items[0][1].gold}, so the golds are withheld"
        raise DataError(str(path), "no golds", problem, "use split 'val', or the test split from the hub")
    return items


def _hub_items(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The ids hold the split: that of English is another one, whose numbers are other questions."""
    return [(where, replace(item, id=f"{split}/{item.id}")) for where, item in _items(rows, language)]


def _items(rows: Iterable[LocatedRow], language: str) -> list[Located]:
    """Of the publisher's rows, which are those of the hub."""
    items = []
    for where, row in rows:
        options = (text(row, "choice1", where).strip(), text(row, "choice2", where).strip())
        gold, number, question = gold_of(row, "label", range(2), where), row.get("idx"), text(row, "question", where)
        if type(number) is not int:
            raise DataError(where, "bad field", f"field 'idx' is {number!r}, expected a number", CHECK)
        index_of(question, ("cause", "effect"), where)
        item = Item(
            id=str(number),
            benchmark="xcopa",
            language=language,
            context=text(row, "premise", where).strip(),
            question=question,
            options=options,
            gold=gold,
            answers=(options[gold],),
        )
        items.append((where, item))
    return items


def _task(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [
        row_of(item, premise=item.context, question=item.question, label=item.gold, choice1=first, choice2=second)
        for item in items
        for first, second in [item.options or ("", "")]
    ]
    if language == "en":
        return HarnessTask("copa", {"training_split": None}, {"validation": rows})
    return HarnessTask(f"xcopa_{language}", {"validation_split": None}, {"test": rows})


XCOPA = Benchmark(
    name="xcopa",
    title="XCOPA",
    citation="Ponti et al., XCOPA: A Multilingual Dataset for Causal Commonsense Reasoning, EMNLP 2020",
    languages=("en", "et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh"),
    chance=1 / 2,
    task=_task,
    read=_read,
    splits=("val", "test"),
    source="https://github.com/cambridgeltl/xcopa, as xcopa/<split>-<language>.jsonl",
    hub=Hub("cambridgeltl/xcopa", "{language}", "test", _hub_items, english=("aps/super_glue", "copa", "validation")),
    paper="dft",
    reported=("vi", "zh"),
    figures={"TFT": (66.0, 65.0), "DFT logits": (66.2, 66.4), "DFT feature": (66.6, 68.6)},
)
