"""Does a text use its language's script? It tells swapped sides and mislabelled rows at almost no cost.

Only languages written in a script of their own are judged; Vietnamese in Latin letters cannot be told from
Indonesian by this. Ranges: the Unicode blocks of each script.
"""

from __future__ import annotations

import re

_HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ARABIC = "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff"
_CYRILLIC = "\u0400-\u052f"
_DEVANAGARI = "\u0900-\u097f"

_SCRIPTS = {
    "en": ("Latin", "A-Za-z"),
    "zh": ("Chinese", _HAN + "\u3100-\u312f"),
    "ja": ("Japanese", _HAN + "\u3040-\u30ff\uff66-\uff9f"),
    "ko": ("Korean", "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af" + _HAN),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("Arabic", _ARABIC)),
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk"), ("Cyrillic", _CYRILLIC)),
    **dict.fromkeys(("hi", "mr", "ne"), ("Devanagari", _DEVANAGARI)),
    "he": ("Hebrew", "\u0590-\u05ff\ufb1d-\ufb4f"),
    "el": ("Greek", "\u0370-\u03ff\u1f00-\u1fff"),
    "bn": ("Bengali", "\u0980-\u09ff"),
    "ta": ("Tamil", "\u0b80-\u0bff"),
    "te": ("Telugu", "\u0c00-\u0c7f"),
    "th": ("Thai", "\u0e00-\u0e7f"),
    "my": ("Burmese", "\u1000-\u109f"),
    "km": ("Khmer", "\u1780-\u17ff"),
    "ka": ("Georgian", "\u10a0-\u10ff\u1c90-\u1cbf"),
    "am": ("Ethiopic", "\u1200-\u139f"),
}
_OF_THE_SAME_LETTERS = {"Hans", "Hant"}
_PATTERNS = {language: (name, re.compile(f"[{letters}]")) for language, (name, letters) in _SCRIPTS.items()}


def missing_script(text: str, language: str) -> str | None:
    """The name of the script `language` is written in when `text` has letters but none of that script.

    Args:
        text: everything one side of an example says.
        language: BCP-47 tag. One that names another script ("zh-Latn") is not judged.
    """
    primary, *subtags = language.split("-")
    scripts = {subtag for subtag in subtags if len(subtag) == 4 and subtag.isalpha()}
    if primary not in _PATTERNS or scripts - _OF_THE_SAME_LETTERS:
        return None
    name, pattern = _PATTERNS[primary]
    # The pattern first: it ends at the first letter of nearly every good row.
    if pattern.search(text) or not any(char.isalpha() for char in text):
        return None
    return name
