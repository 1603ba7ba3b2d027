"""Language tags as data sets write them: BCP-47, POSIX, ISO 639-3, FLORES, old codes and English names, read as one.

    zh_CN, zho_Hans, cmn, Chinese (Simplified)  ->  zh-CN, zh, zh, zh

The codes, their aliases and their names are those of the Unicode CLDR, as Babel brings them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from babel import Locale
from babel.core import get_global

from pivotune.errors import PivotuneError

UNDETERMINED = "und"
_FURTHER_NAMES = {
    "bahasa indonesia": "id",
    "farsi": "fa",
    "iranian persian": "fa",
    "mandarin": "zh",
    "mandarin chinese": "zh",
    "modern standard arabic": "ar",
    "standard arabic": "ar",
    "standard malay": "ms",
}


def read_language(value: Any) -> str:
    """The BCP-47 tag that a value means: lower-case primary part, and no script where it is the language's usual one.

    A code of three letters that CLDR does not know stays as it is: there are thousands of languages.

    Raises:
        ValueError: it means none; the message is the advice.
    """
    if value is False:
        return _refuse('an unquoted no is "false" in YAML; write "no" in quotes for Norwegian')
    if not isinstance(value, str):
        return _refuse("write a BCP-47 code such as zh, vi, ar, en or pt-BR")
    return _read(value)


def read_languages(option: str, values: Iterable[Any]) -> list[str]:
    """The tags that an option names.

    Raises:
        PivotuneError: one that is none.
    """
    tags = []
    for value in values:
        try:
            tags.append(read_language(value))
        except ValueError as error:
            raise PivotuneError(f"{option}: got {value!r}; {error}.") from None
    return tags


def is_among(language: str, wanted: Iterable[str]) -> bool:
    """Whether a language was asked for: "pt" admits "pt-BR" too."""
    return any(language == one or language.startswith(f"{one}-") for one in wanted)


def is_english(language: str) -> bool:
    try:
        return read_language(language).split("-")[0] == "en"
    except ValueError:
        return False


@cache
def _read(value: str) -> str:
    bare = re.sub(r"\.[\w-]+$", "", value.strip())  # without what POSIX puts behind: zh_CN.UTF-8
    primary, *subtags = re.split("[-_]", bare)
    if subtags and value.strip().casefold() in _names():  # Oji-Cree is a name; Asu is one too, but codes go first
        return _named(value.strip())
    if re.fullmatch("[A-Za-z]{2,3}", primary) and all(re.fullmatch("[A-Za-z0-9]{1,8}", one) for one in subtags):
        return _from_code(primary.lower(), subtags)
    return _named(value.strip())


def _from_code(primary: str, subtags: list[str]) -> str:
    primary, *implied = get_global("language_aliases").get(primary, primary).split("_")
    if len(primary) == 2 and primary not in Locale("en").languages:
        # Countries' codes are taken for languages': jp, cn, kr.
        language = get_global("likely_subtags").get(f"und_{primary.upper()}", "").split("_")[0]
        name = Locale("en").languages.get(language)
        hint = f"is a country's code; did you mean {language!r} ({name})?" if name else "is no language's code;"
        return _refuse(f"{primary!r} {hint} write a BCP-47 code such as zh, vi, ar, en or pt-BR")
    tags = [_cased(one) for one in subtags]
    # prs is Persian of Afghanistan, sh is Serbian in Latin letters: unless another country or script is given.
    tags += [one for one in implied if all(len(one) != len(other) for other in tags)]
    region = next((one for one in tags if re.fullmatch("[A-Z]{2}|[0-9]{3}", one)), None)
    likely = get_global("likely_subtags")
    usual = (likely.get(f"{primary}_{region}") or likely.get(primary, "")).split("_")[1:2]
    return "-".join([primary, *(one for one in tags if [one] != usual)])


def _cased(subtag: str) -> str:
    """As BCP-47 recommends it: Hans, CN, 1996."""
    if not subtag.isalpha() or len(subtag) not in (2, 4):
        return subtag.lower()
    return subtag.upper() if len(subtag) == 2 else subtag.title()


def _named(name: str) -> str:
    """The tag of an English name, which may carry a script or a country: "Chinese (Simplified)", "Spanish, Mexico"."""
    names = _names()
    known = " ".join(name.casefold().replace("_", " ").split())
    if known in names:
        return names[known]
    found = re.fullmatch(r"([^(,]+?) ?[(,] ?([^()]+?)\)?", known)
    if found and found[1] in names and found[2] in _qualifiers():
        primary, *subtags = names[found[1]].split("-")
        return _from_code(primary, [*subtags, _qualifiers()[found[2]]])
    near = difflib.get_close_matches(known, names, n=1, cutoff=0.75)
    near += [one for one in names if len(known) > 2 and one.startswith(known)]
    hint = f"did you mean {names[near[0]]!r} ({near[0].title()})? " if near else ""
    return _refuse(f"{hint}write a BCP-47 code such as zh, vi, ar, en or pt-BR")


@cache
def _names() -> dict[str, str]:
    tags = {name.casefold(): _from_code(*_split(code)) for code, name in Locale("en").languages.items()}
    return tags | _FURTHER_NAMES


@cache
def _qualifiers() -> dict[str, str]:
    english = Locale("en")
    return {name.casefold(): code for code, name in (*english.territories.items(), *english.scripts.items())}


def _split(code: str) -> tuple[str, list[str]]:
    primary, *subtags = code.split("_")
    return primary, subtags


def _refuse(advice: str) -> str:
    raise ValueError(advice)
