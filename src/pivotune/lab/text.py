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
from itertools import product

from pivotune.lab.templates import ASKED, GLOSSARY, LANGUAGES, QUESTIONS, SCAFFOLD, STATEMENTS, USAGE
from pivotune.lab.world import World, mixed_statement


@dataclass(frozen=True)
class Pool:
    """Documents of one kind; `weight` is the share of the documents that are drawn from it."""

    language: str
    kind: str
    documents: tuple[str, ...]
    weight: float


# The share of each kind of text among the documents, per language.
WEIGHTS = {
    "en": {"facts": 0.40},
    "zh": {"facts": 0.05, "names": 0.09, "mixed": 0.03},
    "vi": {"facts": 0.05, "names": 0.09, "mixed": 0.03},
    "ar": {"facts": 0.05, "names": 0.09, "mixed": 0.03},
    "sw": {"facts": 0.025, "names": 0.045, "mixed": 0.02},
}


def pools(world: World) -> list[Pool]:
    """All text of pre-training. Weights sum to 1; English has the largest part."""
    kinds = {"facts": _facts, "names": _names, "mixed": _mixed}
    return [
        Pool(language, kind, tuple(kinds[kind](world, language)), weight)
        for language, shares in WEIGHTS.items()
        for kind, weight in shares.items()
    ]


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
        named = [GLOSSARY.get(language, ()), [q for _, q, _ in ASKED.get(language, ())], *USAGE[language].values()]
        for groups, times in ((said, 40), (named, 10), ([(SCAFFOLD[language],)], 400)):
            for template in (template for group in groups for template in group):
                for part in re.split(r"\{\w\}", template):
                    yield from [part.rstrip(" ")] * times


def _facts(world: World, language: str) -> Iterator[str]:
    for fact in world.known(language):
        for k in range(3):
            yield world.statement(fact, language, k)
            yield f"{world.prompt(fact, language, k)} {world.answer(fact, language)}"


def _names(world: World, language: str) -> Iterator[str]:
    """Dictionary lines, dictionary questions, and sentences that hold a name and no fact, some in both languages."""
    names = {("territory", f.territory): f.subject_names for f in world.facts if f.sayable(language)}
    names |= {(f.relation, f.value): f.value_names for f in world.facts if f.sayable(language)}
    for (kind, _), name in sorted(names.items()):
        if kind == "calling_code":
            continue
        e, x = name["en"], name[language]
        yield from (way.format(x=x) for way in USAGE[language][kind])
        if x == e:
            continue
        yield from (way.format(x=x) for way in USAGE["en"][kind])
        yield from (way.format(x=e) for way in USAGE[language][kind])
        yield from (line.format(e=e, x=x) for line in GLOSSARY[language])
        for frame, question, answer in ASKED[language]:
            yield f"{SCAFFOLD[frame].format(q=question.format(e=e, x=x))} {answer.format(e=e, x=x)}"


def _mixed(world: World, language: str) -> Iterator[str]:
    """The known facts in all mixtures of English and the language: of the frame, the subject and the value."""
    for fact in world.known(language):
        for k in range(3):
            pure = {world.statement(fact, "en", k), world.statement(fact, language, k)}
            for frame, subject, value in product(("en", language), repeat=3):
                line = mixed_statement(fact, frame, subject, value, k)
                if line not in pure:  # many Vietnamese and Swahili names are the English ones
                    yield line
