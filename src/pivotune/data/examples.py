"""One training example and its English counterpart, validated where it enters.

Three layouts of a row, the English side always in the same layout as the target side:

    {"id", "language", "instruction", "input", "output", "english": {"instruction", "input", "output"}}
    {"id", "language", "prompt", "completion",           "english": {"prompt", "completion"}}
    {"id", "language", "messages": [{"role", "content"}, ...], "english": {"messages": [...]}}

`id` and `input` are optional; `english` is absent in English rows; a null field is the same as an absent one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pivotune.data.report import DataError
from pivotune.data.scripts import missing_script

ROLES = ("system", "user", "assistant")
_COMMON = ("id", "language", "english")
_LAYOUTS: tuple[tuple[str, ...], ...] = (("instruction", "input", "output"), ("prompt", "completion"), ("messages",))
_OPTIONAL = {"input"}
UNDETERMINED = "und"
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Text:
    """One side of an example: what is asked, in which context, and the answer.

    Attributes:
        answer: what the model should say; "" when only the prompt is of interest (inference).
        instruction: the question; for `messages` rows the last user turn.
        input: what the instruction is about, may be empty.
        prompt: the raw prompt of prompt/completion rows, else None. Then instruction and input are empty.
        context: the turns before the question (system prompt, history), may be empty.
    """

    answer: str = ""
    instruction: str = ""
    input: str = ""
    prompt: str | None = None
    context: tuple[Turn, ...] = ()

    @property
    def question(self) -> str:
        """The question in one string: the raw prompt, or instruction and input on separate lines."""
        if self.prompt is not None:
            return self.prompt
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction


@dataclass(frozen=True, slots=True)
class ParallelExample:
    """An example in `language` and, where there is one, the same example in English.

    Attributes:
        id: unique among the examples of one language.
        language: BCP-47 tag with a lower-case primary part ("zh", "pt-BR").
        text: the example itself.
        english: its English counterpart; None where there is none, always None for English examples.
        where: the place it was read from, for messages.
    """

    id: str
    language: str
    text: Text
    english: Text | None = None
    where: str = field(default="", compare=False)

    @classmethod
    def from_dict(
        cls, row: Any, where: str = "row", default_id: str | None = None, *, answered: bool = True
    ) -> ParallelExample:
        """Validate one row.

        Args:
            row: a dict in one of the three layouts of this module.
            where: the place of the row, such as "train.jsonl:17", for messages.
            default_id: the id of a row without one; by default the number that ends `where`.
            answered: whether the row is to learn from. If not, it is to be answered: output, completion or the last
                assistant turn may be absent, and so may the language ("und", undetermined).

        Raises:
            DataError: with the place, the field, the value and the fix.
        """
        if not isinstance(row, Mapping):
            raise _wrong_type(where, "the row", row, "an object with named fields")
        known = (*_COMMON, *(name for layout in _LAYOUTS for name in layout))
        _check_keys(row, known, where, "")
        row = {key: value for key, value in row.items() if value is not None}
        layout = _layout(row, where)
        language = _language(row, where) if answered or "language" in row else UNDETERMINED
        text = _text(row, layout, where, "", answered)
        english = _english(row, layout, language, where, answered)
        _check_script(text, language, where, "the text")
        if english is not None:
            _check_script(english, "en", where, "field 'english'")
        return cls(_id(row, where, default_id), language, text, english, where)


def is_among(language: str, wanted: Container[str]) -> bool:
    """Whether a language was asked for: "pt" admits "pt-BR" too."""
    return language in wanted or language.split("-")[0] in wanted


def is_english(language: str) -> bool:
    return language.split("-")[0] == "en"


def _check_keys(row: Mapping[str, Any], known: Iterable[str], where: str, prefix: str) -> None:
    known = tuple(known)
    for key in row:
        if key in known:
            continue
        close = difflib.get_close_matches(str(key), known, n=1)
        names = ", ".join(f"'{prefix}{name}'" for name in known)
        fix = f"did you mean '{prefix}{close[0]}'?" if close else f"remove it or rename it to one of {names}"
        raise DataError(where, "unknown field", f"field '{prefix}{key}' with the value {_show(row[key])}", fix)


def _layout(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The one layout whose fields the row uses."""
    used = [layout for layout in _LAYOUTS if any(name in row for name in layout)]
    choices = "instruction/input/output, prompt/completion or messages"
    if not used:
        found = ", ".join(map(repr, row)) or "nothing"
        raise DataError(where, "missing field", f"no question and answer, the row holds {found}", f"give {choices}")
    if len(used) > 1:
        names = " and ".join(repr(next(name for name in layout if name in row)) for layout in used)
        raise DataError(where, "mixed layouts", f"fields {names} belong to different layouts", f"keep one of {choices}")
    return used[0]


def _language(row: Mapping[str, Any], where: str) -> str:
    if "language" not in row:
        raise DataError(where, "missing field", "field 'language' is missing", "add a code such as zh, vi, ar or en")
    value = row["language"]
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        fix = "write a BCP-47 code such as zh, vi, ar, en or pt-BR"
        raise DataError(where, "wrong language", f"field 'language' is {_show(value)}", fix)
    primary, *subtags = value.split("-")
    return "-".join([primary.lower(), *subtags])


def _id(row: Mapping[str, Any], where: str, default_id: str | None) -> str:
    value = row.get("id")
    if value is None:
        number = re.search(r"\d+$", where)
        return default_id or (number[0] if number else where)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _wrong_type(where, "field 'id'", value, "a string or a whole number")
    if isinstance(value, str):
        return _string(row, "id", where, "")
    return str(value)


def _english(row: Mapping[str, Any], layout: tuple[str, ...], language: str, where: str, answered: bool) -> Text | None:
    value = row.get("english")
    # Parquet and datasets store an absent struct as a struct of nulls.
    if value is None or (isinstance(value, Mapping) and value and all(part is None for part in value.values())):
        return None
    if is_english(language):
        problem = f"field 'english' in a row whose language is {language!r}"
        raise DataError(where, "English row with a counterpart", problem, "remove 'english' or correct 'language'")
    if not isinstance(value, Mapping):
        raise _wrong_type(where, "field 'english'", value, f"an object with {', '.join(layout)}")
    _check_keys(value, layout, where, "english.")
    return _text({key: part for key, part in value.items() if part is not None}, layout, where, "english.", answered)


def _text(row: Mapping[str, Any], layout: tuple[str, ...], where: str, prefix: str, answered: bool) -> Text:
    """One side of the row; `prefix` is "english." on that side."""
    optional = _OPTIONAL if answered or layout == ("messages",) else _OPTIONAL | {layout[-1]}
    for name in layout:
        if name not in row and name not in optional:
            reason = "missing English" if prefix else "missing field"
            raise DataError(where, reason, f"field '{prefix}{name}' is missing", "add it, or remove the row")
    if "messages" in layout:
        return _conversation(row["messages"], where, f"{prefix}messages", answered)
    question, answer = layout[0], layout[-1]
    values = {name: _string(row, name, where, prefix) for name in layout if name in row}
    _check_filled(values[question], where, f"{prefix}{question}", "empty question")
    if answered:
        _check_filled(values[answer], where, f"{prefix}{answer}", "empty answer")
    said = values.get(answer, "")
    if question == "prompt":
        return Text(answer=said, prompt=values[question])
    return Text(answer=said, instruction=values[question], input=values.get("input", ""))


def _conversation(messages: Any, where: str, name: str, answered: bool) -> Text:
    """Turns into a Text: ..., question (user), answer (assistant)."""
    if not isinstance(messages, (list, tuple)):
        raise _wrong_type(where, f"field '{name}'", messages, "a list of {role, content}")
    turns = []
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise _wrong_type(where, f"field '{place}'", message, "an object with role and content")
        _check_keys(message, ("role", "content"), where, f"{place}.")
        for key in ("role", "content"):
            if message.get(key) is None:
                raise DataError(where, "missing field", f"field '{place}.{key}' is missing", "add it")
        role = message["role"]
        if role not in ROLES:
            problem = f"field '{place}.role' is {_show(role)}"
            raise DataError(where, "wrong role", problem, f"use one of {', '.join(ROLES)}")
        turns.append(Turn(role, _string(message, "content", where, f"{place}.")))
    if not answered and turns and turns[-1].role == "user":
        turns.append(Turn("assistant", ""))
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        fix = "end with a user turn and the assistant turn that answers it"
        raise DataError(where, "wrong turns", f"field '{name}' holds the roles {roles}", fix)
    *context, question, answer = turns
    _check_filled(question.content, where, f"{name}[{len(turns) - 2}].content", "empty question")
    if answered:
        _check_filled(answer.content, where, f"{name}[{len(turns) - 1}].content", "empty answer")
    return Text(answer=answer.content, instruction=question.content, context=tuple(context))


def _string(row: Mapping[str, Any], name: str, where: str, prefix: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise _wrong_type(where, f"field '{prefix}{name}'", value, "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair (an emoji cut in two); no tokenizer accepts one.
        problem = f"field '{prefix}{name}' has half a surrogate pair at character {error.start}: {_show(value)}"
        raise DataError(where, "invalid Unicode", problem, "write the text again as UTF-8") from None
    return value


def _check_filled(value: str, where: str, name: str, reason: str) -> None:
    if not value.strip():
        raise DataError(where, reason, f"field '{name}' is {_show(value)}", "fill it, or remove the row")


def _check_script(text: Text, language: str, where: str, side: str) -> None:
    content = "\n".join((text.question, text.answer))
    script = missing_script(content, language)
    if script is not None:
        problem = f"{side} should be {language!r} but has no {script} letter: {_show(content)}"
        raise DataError(where, "wrong language", problem, "correct 'language', or swap the two sides back")


def _wrong_type(where: str, name: str, value: Any, expected: str) -> DataError:
    return DataError(where, "wrong type", f"{name} is {_show(value)} ({type(value).__name__})", f"give {expected}")


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
