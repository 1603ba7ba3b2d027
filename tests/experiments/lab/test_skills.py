"""The skills' items have one right answer that only their passage gives, and no split holds a passage of another."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from itertools import combinations, product

import pytest

from experiments.lab.skill_templates import (
    AGES,
    ALIKE,
    CATEGORY_OF,
    COMPARATIVES,
    ENDING_OF,
    FRAMES,
    LABELS,
    PEOPLE,
    SITUATIONS,
    STOP,
    TABLES,
    THINGS,
    WOMEN,
    WORDS,
)
from experiments.lab.skills import CHANCE, SKILLS, SPLITS, WORDINGS, Clause, SkillItem, Skills, pieces, say, size
from pivotune.lab.templates import LANGUAGES, SCAFFOLD

OTHERS = LANGUAGES[1:]
ASKED = ("development", "heldout")

# The first item of all that are held out: the same on every machine.
FIRST = "Question: Mark is in the forest. John has tables. Adam is very sad. Where is Mark?\nAnswer: in the forest"


@pytest.fixture(scope="module")
def skills() -> Skills:
    return Skills.build()


@pytest.fixture(scope="module")
def other_skills() -> Skills:
    return Skills.build(1, untaught=("reading", "comparison"))


# --- what is right ---------------------------------------------------------------------------------------------------


def things_of(word: str) -> set[str]:
    return {thing for thing in THINGS if word in (thing, CATEGORY_OF[thing])}


def holds(clause: Clause, owned: set[str]) -> bool:
    return bool(things_of(clause.slots[1]) & owned) == (clause.frame == "has")


def follows(premise: Clause, hypothesis: Clause) -> str:
    """By going through every world that could be."""
    assert premise.slots[0] == hypothesis.slots[0]
    about = sorted(things_of(premise.slots[1]) | things_of(hypothesis.slots[1]))
    worlds = [
        {thing for thing, has in zip(about, bits, strict=True) if has} for bits in product((0, 1), repeat=len(about))
    ]
    seen = {holds(hypothesis, world) for world in worlds if holds(premise, world)}
    return {(True,): "yes", (False,): "no"}.get(tuple(seen), "maybe")


def right_answers(item: SkillItem) -> set[str]:
    """Every answer that the passage allows, read off the structure by other means than it was made with."""
    asked = item.question.slots[0]
    match item.question.frame:
        case "where" | "what":
            frame = {"where": "at", "what": "has"}[item.question.frame]
            return {clause.slots[1] for clause in item.passage if (clause.frame, clause.slots[0]) == (frame, asked)}
        case "who_at" | "who_situation":
            return {clause.slots[0] for clause in item.passage if clause.slots[1] == asked}
        case "who_has":
            return {
                clause.slots[0]
                for clause in item.passage
                if clause.frame == "has" and asked in (clause.slots[1], CATEGORY_OF[clause.slots[1]])
            }
        case "age_more":
            return {str({"older": max, "younger": min}[asked](int(clause.slots[1]) for clause in item.passage))}
        case "entails":
            return {follows(item.passage[0], asked)}
        case "choose":
            return {ENDING_OF[item.passage[0].slots[1]]} & set(item.question.slots[1:])
    raise AssertionError(item)


@pytest.mark.parametrize("split", SPLITS)
def test_every_item_has_one_answer(skills, split):
    for item in skills.items[split]:
        assert right_answers(item) == {item.answer}, item


def test_the_endings_of_a_choice_are_told_apart(skills):
    situation_of = {ending: situation for situation, ending in ENDING_OF.items()}
    for split in SPLITS:
        for item in skills.split(split, "en", "continuation"):
            person, *choice = item.question.slots
            assert person == item.passage[0].slots[0]
            assert frozenset(situation_of[ending] for ending in choice) not in ALIKE
    assert {situation for pair in ALIKE for situation in pair} <= set(SITUATIONS)
    assert all(len(pair) == 2 for pair in ALIKE)


# --- what is balanced ------------------------------------------------------------------------------------------------


def target(item: SkillItem) -> Hashable:
    """The answer as a strategy may guess it: which sentence, which label, which ending."""
    if item.skill in ("reading", "comparison"):
        return next(k for k, clause in enumerate(item.passage) if item.answer in clause.slots)
    return item.answer


def frames(item: SkillItem) -> Hashable:
    """Which kinds of sentence stand where."""
    return tuple(clause.frame for clause in item.passage)


def anonymous(clause: Clause) -> Hashable:
    return clause.frame, clause.slots[1:]


BLIND: list[tuple[str, Callable[[SkillItem], Hashable]]] = [
    ("reading", lambda item: (item.kind, item.wording)),
    ("reading", frames),
    ("comparison", lambda item: (item.question.slots, item.kind, item.wording)),
    ("comparison", lambda item: tuple(clause.slots for clause in item.passage)),
    ("entailment", lambda item: (item.kind, item.wording)),
    ("entailment", lambda item: anonymous(item.passage[0])),
    ("entailment", lambda item: anonymous(item.question.slots[0])),
    ("entailment", lambda item: (item.question.slots[0].frame, item.question.slots[0].slots[1] in THINGS)),
    ("continuation", lambda item: frozenset(item.question.slots[1:])),
    ("continuation", lambda item: item.question.slots[1:]),
]


@pytest.mark.parametrize(("skill", "seen"), BLIND)
def test_who_does_not_see_all_is_at_chance(skills, other_skills, skill, seen):
    """The best guess from a part of the item, learned on pre-training, on the held-out items and on fresh ones."""
    votes: dict[Hashable, Counter] = defaultdict(Counter)
    for item in skills.split("pretraining", "en", skill):
        votes[seen(item)][target(item)] += 1
    overall = Counter(target(item) for item in skills.split("pretraining", "en", skill))
    fresh = other_skills.split("training", "en", skill)
    for items, margin in ((skills.split("heldout", "en", skill), 0.09), (fresh, 0.06)):
        guesses = [(votes.get(seen(item)) or overall).most_common(1)[0][0] == target(item) for item in items]
        assert sum(guesses) / len(items) < CHANCE[skill] + margin


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_counted_off_is_even(skills, skill, split):
    items = skills.split(split, "en", skill)
    n = len(items)
    assert n == size(split, skill)
    features: dict[str, list[Callable[[SkillItem], Hashable]]] = {
        "reading": [lambda item: next(c.frame for c in item.passage if item.answer in c.slots), target],
        "comparison": [lambda item: item.question.slots, lambda item: item.kind, target],
        "entailment": [target, lambda item: item.kind],
        "continuation": [lambda item: item.question.slots.index(item.answer)],
    }
    for feature in features[skill]:
        counts = Counter(feature(item) for item in items).values()
        assert max(counts) - min(counts) <= 6  # the items may end in the middle of a round
    wordings = Counter(item.wording for item in items)
    assert set(wordings) == set(range(WORDINGS))
    assert max(wordings.values()) - min(wordings.values()) <= 50


def test_words_are_used_evenly(skills):
    for skill, place in (("reading", 0), ("comparison", 0), ("comparison", 1)):
        items = skills.split("pretraining", "en", skill)
        used = Counter(clause.slots[place] for item in items for clause in item.passage)
        assert set(used) == set((PEOPLE, AGES)[place])
        assert max(used.values()) < 1.3 * min(used.values())


# --- what is apart ---------------------------------------------------------------------------------------------------


def said(item: SkillItem) -> frozenset:
    """What the passage says, however it says it."""
    return frozenset((item.skill, clause.frame, clause.slots) for clause in item.passage)


def lines(skills: Skills, language: str, share: float = 0.0) -> list[str]:
    """The documents of pre-training."""
    return ["".join(document) for document in skills.documents(language, share)]


def test_no_passage_is_in_two_splits(skills):
    of = {split: {said(item) for item in skills.items[split]} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not of[one] & of[other]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_prompt_that_is_asked_is_met_before(skills, language):
    """In no text of pre-training, any language and with every item told, and in no example of fine-tuning."""
    met = "\n\n".join(lines(skills, language, share=1.0))
    met += "\n\n".join(record["prompt"] for record in skills.examples("training", language))
    start, stop = SCAFFOLD[language].split("{q}")
    for split in ASKED:
        for item in skills.split(split, language):
            assert item.prompt(language).removeprefix(start).removesuffix(stop) not in met
    told = next(iter(skills.split("training", language)))
    assert told.prompt(language) in met  # the search would find it


def test_no_prompt_is_shared_by_splits_or_comes_twice(skills):
    for language in LANGUAGES:
        prompts = [item.prompt(language) for split in SPLITS for item in skills.items[split]]
        assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("language", OTHERS)
def test_another_language_is_told_words_and_no_task(skills, language):
    """No scaffold, no passage before a question, no category of a thing, no ending after its situation."""
    start, stop = (part.strip() for part in SCAFFOLD[language].split("{q}"))
    for line in lines(skills, language):
        assert not any(mark in line for mark in ("\n", start, stop))
        assert len(re.findall(r"[.。?？؟]", line)) <= 2  # a question and its English
        assert line.count(STOP[language]) <= 1


@pytest.mark.parametrize("language", OTHERS)
def test_an_untaught_skill_is_taught_in_english_only(skills, other_skills, language):
    assert {item.skill for item in skills.split("training", language)} == set(SKILLS) - {"continuation"}
    assert skills.split("training", language, "continuation") == []
    for split in ("pretraining", *ASKED):
        assert {item.skill for item in skills.split(split, language)} == set(SKILLS)
    assert {item.skill for item in skills.split("training", "en")} == set(SKILLS)
    assert {item.skill for item in other_skills.split("training", language)} == {"entailment", "continuation"}


def test_share(skills):
    assert list(skills.tasks("zh")) == []
    some, all_of_them = list(skills.tasks("zh", share=0.1)), list(skills.tasks("zh", share=1.0))
    assert 0.08 < len(some) / len(all_of_them) < 0.12
    every = sum(size("pretraining", skill) for skill in SKILLS)
    assert len(all_of_them) == every
    assert set(some) < set(all_of_them)
    assert len(list(skills.documents("en"))) == every


# --- what is the same in every language ------------------------------------------------------------------------------


def test_every_word_has_every_language():
    assert sum(map(len, TABLES)) == len(WORDS)
    for table in TABLES:
        for k in range(len(OTHERS)):
            names = [row[k] for row in table.values()]
            assert all(names) and len(set(names)) == len(names)
    assert len(THINGS) == 4 * len(set(CATEGORY_OF.values()))
    assert len(SITUATIONS) == len(ENDING_OF)
    assert list(COMPARATIVES) == ["older", "younger"]
    assert all(10 < int(age) < 100 for age in AGES)
    assert len(WOMEN) * 2 == len(PEOPLE)


SCRIPTS = {"zh": "[\u4e00-\u9fff，。：？0-9 ]+", "ar": "[\u0621-\u0652،؟: .0-9]+", "vi": r"[A-Za-zÀ-ỹ ,?:.0-9]+"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_shows_in_another(skills, language):
    """Chinese is Han without spaces, Arabic is Arabic, and no mark of a form is left over."""
    start, stop = SCAFFOLD[language].split("{q}")
    for split in ASKED:
        for item in skills.split(split, language):
            text = item.prompt(language).removeprefix(start).removesuffix(stop)
            assert re.fullmatch(SCRIPTS.get(language, r"[A-Za-z ,?:.0-9]+"), text), text
            assert (" " if language == "zh" else "  ") not in text
            assert not set("{}|()") & set(text + item.completion(language))


def test_frames_are_parallel():
    for language in LANGUAGES:
        assert FRAMES[language].keys() == FRAMES["en"].keys()
        for frame, ways in FRAMES[language].items():
            assert len(set(ways)) == len(ways) == len(FRAMES["en"][frame])
            for way, english in zip(ways, FRAMES["en"][frame], strict=True):
                assert set(re.findall(r"\{\d\}", way)) == set(re.findall(r"\{\d\}", english))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_examples(skills, language, split):
    records = list(skills.examples(split, language))
    items = {item.id: item for item in skills.items[split]}
    assert len({record["id"] for record in records}) == len(records)
    assert json.loads(json.dumps(records, ensure_ascii=False)) == records
    keys = {"id", "language", "prompt", "completion"} | ({"english"} if language != "en" else set())
    assert all(record.keys() == keys for record in records)
    assert all(record["completion"] == " " + record["completion"].strip() for record in records)
    # Copied from the prompt, word for word, where the answer is not yes, no or maybe.
    assert all(record["completion"].strip() in record["prompt"] for record in records if record["id"][0] != "e")
    for record in records[::20]:
        item = items[record["id"].removesuffix(f".{language}")]
        assert record["id"].split(".")[:3] == [item.skill, item.kind, split]
        assert (item.skill == "entailment") == (item.answer in LABELS)
        if language != "en":
            assert record["english"] == item.turn("en")


def test_enough_is_asked(skills):
    for language in LANGUAGES:
        assert len(skills.split("heldout", language)) >= 1100  # +-3 points, 95 % at one half
        for skill in SKILLS:
            assert len(skills.split("heldout", language, skill)) == 300


def test_texts(skills):
    """One sentence of every frame in every language, as a reader of it expects."""
    sentences = {
        Clause("at", ("Ruth", "at school")): (
            "Ruth is at school", "露丝在学校", "Rút ở trường học", "راعوث في المدرسة", "Ruthu yuko shuleni"),
        Clause("has", ("Luke", "dogs")): (
            "Luke has dogs", "卢克有狗", "Luca có chó", "عند لوقا كلاب", "Luka ana mbwa"),
        Clause("lacks", ("Luke", "fruit")): (
            "Luke has no fruit", "卢克没有水果", "Luca không có trái cây", "ليس عند لوقا فواكه", "Luka hana matunda"),
        Clause("age", ("Noah", "61")): (
            "Noah is 61 years old", "诺亚61岁", "Nôê 61 tuổi", "عمر نوح 61 سنة", "Nuhu ana umri wa miaka 61"),
        Clause("situation", ("Sarah", "is late")): (
            "Sarah is late", "萨拉迟到了", "Sara bị muộn", "سارة متأخرة", "Sara amechelewa"),
        Clause("situation", ("Paul", "is late")): (
            "Paul is late", "保罗迟到了", "Phaolô bị muộn", "بولس متأخر", "Paulo amechelewa"),
        Clause("will", ("Paul", "cry")): (
            "Paul will cry", "保罗会哭", "Phaolô sẽ khóc", "بولس يبكي", "Paulo atalia"),
        Clause("age_more", ("younger",)): (
            "How old is the younger one?", "更年轻的人多大？", "Người nhỏ tuổi hơn bao nhiêu tuổi?",
            "كم عمر من هو أصغر سنًا؟", "Aliye mdogo kiumri zaidi ana umri gani?"),
        Clause("who_situation", ("is late",)): (
            "Who is late?", "谁迟到了？", "Ai bị muộn?", "من متأخر؟", "Nani amechelewa?"),
        Clause("choose", ("Ruth", "cry", "laugh")): (
            "What will Ruth do: cry or laugh?", "露丝会做什么：哭还是大笑？", "Rút sẽ làm gì: khóc hay cười?",
            "ماذا تفعل راعوث: تبكي أم تضحك؟", "Ruthu atafanya nini: atalia au atacheka?"),
        Clause("entails", (Clause("lacks", ("Ruth", "tea")),)): (
            "Is it true that Ruth has no tea?", "露丝没有茶，这是真的吗？", "Có đúng là Rút không có trà không?",
            "هل هذا صحيح: ليس عند راعوث شاي؟", "Je, ni kweli kwamba Ruthu hana chai?"),
    }  # fmt: skip
    for clause, texts in sentences.items():
        assert tuple(say(clause, language) for language in LANGUAGES) == texts


# --- the rest --------------------------------------------------------------------------------------------------------


def test_the_seed_decides(skills, other_skills):
    again = Skills.build(0)
    assert again == skills
    assert list(again.documents("ar", 0.1)) == list(skills.documents("ar", 0.1))
    heldout = {said(item) for item in skills.items["heldout"]}
    assert not {said(item) for item in other_skills.items["heldout"]} <= heldout
    assert list(other_skills.words("zh")) == list(skills.words("zh"))
    first = skills.split("heldout", "en", "reading")[0]
    assert first.prompt("en") + first.completion("en") == FIRST


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_met_in_pre_training(skills, language):
    text = "\n".join(lines(skills, language))
    for english in WORDS:
        for person in ("Mary", "John"):
            x = SkillItem("", (), Clause("", (person,)), english, 0).completion(language)[1:]
            assert x in text
    if language != "en":
        assert all(f" means {label}." in text for label in LABELS)


def test_pieces_hold_every_word_and_no_slot():
    found = set(pieces())
    assert {" dogs", "狗", " chó", " كلاب", " mbwa", " جائعة", " جائع", "Swali:"} <= found
    assert not any(set("{}|") & set(piece) for piece in found)


def test_number_of_training_items(skills):
    few = Skills.build(training=5)
    for skill in SKILLS:
        assert few.split("training", "en", skill) == skills.split("training", "en", skill)[:5]
    assert all(few.items[split] == skills.items[split] for split in SPLITS if split != "training")


def test_wrong_names_are_refused(skills):
    with pytest.raises(ValueError, match="language must be one of en, zh, vi, ar, sw, not 'fr'"):
        skills.split("heldout", "fr")
    with pytest.raises(ValueError, match=r"split must be one of .*, not 'test'"):
        list(skills.examples("test", "zh"))
    with pytest.raises(ValueError, match=r"skill must be one of .*, not 'facts'"):
        skills.split("heldout", "zh", "facts")
    with pytest.raises(ValueError, match=r"a skill of untaught must be one of .*, not 'facts'"):
        Skills.build(untaught=("facts",))
    with pytest.raises(ValueError, match="training must be 1 to 300 items per skill, not 301"):
        Skills.build(training=301)
