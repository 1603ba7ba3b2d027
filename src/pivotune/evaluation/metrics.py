"""Metrics of the benchmarks, equal to their official scorers, language by language. Pure functions.

| benchmark | official scorer | here |
|---|---|---|
| MLQA | mlqa_evaluation_v1.py of facebookresearch/MLQA | `squad_f1`, `squad_em` with normalization="mlqa" |
| XQuAD | SQuAD's evaluate-v1.1.py, with its English rules in every language | the same with normalization="squad" |
| MKQA | mkqa_eval.py of apple/ml-mkqa | `mkqa_f1`, `mkqa_em` |
| XLSum | multilingual_rouge_scoring of csebuetnlp/xl-sum | `rouge_l`, with the deviations it states |

The scorers' oddities are kept, because published figures contain them; comments mark each. All scores are between
0 and 1 and belong to one answer; the mean over a benchmark is the caller's.
"""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

from pivotune.errors import PivotuneError, check_choice

_T = TypeVar("_T")

NORMALIZATIONS = ("squad", "mlqa", "mkqa")
MLQA_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
# MKQA cuts these into single characters: Chinese (all three variants), Japanese, Thai, Khmer. Korean has spaces.
_MKQA_CHARACTERS = ("zh", "ja", "th", "km")

_SAME_WORDS = {
    "en": "a|an|the",
    "es": "un|una|unos|unas|el|la|los|las",
    "vi": "của|là|cái|chiếc|những",
    "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
}
_MKQA_WORDS = {
    **_SAME_WORDS,
    "nl": "de|het|een|des|der|den",
    "sv": "en|ett",
    "da": "en|et",
    "no": "en|et|ei",
    "pt": "o|a|os|as|um|uma|uns|umas",
    "fi": "se|yks|yksi",
    "hu": "a|az|egy",
}
# MKQA ends the French and Italian lists with no word boundary, so they cut the BEGINNING of longer words too, and the
# first alternative that fits wins: "les" becomes "s", "italia" becomes "talia". (Its "l'" and the like can never
# match, because apostrophes are gone by then.)
_MKQA_PREFIXES = {
    "fr": "le|la|les|du|de|des|un|une",
    "it": "il|lo|la|i|gli|le|del|dello|della|dei|degli|delle|uno|una|un",
}
# Both scorers delete every occurrence of the letters of the Arabic article, inside of words as well: of the two
# alternatives of their pattern, the one that asks for a space before it also asks for the start of the text after it.
_ARABIC_ARTICLE = re.compile("ال")


def _whole_words(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b({words})\b")


_ARTICLES: dict[str, dict[str, re.Pattern[str]]] = {
    "squad": {},
    "mlqa": {"ar": _ARABIC_ARTICLE, **{code: _whole_words(words) for code, words in _SAME_WORDS.items()}},
    "mkqa": {
        "ar": _ARABIC_ARTICLE,
        **{code: _whole_words(words) for code, words in _MKQA_WORDS.items()},
        **{code: re.compile(rf"\b({words})") for code, words in _MKQA_PREFIXES.items()},
    },
}
_ENGLISH_ARTICLES = _whole_words(_SAME_WORDS["en"])
_HAN = re.compile("[\u4e00-\u9fa5]")


def squad_f1(prediction: str, answers: Sequence[str], language: str, *, normalization: str) -> float:
    """Word overlap (F1) with the answer that fits best: the F1 of XQuAD, MLQA and SQuAD.

    Args:
        prediction: the model's answer.
        answers: the gold answers of the question, at least one.
        language: of the answers, a BCP-47 tag; only its first part counts.
        normalization: what is made equal before comparing. All lower the case, remove punctuation and articles, and
            join white space.

            * "squad": English articles and ASCII punctuation whatever the language; words are what white space
              separates. This is the official scorer of XQuAD. A Chinese or Thai answer is mostly one word to it.
            * "mlqa": the articles of the language, punctuation of every script, each Chinese character a word.
              Official for MLQA; defined for its seven languages only.
            * "mkqa": the rules of `mkqa_f1`, defined for every language.

    Raises:
        PivotuneError: an unknown normalization, a language that it does not define, or no answers.

    Example:
        >>> squad_f1("在北京大学", ["北京大学"], "zh", normalization="mlqa")
        0.888...
    """
    words = _words(prediction, language, normalization)
    return max(_overlap(words, _words(answer, language, normalization)) for answer in _checked(answers))


def squad_em(prediction: str, answers: Sequence[str], language: str, *, normalization: str) -> float:
    """1.0 where the normalised prediction equals one of the normalised answers, else 0.0. Arguments: `squad_f1`."""
    words = _words(prediction, language, normalization)
    return float(any(words == _words(answer, language, normalization) for answer in _checked(answers)))


def mkqa_f1(prediction: str, answers: Sequence[str | None], language: str) -> float:
    """MKQA's F1: the best word overlap over all answers and their aliases (Longpre et al., TACL 2021).

    Only ASCII punctuation is removed, so full-width punctuation counts as a word in Chinese and Japanese. Chinese,
    Japanese, Thai and Khmer are compared character by character, their combining marks included; Korean by white
    space.

    Args:
        prediction: the model's answer; "" says that there is none.
        answers: all acceptable answers with their aliases, in any order (`mkqa_answers` collects them from the
            published format). None and "" mean "no answer", which an empty prediction matches.
        language: a BCP-47 tag, or MKQA's own code ("zh_cn").
    """
    words = _words(prediction, language, "mkqa")
    scores = []
    for answer in _checked(answers):
        gold = _words(answer or "", language, "mkqa")
        scores.append(_overlap(words, gold) if words and gold else float(words == gold))
    return max(scores)


def mkqa_em(prediction: str, answers: Sequence[str | None], language: str) -> float:
    """MKQA's exact match over all answers and their aliases. Arguments: `mkqa_f1`."""
    words = _words(prediction, language, "mkqa")
    return float(any(words == _words(answer or "", language, "mkqa") for answer in _checked(answers)))


def mkqa_answers(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts and aliases of one question in MKQA's published format: [{"text": ..., "aliases": [...]}, ...]."""
    answers: list[str] = []
    for entry in entries:
        answers += [entry["text"] or "", *(entry.get("aliases") or ())]
    return list(dict.fromkeys(answers))


def contains_answer(text: str, answers: Sequence[str], language: str) -> float:
    """1.0 where one of the answers occurs in a text, both normalised as MKQA does and compared word by word.

    Unlike there, punctuation of every script goes. Otherwise an answer at the end of a Hindi or Arabic sentence, where
    the mark clings to it, would be wrong, and one at the end of an English sentence right.
    """
    words = _words(_without_punctuation(text), language, "mkqa")
    golds = [gold for answer in answers if (gold := _words(_without_punctuation(answer), language, "mkqa"))]
    found = any(words[start : start + len(gold)] == gold for gold in golds for start in range(len(words)))
    return float(found)


def rouge_l(prediction: str, reference: str, language: str) -> float:
    """ROUGE-L (F-measure of the longest common subsequence) with tokens that fit the script.

    As XLSum's scorer (Hasan et al., Findings of ACL 2021): lower case; control characters dropped; punctuation of
    every script replaced by a space; letters, numbers and symbols separated from one another; each Chinese character
    a token in every language.

    Deviations from XLSum's scorer:

    * Chinese, Japanese, Thai, Burmese, Khmer and Lao are split into characters (each with its combining marks),
      where XLSum runs a word segmenter (jieba, MeCab, newmm) for the first four. Scores of these languages are
      comparable among runs, not with published ones. None of them is among the ten languages of CC-Tuning.
    * No stemming. XLSum's training pipeline stems where it has a stemmer (of CC-Tuning's languages ar, en, fr, hi,
      ru, tr), which raises scores; its scorer leaves it off by default, and CC-Tuning says nothing of it.

    Args:
        prediction: the model's summary.
        reference: the gold summary.
        language: a BCP-47 tag; only its first part counts.

    Raises:
        PivotuneError: the package rouge-score is missing.
    """
    scores = _rouge_scorer(_primary(language) in _UNSPACED).score(reference, prediction)
    return float(scores["rougeL"].fmeasure)


def accuracy(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """The share of predictions equal to their gold; a prediction of None is wrong whatever the gold.

    Raises:
        PivotuneError: nothing to score, or two lengths.
    """
    if len(predictions) != len(golds) or not golds:
        raise PivotuneError(
            f"predictions: got {len(predictions)} for {len(golds)} gold labels; give one for each, at least one."
        )
    right = sum(found is not None and found == gold for found, gold in zip(predictions, golds, strict=True))
    return right / len(golds)


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


def _checked(answers: Sequence[_T]) -> Sequence[_T]:
    if isinstance(answers, str) or not answers:
        raise PivotuneError(f"answers: got {answers!r}; give a list of at least one gold answer.")
    return answers


def _overlap(words: list[str], gold: list[str]) -> float:
    same = sum((Counter(words) & Counter(gold)).values())
    # 2 P R / (P + R) with P = same / len(words) and R = same / len(gold). Two empty texts score 0, as in SQuAD.
    return 2 * same / (len(words) + len(gold)) if same else 0.0


def _words(text: str, language: str, normalization: str) -> list[str]:
    """The normalised words that the scorers compare. The order of the steps is theirs."""
    check_choice("normalization", normalization, NORMALIZATIONS)
    code = _primary(language)
    if normalization == "mlqa" and code not in MLQA_LANGUAGES:
        raise PivotuneError(
            f"normalization: 'mlqa' got the language {language!r}, but is defined for {', '.join(MLQA_LANGUAGES)}; "
            "'squad' and 'mkqa' take every language."
        )
    is_mark = _is_punctuation if normalization == "mlqa" else string.punctuation.__contains__
    text = "".join(char for char in text.lower() if not is_mark(char))
    articles = _ENGLISH_ARTICLES if normalization == "squad" else _ARTICLES[normalization].get(code)
    if articles:
        text = articles.sub(" ", text)
    if normalization == "mkqa" and code in _MKQA_CHARACTERS:
        return [char for char in text if not char.isspace()]
    if normalization == "mlqa" and code == "zh":
        # Extension characters outside this range are no Chinese to the official scorer.
        text = _HAN.sub(r" \g<0> ", text)
    return text.split()


@lru_cache(maxsize=4096)
def _category(char: str) -> str:
    return unicodedata.category(char)


def _without_punctuation(text: str) -> str:
    return "".join(char for char in text if not _is_punctuation(char))


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or _category(char)[0] == "P"


# Scripts without spaces that XLSum segments by dictionary (or, Khmer and Lao, does not cover).
_UNSPACED = ("zh", "ja", "th", "my", "km", "lo")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]")
_UNSPACED_LETTER = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uff66-\uff9f]")


def rouge_tokens(text: str, *, characters: bool = False) -> list[str]:
    """The tokens that `rouge_l` compares; `characters` also splits kana, Thai, Lao, Burmese and Khmer."""
    tokens: list[str] = []
    kind = ""  # of the token that is open: "letter", "number", or "" for none
    for char in text.lower():
        category = _category(char)
        if char in "\t\n\r" or category == "Zs" or _is_punctuation(char):
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
