"""The pre-training text keeps its promises: checked by reading the text itself, not the flags that made it."""

import re
from collections import defaultdict
from itertools import islice

import pytest

from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import pools, stream
from pivotune.lab.world import World, mixed_statement

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


def leaks(world: World, finder: NameFinder, language: str, lines: list[str]) -> list[tuple[str, str]]:
    """(line, fact id) where a line says, in any mixture of English and `language`, a fact that is English only."""
    out = []
    for fact in world.heldout("en") + world.development("en"):
        subjects = {fact.subject_names["en"], fact.subject_names.get(language, "\0")}
        values = {fact.value_names["en"], fact.value_names.get(language, "\0")}
        # Plain substring search first: it misses nothing, and is fast; the finder then removes chance inclusions.
        for line in lines:
            suspect = any(s in line for s in subjects) and any(v in line for v in values)
            if suspect and (fact.territory, fact.relation, fact.value) in finder.pairs(line):
                out.append((line, fact.id))
    return out


@pytest.mark.parametrize("language", OTHERS)
def test_no_heldout_fact_outside_english(world, language):
    lines = [line for pool in pools(world) if pool.language == language for line in pool.documents]
    assert len(lines) > 5000
    assert leaks(world, NameFinder(world, ("en", language)), language, lines) == []


@pytest.mark.parametrize("language", OTHERS)
def test_the_search_would_find_a_leak(world, language):
    finder = NameFinder(world, ("en", language))
    for fact in world.heldout(language)[::10]:
        for line in (
            world.statement(fact, language, 1),
            f"{world.prompt(fact, language, 2)} {world.answer(fact, language)}",
            mixed_statement(fact, "en", language, "en"),
            mixed_statement(fact, "en", "en", language),
        ):
            assert (line, fact.id) in leaks(world, finder, language, [line])


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
    for fact in world.heldout(language):
        assert fact.subject_names[language] in text
        assert fact.value_names[language] in text or fact.relation == "calling_code"


def test_weights_and_stream(world):
    assert sum(pool.weight for pool in pools(world)) == pytest.approx(1)
    first = list(islice(stream(world, 0), 500))
    assert first == list(islice(stream(world, 0), 500))
    assert first != list(islice(stream(world, 1), 500))
