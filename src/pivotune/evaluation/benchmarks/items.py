"""One question of a benchmark, the same shape for every benchmark, checked at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark in one language.

    Attributes:
        id: the publisher's id, or the line number where the publisher has none. Unique within benchmark, language and
            split; the translations of one question share it where the benchmark is parallel.
        benchmark: its name in `BENCHMARKS`.
        language: the language of the question, such as "vi".
        question: what is asked: the question, a hypothesis. Empty where `prompt` or `context` says it all.
        context: what it is asked about: the passage, a premise, the story. May be empty.
        subject: of the question, where the benchmark has subjects.
        prompt: the whole text given to the model under the generation protocol; None under the likelihood protocol,
            where lm-evaluation-harness words it.
        options: the answers to choose from; None where the answer is free text.
        labels: how the prompt names the options, such as ("A", "B", "C", "D"); None where it does not.
        gold: the index of the right option; None where the answer is free text.
        answers: the accepted answers: aliases of free text, or the label of the right option (its text where there are
            no labels). Empty only in an `english` without a published answer.
        english: the same question in English; None for English itself, and where there is none.
    """

    id: str
    benchmark: str
    language: str
    question: str = ""
    context: str = ""
    subject: str = ""
    prompt: str | None = None
    options: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    gold: int | None = None
    answers: tuple[str, ...] = ()
    english: Item | None = None

    def __post_init__(self) -> None:
        # Readers check their files and name the line; this guards the items that other code makes.
        options, labels, gold = self.options, self.labels, self.gold
        if (options is None) != (gold is None):
            raise ValueError(f"{self.name}: give options and gold, or neither")
        if options is not None and gold is not None and not (len(options) > 1 and 0 <= gold < len(options)):
            raise ValueError(f"{self.name}: gold {gold} is outside the {len(options)} options")
        if labels is not None and len(labels) != len(options or ()):
            raise ValueError(f"{self.name}: {len(labels)} labels for {len(options or ())} options")
        if not (self.question or self.context or self.prompt):
            raise ValueError(f"{self.name}: nothing is asked")
        if self.english is not None and (self.english.id, self.english.language) != (self.id, "en"):
            raise ValueError(f"{self.name}: {self.english.name} is not its English")

    @property
    def name(self) -> str:
        """Benchmark, language and id, for messages."""
        return f"{self.benchmark}/{self.language}/{self.id}"


Located = tuple[str, Item]
"""An item with the place that it was read from, "path:line"."""
LocatedRow = tuple[str, dict[str, Any]]
"""A row of a file or of the hub with its place."""
