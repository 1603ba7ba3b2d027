"""The text that the base model is trained on: short documents of one line or one question with its answer.

What the base may learn where is decided here and nowhere else:

* English: statements and question/answer pairs of every fact;
* another language: the same, of its known facts only; the name of everything, in dictionary lines and questions and in
  sentences that say no fact;
* English lines and questions with the subject's name alone in the other language ("The currency of 法国 is the Euro."),
  of its known and its training facts;
* all other mixtures of English and the language, of its known facts only.

No held-out and no development fact is in any of them but the first.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

from pivotune.lab.templates import GLOSSARY, LANGUAGES, MEANING, QUESTIONS, SCAFFOLD, STATEMENTS, USAGE
from pivotune.lab.world import World, mixed_statement, mixed_turn

Document = TypeVar("Document")


@dataclass(frozen=True)
class Pool(Generic[Document]):
    """Documents of one kind; `weight` is the share of the documents that are drawn from it."""

    language: str
    kind: str
    documents: tuple[Document, ...]
    weight: float


Weights = Mapping[str, Mapping[str, float]]

# The share of each kind of text among the documents, per language. They sum to 1.
WEIGHTS: Weights = {
    "en": {"facts": 0.25},
    "zh": {"facts": 0.05, "names": 0.09, "subjects": 0.06, "mixed": 0.03},
    "vi": {"facts": 0.05, "names": 0.07, "subjects": 0.04, "mixed": 0.02},
    "ar": {"facts": 0.05, "names": 0.09, "subjects": 0.06, "mixed": 0.03},
    "sw": {"facts": 0.025, "names": 0.045, "subjects": 0.025, "mixed": 0.015},
}


def pools(world: World, weights: Weights = WEIGHTS) -> list[Pool[str]]:
    """All text of pre-training."""
    kinds = {"facts": _facts, "names": _names, "subjects": _subjects, "mixed": _mixed}
    return [
        Pool(language, kind, tuple(kinds[kind](world, language)), weight)
        for language, shares in weights.items()
        for kind, weight in shares.items()
    ]


def stream(source: Sequence[Pool[Document]], seed: int) -> Iterator[Document]:
    """Documents without end: a pool by weight, and within a pool every document once before any comes twice."""
    rng = random.Random(seed)
    queues: list[list[Document]] = [[] for _ in source]
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
        named = [GLOSSARY.get(language, ()), [MEANING[language]], *USAGE.get(language, {}).values()]
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
    """Sentences that hold a name and no fact; dictionary lines to and from English; dictionary questions.

    The questions go from every language into this one, and from this one into English.
    """
    names = {("territory", f.territory): f.subject_names for f in world.facts if f.sayable(language)}
    names |= {(f.relation, f.value): f.value_names for f in world.facts if f.sayable(language)}
    for (kind, _), name in sorted(names.items()):
        if kind == "calling_code":
            continue
        e, x = name["en"], name[language]
        yield from (way.format(x=x) for way in USAGE[language][kind])
        if x != e:
            yield from (line.format(e=e, x=x) for line in GLOSSARY[language])
            yield _turn("en", MEANING["en"].format(x=x), e)
        for other in sorted({name[source] for source in name} - {x}):
            yield _turn(language, MEANING[language].format(x=other), x)


def _turn(language: str, question: str, answer: str) -> str:
    return f"{SCAFFOLD[language].format(q=question)} {answer}"


def _subjects(world: World, language: str) -> Iterator[str]:
    """English lines whose subject alone is in the language, of the known and the training facts."""
    for fact in [*world.known(language), *world.training(language)]:
        if fact.subject_names[language] != fact.subject_names["en"]:  # as many Vietnamese and Swahili names are
            for k in range(3):
                yield mixed_statement(fact, "en", language, "en", k)
                yield mixed_turn(fact, "en", language, "en", k)


def _mixed(world: World, language: str) -> Iterator[str]:
    """The known facts in all other mixtures of English and the language: of the frame, the subject and the value.

    A question is answered in its own language.
    """
    for fact in world.known(language):
        for frame, subject, value in product(("en", language), repeat=3):
            if (subject, value) == (frame, frame) or (frame, value) == ("en", "en"):
                continue
            for k in range(3):
                for mix in (mixed_statement, mixed_turn) if value == frame else (mixed_statement,):
                    line = mix(fact, frame, subject, value, k)
                    # Many Vietnamese and Swahili names are the English ones.
                    if line not in (mix(fact, "en", "en", "en", k), mix(fact, language, language, language, k)):
                        yield line
