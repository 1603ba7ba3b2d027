"""XNLI: does a sentence follow from another? As DFT asks it, and as CC-Tuning does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.cc_release import cc_benchmark, cc_choices
from pivotune.evaluation.benchmarks.files import CHECK, Folder, gold_of, index_of, read_lines, text
from pivotune.evaluation.benchmarks.harness import HarnessTask, row_of
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow

CITATION = "Conneau et al., XNLI: Evaluating Cross-lingual Sentence Representations, EMNLP 2018"
LABELS = ("entailment", "neutral", "contradiction")


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """Premise, hypothesis and label per line, separated by tabs; no ids."""
    rows = []
    for where, line in read_lines(folder.find(f"xnli_dev/{split}-{language}.tsv")):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            problem = f"{len(columns)} columns ({line[:60]!r}), expected premise, hypothesis and label"
            raise DataError(where, "malformed line", problem, CHECK)
        premise, hypothesis, label = columns
        row = {"premise": premise, "hypothesis": hypothesis, "label": index_of(label, LABELS, where)}
        rows.append((where, row))
    return _items(rows, language, split)


def _items(rows: Iterable[LocatedRow], language: str, split: str) -> list[Located]:
    """Of rows with premise, hypothesis and the number of the label, as on the hub. Their order is the same in every
    language, so the ids are their numbers."""
    items = []
    for number, (where, row) in enumerate(rows, start=1):
        gold = gold_of(row, "label", range(len(LABELS)), where)
        item = Item(
            id=str(number),
            benchmark="xnli",
            language=language,
            context=text(row, "premise", where),
            question=text(row, "hypothesis", where),
            options=LABELS,
            gold=gold,
            answers=(LABELS[gold],),
        )
        items.append((where, item))
    return items


def _task(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [row_of(item, premise=item.context, hypothesis=item.question, label=item.gold) for item in items]
    return HarnessTask(f"xnli_{language}", {"training_split": None}, {"validation": rows})


def _read_cc(folder: Folder, language: str, split: str) -> list[Located]:
    """1,000 pairs of the test split with CC-Tuning's prompts."""
    return cc_choices(folder, "cc_xnli", "XNLI", "split_sample", "ans_sample", language, ("1", "2", "3"))


XNLI = Benchmark(
    name="xnli",
    title="XNLI",
    citation=CITATION,
    languages=("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
    chance=1 / 3,
    task=_task,
    read=_read,
    splits=("dev",),
    source="https://github.com/facebookresearch/XNLI, as xnli_dev/dev-<language>.tsv (premise, hypothesis, label)",
    hub=Hub("facebook/xnli", "{language}", "validation", _items),
    unconnected="connection: never made in xnli. The harness ranks its sentences without a context, so there is no "
    "prompt to connect; its scores are those without a connection. cc_xnli asks with prompts.",
    paper="dft",
    reported=("vi", "ar", "zh"),
    figures={
        "TFT": (44.14, 33.73, 36.87),
        "DFT logits": (43.37, 34.06, 36.94),
        "DFT feature": (43.50, 34.38, 37.64),
    },
)
CC_XNLI = cc_benchmark(
    "cc_xnli", "XNLI", "ar el en hi ru sw th tr ur zh", _read_cc, citation=CITATION, average=53.06, chance=1 / 3
)
