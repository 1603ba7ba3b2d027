"""What the models are trained and tested on. A task is a name and its examples; everything else is the same for all."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

from experiments.lab import skills
from experiments.lab.rows import Recipe
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.trial import Record
from pivotune.lab.world import World

TRAINING_PER_SKILL = 67  # questions of each skill in each language: its three skills make 200


class Task(Protocol):
    """Parallel questions in splits.

    Attributes:
        name: on the command line.
        languages: those to improve; English is not among them.
    """

    name: str
    languages: tuple[str, ...]

    def examples(self, split: str, language: str) -> Iterator[Record]:
        """Records {id, language, prompt, completion} and, when not English, `english`; split is training, development
        or heldout. The id ends in .LANGUAGE; what is before it is the same for one item in all languages."""
        ...

    def kind(self, item: str) -> str:
        """What is asked for by an item, an id without its language."""
        ...


class FactsTask:
    """The lab's facts: training questions about those that a language knows, the rest met in English only."""

    name = "facts"
    languages = tuple(LANGUAGES[1:])

    def examples(self, split: str, language: str) -> Iterator[Record]:
        return self._world.examples(split, language)

    def kind(self, item: str) -> str:
        return item.split(".")[1]  # the relation

    @cached_property
    def _world(self) -> World:
        return World.build()


class SkillsTask:
    """The lab's skills, learned in English: few training questions in a language, of all skills but one."""

    name = "skills"
    languages = tuple(LANGUAGES[1:])

    def examples(self, split: str, language: str) -> Iterator[Record]:
        return self._skills.examples(split, language)

    def kind(self, item: str) -> str:
        return item.split(".")[0]  # the skill

    @cached_property
    def _skills(self) -> skills.Skills:
        return skills.Skills.build(training=TRAINING_PER_SKILL)


TASKS: dict[str, type[Task]] = {"facts": FactsTask, "skills": SkillsTask}


def training_records(task: Task, languages: Sequence[str], recipe: Recipe, seed: int) -> list[Record]:
    """The training data of a row. The seed is that of the shuffling; other recipes do not depend on it."""
    records = [record for language in languages for record in task.examples("training", language)]
    if recipe == "target":
        return records
    if recipe == "shuffled":
        groups = [[record for record in records if record["language"] == language] for language in languages]
        return [record for group in groups for record in shuffled(group, seed)]
    english = [{"id": f"{record['id']}.en", "language": "en", **record["english"]} for record in records]
    return english if recipe == "english" else records + english


def shuffled(records: Sequence[Record], seed: int) -> list[Record]:
    """The records, each with the English of another one whose English question is a different one.

    Where the order is random, giving every record the English of its successor leaves none with its own.
    """
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    given = {own: records[other]["english"] for own, other in zip(order, [*order[1:], order[0]], strict=True)}
    broken = [{**record, "english": given[number]} for number, record in enumerate(records)]
    for before, after in zip(records, broken, strict=True):
        if before["english"]["prompt"] == after["english"]["prompt"]:
            raise ValueError(f"{before['id']}: shuffled, but the English question is still its own")
    return broken
