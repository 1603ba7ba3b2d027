"""The pre-training text keeps its promises: checked by reading the text itself, not the flags that made it."""

import re
from collections import defaultdict
from itertools import islice, product

import pytest

from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import pools, stream
from pivotune.lab.world import Fact, World, mixed_statement, mixed_turn

OTHERS = LANGUAGES[1:]
MIXTURES = {language: list(product(("en", language), repeat=3)) for language in OTHERS}


@pytest.fixture(scope="module")
def finder(world) -> "NameFinder":
    return NameFinder(world)


class NameFinder:
    """Finds the world's names in a line, the longest at each place: "几内亚" is not found in "赤道几内亚"."""

    def __init__(self, world: World):
        self.subjects, self.values = defaultdict(set), defaultdict(set)
        for fact in world.facts:
            for language in LANGUAGES:
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

    def one_thing(self, line: str) -> bool:
        """Whether all names in the line can name one and the same thing, as in a dictionary line.

        "Azerbaijani" is a language in English and a territory in Swahili.
        """
        found = set(self.pattern.findall(line))
        return bool(set.intersection(*({*self.subjects.get(n, ()), *self.values.get(n, ())} for n in found)))

    def pairs(self, line: str) -> set[tuple[str, str, str]]:
        """(territory, relation, value) for every subject and every value that the line holds."""
        found = set(self.pattern.findall(line))
        territories = {t for name in found for t in self.subjects.get(name, ())}
        values = {v for name in found for v in self.values.get(name, ())}
        return {(t, relation, value) for t in territories for relation, value in values}


def leaks(finder: NameFinder, facts: list[Fact], lines: list[str]) -> list[tuple[str, str]]:
    """(line, fact id) where a line says, in any mixture of the languages, one of the facts."""
    # Plain substring search first: it misses nothing, and is fast; the finder then removes chance inclusions.
    names = {name for fact in facts for name in fact.subject_names.values()}
    lines_with = {name: {line for line in lines if name in line} for name in names}
    pairs: dict[str, set[tuple[str, str, str]]] = {}
    out = []
    for fact in facts:
        values = set(fact.value_names.values())
        for line in sorted(set().union(*(lines_with[name] for name in fact.subject_names.values()))):
            if any(value in line for value in values):
                if line not in pairs:
                    pairs[line] = finder.pairs(line)
                if (fact.territory, fact.relation, fact.value) in pairs[line]:
                    out.append((line, fact.id))
    return out


@pytest.mark.parametrize("language", OTHERS)
def test_no_tested_fact_outside_english(world, finder, language):
    """Neither a development nor a held-out fact, in no kind of text."""
    texts = [pool for pool in pools(world) if pool.language == language]
    assert {pool.kind for pool in texts} == {"facts", "names", "subjects", "mixed"}
    lines = [line for pool in texts for line in pool.documents]
    facts = [fact for fact in world.facts if world.english_only(fact)]
    assert len(lines) > 5000 and {*world.development(language), *world.heldout(language)} <= set(facts)
    found = leaks(finder, facts, lines)
    dictionary = {line for pool in texts if pool.kind == "names" for line in pool.documents}
    assert [leak for leak in found if leak[0] not in dictionary or not finder.one_thing(leak[0])] == []
    assert len(found) < 30


@pytest.mark.parametrize("language", OTHERS)
def test_a_training_fact_is_stated_in_english_sentences_only(world, finder, language):
    """With the subject's name in the language at most: no sentence of the language, and no value named in it."""
    texts = {pool.kind: pool.documents for pool in pools(world) if pool.language == language}
    stated = [*world.known(language), *world.training(language)]
    assert set(texts["subjects"]) == {
        line
        for fact in stated
        if fact.subject_names[language] != fact.subject_names["en"]
        for k in range(3)
        for line in (mixed_statement(fact, "en", language, "en", k), mixed_turn(fact, "en", language, "en", k))
    }
    assert leaks(finder, world.training(language), [*texts["facts"], *texts["mixed"]]) == []
    found = leaks(finder, world.training(language), list(texts["names"]))
    assert [leak for leak in found if not finder.one_thing(leak[0])] == []
    assert len(found) < 30


@pytest.mark.parametrize("language", OTHERS)
def test_no_tested_fact_in_the_training_questions(world, finder, language):
    """What fine-tuning reads states no development and no held-out fact either."""
    lines = [record["prompt"] + record["completion"] for record in world.examples("training", language)]
    facts = [*world.development("en"), *world.heldout("en")]
    assert leaks(finder, facts, lines) == []


@pytest.mark.parametrize("language", OTHERS)
def test_the_search_would_find_a_leak(world, finder, language):
    for fact in [*world.heldout(language)[::10], *world.development(language)[::10], *world.training(language)[::10]]:
        for line in (
            world.statement(fact, language, 1),
            f"{world.prompt(fact, language, 2)} {world.answer(fact, language)}",
            *(mix(fact, *parts) for mix in (mixed_statement, mixed_turn) for parts in MIXTURES[language]),
        ):
            assert (line, fact.id) in leaks(finder, [fact], [line])


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
    first = list(islice(stream(pools(world), 0), 500))
    assert first == list(islice(stream(pools(world), 0), 500))
    assert first != list(islice(stream(pools(world), 1), 500))
