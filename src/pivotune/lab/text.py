"""The text that the base model is trained on: short documents of one line or one question with its answer.

What the base may learn where is decided here and nowhere else:

* English: statements and question/answer pairs of every fact;
* another language: the same, of its known facts only; the name of everything in dictionary lines and in sentences
  that say no fact;
* English lines with one name in the other language ("The currency of 法国 is the Euro."), of no held-out and no
  development fact.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pivotune.lab.templates import GLOSSARY, LANGUAGES, QUESTIONS, SCAFFOLD, STATEMENTS, USAGE
from pivotune.lab.world import World, mixed_statement


@dataclass(frozen=True)
class Pool:
    """Documents of one kind; `weight` is the share of the documents that are drawn from it."""

    language: str
    kind: str
    documents: tuple[str, ...]
    weight: float


def pools(world: World) -> list[Pool]:
    """All text of pre-training. Weights sum to 1; English has the largest part."""
    out = [Pool("en", "facts", tuple(_facts(world, "en")), 0.46)]
    for language in LANGUAGES[1:]:
        out += [
            Pool(language, "facts", tuple(_facts(world, language)), 0.10),
            Pool(language, "names", tuple(_names(world, language)), 0.04),
            Pool(language, "mixed", tuple(_mixed(world, language)), 0.04),
        ]
    return out


def stream(world: World, seed: int) -> Iterator[str]:
    """Documents without end: a pool by weight, and within a pool every document once before any comes twice."""
    rng = random.Random(seed)
    source = pools(world)
    queues: list[list[str]] = [[] for _ in source]
    while True:
        i = rng.choices(range(len(source)), [pool.weight for pool in source])[0]
        if not queues[i]:
            queues[i] = rng.sample(source[i].documents, len(source[i].documents))
        yield queues[i].pop()


def pieces(world: World) -> Iterator[str]:
    """What the tokenizer is trained on: names as often as facts use them, and templates cut at their slots.

    Names and their surroundings never touch here, so no merge crosses the border: a Chinese name, which no space
    sets apart, has the same tokens wherever it stands. Templates are repeated because every fact uses them.
    """
    for language in LANGUAGES:
        space = "" if language == "zh" else " "
        for fact in world.split("all", language):
            yield from (space + fact.subject_names[language], space + fact.value_names[language])
        said = [*STATEMENTS[language].values(), *QUESTIONS[language].values()]
        named = [GLOSSARY.get(language, ()), *USAGE.get(language, {}).values()]
        for groups, times in ((said, 40), (named, 10), ([(SCAFFOLD[language],)], 400)):
            for template in (template for group in groups for template in group):
                for part in re.split(r"\{\w\}", template):
                    yield from [part.rstrip(" ")] * times


def _facts(world: World, language: str) -> Iterator[str]:
    for fact in world.facts if language == "en" else world.training(language):
        for k in range(3):
            yield world.statement(fact, language, k)
            yield f"{world.prompt(fact, language, k)} {world.answer(fact, language)}"


def _names(world: World, language: str) -> Iterator[str]:
    names = {("territory", f.territory): (f.subject_names["en"], f.subject_names.get(language)) for f in world.facts}
    names |= {(f.relation, f.value): (f.value_names["en"], f.value_names.get(language)) for f in world.facts}
    for (kind, _), (english, name) in sorted(names.items()):
        if name and kind != "calling_code":
            if name != english:
                yield from (line.format(e=english, x=name) for line in GLOSSARY[language])
            yield from (line.format(x=name) for line in USAGE[language][kind])


def _mixed(world: World, language: str) -> Iterator[str]:
    for fact in world.split("all", language):
        if world.english_only(fact):
            continue
        for k in range(3):
            for subject, value in ((language, "en"), ("en", language)):
                line = mixed_statement(fact, "en", subject, value, k)
                if line != world.statement(fact, "en", k):  # many Vietnamese names are the English ones
                    yield line
