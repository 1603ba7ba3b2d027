"""Language tags as data sets write them."""

from __future__ import annotations

import pytest
from babel import Locale
from hypothesis import given
from hypothesis import strategies as st

from pivotune.data.examples import is_among, is_english
from pivotune.data.languages import read_language, read_languages
from pivotune.errors import PivotuneError

WRITTEN = {
    "zh": ["zh", "ZH", "zho", "zho_Hans", "zh-Hans", "cmn", "cmn_Hans", "chi", " zh ", "Chinese", "CHINESE"],
    "zh ": ["Simplified Chinese", "chinese (simplified)", "Chinese, Simplified", "Mandarin Chinese", "mandarin"],
    "zh-CN": ["zh_CN", "zh-cn", "zh-Hans-CN", "zh_CN.UTF-8", "Chinese (China)"],
    "zh-TW": ["zh_TW", "zh-Hant-TW", "zho_Hant_TW"],
    "zh-Hant": ["zho_Hant", "zh-hant", "Traditional Chinese", "Chinese (Traditional)"],
    "vi": ["vi", "vie", "vie_Latn", "Vietnamese"],
    "ar": ["arb", "arb_Arab", "ara", "Arabic", "Standard Arabic"],
    "arz": ["arz_Arab", "Egyptian Arabic"],
    "sw": ["swh", "swa", "swh_Latn", "Swahili"],
    "pt-BR": ["pt_BR", "pt-br", "PT-BR", "por_BR", "Brazilian Portuguese", "Portuguese (Brazil)"],
    "no": ["no", "nor", "NO", "Norwegian"],
    "nb": ["nob_Latn", "Norwegian Bokmål"],
    "he": ["iw", "heb", "heb_Hebr", "Hebrew"],
    "id": ["in", "ind_Latn", "Indonesian", "Bahasa Indonesia"],
    "en": ["eng", "eng_Latn", "English", "en"],
    "en-US": ["en_US", "en-us", "English (United States)", "en_US.utf8"],
    "es-419": ["es_419", "es-419"],
    "sr-Latn": ["sr_Latn", "srp_Latn"],
    "fa-AF": ["prs", "prs_Arab"],
    "ks-Deva": ["kas_Deva"],
    "quy": ["quy", "quy_Latn"],
    "und": ["und"],
}


@pytest.mark.parametrize("tag", WRITTEN)
def test_ways_to_write_a_tag(tag: str) -> None:
    assert {written: read_language(written) for written in WRITTEN[tag]} == dict.fromkeys(WRITTEN[tag], tag.strip())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (False, ["YAML", '"no"']),
        (True, ["BCP-47"]),
        (None, ["BCP-47"]),
        (3, ["BCP-47"]),
        ("", ["BCP-47"]),
        ("cn", ["country", "'zh' (Chinese)"]),
        ("jp", ["country", "'ja' (Japanese)"]),
        ("Vietnamse", ["did you mean 'vi' (Vietnamese)?"]),
        ("viet", ["did you mean 'vi' (Vietnamese)?"]),
        ("zh/en", ["BCP-47"]),
        ("xx", ["no language's code"]),
    ],
)
def test_what_is_no_language(value: object, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read_language(value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_option_names_itself() -> None:
    assert read_languages("languages", ["zho_Hans", "English"]) == ["zh", "en"]
    with pytest.raises(PivotuneError, match=r"languages: got 'jp'; .*'ja'"):
        read_languages("languages", ["zh", "jp"])


def test_regions_belong_to_their_language() -> None:
    assert is_among("pt-BR", ["pt"]) and is_among("zh-Hant-HK", ["en", "zh-Hant"])
    assert not is_among("pt", ["pt-BR"]) and not is_among("ptx", ["pt"])
    assert all(map(is_english, WRITTEN["en"] + WRITTEN["en-US"] + ["en-x-pirate"]))
    assert not any(map(is_english, ["enm", "Old English", "und", "zh", "", "Englisch, Deutsch"]))


CODES = st.sampled_from(sorted(Locale("en").languages))


def test_every_english_name_is_its_code() -> None:
    # Asu is the name of asa, and asu another language: of two or three letters, codes win.
    names = {name: code for code, name in Locale("en").languages.items() if len(name) > 3}
    names.pop("Modern Standard Arabic")  # of the whole world, says CLDR (ar-001): plain Arabic here
    assert {name: read_language(name) for name in names} == {name: read_language(code) for name, code in names.items()}


@given(CODES | st.from_regex(r"\A[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}\Z") | st.text(max_size=20))
def test_tags_are_stable_and_blind_to_case_and_separator(value: str) -> None:
    try:
        tag = read_language(value)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert read_language(tag) == tag
    assert read_language(value.lower()) == read_language(value.upper()) == tag
    assert read_language(tag.replace("-", "_")) == tag
