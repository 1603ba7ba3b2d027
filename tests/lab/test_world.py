"""The world's facts are the sources' facts, its splits are apart, and its examples have the project's format."""

import json

import pytest

from pivotune.lab.templates import LANGUAGES, RELATIONS
from pivotune.lab.world import SPLITS, World

OTHERS = LANGUAGES[1:]


def fact(world: World, id: str):
    return next(fact for fact in world.facts if fact.id == id)


def test_counts(world):
    assert len({f.territory for f in world.facts}) > 235
    assert {f.relation for f in world.facts} == set(RELATIONS)
    assert 1100 < len(world.facts) < 1250
    assert len({f.id for f in world.facts}) == len(world.facts)
    assert world.known("en") == list(world.facts)
    for language in OTHERS:
        # A minority is met in the language, more is taught by fine-tuning, and CLDR leaves next to nothing unnamed.
        assert 0.15 < len(world.known(language)) / len(world.facts) < 0.25
        assert 0.35 < len(world.training(language)) / len(world.facts) < 0.45
        assert len(world.development(language)) > 100
        assert len(world.heldout(language)) > 300
        assert len(world.split("all", language)) > len(world.facts) - 10


@pytest.mark.parametrize(
    ("id", "names"),
    [
        ("FR.currency", {"en": "Euro", "zh": "欧元", "vi": "Euro", "ar": "يورو"}),
        ("JP.language", {"en": "Japanese", "zh": "日语", "vi": "tiếng Nhật", "ar": "اليابانية"}),
        ("VN.calling_code", dict.fromkeys(LANGUAGES, "+84")),
        ("EG.city", {"en": "Cairo", "zh": "开罗", "vi": "Cairo", "ar": "القاهرة"}),
        ("IN.city", {"en": "Kolkata", "zh": "加尔各答", "vi": "Kolkata", "ar": "كالكتا"}),  # filed as Asia/Calcutta
        ("US.city", {"en": "New York", "zh": "纽约", "vi": "New York", "ar": "نيويورك"}),
        ("PE.region", {"en": "South America", "zh": "南美洲", "vi": "Nam Mỹ", "ar": "أمريكا الجنوبية"}),
        ("BT.currency", {"en": "Bhutanese Ngultrum"}),  # Bhutan uses the Indian Rupee too
        ("RS.language", {"en": "Serbian"}),  # not "Serbian (Latin)"
        ("EG.language", {"en": "Arabic", "sw": "Kiarabu"}),
        ("KE.currency", {"en": "Kenyan Shilling", "sw": "Shilingi ya Kenya"}),
        ("MX.city", {"en": "Mexico City", "sw": "Jiji la Mexico"}),
        ("JP.city", {"en": "Tokyo", "sw": "Tokyo"}),
    ],
)
def test_known_facts(world, id, names):
    found = fact(world, id).value_names
    assert {language: found[language] for language in names} == names


def test_no_fact_is_read_off_the_question(world):
    ids = {f.id for f in world.facts}
    assert not ids & {"SG.city", "MO.city", "KN.city", "TK.language"}
    for language in LANGUAGES:
        for f in world.split("all", language):
            assert world.answer(f, language) != f.subject_names[language]
    assert not fact(world, "DZ.city").sayable("ar")  # Algiers and Algeria are one word in Arabic
    assert not fact(world, "ZW.currency").sayable("zh")  # CLDR has no name yet: no English or code in its place


@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_are_apart(world, language):
    known, *others = ({f.id for f in world.split(split, language)} for split in SPLITS[:-1])
    everything = {f.id for f in world.split("all", language)}
    parts = others if language == "en" else [known, *others]  # pre-training states every fact in English
    assert sum(map(len, parts)) == len(set.union(*parts)) and set.union(known, *others) == everything
    assert all(f.sayable(language) for split in SPLITS for f in world.split(split, language))
    # What is held out for one language is held out for all, so no other language can give it away.
    tested = {f.id for other in OTHERS for f in [*world.heldout(other), *world.development(other)]}
    assert not {f.id for f in world.training(language)} & tested
    assert language == "en" or not known & tested


def test_splits_ask_every_relation_in_proportion(world):
    for language in OTHERS:
        for relation in RELATIONS:
            total = sum(f.relation == relation for f in world.facts)
            heldout = sum(f.relation == relation for f in world.heldout(language))
            known, training = (
                sum(f.relation == relation for f in world.split(split, language)) for split in ("known", "training")
            )
            assert abs(heldout / total - 0.3) < 0.08
            assert abs(known / total - 0.2) < 0.08
            assert abs(training / total - 0.4) < 0.08


def test_the_seed_decides_the_splits_and_only_them(world):
    again, other = World.build(0), World.build(1)
    assert again == world
    assert other.facts == world.facts
    assert {f.id for f in other.heldout("zh")} != {f.id for f in world.heldout("zh")}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_examples(world, language, split):
    records = list(world.examples(split, language))
    assert len(records) == len(world.split(split, language))
    assert len({record["id"] for record in records}) == len(records)
    assert records == list(world.examples(split, language))
    for record in records:
        assert json.loads(json.dumps(record, ensure_ascii=False)) == record
        assert record["language"] == language
        assert record["completion"].startswith(" ") and record["completion"].strip() == record["completion"][1:]
        assert set(record) == {"id", "language", "prompt", "completion"} | ({"english"} if language != "en" else set())
    if language != "en":
        english = {record["id"].removesuffix(".en"): record for record in world.examples("all", "en")}
        for record in records:
            twin = english[record["id"].removesuffix(f".{language}")]
            assert record["english"] == {key: twin[key] for key in ("prompt", "completion")}


def test_wrong_names_are_refused(world):
    with pytest.raises(ValueError, match="language must be one of en, zh, vi, ar, sw, not 'fr'"):
        world.split("heldout", "fr")
    with pytest.raises(ValueError, match=r"split must be one of .*, not 'test'"):
        list(world.examples("test", "zh"))
