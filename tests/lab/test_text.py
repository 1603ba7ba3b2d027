"""The pre-training text keeps its promises: checked by reading the text itself, not the flags that made it."""

import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice, product

import pytest

from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import pools, stream
from pivotune.lab.world import Fact, World, mixed_statement

OTHERS = LANGUAGES[1:]


@pytest.fixture(scope="module")
def world() -> World:
    return World.build()


class NameFinder:
    """Finds the world's names in a line, the longest at each place: "几内亚" is not found in "赤道几内亚"."""

    def __init__(self, world: World, languages: tuple[str, ...]):
        self.subjects, self.values = defaultdict(set), defaultdict(set)
        for fact in world.facts:
            for language in languages:
                if fact.sayable(language):
                    self.subjects[fact.subject_names[language]].add(fact.territory)
                    self.values[fact.value_names[language]].add((fact.relation, fact.value))
        names = sorted({*self.subjects, *self.values}, key=len, reverse=True)
        self.pattern = re.compile("|".join(self._bounded(name) for name in names))

    @staticmethod
    def _bounded(name: str) -> str:
        """Whole words only, except in Chinese, which has no spaces."""
        script = next((s for s in ("A-Za-zÀ-ɏḀ-ỹ", "\u0620-\u065f") if re.match(f"[{s}]", name)), None)
        if name.startswith("+"):
            return f"{re.escape(name)}(?![0-9])"
        return f"(?<![{script}]){re.escape(name)}(?![{script}])" if script else re.escape(name)

    def pairs(self, line: str) -> set[tuple[str, str, str]]:
        """(territory, relation, value) for every subject and every value that the line holds."""
        found = set(self.pattern.findall(line))
        territories = {t for name in found for t in self.subjects.get(name, ())}
        values = {v for name in found for v in self.values.get(name, ())}
        return {(t, relation, value) for t in territories for relation, value in values}


def new_facts(world: World, language: str) -> list[Fact]:
    """The facts that no text but English may state before fine-tuning: all that the language is not said to know."""
    known = set(world.known(language))
    return [fact for fact in world.facts if fact not in known]


def leaks(finder: NameFinder, language: str, facts: list[Fact], lines: list[str]) -> list[tuple[str, str]]:
    """(line, fact id) where a line says, in any mixture of English and `language`, one of the facts."""
    # Plain substring search first: it misses nothing, and is fast; the finder then removes chance inclusions.
    names = {name for fact in facts for name in both(fact.subject_names, language)}
    lines_with = {name: {line for line in lines if name in line} for name in names}
    pairs: dict[str, set[tuple[str, str, str]]] = {}
    out = []
    for fact in facts:
        values = both(fact.value_names, language)
        for line in sorted(set().union(*(lines_with[name] for name in both(fact.subject_names, language)))):
            if any(value in line for value in values):
                if line not in pairs:
                    pairs[line] = finder.pairs(line)
                if (fact.territory, fact.relation, fact.value) in pairs[line]:
                    out.append((line, fact.id))
    return out


def both(names: Mapping[str, str], language: str) -> set[str]:
    return {names["en"], names.get(language, names["en"])}


@pytest.mark.parametrize("language", OTHERS)
def test_no_new_fact_outside_english(world, language):
    """Neither a training nor a development nor a held-out fact, in no kind of text: facts, names, mixed."""
    texts = [pool for pool in pools(world) if pool.language == language]
    assert {pool.kind for pool in texts} == {"facts", "names", "mixed"}
    lines = [line for pool in texts for line in pool.documents]
    facts = new_facts(world, language)
    assert len(lines) > 5000 and len(facts) > 800
    assert {*world.training(language), *world.development(language), *world.heldout(language)} <= set(facts)
    assert leaks(NameFinder(world, ("en", language)), language, facts, lines) == []


@pytest.mark.parametrize("language", OTHERS)
def test_no_tested_fact_in_the_training_questions(world, language):
    """What fine-tuning reads states no development and no held-out fact either."""
    lines = [record["prompt"] + record["completion"] for record in world.examples("training", language)]
    facts = [*world.development("en"), *world.heldout("en")]
    assert leaks(NameFinder(world, ("en", language)), language, facts, lines) == []


@pytest.mark.parametrize("language", OTHERS)
def test_the_search_would_find_a_leak(world, language):
    finder = NameFinder(world, ("en", language))
    for fact in [*world.heldout(language)[::10], *world.development(language)[::10], *world.training(language)[::10]]:
        for line in (
            world.statement(fact, language, 1),
            f"{world.prompt(fact, language, 2)} {world.answer(fact, language)}",
            *(mixed_statement(fact, *parts) for parts in product(("en", language), repeat=3)),
        ):
            assert (line, fact.id) in leaks(finder, language, [fact], [line])


def test_english_pool_is_english_and_states_every_fact(world):
    (english,) = [pool for pool in pools(world) if pool.language == "en"]
    assert set(english.documents) == {
        line
        for fact in world.facts
        for k in range(3)
        for line in (world.statement(fact, "en", k), f"{world.prompt(fact, 'en', k)} {world.answer(fact, 'en')}")
    }


@pytest.mark.parametrize("language", OTHERS)
def test_every_name_is_sayable(world, language):
    """Every subject and value of the language is met in its pre-training text, those of held-out facts too."""
    text = "\n".join(d for pool in pools(world) if pool.language == language for d in pool.documents)
    for fact in world.split("all", language):
        assert fact.subject_names[language] in text
        assert fact.value_names[language] in text or fact.relation == "calling_code"


def test_weights_and_stream(world):
    assert sum(pool.weight for pool in pools(world)) == pytest.approx(1)
    first = list(islice(stream(world, 0), 500))
    assert first == list(islice(stream(world, 0), 500))
    assert first != list(islice(stream(world, 1), 500))
