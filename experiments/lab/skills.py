"""Four skills beside the world's facts: what the base model can do in English, asked in another language.

**reading**: three people; one is in a place, one has things, one is in a situation. Where is she, what does he have,
who is there, who has that, who has something of that category ("Who has fruit?" of apples), who is in that situation?
The answer is in one of three sentences: chance 1/3.
**comparison**: two people and their ages. How old is the older, or the younger one? Chance 1/2.
**entailment**: one sentence about what a person has or has not, and whether another follows: yes, no or maybe, each a
third. Chance 1/3, also for who sees the premise or the hypothesis alone.
**continuation**: a situation and two things that a person may do; the plausible one, in words. Chance 1/2, also for
who sees the choice alone.

No passage asks to tell apart two sentences of the same kind but the ages: to keep track of who has what among equals is
more than the lab's small models learn in minutes.

What is learned where, when text of `documents` and examples of `examples` are used:

* pre-training in English: the items of the split "pretraining", all skills;
* pre-training in another language: every word and every kind of sentence, in dictionary lines, by itself, with its
  English, and in English sentences with one word exchanged. A question stands there by itself too, without a passage
  and without an answer. No item, unless `share` asks for some; for the base model it is `SHARE`;
* fine-tuning in another language: the items of "training", but of no skill that is `untaught`;
* the end: the items of "development" and "heldout", all skills, any language.

So of a skill that is untaught (continuation, if not told otherwise) another language has met the few items of `share`
only. What an answer in Chinese gains by fine-tuning on the other skills shows that what was taught reaches beyond them.

An item exists in all languages, with the same words at the same places. Its split is decided by what its passage
says, whatever the order, the wording and the question. So a passage of one split is met in no other: not in English and
not in any other language. `tests/lab` proves it on the text.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, permutations
from typing import Any

from experiments.lab.skill_templates import (
    AGES,
    ALIKE,
    CATEGORIES,
    CATEGORY_OF,
    COMPARATIVES,
    ENDING_OF,
    FRAMES,
    GLOSSARY,
    LABELS,
    MEANS,
    PEOPLE,
    PHRASES,
    PLACES,
    QUESTIONS,
    SITUATIONS,
    STOP,
    THINGS,
    WOMEN,
    WORDS,
)
from pivotune.lab.templates import LANGUAGES, SCAFFOLD
from pivotune.lab.text import Pool

SKILLS = ("reading", "comparison", "entailment", "continuation")
CHANCE = {"reading": 1 / 3, "comparison": 1 / 2, "entailment": 1 / 3, "continuation": 1 / 2}
WORDINGS = 3

# Per split: the part of all passages that belongs to it, and the number of items that are drawn per skill.
SPLITS = {"pretraining": (0.70, 3000), "training": (0.10, 300), "development": (0.05, 100), "heldout": (0.15, 300)}

# A model that has met each passage often learns it by heart and not to read: as many as there is room for.
MORE = {"reading": 12000, "comparison": 12000}

Document = tuple[str, str]
"""A text of pre-training: what is given, and what follows from it (an answer, a translation), which may be empty."""

# The share of each kind of text among the documents, per language; "items" are of all skills. They sum to 1.
WEIGHTS = {"en": {"reading": 0.29, "comparison": 0.12, "entailment": 0.15, "continuation": 0.04}} | {
    language: {"items": 0.015, "words": 0.03, "sentences": 0.035, "mixed": 0.02} for language in LANGUAGES[1:]
}
SHARE = 0.05  # of the English items, that are met in another language too


@dataclass(frozen=True)
class Clause:
    """A frame of `skill_templates` and what fills it: words (known by their English text) or another clause."""

    frame: str
    slots: tuple["str | Clause", ...]


@dataclass(frozen=True)
class SkillItem:
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
    untaught: frozenset[str]
    items: Mapping[str, tuple[SkillItem, ...]]

    @classmethod
    def build(cls, seed: int = 0, untaught: Sequence[str] = ("continuation",), training: int | None = None) -> "Skills":
        """Items and splits drawn with `seed`.

        Args:
            seed: of the draw.
            untaught: the skills that fine-tuning does not teach in other languages.
            training: the first so many training items of each skill; all of them if not told.
        """
        for skill in untaught:
            _check("a skill of untaught", skill, SKILLS)
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
        return cls(seed, frozenset(untaught), items)

    def split(self, split: str, language: str, skill: str | None = None) -> list[SkillItem]:
        """The items of a split. Outside English an untaught skill has none to train on."""
        _check("split", split, tuple(SPLITS))
        _check("language", language, LANGUAGES)
        if skill is not None:
            _check("skill", skill, SKILLS)
        hidden = self.untaught if language != "en" and split == "training" else ()
        return [item for item in self.items[split] if skill in (None, item.skill) and item.skill not in hidden]

    def examples(self, split: str, language: str, skill: str | None = None) -> Iterator[dict[str, Any]]:
        """The split as records {id, language, prompt, completion} and, when not English, their English twin.

        The id begins with the skill and the kind of item, as in "comparison.older.heldout.17.zh".
        """
        for item in self.split(split, language, skill):
            record: dict[str, Any] = {"id": f"{item.id}.{language}", "language": language} | item.turn(language)
            if language != "en":
                record["english"] = item.turn("en")
            yield record

    def documents(self, language: str, share: float = 0.0) -> Iterator[Document]:
        """The pre-training text of a language. `share` of the English items are met in another language too."""
        yield from self.tasks(language, share)
        if language != "en":
            yield from self.words(language)
            yield from self.sentences(language)
            yield from self.mixed(language)

    def tasks(self, language: str, share: float = 0.0, skill: str | None = None) -> Iterator[Document]:
        """Items of "pretraining" with their answers: all of them in English, `share` of them in another language."""
        for item in self.split("pretraining", language, skill):
            if language == "en" or random.Random(f"{self.seed}/{language}/{item.id}").random() < share:
                yield item.prompt(language), item.completion(language)

    def words(self, language: str) -> Iterator[Document]:
        """Dictionary lines of every word, and of both its forms where it has two."""
        for english in WORDS:
            for person in ("Mary", "John"):
                x = _gendered(word(english, language), Clause("", (person,)))
                yield MEANS.format(x=x), f" {english}."
                yield GLOSSARY[language].format(e=english), f" {x}{STOP[language]}"
                if "|" not in word(english, language):
                    break

    def sentences(self, language: str, number: int = 400) -> Iterator[Document]:
        """`number` statements per frame, each alone and with its English; as many questions, with their English."""
        for clause, wording in self._clauses(f"sentences/{language}", number):
            x, english = say(clause, language, wording), say(clause, "en", wording)
            if clause.frame in QUESTIONS["en"]:
                yield MEANS.format(x=x), f" {english}"
            else:
                yield x + STOP[language], ""
                yield MEANS.format(x=x), f" {english}."

    def mixed(self, language: str, number: int = 400) -> Iterator[Document]:
        """`number` English statements per frame with one word of the language."""
        rng = random.Random(f"{self.seed}/mixed/{language}")
        for clause, _ in self._clauses(f"mixed/{language}", number):
            if clause.frame not in QUESTIONS["en"]:
                at = rng.choice([k for k, slot in enumerate(clause.slots) if slot in WORDS])
                languages = [language if k == at else "en" for k in range(len(clause.slots))]
                yield say(clause, "en", languages=languages) + ".", ""

    def _clauses(self, name: str, number: int) -> Iterator[tuple[Clause, int]]:
        """`number` random clauses of every frame, each with a wording."""
        rng = random.Random(f"{self.seed}/{name}")
        for frame in FRAMES["en"]:
            for _ in range(number):
                yield _any_clause(frame, rng), rng.randrange(WORDINGS)


def pools(skills: Skills) -> list[Pool[Document]]:
    """All text of the base model's pre-training."""
    kinds = {"words": skills.words, "sentences": skills.sentences, "mixed": skills.mixed}
    found = []
    for language, shares in WEIGHTS.items():
        for kind, weight in shares.items():
            if kind in kinds:
                documents = kinds[kind](language)
            else:
                documents = skills.tasks(language, SHARE, None if kind == "items" else kind)
            found.append(Pool(language, kind, tuple(documents), weight))
    return found


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

    Repeated, and single words the most: each is to be one token, as a small model learns to copy these first.
    """
    for language in LANGUAGES:
        yield from [_space(language) + age for age in AGES] * 100
        for english in WORDS:
            for form in _forms(word(english, language)):
                yield from [_space(language) + form] * (20 if english in PHRASES else 100)
        frames = [way for ways in FRAMES[language].values() for way in ways]
        for way, times in [
            *((way, 20) for way in frames),
            (SCAFFOLD[language], 400),
            (GLOSSARY.get(language, MEANS), 10),
        ]:
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


def size(split: str, skill: str) -> int:
    """The number of items of a skill in a split."""
    return MORE.get(skill, SPLITS[split][1]) if split == "pretraining" else SPLITS[split][1]


def _items(seed: int, skill: str, split: str) -> Iterator[SkillItem]:
    """The items of a split: drawn one after the other, kept if the passage belongs to the split and is new to it.

    `turn`, the number of items kept so far, decides what is to be balanced, so that it is so in every split.
    """
    prompts: set[str] = set()
    number = size(split, skill)
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
    draw = random.Random(f"{seed}/{skill}/{sorted(repr(clause) for clause in passage)}").random()
    for split, (part, _) in SPLITS.items():
        if draw < part:
            return split
        draw -= part
    return split


# The kinds of question about a passage, and the sentence that answers each: every kind of sentence as often.
_READING = tuple(
    kind
    for at, has in (("where", "what"), ("who_at", "who_has"), ("where", "who_category"), ("who_at", "who_category"))
    for kind in ((at, "at"), (has, "has"), ("who_situation", "situation"))
)


def _reading(rng: random.Random, turn: int) -> SkillItem:
    """What is asked about, in which sentence the answer is, and the wording are balanced."""
    turn, k = divmod(turn, 3)
    turn, kind = divmod(turn, len(_READING))
    name, frame = _READING[kind]
    told = {"at": rng.choice(list(PLACES)), "has": rng.choice(list(THINGS)), "situation": rng.choice(list(SITUATIONS))}
    frames = [other for other in told if other != frame]
    rng.shuffle(frames)
    frames.insert(k, frame)
    people = rng.sample(list(PEOPLE), 3)
    passage = tuple(Clause(of, (person, told[of])) for of, person in zip(frames, people, strict=True))
    if name in ("where", "what"):
        return SkillItem(name, passage, Clause(name, (people[k],)), told[frame], turn % WORDINGS)
    if name == "who_category":
        return SkillItem(name, passage, Clause("who_has", (CATEGORY_OF[told[frame]],)), people[k], turn % WORDINGS)
    return SkillItem(name, passage, Clause(name, (told[frame],)), people[k], turn % WORDINGS)


def _comparison(rng: random.Random, turn: int) -> SkillItem:
    """The word asked for, in which sentence the answer is, and the wording are balanced."""
    turn, k, younger = _bits(turn, 2)
    people = rng.sample(list(PEOPLE), 2)
    ages = sorted(rng.sample(AGES, 2), reverse=k == younger)
    passage = tuple(Clause("age", (person, age)) for person, age in zip(people, ages, strict=True))
    comparative = list(COMPARATIVES)[younger]
    return SkillItem(comparative, passage, Clause("age_more", (comparative,)), ages[k], turn % WORDINGS)


def _entailment(rng: random.Random, turn: int) -> SkillItem:
    """The label, the form of the premise, that of the hypothesis and the wording are balanced.

    Premises are "has dogs" or "has no animals". Hypotheses are about the same word or, with `step`, across the
    category; for "maybe" about a thing or category of another kind. So every form of a hypothesis (has or has no,
    thing or category) is as often yes as no as maybe.
    """
    turn, k = divmod(turn, 3)
    turn, step, negative = _bits(turn, 2)
    label = list(LABELS)[k]
    person = rng.choice(list(PEOPLE))
    thing = rng.choice(list(THINGS))
    category = CATEGORY_OF[thing]
    said, related = (category, thing) if negative else (thing, category)
    about = related if step else said
    agrees = label == "yes"
    if label == "maybe":
        agrees = rng.random() < 0.5
        others = CATEGORIES if about in CATEGORIES else THINGS
        about = rng.choice([other for other in others if CATEGORY_OF.get(other, other) != category])
    frames = ("has", "lacks")
    hypothesis = Clause(frames[negative == agrees], (person, about))
    premise = Clause(frames[negative], (person, said))
    kind = "category" if step else "same"
    return SkillItem(kind, (premise,), Clause("entails", (hypothesis,)), label, turn % WORDINGS)


# A pair is as likely in either order, so that two endings alone do not tell which of them is right.
_CHOICES = [pair for pair in permutations(SITUATIONS, 2) if frozenset(pair) not in ALIKE]


def _continuation(rng: random.Random, turn: int) -> SkillItem:
    """The position of the plausible ending and the wording are balanced."""
    turn, position = divmod(turn, 2)
    person = rng.choice(list(PEOPLE))
    situation, other = rng.choice(_CHOICES)
    right, wrong = ENDING_OF[situation], ENDING_OF[other]
    choice = (wrong, right) if position else (right, wrong)
    passage = (Clause("situation", (person, situation)),)
    return SkillItem("effect", passage, Clause("choose", (person, *choice)), right, turn % WORDINGS)


_DRAW: dict[str, Callable[[random.Random, int], SkillItem]] = {
    "reading": _reading,
    "comparison": _comparison,
    "entailment": _entailment,
    "continuation": _continuation,
}


def _bits(number: int, n: int) -> list[int]:
    """The number without its last `n` binary digits, and these digits."""
    return [number >> n, *((number >> k) & 1 for k in range(n))]


def _any_clause(frame: str, rng: random.Random) -> Clause:
    """Some clause of the frame, as an item could hold it."""
    a = rng.choice(list(PEOPLE))
    owned = rng.choice([*THINGS, *CATEGORIES])
    slots: dict[str, tuple[str | Clause, ...]] = {
        "at": (a, rng.choice(list(PLACES))),
        "has": (a, owned),
        "lacks": (a, owned),
        "age": (a, rng.choice(AGES)),
        "situation": (a, rng.choice(list(SITUATIONS))),
        "will": (a, rng.choice(list(ENDING_OF.values()))),
        "where": (a,),
        "who_at": (rng.choice(list(PLACES)),),
        "what": (a,),
        "who_has": (owned,),
        "age_more": (rng.choice(list(COMPARATIVES)),),
        "who_situation": (rng.choice(list(SITUATIONS)),),
        "entails": (Clause(rng.choice(("has", "lacks")), (a, owned)),),
        "choose": (a, *rng.sample(list(ENDING_OF.values()), 2)),
    }
    return Clause(frame, slots[frame])
