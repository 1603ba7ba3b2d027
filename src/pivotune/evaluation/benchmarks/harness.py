"""Items as tasks of lm-evaluation-harness 0.4.13: its own tasks, wording and scoring, on our rows.

Nothing here imports the harness before it is asked: a `HarnessTask` is plain data, and

    TaskManager().load(task_specs([harness_task(load("NAME", "vi", DATA_DIR))]))

makes a task of it without a download; `simple_evaluate(tasks=...)` takes the same list. What of a task is changed for a
benchmark is said in the benchmark's file: see docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks.items import Item, Located
from pivotune.evaluation.metrics import need

Row = dict[str, Any]


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness with its rows.

    Attributes:
        name: the task's name in the harness.
        settings: the keys of its YAML that are changed.
        rows: the rows of each split, with the columns that the task reads and each with its item's "id" and
            "language", by which the answers of two runs are paired.
    """

    name: str
    settings: dict[str, Any]
    rows: dict[str, list[Row]]

    @property
    def config(self) -> dict[str, Any]:
        """The settings under the task's name, with the rows instead of a download."""
        rows = self.rows

        def splits(**_: Any) -> dict[str, Any]:
            import datasets

            return {split: datasets.Dataset.from_list(part) for split, part in rows.items()}

        return {"task": self.name, **self.settings, "custom_dataset": splits}


def row_of(item: Item, **columns: Any) -> Row:
    """The row of an item with the columns that its task reads."""
    return {"id": item.id, "language": item.language, **columns}


def task_specs(tasks: Sequence[HarnessTask]) -> list[dict[str, Any]]:
    """What `TaskManager().load` and `simple_evaluate(tasks=...)` take. It changes tasks inside of groups."""
    return [{"group": "pivotune", "task": [task.config for task in tasks]}]


@cache
def task_manager() -> Any:
    """The harness's index of its tasks: seconds to make, and always the same."""
    return need("lm_eval.tasks", "lm_eval").TaskManager()


# A benchmark that is nothing but tasks of the harness ----------------------------------------------------------------


@dataclass(frozen=True)
class TaskData:
    """The rows that tasks of the harness load themselves, as items: what it prints, the choices and the target.

    Attributes:
        tasks: the name of the task of each language. It ranks the choices of one text; tasks that rank contexts, as
            Winograd's, and tasks that generate are refused.
    """

    tasks: Mapping[str, str]
    parallel = False

    def of(self, language: str) -> tuple[str, str, str]:
        """(task, "", split) of a language."""
        return self.tasks[language], "", "that of the task"

    def items(self, benchmark: str, language: str) -> list[Located]:
        """The items of a language; the ids are the numbers of the rows and hold the language.

        Raises:
            PivotuneError: the harness cannot load the task, or it is of another kind.
        """
        name = self.tasks[language]
        manager = task_manager()
        try:
            task = manager.load([name])["tasks"][name]
            rows = list(task.eval_docs)
        except Exception as error:  # whatever the harness and datasets raise: no such task, no network, ...
            raise PivotuneError(
                f"{benchmark}: lm-evaluation-harness cannot load its task {name}: {' '.join(str(error).split())}. "
                "Check its name and the network."
            ) from error
        if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or not rows:
            raise PivotuneError(f"{benchmark}: the task {name} of lm-evaluation-harness ranks no choices of one text.")
        return [_located(benchmark, language, task, f"{name}: row {n}", n, row) for n, row in enumerate(rows, start=1)]

    def task(self, items: Sequence[Item], language: str) -> HarnessTask:
        """The task on items that were made of its rows."""
        rows = [row_of(item, prompt=item.question, options=list(item.options or ()), gold=item.gold) for item in items]
        ours = {"doc_to_text": "prompt", "doc_to_choice": "options", "doc_to_target": "gold", "test_split": "test"}
        without = dict.fromkeys(("process_docs", "training_split", "validation_split", "fewshot_split"))
        return HarnessTask(self.tasks[language], {**ours, **without}, {"test": rows})


def _located(benchmark: str, language: str, task: Any, where: str, number: int, row: Row) -> tuple[str, Item]:
    options, target = tuple(task.doc_to_choice(row)), task.doc_to_target(row)
    gold = options.index(target) if target in options else target
    if type(gold) is not int or not 0 <= gold < len(options):
        raise DataError(where, "bad gold", f"{target!r} is no choice among {options!r:.60}", "name another task")
    item = Item(
        id=f"{language}/{number}",
        benchmark=benchmark,
        language=language,
        question=task.doc_to_text(row),
        options=options,
        gold=gold,
        answers=(options[gold],),
    )
    return where, item
