"""XStoryCloze: which of two sentences ends a story? As DFT asks it, and as CC-Tuning does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.cc_release import CC_FILES, cc_benchmark, cc_choices, cc_pairs, split_options
from pivotune.evaluation.benchmarks.files import Folder, index_of, text
from pivotune.evaluation.benchmarks.harness import HarnessTask, row_of
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow

CITATION = "Lin et al., Few-shot Learning with Multilingual Generative Language Models, EMNLP 2022"

# A sentence's end, closing marks included, with the next sentence right behind it. A full stop ends none within a
# number (8.30) or an abbreviation (P.M.).
_SENTENCE_END = re.compile(
    r"""(?: [!?。！？؟।…] | \.(?!\w\.)(?!\d) | (?<=\D)\.(?=\d) )
        ["”’»'」）)]*
        (?= [^\s.!?。！？؟।…"”’»'」）),] )""",
    re.VERBOSE,
)


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """The 1,511 stories of the evaluation split, out of CC-Tuning's prompts.

    Those run the four sentences of a story together without a space; `respaced` puts the spaces back.
    """
    items = []
    for where, number, prompt, place, gold in cc_pairs(folder, "XStoryCloze", "split", "ans", language, str):
        story, options = split_options(prompt, ("1", "2"), where)
        items.append((where, _item(number, respaced(story), options, index_of(gold, ("1", "2"), place), language)))
    return items


def respaced(story: str) -> str:
    """`story` with a space between sentences, as the harness joins them."""
    return _SENTENCE_END.sub(lambda end: f"{end[0]} ", story).strip()


def _hub_items(rows: list[LocatedRow], language: str, split: str) -> list[Located]:
    """The ids are row numbers, as those of the files: the rows stand in one order in all languages."""
    items = []
    for number, (where, row) in enumerate(rows, start=1):
        story = " ".join(text(row, f"input_sentence_{sentence}", where) for sentence in range(1, 5))
        endings = (text(row, "sentence_quiz1", where), text(row, "sentence_quiz2", where))
        gold = index_of(str(row.get("answer_right_ending")), ("1", "2"), where)
        items.append((where, _item(str(number), story, endings, gold, language)))
    return items


def _item(key: str, story: str, endings: tuple[str, ...], gold: int, language: str) -> Item:
    return Item(
        id=key,
        benchmark="xstorycloze",
        language=language,
        context=story,
        options=endings,
        gold=gold,
        answers=(endings[gold],),
    )


def _task(items: Sequence[Item], language: str) -> HarnessTask:
    rows = [
        row_of(item, story=item.context, label=item.gold, sentence_quiz1=first, sentence_quiz2=second)
        for item in items
        for first, second in [item.options or ("", "")]
    ]
    # The harness joins four columns with spaces; our files have the story whole.
    story = {"doc_to_text": "{{story}}", "doc_to_target": "label", "doc_to_decontamination_query": "{{story}}"}
    return HarnessTask(f"xstorycloze_{language}", {"training_split": None, **story}, {"eval": rows})


def _read_cc(folder: Folder, language: str, split: str) -> list[Located]:
    """All 1,511 stories with CC-Tuning's prompts."""
    return cc_choices(folder, "cc_xstorycloze", "XStoryCloze", "split", "ans", language, ("1", "2"))


XSTORYCLOZE = Benchmark(
    name="xstorycloze",
    title="XStoryCloze",
    citation=CITATION,
    languages=("ar", "en", "es", "eu", "hi", "id", "ru", "sw", "te", "zh"),
    chance=1 / 2,
    task=_task,
    read=_read,
    splits=("eval",),
    source=f"{CC_FILES}XStoryCloze/",
    hub=Hub("juletxara/xstory_cloze", "{language}", "eval", _hub_items),
    paper="dft",
    reported=("ar", "zh"),
    figures={"TFT": (57.51, 64.06), "DFT logits": (58.78, 64.93), "DFT feature": (58.78, 64.40)},
)
CC_XSTORYCLOZE = cc_benchmark(
    "cc_xstorycloze",
    "XStoryCloze",
    "ar en es eu hi id ru sw te zh",
    _read_cc,
    citation=CITATION,
    average=80.93,
    chance=1 / 2,
)
