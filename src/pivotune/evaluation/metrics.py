"""Metrics that benchmarks share, equal to official scorers, language by language. Pure functions.

Which of them scores a benchmark, with which normalization, is in the benchmark's file. The scorers' oddities are kept,
because published figures contain them; comments mark each. All scores are between 0 and 1 and belong to one answer; the
mean over a benchmark is the caller's.
"""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

from pivotune.errors import PivotuneError

_T = TypeVar("_T")


def _whole_words(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b({words})\b")


# Official scorers delete every occurrence of the letters of the Arabic article, inside of words as well: of the two
# alternatives of their pattern, the one that asks for a space before it also asks for the start of the text after it.
_ARABIC_ARTICLE = re.compile("ال")

ARTICLES = {
    "ar": _ARABIC_ARTICLE,
    "en": _whole_words("a|an|the"),
    "es": _whole_words("un|una|unos|unas|el|la|los|las"),
    "vi": _whole_words("của|là|cái|chiếc|những"),
    "de": _whole_words("ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des"),
}
"""What official scorers remove as articles, by language."""

_MORE_ARTICLES = {
    "nl": _whole_words("de|het|een|des|der|den"),
    "sv": _whole_words("en|ett"),
    "da": _whole_words("en|et"),
    "no": _whole_words("en|et|ei"),
    "pt": _whole_words("o|a|os|as|um|uma|uns|umas"),
    "fi": _whole_words("se|yks|yksi"),
    "hu": _whole_words("a|az|egy"),
    # The scorer ends the French and Italian lists with no word boundary, so they cut the BEGINNING of longer words too,
    # and the first alternative that fits wins: "les" becomes "s", "italia" becomes "talia". (Its "l'" and the like can
    # never match, because apostrophes are gone by then.)
    "fr": re.compile(r"\b(le|la|les|du|de|des|un|une)"),
    "it": re.compile(r"\b(il|lo|la|i|gli|le|del|dello|della|dei|degli|delle|uno|una|un)"),
}
_HAN = re.compile("[\u4e00-\u9fa5]")


@lru_cache(maxsize=4096)
def _category(char: str) -> str:
    return unicodedata.category(char)


def is_punctuation(char: str) -> bool:
    """Of any script."""
    return char in string.punctuation or _category(char)[0] == "P"


def is_ascii_punctuation(char: str) -> bool:
    """Of the keyboard of English; the symbols among them too."""
    return char in string.punctuation


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What a scorer makes equal before comparing words. All lower the case and join white space.

    Attributes:
        name: for messages.
        articles: what is removed, by language.
        articles_everywhere: what is removed whatever the language.
        is_mark: whether a character is removed as punctuation.
        characters: languages that are compared character by character, their combining marks included.
        ideographs: languages in which each Chinese character is a word.
        languages: those that it is defined for; None for all.
    """

    name: str
    articles: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    articles_everywhere: re.Pattern[str] | None = None
    is_mark: Callable[[str], bool] = is_ascii_punctuation
    characters: Collection[str] = ()
    ideographs: Collection[str] = ()
    languages: Collection[str] | None = None


SQUAD = Normalization(name="squad", articles_everywhere=ARTICLES["en"])
"""As SQuAD's evaluate-v1.1.py: English articles and ASCII punctuation whatever the language; words are what white space
separates. A Chinese or Thai answer is mostly one word to it."""

MULTILINGUAL = Normalization(
    name="multilingual", articles={**ARTICLES, **_MORE_ARTICLES}, characters=("zh", "ja", "th", "km")
)
"""As the scorer of Longpre et al. (TACL 2021), defined for every language. Only ASCII punctuation is removed, so
full-width punctuation counts as a word in Chinese and Japanese. Chinese (all variants), Japanese, Thai and Khmer are
compared character by character; Korean by white space."""


def squad_f1(prediction: str, answers: Sequence[str], language: str, *, normalization: Normalization) -> float:
    """Word overlap (F1) with the answer that fits best, as SQuAD has it.

    Args:
        prediction: the model's answer.
        answers: the gold answers of the question, at least one.
        language: of the answers, a BCP-47 tag; only its first part counts.
        normalization: what is made equal before comparing.

    Raises:
        PivotuneError: a language that the normalization does not define, or no answers.

    Example:
        >>> squad_f1("在北京大学", ["北京大学"], "zh", normalization=MULTILINGUAL)
        0.888...
    """
    words = words_of(prediction, language, normalization)
    return max(_overlap(words, words_of(answer, language, normalization)) for answer in checked(answers))


def squad_em(prediction: str, answers: Sequence[str], language: str, *, normalization: Normalization) -> float:
    """1.0 where the normalised prediction equals one of the normalised answers, else 0.0. Arguments: `squad_f1`."""
    words = words_of(prediction, language, normalization)
    return float(any(words == words_of(answer, language, normalization) for answer in checked(answers)))


def contains_answer(text: str, answers: Sequence[str], language: str) -> float:
    """1.0 where one of the answers occurs in a text, both normalised as `MULTILINGUAL` and compared word by word.

    Unlike there, punctuation of every script goes. Otherwise an answer at the end of a Hindi or Arabic sentence, where
    the mark clings to it, would be wrong, and one at the end of an English sentence right.
    """
    words = words_of(_without_punctuation(text), language, MULTILINGUAL)
    golds = [words_of(_without_punctuation(answer), language, MULTILINGUAL) for answer in answers]
    found = any(words[start : start + len(gold)] == gold for gold in golds if gold for start in range(len(words)))
    return float(found)


def rouge_l(prediction: str, reference: str, language: str) -> float:
    """ROUGE-L (F-measure of the longest common subsequence) with tokens that fit the script.

    As the scorer of Hasan et al. (Findings of ACL 2021, multilingual_rouge_scoring of csebuetnlp): lower case; control
    characters dropped; punctuation of every script replaced by a space; letters, numbers and symbols separated from
    one another; each Chinese character a token in every language.

    Deviations from that scorer:

    * Chinese, Japanese, Thai, Burmese, Khmer and Lao are split into characters (each with its combining marks),
      where it runs a word segmenter (jieba, MeCab, newmm) for the first four. Scores of these languages are
      comparable among runs, not with published ones. None of them is among the ten languages of CC-Tuning.
    * No stemming. Their training pipeline stems where it has a stemmer (of CC-Tuning's languages ar, en, fr, hi,
      ru, tr), which raises scores; the scorer leaves it off by default, and CC-Tuning says nothing of it.

    Args:
        prediction: the model's summary.
        reference: the gold summary.
        language: a BCP-47 tag; only its first part counts.

    Raises:
        PivotuneError: the package rouge-score is missing.
    """
    scores = _rouge_scorer(_primary(language) in _UNSPACED).score(reference, prediction)
    return float(scores["rougeL"].fmeasure)


def primary(language: str) -> str:
    """The language of a tag, without region and script: "zh" for "zh-CN", "zh_cn" and "zh-Hant"."""
    return _primary(language)


def need(module: str, package: str) -> ModuleType:
    """Import a module of the `evaluation` extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise PivotuneError(
            f"The package {package} is not installed; get it with: pip install 'pivotune[evaluation]'"
        ) from error


def _primary(language: str) -> str:
    return re.split("[-_]", language, maxsplit=1)[0].lower()


def checked(answers: Sequence[_T]) -> Sequence[_T]:
    """Gold answers: a list of at least one."""
    if isinstance(answers, str) or not answers:
        raise PivotuneError(f"answers: got {answers!r}; give a list of at least one gold answer.")
    return answers


def _overlap(words: list[str], gold: list[str]) -> float:
    same = sum((Counter(words) & Counter(gold)).values())
    # 2 P R / (P + R) with P = same / len(words) and R = same / len(gold). Two empty texts score 0, as in SQuAD.
    return 2 * same / (len(words) + len(gold)) if same else 0.0


def words_of(text: str, language: str, normalization: Normalization) -> list[str]:
    """The normalised words that are compared. The order of the steps is that of the official scorers."""
    code = _primary(language)
    if normalization.languages is not None and code not in normalization.languages:
        raise PivotuneError(
            f"normalization: {normalization.name!r} got the language {language!r}, but is defined for "
            f"{', '.join(normalization.languages)}."
        )
    text = "".join(char for char in text.lower() if not normalization.is_mark(char))
    articles = normalization.articles_everywhere or normalization.articles.get(code)
    if articles:
        text = articles.sub(" ", text)
    if code in normalization.characters:
        return [char for char in text if not char.isspace()]
    if code in normalization.ideographs:
        # Extension characters outside this range are no Chinese to the official scorer.
        text = _HAN.sub(r" \g<0> ", text)
    return text.split()


def _without_punctuation(text: str) -> str:
    return "".join(char for char in text if not is_punctuation(char))


# Scripts without spaces that the scorer segments by dictionary (or, Khmer and Lao, does not cover).
_UNSPACED = ("zh", "ja", "th", "my", "km", "lo")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]")
_UNSPACED_LETTER = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uff66-\uff9f]")


def rouge_tokens(text: str, *, characters: bool = False) -> list[str]:
    """The tokens that `rouge_l` compares; `characters` also splits kana, Thai, Lao, Burmese and Khmer."""
    tokens: list[str] = []
    kind = ""  # of the token that is open: "letter", "number", or "" for none
    for char in text.lower():
        category = _category(char)
        if char in "\t\n\r" or category == "Zs" or is_punctuation(char):
            kind = ""
        elif category[0] == "C" or char == "\ufffd":
            continue  # a zero-width joiner, say: gone without a gap
        elif category[0] == "M" and kind:
            tokens[-1] += char  # a combining mark stays with its letter
        else:
            single = _IDEOGRAPH.match(char) or (characters and _UNSPACED_LETTER.match(char))
            # A mark with no letter before it, left over by a broken encoding, is a token of its own.
            new = {"L": "letter", "N": "number"}.get(category[0], "symbol")
            if new == kind and not single:
                tokens[-1] += char
            else:
                tokens.append(char)
            # A character on its own takes the marks that follow, but no letter.
            kind = "single" if single else new if new != "symbol" else "single"
    return tokens


class _Tokenizer:
    """What rouge_score asks of a tokenizer: a method `tokenize`."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.tokenize = split


@lru_cache(maxsize=2)
def _rouge_scorer(characters: bool) -> Any:
    scorer = need("rouge_score.rouge_scorer", "rouge-score")
    return scorer.RougeScorer(["rougeL"], tokenizer=_Tokenizer(lambda text: rouge_tokens(text, characters=characters)))
