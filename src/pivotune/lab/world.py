"""The miniature world: some 1,140 real facts about territories, in English, Chinese, Vietnamese, Arabic and Swahili.

Sources: CLDR through the `babel` package (names, currencies in use, official languages, exemplar cities of time
zones) and `phonenumbers` (calling codes; of the extra `demo`). Every construction is deterministic in the seed.

The splits are what makes the world an experiment. One part of the facts, `heldout` and `development`, is stated in
English ONLY: in no other language and in no mixed-language line. Of the other facts each language has its own `known`
sample, which pre-training also states in that language. The rest, `training`, is what fine-tuning teaches in the
language; pre-training states it in English sentences only, where the subject's name alone may be in the language. So
an answer to a held-out question in Chinese can only come from what the model learned in English.
"""

import datetime as dt
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from babel import Locale
from babel.core import get_global
from babel.languages import get_territory_language_info
from babel.numbers import get_territory_currencies

from pivotune.errors import PivotuneError
from pivotune.lab.regions import REGION_OF
from pivotune.lab.templates import LANGUAGES, QUESTIONS, RELATIONS, SCAFFOLD, STATEMENTS

SPLITS = ("known", "training", "development", "heldout", "all")
HELDOUT, DEVELOPMENT, KNOWN = 0.30, 0.10, 0.20  # expected fractions of the facts; the rest is for training
AS_OF = dt.date(2025, 7, 1)  # the currencies in use are those of this day, whenever the world is built

# The zone that stands for a territory with several. CLDR's primary zones where it names one, else the capital's or
# the largest city's.
_MAIN_ZONE = {
    "AR": "America/Argentina/Buenos_Aires", "AU": "Australia/Sydney", "BR": "America/Sao_Paulo",
    "CA": "America/Toronto", "CD": "Africa/Kinshasa", "CL": "America/Santiago", "CN": "Asia/Shanghai",
    "CY": "Asia/Nicosia", "DE": "Europe/Berlin", "EC": "America/Guayaquil", "ES": "Europe/Madrid",
    "FM": "Pacific/Pohnpei", "GL": "America/Nuuk", "ID": "Asia/Jakarta", "KI": "Pacific/Tarawa",
    "KZ": "Asia/Almaty", "MH": "Pacific/Majuro", "MN": "Asia/Ulaanbaatar", "MX": "America/Mexico_City",
    "MY": "Asia/Kuala_Lumpur", "NZ": "Pacific/Auckland", "PF": "Pacific/Tahiti", "PG": "Pacific/Port_Moresby",
    "PS": "Asia/Hebron", "PT": "Europe/Lisbon", "RU": "Europe/Moscow", "UA": "Europe/Kyiv",
    "US": "America/New_York", "UZ": "Asia/Tashkent",
}  # fmt: skip

_LATIN = ("en", "vi", "sw")  # languages in Latin script

# Codes whose English name takes the definite article in a sentence.
_THE = {
    "AE", "AX", "BQ", "BS", "CC", "CF", "CK", "DO", "FK", "FO", "GB", "GM", "IM", "IO", "KM",
    "KY", "MH", "MP", "MV", "NL", "PH", "PS", "SB", "SC", "TC", "US", "VG", "VI", "029", "057",
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One fact: a territory, a relation and its value, with their names per language.

    `value` is a code (ISO 4217, CLDR language, calling code with "+", IANA zone, M49 region). `subject_names` and
    `value_names` map a language to a name and hold only the languages in which the fact can be said: CLDR has a
    name for both, and the value is not merely a copy of the subject ("Singapore" of Singapore).
    """

    territory: str
    relation: str
    value: str
    subject_names: Mapping[str, str] = field(hash=False)
    value_names: Mapping[str, str] = field(hash=False)

    @property
    def id(self) -> str:
        return f"{self.territory}.{self.relation}"

    def sayable(self, language: str) -> bool:
        """Whether both names exist in `language`."""
        return language in self.value_names


@dataclass(frozen=True)
class World:
    """The facts and their splits. Build it with `World.build(seed)`.

    `facts` are all facts, each sayable in English; `_known[language]`, `_development` and `_heldout` hold fact ids.
    """

    facts: tuple[Fact, ...]
    _known: Mapping[str, frozenset[str]]
    _development: frozenset[str]
    _heldout: frozenset[str]

    @classmethod
    def build(cls, seed: int = 0, known_fraction: float = KNOWN) -> "World":
        """The world whose splits are drawn with `seed`; the facts themselves do not depend on it.

        `known_fraction` is the expected part of the facts that pre-training states in a language
        too; what it takes, the training facts lack. Development and held-out facts do not depend on it.

        Each fact is drawn by itself, from its id. So a release of CLDR that adds or loses a fact moves no other fact
        to another split, and what a trained model must not have met stays what it was.
        """
        facts = tuple(_facts())
        place = {fact.id: _draw(seed, fact.id) for fact in facts}
        free = [fact for fact in facts if place[fact.id] >= HELDOUT + DEVELOPMENT]
        known = {
            language: frozenset(
                fact.id
                for fact in free
                if fact.sayable(language)
                and _draw(seed, language, fact.id) < known_fraction / (1 - HELDOUT - DEVELOPMENT)
            )
            for language in LANGUAGES[1:]
        }
        return cls(
            facts,
            known,
            frozenset(id for id, draw in place.items() if HELDOUT <= draw < HELDOUT + DEVELOPMENT),
            frozenset(id for id, draw in place.items() if draw < HELDOUT),
        )

    def english_only(self, fact: Fact) -> bool:
        """Whether the fact is held out or for development: no text states it in any language but English."""
        return fact.id in self._heldout or fact.id in self._development

    def known(self, language: str) -> list[Fact]:
        """Facts that pre-training states in the language: in English all of them."""
        if language == "en":
            return list(self.facts)
        return [fact for fact in self.facts if fact.id in self._known[language]]

    def training(self, language: str) -> list[Fact]:
        """Facts for fine-tuning: neither for development nor held out, and new to the base in the language.

        In English, where pre-training states every fact, all that are neither for development nor held out.
        """
        taken = self._known.get(language, frozenset())
        return [
            fact
            for fact in self.facts
            if fact.sayable(language) and fact.id not in taken and not self.english_only(fact)
        ]

    def development(self, language: str) -> list[Fact]:
        """English-only facts to choose settings on; the same ids in every language, less those not sayable."""
        return [fact for fact in self.facts if fact.id in self._development and fact.sayable(language)]

    def heldout(self, language: str) -> list[Fact]:
        """English-only facts for the final scores; the same ids in every language, less those not sayable."""
        return [fact for fact in self.facts if fact.id in self._heldout and fact.sayable(language)]

    def split(self, split: str, language: str) -> list[Fact]:
        """The facts of a split by name: "known", "training", "development", "heldout", or "all" that are sayable."""
        if language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, not {language!r}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if split == "all":
            return [fact for fact in self.facts if fact.sayable(language)]
        return getattr(self, split)(language)

    def statement(self, fact: Fact, language: str, k: int = 0) -> str:
        """The `k`-th way (modulo the number of ways) to state the fact."""
        return mixed_statement(fact, language, language, language, k)

    def question(self, fact: Fact, language: str, k: int = 0) -> str:
        """The `k`-th way (modulo the number of ways) to ask for the fact's value."""
        ways = QUESTIONS[language][fact.relation]
        return ways[k % len(ways)].format(s=in_sentence(fact.territory, fact.subject_names, language, language))

    def prompt(self, fact: Fact, language: str, k: int = 0) -> str:
        """The question in its scaffold: "Question: ...?\\nAnswer:" in the words of the language."""
        return SCAFFOLD[language].format(q=self.question(fact, language, k))

    def answer(self, fact: Fact, language: str) -> str:
        """The value's name, as an answer must give it."""
        return fact.value_names[language]

    def examples(self, split: str, language: str) -> Iterator[dict[str, Any]]:
        """The split as records {id, language, prompt, completion} and, when not English, their English twin.

        The wording rotates with the fact's index; the English twin uses the same one. Completions begin with a
        space, so that prompt and completion tokenise apart as they do together.
        """
        index = {fact.id: k for k, fact in enumerate(self.facts)}
        for fact in self.split(split, language):
            record: dict[str, Any] = {"id": f"{fact.id}.{language}", "language": language} | self._turn(
                fact, language, index[fact.id]
            )
            if language != "en":
                record["english"] = self._turn(fact, "en", index[fact.id])
            yield record

    def _turn(self, fact: Fact, language: str, k: int) -> dict[str, str]:
        return {"prompt": self.prompt(fact, language, k), "completion": " " + self.answer(fact, language)}


def _draw(seed: int, *parts: str) -> float:
    """A number in [0, 1) that looks random and depends on the arguments only."""
    digest = hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def mixed_statement(fact: Fact, frame: str, subject: str, value: str, k: int = 0) -> str:
    """The fact's `k`-th statement with the frame, the subject's and the value's name each in its own language."""
    ways = STATEMENTS[frame][fact.relation]
    text = ways[k % len(ways)].format(
        s=in_sentence(fact.territory, fact.subject_names, subject, frame),
        v=in_sentence(fact.value, fact.value_names, value, frame),
    )
    return text[0].upper() + text[1:]


def mixed_prompt(fact: Fact, frame: str, subject: str, k: int = 0) -> str:
    """The fact's `k`-th question in its scaffold, with the subject's name in a language of its own."""
    ways = QUESTIONS[frame][fact.relation]
    question = ways[k % len(ways)].format(s=in_sentence(fact.territory, fact.subject_names, subject, frame))
    return SCAFFOLD[frame].format(q=question)


def mixed_turn(fact: Fact, frame: str, subject: str, value: str, k: int = 0) -> str:
    """The question of `mixed_prompt` with its answer, whose name is in a language of its own too."""
    return f"{mixed_prompt(fact, frame, subject, k)} {fact.value_names[value]}"


def in_sentence(code: str, names: Mapping[str, str], language: str, frame: str) -> str:
    """The name in `language` as a sentence in `frame` has it: some English names take the article in English."""
    return f"the {names['en']}" if frame == language == "en" and code in _THE else names[language]


def calling_codes() -> ModuleType:
    """The package of the calling codes.

    Raises:
        PivotuneError: it is not installed; the message says how to.
    """
    try:
        import phonenumbers
    except ModuleNotFoundError as error:
        raise PivotuneError(
            "The package phonenumbers, from which the lab's calling codes come, is not installed; "
            "get it with: pip install 'pivotune[demo]'"
        ) from error
    return phonenumbers


def _facts() -> Iterator[Fact]:
    """Every fact that is sayable in English, in the order of territory codes."""
    country_code = calling_codes().country_code_for_region
    locales = {language: Locale(language) for language in LANGUAGES}
    for territory in sorted(REGION_OF):
        subject = {language: locale.territories[territory] for language, locale in locales.items()}
        names = {
            "currency": lambda code, locale: locale.currencies.get(code),
            "language": _language_name,
            "calling_code": lambda code, locale: code,
            "city": _city_name,
            "region": lambda code, locale: locale.territories[code],
        }
        codes = {
            "currency": _currency(territory),
            "language": _main_language(territory),
            "calling_code": f"+{country_code(territory)}",
            "city": _MAIN_ZONE.get(territory) or get_global("territory_zones")[territory][0],
            "region": REGION_OF[territory],
        }
        for relation in RELATIONS:
            value = {language: names[relation](codes[relation], locale) for language, locale in locales.items()}
            sayable = [lang for lang in LANGUAGES if value[lang] and not _copies(value[lang], subject[lang], relation)]
            if "en" in sayable:
                yield Fact(
                    territory,
                    relation,
                    codes[relation],
                    {lang: subject[lang] for lang in sayable},
                    {lang: value[lang] for lang in sayable},
                )


def _copies(value: str, subject: str, relation: str) -> bool:
    """Whether the value is read off the subject: "Tokelau" of Tokelau, for a city also "St. Kitts" of "St. Kitts &
    Nevis". Such a fact could be answered without knowing it."""
    value, subject = value.casefold(), subject.casefold()
    return value == subject or (relation == "city" and (value in subject or set(value.split()) <= set(subject.split())))


def _currency(territory: str) -> str:
    """The tender in use; where two are, the territory's own (ISO 4217 codes begin with the territory's)."""
    tender = get_territory_currencies(territory, AS_OF, AS_OF)
    return next((code for code in tender if code.startswith(territory)), tender[0])


def _main_language(territory: str) -> str:
    """The official language (by law or in fact) of the largest part of the population, without its script."""
    official = {
        code: float(info["population_percent"] or 0)
        for code, info in get_territory_language_info(territory).items()
        if info["official_status"] in ("official", "de_facto_official")
    }
    return min(official, key=lambda code: (-official[code], code)).split("_")[0]


def _language_name(code: str, locale: Locale) -> str | None:
    name = locale.languages.get(code)
    # CLDR gives list style, "Tiếng Pháp"; inside a sentence Vietnamese writes "tiếng Pháp".
    return name.replace("Tiếng", "tiếng", 1) if name and locale.language == "vi" else name


def _city_name(zone: str, locale: Locale) -> str | None:
    """The zone's exemplar city. In Latin script a missing name is the zone's last part, as CLDR prescribes.

    CLDR files a zone under the identifier it had first ("Asia/Calcutta"), so the old names are tried too.
    """
    aliases = [old for old, new in get_global("zone_aliases").items() if new == zone]
    for identifier in (zone, *sorted(aliases)):
        city = locale.time_zones.get(identifier, {}).get("city")
        if city:
            return city
    return zone.split("/")[-1].replace("_", " ") if locale.language in _LATIN else None
