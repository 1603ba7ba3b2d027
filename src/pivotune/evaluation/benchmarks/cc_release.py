"""What CC-Tuning (ACL 2025, arXiv 2506.00875) released to evaluate: prompts and golds, line by line.

Each of its benchmarks is in the file of the data set that it asks; this is what they share. The prompts are left as
they are, also the white space at their ends.
"""

from __future__ import annotations

from typing import Any

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.benchmark import Benchmark, Metric, Reader, Scorer
from pivotune.evaluation.benchmarks.files import CHECK, Folder, aliases, index_of, read_jsonl, text
from pivotune.evaluation.benchmarks.items import Item, Located
from pivotune.evaluation.benchmarks.scoring import choice_score
from pivotune.evaluation.metrics import contains_answer

CC_FILES = "https://github.com/YYF-Tommy/CC-Tuning, folder Inference/data, as cctuning/"


def cc_benchmark(
    name: str,
    title: str,
    languages: str,
    read: Reader,
    *,
    citation: str,
    average: float,
    chance: float = 0.0,
    metric: Metric = "accuracy",
    score: Scorer = choice_score,
    **also: Any,
) -> Benchmark:
    """A benchmark of the paper, which reports all of its ten languages, as the best average of all methods.

    Answers are generated greedily, 40 tokens, with no other end than the model's own, so all of them is the answer.
    """
    codes = tuple(languages.split())
    return Benchmark(
        name=name,
        title=title,
        citation=citation,
        languages=codes,
        metric=metric,
        chance=chance,
        score=score,
        read=read,
        splits=("test",),
        source=f"{CC_FILES}{title}/",
        advice=f"their data are files of CC-Tuning's release. Put {CC_FILES} into a folder (docs/benchmarks.md), and "
        "name that with --data_dir.",
        paper="cc",
        reported=codes,
        figures={"best average": average},
        **also,
    )


def cc_pairs(
    folder: Folder, name: str, split: str, golds: str, language: str, kind: type
) -> list[tuple[str, str, str, str, Any]]:
    """The prompt and gold files of a folder, line by line: (prompt's place, line, prompt, gold's place, gold).

    Args:
        folder: DATA_DIR.
        name: of the folder in cctuning/.
        split, golds: the folders in it that hold the prompts and the golds, each a file per language.
        language: the language.
        kind: of a gold: str or list.
    """
    prompt_path = folder.find(f"cctuning/{name}/{split}/{language}.json")
    gold_path = folder.find(f"cctuning/{name}/{golds}/{language}.json")
    prompts, answers = read_jsonl(prompt_path, dict), read_jsonl(gold_path, kind)
    if len(prompts) != len(answers):
        problem = f"{len(prompts)} prompts, but {len(answers)} golds in {gold_path}"
        raise DataError(str(prompt_path), "files do not match", problem, "download both again: one may be cut")
    return [
        (where, str(number), text(row, "instruction", where), place, gold)
        for number, ((where, row), (place, gold)) in enumerate(zip(prompts, answers, strict=True), start=1)
    ]


def cc_choices(
    folder: Folder, benchmark: str, name: str, split: str, golds: str, language: str, labels: tuple[str, ...]
) -> list[Located]:
    """Items of prompts that list labelled options; the golds are labels."""
    items = []
    for where, number, prompt, place, gold in cc_pairs(folder, name, split, golds, language, str):
        question, options = split_options(prompt, labels, where)
        common = dict(question=question, options=options, labels=labels, gold=index_of(gold, labels, place))
        items.append((where, prompted(benchmark, language, number, prompt, answers=(gold,), **common)))
    return items


def prompted(benchmark: str, language: str, key: str, prompt: str, **fields: Any) -> Item:
    """An item with a released prompt."""
    return Item(id=key, benchmark=benchmark, language=language, prompt=prompt, **fields)


def gold_text(gold: str, where: str) -> str:
    """A gold that is a text."""
    return aliases([gold], where)[0]


def split_options(prompt: str, labels: tuple[str, ...], where: str) -> tuple[str, tuple[str, ...]]:
    """What precedes the options of a prompt, and the options: paragraphs "(1) ..." or "(A) ..." before the last one."""
    # From the end, because a question may itself speak of "(A)".
    rest, _, _ = prompt.rpartition("\n\n")
    options: list[str] = []
    for label in reversed(labels):
        rest, found, option = rest.rpartition(f"\n({label})")
        if not found or not option.strip():
            problem = f"{prompt[:60]!r} has no option ({label})"
            raise DataError(where, "wrong file", problem, CHECK)
        options.insert(0, option.strip())
    return rest.strip(), tuple(options)


def occurs(item: Item, answer: str) -> float:
    """Whether an accepted answer occurs in the generated text, as whole words.

    The paper says "accuracy" of answers of up to 40 tokens and released no scorer.
    """
    return contains_answer(answer, item.answers, item.language)
