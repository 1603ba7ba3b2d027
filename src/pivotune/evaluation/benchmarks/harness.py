"""Items as tasks of lm-evaluation-harness 0.4.13: its own task on our rows where it has one, else a task in its format.

Nothing here imports the harness: a `HarnessTask` is plain data, and

    TaskManager().load(task_specs([harness_task(load("xnli", "vi", DATA_DIR))]))

makes a task of it without a download; `simple_evaluate(tasks=...)` takes the same list. The prompts of reused tasks are
the harness's own: see docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks.items import Item

Row = dict[str, Any]

# What CC-Tuning generates: greedily, 40 tokens, no other end than the model's own. The answer is extracted later.
CC_GENERATION = {"max_gen_toks": 40, "do_sample": False, "until": []}
# What the harness's own question answering generates: greedily, up to a line break or its usual number of tokens.
QA_GENERATION = {"do_sample": False, "until": ["\n"]}


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness with its rows.

    Attributes:
        name: the task's name, such as "xnli_vi".
        reused: whether the harness has this task, so that `settings` only changes it.
        settings: keys of a task's YAML: the changes to a reused task, the whole of one of our own. A task of our own
            has no `process_results` and no `metric_list` yet: these belong to the metrics.
        rows: the rows of each split, with the columns that the task reads and each with its item's "id" and
            "language", by which the answers of two runs are paired.
    """

    name: str
    reused: bool
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


def task_specs(tasks: Sequence[HarnessTask]) -> list[dict[str, Any]]:
    """What `TaskManager().load` and `simple_evaluate(tasks=...)` take.

    The harness changes a task of its own only inside a group, and a task of ours keeps its name only outside of one.
    """
    group = {"group": "pivotune", "task": [task.config for task in tasks if task.reused]}
    own = [task.config for task in tasks if not task.reused]
    return [group, *own] if group["task"] else own


def harness_task(items: Sequence[Item], examples: Sequence[Item] = ()) -> HarnessTask:
    """The task that asks these items.

    Args:
        items: of one benchmark and language.
        examples: the few-shot examples of MMLU: load("mmlu", language, ..., split="dev"). The harness takes the first
            ones, whatever their subject.

    Raises:
        PivotuneError: no items, or of several benchmarks or languages, or examples for another benchmark than MMLU.
    """
    kinds = {(item.benchmark, item.language) for item in items}
    if len(kinds) != 1:
        raise PivotuneError(f"items: got {sorted(kinds) or 'none'}; give the items of one benchmark and language.")
    ((benchmark, language),) = kinds
    if examples and benchmark != "mmlu":
        raise PivotuneError(f"examples: {benchmark} has no split for few-shot examples; only mmlu has.")
    if benchmark == "mmlu":
        return _mmlu(items, language, examples)
    if benchmark in _REUSED:
        return _REUSED[benchmark](items, language)
    return _own(items, benchmark, language)


def _row(item: Item, **columns: Any) -> Row:
    return {"id": item.id, "language": item.language, **columns}


def _xnli(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [_row(item, premise=item.context, hypothesis=item.question, label=item.gold) for item in items]
    return HarnessTask(f"xnli_{language}", True, {"training_split": None}, {"validation": rows})


def _xcopa(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [
        _row(item, premise=item.context, question=item.question, label=item.gold, choice1=first, choice2=second)
        for item in items
        for first, second in [item.options or ("", "")]
    ]
    if language == "en":
        return HarnessTask("copa", True, {"training_split": None}, {"validation": rows})
    return HarnessTask(f"xcopa_{language}", True, {"validation_split": None}, {"test": rows})


def _xstorycloze(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [
        _row(item, story=item.context, label=item.gold, sentence_quiz1=first, sentence_quiz2=second)
        for item in items
        for first, second in [item.options or ("", "")]
    ]
    # The harness joins four columns with spaces; our files have the story whole.
    story = {"doc_to_text": "{{story}}", "doc_to_target": "label", "doc_to_decontamination_query": "{{story}}"}
    return HarnessTask(f"xstorycloze_{language}", True, {"training_split": None, **story}, {"eval": rows})


def _truthfulqa(items: Sequence[Item], language: str) -> HarnessTask:
    rows = []
    for item in items:
        options = list(item.options or ())
        labels = [int(number == item.gold) for number in range(len(options))]
        if language == "en":
            columns: Row = {"mc1_targets": {"choices": options, "labels": labels}}
        else:  # these tasks read both kinds of targets, and score one
            columns = {f"mc{kind}_targets_choices": options for kind in (1, 2)}
            columns |= {f"mc{kind}_targets_labels": labels for kind in (1, 2)}
        rows.append(_row(item, question=item.question, gold_index=item.gold, **columns))
    # The harness's files have the right option first, ours do not.
    settings = {"doc_to_target": "gold_index"}
    if language == "en":
        return HarnessTask("truthfulqa_mc1", True, settings, {"validation": rows})
    return HarnessTask(f"truthfulqa_{language}_mc1", True, settings, {"val": rows})


def _mmlu(items: Sequence[Item], language: str, examples: Sequence[Item]) -> HarnessTask:
    def rows(some: Sequence[Item]) -> list[Row]:
        return [
            _row(
                item,
                instruction=item.question,
                answer=item.answers[0],
                **{f"option_{letter}": option for letter, option in zip("abcd", item.options or (), strict=True)},
            )
            for item in some
        ]

    if not examples:
        return HarnessTask(f"m_mmlu_{language}", True, {"fewshot_split": None}, {"test": rows(items)})
    return HarnessTask(f"m_mmlu_{language}", True, {}, {"test": rows(items), "train": rows(examples)})


def _mlqa(items: Sequence[Item], language: str) -> HarnessTask:
    # The task asks the test split; from files the rows under that name are those of the development files.
    rows = [
        _row(item, context=item.context, question=item.question, answers={"text": list(item.answers)}) for item in items
    ]
    return HarnessTask(f"mlqa_{language}_{language}", True, {"validation_split": None}, {"test": rows})


def _own(items: Sequence[Item], benchmark: str, language: str) -> HarnessTask:
    # XQuAD too: the harness has it, but its code imports what transformers 5.20 removed. Prompt and stop are its own.
    rows = [_row(item, prompt=item.prompt, answers=list(item.answers)) for item in items]
    settings = {
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "answers",
        # A copy: the harness changes the dictionary that it is given.
        "generation_kwargs": dict(CC_GENERATION if benchmark.startswith("cc_") else QA_GENERATION),
    }
    return HarnessTask(f"{benchmark}_{language}", False, settings, {"test": rows})


_REUSED: dict[str, Callable[[Sequence[Item], str], HarnessTask]] = {
    "xnli": _xnli,
    "xcopa": _xcopa,
    "xstorycloze": _xstorycloze,
    "truthfulqa": _truthfulqa,
    "mlqa": _mlqa,
}
