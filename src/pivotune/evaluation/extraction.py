"""Which option does a generated answer choose? For benchmarks that are answered by free generation.

A model asked "(1) Entail (2) Neutral (3) Contradict ... your answer would be:" may say "2", "(٢)", "Answer: 2",
"２。", "Neutral" or all three. The rules, in this order, on one line after the other; the first line that names an
option decides:

1. the whole line is a label ("B", "②", "[ب]", "b."), or else the whole line is the text of an option;
2. the line begins with a label that is set off ("(2) ...", "B: ...", "2 Neutral");
3. a label or the text of an option follows a word for "answer" or "option" ("The answer is B", "答案：二");
4. a label in brackets, anywhere in the line;
5. the text of an option, anywhere in the line, as whole words;
6. the line is the first half, or more, of one option: generation was cut off;
7. a capital letter or a final number that stands alone ("I would go for B").

Two options named by the rule that applies are **ambiguous**, which is wrong and is counted: "1 or 2", "Entail or
Neutral", a list of options read back. A label settles the matter, except when the text of another option follows it:
"(2) Entail" is ambiguous, "(2) Neutral. To entail it, ..." is not. What looks like a label inside the text of an option
is none: "The answer is hepatitis C" names the option "hepatitis C", whichever its label.

The rules do not understand negation: "not neutral" names Neutral.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pivotune.errors import PivotuneError
from pivotune.evaluation.metrics import primary


@dataclass(frozen=True)
class Choice:
    """What was read from an answer.

    Attributes:
        index: of the option, from 0; None where none or several were named.
        how: "label", "text", "cut text" (the beginning of an option) or "none".
        ambiguous: several options were named.
    """

    index: int | None
    how: str
    ambiguous: bool = False


def extract_choice(
    answer: str, options: Sequence[str], labels: Sequence[str] | None = None, language: str = "en"
) -> Choice:
    """The option that a generated answer names. The rules: see the module.

    Labels are recognised in every script's digits (Arabic-Indic, Devanagari, Bengali, Thai, full-width ...), circled or
    full-width, and where they are Latin letters also as the letters that exams in `language` use for them: أ ب ج د in
    Arabic, क ख ग घ in Hindi.

    Args:
        answer: everything the model generated.
        options: the texts of the options, in the order of the prompt.
        labels: how the prompt names them; "1", "2", ... unless given.
        language: of the prompt, a BCP-47 tag.

    Raises:
        PivotuneError: fewer than two options, or not one distinct label for each.

    Example:
        >>> extract_choice("الإجابة: (٢)", ["يستلزم", "محايد", "يتناقض"], language="ar")
        Choice(index=1, how='label', ambiguous=False)
    """
    labels = [str(number + 1) for number in range(len(options))] if labels is None else list(labels)
    if len(options) < 2:
        raise PivotuneError(f"options: got {len(options)}; give at least two.")
    if len(labels) != len(options) or len(set(labels)) != len(labels) or not all(map(str.strip, labels)):
        raise PivotuneError(f"labels: got {labels!r} for {len(options)} options; give one distinct label for each.")
    reader = _Reader(options, labels, primary(language))
    lines = _fold(answer).split("\n")
    for number, line in enumerate(lines):
        if found := reader.read(line):
            named, how = found
            if how == "label":
                named = named | reader.read_back(lines[number + 1 :])
            return Choice(min(named), how) if len(named) == 1 else Choice(None, how, ambiguous=True)
    return Choice(None, "none")


# Letters that stand for A, B, C, D in exams. Where a letter also looks like another Latin one (the Russian В is the
# third letter and looks like B), both readings are listed and the answer comes out ambiguous, which it is.
_LETTERS: dict[str, tuple[str, ...]] = {
    "ar": ("أا", "ب", "جت", "دث"),
    "ur": ("اأ", "ب", "ج", "د"),
    "fa": ("ا", "ب", "ج", "د"),
    "hi": ("कअ", "ख", "ग", "घ"),
    "bn": ("ক", "খ", "গ", "ঘ"),
    "th": ("ก", "ข", "ค", "ง"),
    "ko": ("가", "나", "다", "라"),
    "ja": ("ア", "イ", "ウ", "エ"),
    "zh": ("甲", "乙", "丙", "丁"),
    "ru": ("А", "БВ", "ВС", "Г"),
    "el": ("Α", "Β", "ΓС", "Δ"),
}
_NUMERALS = "一二三四五六七八九"  # for digits, in Chinese and Japanese
# Latin capitals that are words at the beginning of a sentence.
_WORD_LETTERS = {"A", "E", "I", "O", "Y"}

_ANSWER_WORDS: dict[str, str] = {
    "ar": "الإجابة|إجابتي|إجابة|الاجابة|الجواب|جوابي|جواب|الخيار|خيار|الاختيار",
    "bn": "উত্তর|বিকল্প",
    "de": "antwort|option|auswahl",
    "el": "απάντησή|απάντηση|επιλογή",
    "en": "answer|option|choice",
    "es": "respuesta|opción|opcion",
    "eu": "erantzun|aukera",
    "fr": "réponse|option|choix",
    "hi": "उत्तर|जवाब|विकल्प",
    "id": "jawaban|pilihan|opsi",
    "it": "risposta|opzione",
    "ja": "答え|回答|解答|正解|選択肢",
    "ko": "정답|대답|답변|답|선택지|옵션",
    "pt": "resposta|opção|alternativa",
    "ro": "răspunsul|opțiunea",
    "ru": "ответ|вариант",
    "sw": "jibu|chaguo",
    "ta": "பதில்|விடை",
    "te": "సమాధానం|ఎంపిక|ఆప్షన్",
    "th": "คำตอบ|ตัวเลือก|ข้อ",
    "tr": "cevap|cevab|yanıt|seçenek|şık",
    "ur": "جواب|اختیار",
    "vi": "câu trả lời|trả lời|đáp án|lựa chọn|phương án",
    "yo": "ìdáhùn|idahun|àṣàyàn|aṣayan",
    "zh": "答案|选项|選項|选择|選擇|[选選](?=[1-9])|(?=第[1-9一二三四五六七八九][个個项項])",
}
# What joins two labels into "1 or 2".
_CONNECTIVES = re.compile(
    r"(?:or|and|y|o|e|u|ou|oder|und|et|hoặc|và|hay|或者|或|和|与|跟|أو|و|या|और|অথবা|এবং|বা|หรือ|และ|veya|ya da|ve|или|и|ή"
    r"|και|au|na|または|と|か|또는|와|과|이나|atau|dan|tabi|ati|یا|اور|లేదా|మరియు|edo|eta|sau|și|oppure|அல்லது|மற்றும்)"
    r"(?![a-z])"
)
_OPEN, _CLOSE = "([{<「『【〈《〔", ")]}>」』】〉》〕"
_SET_OFF = ".:,;!?、。،؛।॥·•|/&+=-–—*_\"'”’»"
_LATIN = "0-9A-Za-z\u00c0-\u024f\u1e00-\u1eff\u0300-\u036f"
# Signs that belong to the letter before them (re's \w leaves them out): Arabic, Indic, Thai.
_MARKS = "\u0300-\u036f\u064b-\u0655\u0900-\u0903\u093a-\u094f\u0981-\u0983\u09bc-\u09cd\u0e30-\u0e3a\u0e45-\u0e4e"
_TRIM = _OPEN + _CLOSE + _SET_OFF + "“‘«#~` \t\u00a0"
# No spaces, or particles that cling to the end of a word.
_NO_BOUNDARY = {"zh", "ja", "th", "km", "lo", "my"}
_NO_END = _NO_BOUNDARY | {"ko"}
# Between which letters a Chinese or Japanese numeral or letter may be a label ("选项二是", "答えは二です", "一或二").
# Elsewhere it is a part of a word: "那是一只猫" says nothing of option 1.
_BEFORE_LABEL, _AFTER_LABEL = "是为為选選择擇第或和与跟はとか", "是为為或和与跟とか"


class _Reader:
    """The rules for one question."""

    def __init__(self, options: Sequence[str], labels: Sequence[str], language: str) -> None:
        self.language = language
        self.texts = [_tidy(self._case(_fold(option).replace("\n", " "))) for option in options]
        self.labels = [_fold(label).strip() for label in labels]
        self.local = self._local_labels()
        names = sorted({*self.labels, *self.local}, key=len, reverse=True)
        self.name = "|".join(map(re.escape, names))
        self.capitals = all(re.fullmatch("[A-Z]", label) for label in self.labels)
        words = dict.fromkeys([_ANSWER_WORDS.get(language, _ANSWER_WORDS["en"]), _ANSWER_WORDS["en"]])
        self.answer_word = re.compile(_fold("|".join(words)), re.IGNORECASE)
        # Alone: not a part of a number ("2.5", "1,000"), of a word, of "B-cell" or "d'or". Chinese and Japanese put
        # words side by side ("选项B是"), others a particle behind a Latin letter ("B입니다").
        ascii_names = [re.escape(name) for name in names if name.isascii()]
        other_names = [re.escape(name) for name in names if not name.isascii()]
        parts = []
        if ascii_names:
            parts.append(rf"(?<![{_LATIN}.,^°])(?:{'|'.join(ascii_names)})(?![{_LATIN}'’^]|[-.,][{_LATIN}])")
        if other_names and language in _NO_BOUNDARY - {"th"}:
            other = f"(?:{'|'.join(other_names)})"
            parts.append(rf"(?:(?<![^\W_])|(?<=[{_BEFORE_LABEL}])){other}(?:(?![^\W_])|(?=[{_AFTER_LABEL}]|です))")
            parts.append(rf"(?<=第){other}(?=[个個项項])")
        elif other_names:
            parts.append(rf"(?<![\w{_MARKS}])(?:{'|'.join(other_names)})(?![\w{_MARKS}])")
        alone = "|".join(parts)
        self.alone = re.compile(f"(?P<name>{alone})")
        self.next_label = re.compile(
            rf"\s*(?:[,/、،&+;|]|{_CONNECTIVES.pattern})\s*[{re.escape(_OPEN)}]?\s*(?P<name>{alone})"
        )
        self.bracketed = re.compile(
            rf"(?<![0-9A-Za-z])[{re.escape(_OPEN)}]\s*(?P<name>{self.name})\s*[{re.escape(_CLOSE)}]", re.IGNORECASE
        )
        # Texts that hold what looks like a label: "both A and B", "hepatitis C", "under clause (b)".
        texts = [_tidy(_fold(option)) for option in options]
        held = [text for text in texts if len(text) > 1 and (self.alone.search(text) or self.bracketed.search(text))]
        self.holding = re.compile(
            "|".join(map(re.escape, sorted(held, key=len, reverse=True))) or "(?!)", re.IGNORECASE
        )
        self.head = re.compile(
            rf"[^\w{re.escape(_OPEN)}]*(?P<open>[{re.escape(_OPEN)}])?\s*(?P<name>{self.name})"
            rf"(?:\s*(?P<close>[{re.escape(_CLOSE)}]))?(?P<rest>.*)$",
            re.IGNORECASE,
        )

    def read(self, line: str) -> tuple[set[int], str] | None:
        """The options that a line names and how, or None."""
        core = line.strip(_TRIM)
        if not line.strip():
            return None
        folded = _tidy(self._case(line))
        if named := self._labelled(core, any_case=True):
            return named, "label"
        if named := {index for index, text in enumerate(self.texts) if text and text == folded}:
            return named, "text"
        # "2 days later, ..." is the second option only if no option begins so.
        mentioned = self._mentioned(folded)
        begun = any(len(text) > 3 and folded.startswith(text) for text in self.texts)
        if not begun and (named := self._headed(line)):
            return named, "label"
        if found := self._framed(line):
            return found
        if named := self._all(self.bracketed.finditer(self._outside_texts(line))):
            return named, "label"
        if mentioned:
            return mentioned, "text"
        if named := self._cut(folded):
            return named, "cut text"
        if named := self._bare(line):
            return named, "label"
        return None

    def read_back(self, lines: Sequence[str]) -> set[int]:
        """The options that the following lines of the paragraph list, each by its label and its text."""
        named: set[int] = set()
        for line in lines:
            if not line.strip():
                break
            if (match := self.head.match(line)) and (indices := self._labelled(match["name"], any_case=True)):
                text = self._case(_after(match["rest"]))
                named |= {index for index in indices if self._begins(text, self.texts[index])}
        return named

    def _local_labels(self) -> dict[str, set[int]]:
        local: dict[str, set[int]] = {}
        for index, label in enumerate(self.labels):
            glyphs = ""
            if label in tuple("ABCD") and self.language in _LETTERS:
                glyphs = _LETTERS[self.language]["ABCD".index(label)]
            elif label in tuple("123456789") and self.language in ("zh", "ja"):
                glyphs = _NUMERALS[int(label) - 1]
            for glyph in glyphs:
                local.setdefault(unicodedata.normalize("NFKC", glyph), set()).add(index)
        return local

    def _labelled(self, name: str, *, any_case: bool = False) -> set[int]:
        """The options that a label stands for."""
        named = {index for index, label in enumerate(self.labels) if label == name}
        named |= self.local.get(name, set())
        if not named and any_case:
            named = {index for index, label in enumerate(self.labels) if label.casefold() == name.casefold()}
        return named

    def _all(self, matches: Iterator[re.Match[str]]) -> set[int]:
        return set().union(*(self._labelled(match["name"], any_case=True) for match in matches))

    def _listed(self, named: set[int], line: str, end: int) -> set[int]:
        """`named` and the further labels that are joined to it: "1, 2 or 3"."""
        while match := self.next_label.match(line, end):
            named, end = named | self._labelled(match["name"], any_case=True), match.end()
            if line[end : end + 1] and line[end] in _CLOSE:
                end += 1
        return named

    def _headed(self, line: str) -> set[int]:
        """The label that a line begins with, if it is set off from what follows."""
        match = self.head.match(line)
        if match is None or not (named := self._labelled(match["name"], any_case=True)):
            return set()
        name, rest = match["name"], match["rest"]
        text = self._case(_after(rest))
        # Of "Go" and "Go home", "(1) Go home" is followed by the second.
        begun = [index for index, option in enumerate(self.texts) if self._begins(text, option)]
        longest = max((self.texts[index] for index in begun), key=len, default="")
        own = longest if any(self.texts[index] == longest for index in named) and longest else None
        digits, local = name.isdigit(), name in self.local
        upper = name in self.labels  # as the prompt writes it
        if match["close"] or not rest.strip():
            set_off = True
        elif rest[0] in _SET_OFF:
            set_off = (
                len(rest) == 1
                or not (rest[0] in "-.,'’" and rest[1].isalnum() and not rest[1].isspace())
                or own is not None
            )
        elif rest[0].isspace():
            joined = self.next_label.match(rest) is not None
            set_off = own is not None or joined or match["open"] is not None or (digits and not local)
            set_off = set_off or (upper and not digits and name not in _WORD_LETTERS)
        else:
            # "B입니다", "2是": a letter of another script follows at once. "Dímeros" is one word.
            set_off = upper and _in_other_script(rest) and (not digits or rest[0] in "是为為，번이입番です")
        if not set_off:
            return set()
        if own is not None:
            # "(1) Entail" is settled, but "(1) Entail (2) Neutral" is not; brackets inside the text are the text's.
            tail = text[len(own) :]
            return self._listed(named, tail, 0) | self._all(self.bracketed.finditer(tail))
        named = self._listed(named, line, match.start("rest")) | self._all(self.bracketed.finditer(line))
        if len(named) == 1 and len(longest) > 1:
            named = named | {index for index in begun if self.texts[index] == longest}
        return named

    def _framed(self, line: str) -> tuple[set[int], str] | None:
        """What follows a word for "answer" or "option"."""
        named: set[int] = set()
        for match in self.answer_word.finditer(line):
            after = line[match.end() :]
            head, colon, tail = after.partition(":")
            if colon and len(head) <= 40 and tail.strip():
                named |= self._labelled(tail.strip(_TRIM), any_case=True) or self._headed(tail)
                if not named and (texts := self._mentioned(_tidy(self._case(tail)))):
                    return texts, "text"
            after = self._outside_texts(after)
            label = self.alone.search(after)  # in all of it: a word cut short may look like a label
            if label is None or label.end() > 40:
                continue
            if label["name"] in _WORD_LETTERS and not self._stands(after, label.end()):
                continue
            indices = self._labelled(label["name"])
            named |= self._listed(indices, after, label.end()) if indices else set()
            # "not 1 but 2" ends in another label; "2, for 3 reasons" does not.
            for last in self.alone.finditer(after, label.end()):
                if named and not after[last.end() :].strip(_TRIM):
                    named |= self._labelled(last["name"])
        return (named, "label") if named else None

    def _outside_texts(self, line: str) -> str:
        """A line without the texts of options that hold what looks like a label."""
        return self.holding.sub(lambda found: " " * len(found[0]), line)

    def _stands(self, line: str, end: int) -> bool:
        """Whether a letter that may be a word ("A") is set off by what follows it."""
        rest = line[end:].strip()
        own = any(self._begins(self._case(_after(rest)), text) for text in self.texts)
        joined = self.next_label.match(line, end) is not None
        return not rest or rest[0] in _SET_OFF + _CLOSE or _in_other_script(rest) or own or joined

    def _begins(self, line: str, text: str) -> bool:
        return bool(text) and re.match(re.escape(text) + self._end(text), line) is not None

    def _end(self, text: str) -> str:
        if text[-1:].isdigit():
            return r"(?![\w^*/+]|[-.,]\d)"
        return "" if self.language in _NO_END or not text[-1:].isalnum() else rf"(?![\w{_MARKS}])"

    def _mentioned(self, folded: str) -> set[int]:
        """The options whose text occurs in a line. The longer is looked for first and taken out."""
        named: set[int] = set()
        for index in sorted(range(len(self.texts)), key=lambda number: -len(self.texts[number])):
            text = self.texts[index]
            if not text:
                continue
            start = "" if self.language in _NO_BOUNDARY or not text[0].isalnum() else r"(?<!\w)(?<!\d[.,])"
            if text[0].isdigit():  # neither a part of a number nor of a formula
                start = r"(?<![\w^*/+−-])(?<!\d[.,])(?<![*/+−-] )"
            pattern = start + re.escape(text) + self._end(text)
            if re.search(pattern, folded):
                named |= {number for number, other in enumerate(self.texts) if other == text}
                folded = re.sub(pattern, "\n", folded)
        return named

    def _cut(self, folded: str) -> set[int]:
        named = {index for index, text in enumerate(self.texts) if text.startswith(folded)}
        longest = max((len(self.texts[index]) for index in named), default=0)
        return named if len(named) == 1 and len(folded) >= 4 and 2 * len(folded) >= longest else set()

    def _bare(self, line: str) -> set[int]:
        named: set[int] = set()
        for match in self.alone.finditer(line):
            name = match["name"]
            final = not line[match.end() :].strip(_TRIM)
            word = name in _WORD_LETTERS and not self.next_label.match(line, match.end())
            capital = self.capitals and name in self.labels and not word
            if capital or (final and name in self.labels and (self.capitals or name.isdigit())):
                named |= self._labelled(name)
        return named

    def _case(self, text: str) -> str:
        """Without case. The dotless i of Turkish is a letter of its own."""
        if self.language in ("tr", "az"):
            text = text.replace("I", "ı").replace("İ", "i")
        return unicodedata.normalize("NFKC", text.casefold())


_INVISIBLE: Mapping[int, None] = dict.fromkeys(
    [0x0640, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x206A)]
)


def _fold(text: str) -> str:
    """Full-width, circled and presentation forms as plain characters, all digits as 0-9, nothing invisible."""
    text = unicodedata.normalize("NFKC", text.replace("\r\n", "\n").replace("\r", "\n").translate(_INVISIBLE))
    folded = []
    for char in text:
        digit = None if char.isascii() else unicodedata.digit(char, None)
        folded.append(char if digit is None else str(digit))
    return re.sub(r"[^\S\n]+", " ", "".join(folded))


def _tidy(text: str) -> str:
    """Without quotes, markup and final stops around it. Brackets and signs stay: "-1" and "(1)" are no "1"."""
    return text.strip(" \t*_`\"'“”«»").rstrip(" .。।؛،,;:!*_`\"'“”«»")


def _in_other_script(text: str) -> bool:
    """Whether a text begins with neither a Latin letter nor any ASCII character."""
    return not text[0].isascii() and not re.match(f"[{_LATIN}]", text)


def _after(rest: str) -> str:
    """What follows a label, without what sets the label off. A minus stays."""
    return _tidy(re.sub(r"^(?:[\s.:,;)\]。、،]|[-–—|]\s)+", "", rest))
