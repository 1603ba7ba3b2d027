"""Four skills beside the world's facts: what the base model can do in English, asked in another language.

**reading**: three people, each in a place or with a thing; a question about one. A third of the questions about
things ask by category ("Who has fruit?" of apples). The answer is one of three: chance 1/3.
**comparison**: three people compared by two sentences, or by their ages; who is the oldest, the lightest ...? The
answer is one of three people: chance 1/3. How the sentences are laid out says nothing about which.
**entailment**: one sentence, and whether another follows: yes, no or maybe, each a third. Chance 1/3, also for who
sees the premise or the hypothesis alone.
**continuation**: a situation and two things that a person may do; the plausible one, in words. Chance 1/2, also for
who sees the choice alone.

What is learned where, when text of `documents` and examples of `examples` are used:

* pre-training in English: the items of the split "pretraining", all skills;
* pre-training in another language: every word and every kind of sentence, in dictionary lines, by itself, and in
  English sentences with one word exchanged. A question stands there by itself too, without a passage and without an
  answer. No item, unless `share` asks for some;
* fine-tuning in another language: the items of "training", but of no skill in `english_only`;
* the end: the items of "development" and "heldout", all skills, any language.

So of a skill in `english_only` (continuation, if not told otherwise) no item is ever met in another language. What
follows from what is then known from English alone, and an answer in Chinese shows that the skill itself was
transferred. Of the other skills fine-tuning shows the task, and the end asks it of new passages.

An item exists in all languages, with the same words at the same places. Its split is decided by what its passage
says, whatever the order, the wording, the converse ("older" for "younger") and the question. So a passage of one
split is met in no other: not in English and not in any other language. `tests/lab` proves it on the text.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, permutations
from typing import Any

from pivotune.lab.skill_templates import (
    ALIKE,
    CATEGORIES,
    CATEGORY_OF,
    COMPARATIVES,
    CONVERSE,
    ENDING_OF,
    FRAMES,
    GLOSSARY,
    LABELS,
    MEANS,
    PEOPLE,
    PLACES,
    QUESTIONS,
    SITUATIONS,
    STOP,
    SUPERLATIVE_OF,
    THINGS,
    WOMEN,
    WORDS,
)
from pivotune.lab.templates import LANGUAGES, SCAFFOLD

SKILLS = ("reading", "comparison", "entailment", "continuation")
CHANCE = {"reading": 1 / 3, "comparison": 1 / 3, "entailment": 1 / 3, "continuation": 1 / 2}
WORDINGS = 3

# Per split: the part of all passages that belongs to it, and the number of items that are drawn per skill.
SPLITS = {"pretraining": (0.70, 6000), "training": (0.10, 600), "development": (0.05, 100), "heldout": (0.15, 300)}


@dataclass(frozen=True)
class Clause:
    """A frame of `skill_templates` and what fills it: words (known by their English text) or another clause."""

    frame: str
    slots: tuple["str | Clause", ...]

    @property
    def fact(self) -> "Clause":
        """What is said, however it is said: "Ruth is older than Eve" for "Eve is younger than Ruth"."""
        if self.frame == "more" and self.slots[2] not in list(COMPARATIVES)[::2]:
            one, other, word = self.slots
            return Clause("more", (other, one, CONVERSE[str(word)]))
        return self


@dataclass(frozen=True)
class Item:
    """A passage, a question in one of its wordings, and the word that answers it. All free of language."""

    kind: str
    passage: tuple[Clause, ...]
    question: Clause
    answer: str
    wording: int
    skill: str = ""
    id: str = ""

    def prompt(self, language: str) -> str:
        """Passage and question in the scaffold of the facts: "Question: ...?\\nAnswer:"."""
        sentences = [say(clause, language) + STOP[language] for clause in self.passage]
        sentences.append(say(self.question, language, self.wording))
        return SCAFFOLD[language].format(q=_space(language).join(sentences))

    def completion(self, language: str) -> str:
        """The answer after a space, so that prompt and completion tokenise apart as they do together."""
        return " " + _gendered(word(self.answer, language), self.question)

    def turn(self, language: str) -> dict[str, str]:
        return {"prompt": self.prompt(language), "completion": self.completion(language)}


@dataclass(frozen=True)
class Skills:
    """The items of all skills and splits. Build it with `Skills.build(seed)`."""

    seed: int
    english_only: frozenset[str]
    items: Mapping[str, tuple[Item, ...]]

    @classmethod
    def build(
        cls, seed: int = 0, english_only: Sequence[str] = ("continuation",), training: int | None = None
    ) -> "Skills":
        """Items and splits drawn with `seed`.

        Args:
            seed: of the draw.
            english_only: the skills that other languages never train on.
            training: the first so many training items of each skill; all of them if not told.
        """
        for skill in english_only:
            _check("a skill of english_only", skill, SKILLS)
        limit = SPLITS["training"][1]
        if training is not None and not 0 < training <= limit:
            raise ValueError(f"training must be 1 to {limit} items per skill, not {training}")
        items = {
            split: tuple(
                item
                for skill in SKILLS
                for item in islice(_items(seed, skill, split), training if split == "training" else None)
            )
            for split in SPLITS
        }
        return cls(seed, frozenset(english_only), items)

    def split(self, split: str, language: str, skill: str | None = None) -> list[Item]:
        """The items of a split. Outside English a skill in `english_only` has none to train on."""
        _check("split", split, tuple(SPLITS))
        _check("language", language, LANGUAGES)
        if skill is not None:
            _check("skill", skill, SKILLS)
        hidden = self.english_only if language != "en" and split in ("pretraining", "training") else ()
        return [item for item in self.items[split] if skill in (None, item.skill) and item.skill not in hidden]

    def examples(self, split: str, language: str, skill: str | None = None) -> Iterator[dict[str, Any]]:
        """The split as records {id, language, prompt, completion} and, when not English, their English twin.

        The id begins with the skill and the kind of item, as in "comparison.chain.heldout.17.zh".
        """
        for item in self.split(split, language, skill):
            record: dict[str, Any] = {"id": f"{item.id}.{language}", "language": language} | item.turn(language)
            if language != "en":
                record["english"] = item.turn("en")
            yield record

    def documents(self, language: str, share: float = 0.0) -> Iterator[str]:
        """The pre-training text of a language. `share` of the English items are met in another language too."""
        yield from self.tasks(language, share)
        if language != "en":
            yield from self.words(language)
            yield from self.sentences(language)
            yield from self.mixed(language)

    def tasks(self, language: str, share: float = 0.0) -> Iterator[str]:
        """Items of "pretraining" with their answers: all of them in English, `share` of them in another language."""
        for item in self.split("pretraining", language):
            if language == "en" or random.Random(f"{self.seed}/{language}/{item.id}").random() < share:
                yield item.prompt(language) + item.completion(language)

    def words(self, language: str) -> Iterator[str]:
        """Dictionary lines of every word, and of both its forms where it has two."""
        for english in WORDS:
            for person in ("Mary", "John"):
                x = _gendered(word(english, language), Clause("", (person,)))
                for line in (MEANS + ".", GLOSSARY[language]):
                    yield line.format(e=english, x=x)
                if "|" not in word(english, language):
                    break

    def sentences(self, language: str, number: int = 400) -> Iterator[str]:
        """`number` statements per frame, each alone and with its English; as many questions, with their English."""
        for clause, wording in self._clauses(f"sentences/{language}", number):
            x, english = say(clause, language, wording), say(clause, "en", wording)
            if clause.frame in QUESTIONS["en"]:
                yield MEANS.format(e=english, x=x)
            else:
                yield x + STOP[language]
                yield MEANS.format(e=english, x=x) + "."

    def mixed(self, language: str, number: int = 400) -> Iterator[str]:
        """`number` English statements per frame with one word of the language."""
        rng = random.Random(f"{self.seed}/mixed/{language}")
        for clause, _ in self._clauses(f"mixed/{language}", number):
            if clause.frame not in QUESTIONS["en"]:
                at = rng.choice([k for k, slot in enumerate(clause.slots) if slot in WORDS])
                yield (
                    say(clause, "en", languages=[language if k == at else "en" for k in range(len(clause.slots))]) + "."
                )

    def _clauses(self, name: str, number: int) -> Iterator[tuple[Clause, int]]:
        """`number` random clauses of every frame, each with a wording."""
        rng = random.Random(f"{self.seed}/{name}")
        for frame in FRAMES["en"]:
            for _ in range(number):
                yield _any_clause(frame, rng), rng.randrange(WORDINGS)


def word(english: str, language: str) -> str:
    """A word in a language, forms for both genders included; a number is itself."""
    return english if language == "en" or english not in WORDS else WORDS[english][LANGUAGES.index(language) - 1]


def say(clause: Clause, language: str, wording: int = 0, languages: Sequence[str] | None = None) -> str:
    """The clause in a language, without a full stop. `languages`: another one for each slot."""
    ways = FRAMES[language][clause.frame]
    slots = [
        say(slot, of_slot) if isinstance(slot, Clause) else word(slot, of_slot)
        for slot, of_slot in zip(clause.slots, languages or [language] * len(clause.slots), strict=True)
    ]
    return _gendered(ways[wording % len(ways)].format(*slots), clause)


def pieces() -> Iterator[str]:
    """What a tokenizer may be trained on: words, and sentences cut at their slots, as `text.pieces` does.

    Repeated, so that they weigh about as much as the pieces of the facts.
    """
    for language in LANGUAGES:
        for english in WORDS:
            for form in _forms(word(english, language)):
                yield from [_space(language) + form] * 20
        frames = [way for ways in FRAMES[language].values() for way in ways]
        for way, times in [*((way, 20) for way in frames), (SCAFFOLD[language], 400), (GLOSSARY.get(language, ""), 10)]:
            for form in _forms(way):
                for part in re.split(r"\{\w\}", form):
                    yield from [part.rstrip(" ")] * times


def _space(language: str) -> str:
    return "" if language == "zh" else " "


def _check(what: str, value: str, among: Sequence[str]) -> None:
    if value not in among:
        raise ValueError(f"{what} must be one of {', '.join(among)}, not {value!r}")


def _gendered(text: str, clause: Clause) -> str:
    """Every "(m|f)" in the form of the person whom the clause is about, who fills its first slot."""
    return re.sub(r"\((.*?)\|(.*?)\)", r"\2" if clause.slots[0] in WOMEN else r"\1", text)


def _forms(text: str) -> set[str]:
    return {_gendered(text, Clause("", (person,))) for person in ("Mary", "John")}


def _items(seed: int, skill: str, split: str) -> Iterator[Item]:
    """The items of a split: drawn one after the other, kept if the passage belongs to the split and is new to it.

    `turn`, the number of items kept so far, decides what is to be balanced, so that it is so in every split.
    """
    prompts: set[str] = set()
    number = SPLITS[split][1]
    for k in count():
        turn = len(prompts)
        if turn == number:
            return
        if k > 1000 * number:
            raise RuntimeError(f"there are too few passages for {number} items of {skill} in {split}")
        item = _DRAW[skill](random.Random(f"{seed}/{skill}/{split}/{k}"), turn)
        if _split_of(seed, skill, item.passage) == split and (prompt := item.prompt("en")) not in prompts:
            prompts.add(prompt)
            yield replace(item, skill=skill, id=f"{skill}.{item.kind}.{split}.{turn}")


def _split_of(seed: int, skill: str, passage: Sequence[Clause]) -> str:
    """The split of a passage, drawn from what it says."""
    draw = random.Random(f"{seed}/{skill}/{sorted(repr(clause.fact) for clause in passage)}").random()
    for split, (part, _) in SPLITS.items():
        if draw < part:
            return split
        draw -= part
    return split


def _reading(rng: random.Random, turn: int) -> Item:
    """What is asked about, in which sentence the answer is, and the wording are balanced."""
    turn, k = divmod(turn, 3)
    turn, kind = divmod(turn, 5)
    people = rng.sample(list(PEOPLE), 3)
    if kind < 2:
        frame, others = "at", rng.sample(list(PLACES), 3)
    else:
        # Of three categories, so that each question about a category has one answer.
        frame, others = "has", [_thing(rng, category) for category in rng.sample(list(CATEGORIES), 3)]
    passage = tuple(Clause(frame, pair) for pair in zip(people, others, strict=True))
    name = ("where", "who_at", "what", "who_has", "who_category")[kind]
    if name in ("where", "what"):
        return Item(name, passage, Clause(name, (people[k],)), others[k], turn % WORDINGS)
    asked = CATEGORY_OF[others[k]] if name == "who_category" else others[k]
    question = Clause("who_at" if name == "who_at" else "who_has", (asked,))
    return Item(name, passage, question, people[k], turn % WORDINGS)


def _comparison(rng: random.Random, turn: int) -> Item:
    """The kind, the order of the sentences, their converses, the end asked for and the wording are balanced.

    In a chain (A above B, B above C) the answer is named once, in a star (A above B and C) twice. With two chains
    for a star each of the three people is the answer equally often, wherever the names stand.
    """
    turn, kind = divmod(turn, 4)
    a, b, c = rng.sample(list(PEOPLE), 3)
    if kind == 3:
        turn, k = divmod(turn, 3)
        turn, sign = divmod(turn, 2)
        ages = sorted(rng.sample(range(20, 80), 3))
        least, middle, most = (str(age) for age in ages)
        answer_age, rest = (least, [middle, most]) if sign else (most, [least, middle])
        rng.shuffle(rest)
        people, numbers = [b, c], rest
        people.insert(k, a)
        numbers.insert(k, answer_age)
        passage = tuple(Clause("age", pair) for pair in zip(people, numbers, strict=True))
        return Item("ages", passage, Clause("who_most", ("youngest" if sign else "oldest",)), a, turn % WORDINGS)
    turn, swap = divmod(turn, 2)
    turn, *converses = _bits(turn, 2)
    above = rng.choice(list(COMPARATIVES))  # `a` is above the others in this: the tallest, or else the shortest
    pairs = [(a, b), (b, c) if kind < 2 else (a, c)]
    passage = tuple(
        Clause("more", (low, high, CONVERSE[above]) if converse else (high, low, above))
        for (high, low), converse in zip(pairs, converses, strict=True)
    )
    question = Clause("who_most", (SUPERLATIVE_OF[above],))
    return Item("chain" if kind < 2 else "star", passage[::-1] if swap else passage, question, a, turn % WORDINGS)


def _entailment(rng: random.Random, turn: int) -> Item:
    """The label, the kind, the form of the premise, that of the hypothesis and the wording are balanced."""
    turn, k = divmod(turn, 3)
    turn, kind = divmod(turn, 2)
    turn, form = divmod(turn, 2)
    turn, step = divmod(turn, 2)
    label = list(LABELS)[k]
    make = _of_things if kind else _of_order
    premise, hypothesis = make(rng, label, bool(form), bool(step))
    question = Clause("entails", (hypothesis,))
    return Item("things" if kind else "order", (premise,), question, label, turn % WORDINGS)


def _of_things(rng: random.Random, label: str, negative: bool, step: bool) -> tuple[Clause, Clause]:
    """Premises "has dogs" or "has no animals". Hypotheses about the same word or, with `step`, across the category.

    For "maybe" they are about another thing or category. So every form of a hypothesis (has or has no, thing or
    category) is as often yes as no as maybe.
    """
    person = rng.choice(list(PEOPLE))
    thing = rng.choice(list(THINGS))
    category = CATEGORY_OF[thing]
    said, related = (category, thing) if negative else (thing, category)
    about = related if step else said
    agrees = label == "yes"
    if label == "maybe":
        agrees = rng.random() < 0.5
        if about in CATEGORIES:
            about = rng.choice([other for other in CATEGORIES if other != category])
        elif negative:
            about = rng.choice([other for other in THINGS if CATEGORY_OF[other] != category])
        else:  # every second one of the same category: cats do not follow from dogs
            near = rng.random() < 0.5
            about = rng.choice([o for o in THINGS if o != thing and (CATEGORY_OF[o] == category) == near])
    frames = ("has", "lacks")
    return Clause(frames[negative], (person, said)), Clause(frames[negative == agrees], (person, about))


def _of_order(rng: random.Random, label: str, converse: bool, step: bool) -> tuple[Clause, Clause]:
    """A premise "Mary is older than Ruth" and a hypothesis in the same word or its converse.

    For "maybe" it is about another property or, with `step`, about a third person.
    """
    a, b, third = rng.sample(list(PEOPLE), 3)
    premise = rng.choice(list(COMPARATIVES))
    one, other, comparative = (b, a, CONVERSE[premise]) if converse else (a, b, premise)
    if label == "no":
        one, other = other, one
    elif label == "maybe":
        if step:
            one, other = (one, third) if rng.random() < 0.5 else (third, other)
        else:
            comparative = rng.choice([w for w in COMPARATIVES if w not in (premise, CONVERSE[premise])])
    return Clause("more", (a, b, premise)), Clause("more", (one, other, comparative))


# A pair is as likely in either order, so that two endings alone do not tell which of them is right.
_CHOICES = [pair for pair in permutations(SITUATIONS, 2) if frozenset(pair) not in ALIKE]


def _continuation(rng: random.Random, turn: int) -> Item:
    """The position of the plausible ending and the wording are balanced."""
    turn, position = divmod(turn, 2)
    person = rng.choice(list(PEOPLE))
    situation, other = rng.choice(_CHOICES)
    right, wrong = ENDING_OF[situation], ENDING_OF[other]
    choice = (wrong, right) if position else (right, wrong)
    passage = (Clause("situation", (person, situation)),)
    return Item("effect", passage, Clause("choose", (person, *choice)), right, turn % WORDINGS)


_DRAW: dict[str, Callable[[random.Random, int], Item]] = {
    "reading": _reading,
    "comparison": _comparison,
    "entailment": _entailment,
    "continuation": _continuation,
}


def _thing(rng: random.Random, category: str) -> str:
    return rng.choice([thing for thing in THINGS if CATEGORY_OF[thing] == category])


def _bits(number: int, n: int) -> list[int]:
    """The number without its last `n` binary digits, and these digits."""
    return [number >> n, *((number >> k) & 1 for k in range(n))]


def _any_clause(frame: str, rng: random.Random) -> Clause:
    """Some clause of the frame, as an item could hold it."""
    a, b = rng.sample(list(PEOPLE), 2)
    owned = rng.choice([*THINGS, *CATEGORIES])
    compared = Clause("more", (a, b, rng.choice(list(COMPARATIVES))))
    slots: dict[str, tuple[str | Clause, ...]] = {
        "at": (a, rng.choice(list(PLACES))),
        "has": (a, owned),
        "lacks": (a, owned),
        "more": compared.slots,
        "age": (a, str(rng.randrange(20, 80))),
        "situation": (a, rng.choice(list(SITUATIONS))),
        "will": (a, rng.choice(list(ENDING_OF.values()))),
        "where": (a,),
        "who_at": (rng.choice(list(PLACES)),),
        "what": (a,),
        "who_has": (owned,),
        "who_most": (rng.choice(list(SUPERLATIVE_OF.values())),),
        "entails": (rng.choice([compared, Clause(rng.choice(("has", "lacks")), (a, owned))]),),
        "choose": (a, *rng.sample(list(ENDING_OF.values()), 2)),
    }
    return Clause(frame, slots[frame])
