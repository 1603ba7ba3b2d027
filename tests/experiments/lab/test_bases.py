"""The bases differ in what their name says, no text of theirs gives away what is asked, and the table tells them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import bases
from pivotune.errors import PivotuneError
from pivotune.lab import base
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import WEIGHTS
from pivotune.lab.world import World
from tests.lab.test_text import NameFinder, leaks

OTHERS = LANGUAGES[1:]


@pytest.fixture(scope="module")
def world() -> World:
    return World.build()


def test_bases_differ_in_what_their_name_says() -> None:
    assert bases._mixed(1.0) == WEIGHTS
    for factor in (0.0, 1.5):
        for language, shares in bases._mixed(factor).items():
            assert sum(shares.values()) == pytest.approx(sum(WEIGHTS[language].values()))
            assert shares.get("mixed", 0.0) == pytest.approx(factor * WEIGHTS[language].get("mixed", 0.0))
    plain, more = World.build(), World.build(known_fraction=0.4)
    for language in LANGUAGES[1:]:
        assert more.heldout(language) == plain.heldout(language)
        assert set(plain.known(language)) < set(more.known(language))
        assert set(more.training(language)) < set(plain.training(language))


def test_an_unknown_variant_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"variants.*13 layers"):
        bases.main(["--variants", "as shipped; 13 layers", "--folder", str(tmp_path)])


def test_switched_text_says_known_facts_only(world: World) -> None:
    hidden = {language: [*world.heldout(language), *world.training(language)] for language in LANGUAGES[1:]}
    lines = list(bases.switched(world, "zh"))
    assert any(line.startswith("Question: ") and "\n答案： " in line for line in lines)
    assert any(line.startswith("问题：") and "\nAnswer: " in line for line in lines)
    first = {line.partition("\n")[0] for line in lines}
    for language, some in hidden.items():
        asked = {world.prompt(fact, language, k).partition("\n")[0] for fact in some for k in range(3)}
        assert not asked & first


def test_every_territory_has_codes_of_its_own(world: World) -> None:
    of = bases.codes()
    territories = {fact.territory for fact in world.facts}
    assert territories <= set(of)
    for place, pattern in enumerate((r"[A-Z]{2}", r"[A-Z]{3}", r"[0-9]{3}")):
        some = [of[territory][place] for territory in territories]
        assert len(set(some)) == len(some)
        assert all(re.fullmatch(pattern, code) for code in some)
    assert of["FR"] == ("FR", "FRA", "250")


@pytest.mark.parametrize("language", OTHERS)
def test_contexts_are_shared_and_say_no_fact(world: World, language: str) -> None:
    """Every territory's two names stand in the same sentences, with the same codes; no tested fact is among them."""
    lines = list(bases.contexts(world, language))
    assert len(set(lines)) == len(lines)
    fact = next(one for one in world.heldout(language) if one.subject_names[language] != one.subject_names["en"])
    code = bases.codes()[fact.territory][1]
    for name in ("en", language):
        about = [line for line in lines if fact.subject_names[name] in line and code in line]
        assert len(about) >= 2  # in an English sentence, and in one of the language
    facts = [one for one in world.facts if world.english_only(one)]
    assert leaks(NameFinder(world), facts, lines) == []


@pytest.mark.parametrize(("kind", "share"), [("switched", 0.25), ("contexts", 0.4)])
def test_the_share_of_more_text(world: World, kind: str, share: float) -> None:
    pools = bases.text_of(replace(bases.Variant("x"), **{kind: share}), world)
    for language in OTHERS:
        weights = {pool.kind: pool.weight for pool in pools if pool.language == language}
        assert weights[kind] == pytest.approx(share * sum(weights.values()))


def test_half_the_vocabulary_cuts_names_and_twice_keeps_them(world: World) -> None:
    pieces = []
    for factor in (0.5, 1, 2):
        tokenizer = base.train_tokenizer(world, int(factor * base.VOCABULARY))
        names = {fact.subject_names["zh"] for fact in world.split("all", "zh")}
        pieces.append(sum(len(tokenizer(name, add_special_tokens=False).input_ids) for name in names) / len(names))
    assert pieces[0] > 4 and pieces[0] > pieces[1] > pieces[2] and pieces[2] < 1.1


def test_a_wider_base_has_the_parameters_that_its_name_says(world: World) -> None:
    tokenizer = base.train_tokenizer(world)
    (wide,) = (one for one in bases.VARIANTS if one.width != base.WIDTH)
    model = base.new_model(tokenizer, 0, wide.layers, wide.width)
    assert wide.name == f"width {wide.width}, {model.num_parameters() / 1e6:.1f} M parameters"


def test_results_are_filed_by_what_they_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys_now() -> list[str]:
        return [bases.key(one, "development", 1) for one in bases.VARIANTS]

    keys, first = keys_now(), bases.VARIANTS[0]
    assert len({*keys, bases.key(first, "heldout", 1), bases.key(first, "development", 3)}) == len(keys) + 2
    monkeypatch.setitem(bases.CODES, "sw", bases.CODES["en"])
    changed = [new != old for new, old in zip(keys_now(), keys, strict=True)]
    assert changed == [one.contexts > 0 for one in bases.VARIANTS]


def test_the_table(world: World) -> None:
    """TFT answers every second fact more than the base, CC-Tuning with real English all."""

    def asked(every: int) -> dict[str, Any]:
        found = {}
        for language in LANGUAGES:
            items = [fact.id for fact in world.development(language)]
            right = [int(language == "en" or k % every == 0) for k in range(len(items))]
            found[language] = {"items": items, "right": right}
        return found

    def row(plain: int, english: int) -> list[dict[str, Any]]:
        answers = {"none": asked(plain), "matrix": asked(plain), "english": asked(english)}
        return [{"answers": {"development": answers}}]

    columns = ("english_mass", "target_mass", "question_cosine", "question_cosine_last")
    inside = {language: {column: [0.1, 0.3, 0.2] for column in columns} for language in OTHERS}
    one = {
        "choice": [1, 2, False],
        "entropy": [3.0, 2.0, 1.0],
        "foreign": {language: [1, 0, 0, 0] for language in OTHERS},
        "carried": {
            place: {language: [1] * right + [0] * (10 - right) for language in OTHERS}
            for place, right in (("nothing", 3), ("layer 1", 4), ("layer 2", 6), ("layer 3", 0))
        },
        "rows": {"base": [row(4, 4)[0] | {"inside": inside}], "TFT": row(2, 2), "feature": row(2, 2), "CC": row(2, 1)},
    }
    thrice = one | {"rows": {name: some * (1 if name == "base" else 3) for name, some in one["rows"].items()}}
    text = bases.render({"as shipped": thrice, "12 layers": one, "twice the known facts": one})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("|")]
    of_base = [line for line in lines if line[0] == "12 layers"]
    assert of_base[0][:3] == ["12 layers", "100.0", "25.0"]
    assert re.fullmatch(r"30\.0; \+30\.0 \[\+\d.*\] at 2", of_base[0][3])
    assert of_base[0][4:] == ["no two drops, 1 and 2", "30.0 % at 2", "0.30 at 2"]
    assert [float(cell) for cell in of_base[1][1:3]] == pytest.approx([25, 50], abs=1)
    assert of_base[1][3] == of_base[1][4] and of_base[1][3].startswith("+0.0") and of_base[1][5].startswith("+50")
    assert of_base[1][6] == of_base[1][5]  # real English over the matrix, which is as good as TFT
    (seeds,) = (line for line in lines if line[0] == "as shipped" and line[2] == of_base[1][2])
    assert seeds[5].startswith("+50") and seeds[5].endswith("*") and "*" not in of_base[1][5]
    (mean,) = (line for line in lines if line[0] == "mean of the 2 bases of half the steps")
    assert mean[5].startswith("+50") and mean[5].endswith("*") and mean[3].startswith("+0.0") and "*" not in mean[3]
    assert [line for line in lines if line[0] == "entropy, nats"] == [["entropy, nats", "3.00", "2.00", "1.00"]]
