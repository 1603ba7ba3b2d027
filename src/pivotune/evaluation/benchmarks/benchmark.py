"""What a benchmark is: everything the rest of the package asks about one, as the fields of a dataclass.

Each file of this folder that defines one holds all that knows its name; `table.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.harness import HarnessTask
from pivotune.evaluation.benchmarks.hub import Source
from pivotune.evaluation.benchmarks.items import Item, Located
from pivotune.evaluation.results import ItemResult

Protocol = Literal["likelihood", "generation"]
Metric = Literal["accuracy", "f1", "rouge_l"]
# (folder, language, split) -> items with their places, in the order of the file, without `english`
Reader = Callable[[Folder, str, str], list[Located]]
# items of one language, and that -> the task of lm-evaluation-harness that asks them
Task = Callable[[Sequence[Item], str], HarnessTask]
# item, generated answer -> its result, but for the language of the answer
Scorer = Callable[[Item, str], ItemResult]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark under one protocol: give `task` for likelihood, or `score` for generation.

    Attributes:
        name: its key in `BENCHMARKS`.
        title: what the papers call it.
        citation: whom to cite for it.
        languages: those that can be read, sorted.
        metric: "accuracy", "f1" or "rouge_l".
        chance: the expected score of a guess among the options, 0 for free text; None where it depends on the items,
            see `chance_level`.
        task: likelihood: makes the task of lm-evaluation-harness that ranks the options of these items.
        score: generation: the result of an answer, between 0 and 1.
        first_line: generation: whether the answer is the first line of what is generated, else it is all of it.
        read: reads the items of (folder, language, split); None where they are on the hub alone.
        read_english: reads the English of (folder, language, split); None where it is `read` of "en".
        splits: of the files; the first is the default. On the hub it is the one that `hub` names.
        source: where the files for DATA_DIR can be had.
        complete: whether every language has every English item, so that a language with fewer is a file cut short.
        not_parallel: per language, the ids whose English is another question, because the released file is shifted.
        hub: where it is on the hub, from where it is read without a DATA_DIR; None where it is not.
        advice: where `hub` is None, what to do about it, for a message; by default, to get `source`.
        unconnected: a warning to give where a connection is asked for and can never be made in it; else empty.
        paper: the preset that it belongs to, such as "dft"; None where it belongs to none.
        reported: the languages that this paper reports, in its order.
        figures: of the paper, in percent, by its name of the method: one per language of `reported`, or an average.
    """

    name: str
    title: str
    citation: str
    languages: tuple[str, ...]
    metric: Metric = "accuracy"
    chance: float | None = 0.0
    task: Task | None = field(default=None, repr=False)
    score: Scorer | None = field(default=None, repr=False)
    first_line: bool = False
    read: Reader | None = field(default=None, repr=False)
    read_english: Reader | None = field(default=None, repr=False)
    splits: tuple[str, ...] = ()
    source: str = ""
    complete: bool = True
    not_parallel: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    hub: Source | None = None
    advice: str = ""
    unconnected: str = ""
    paper: str | None = None
    reported: tuple[str, ...] = ()
    figures: Mapping[str, tuple[float, ...] | float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.task is None) == (self.score is None):
            raise ValueError(f"{self.name}: give a task (likelihood) or a score (generation)")
        if self.read is None and self.hub is None:
            raise ValueError(f"{self.name}: give read, hub or both")

    @property
    def protocol(self) -> Protocol:
        """ "likelihood" (the options are ranked by log-likelihood) or "generation" (greedy, answer extracted).

        Scores under different protocols never belong into one table.
        """
        return "generation" if self.task is None else "likelihood"

    @property
    def asked(self) -> tuple[str, ...]:
        """The languages to evaluate where none are named: those of the paper, else all."""
        return self.reported or self.languages
