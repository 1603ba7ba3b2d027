"""One training example and its English counterpart, validated where it enters.

Three layouts of a row, the English side always in the same layout as the target side:

    {"id", "language", "instruction", "input", "output", "english": {"instruction", "input", "output"}}
    {"id", "language", "prompt", "completion",           "english": {"prompt", "completion"}}
    {"id", "language", "messages": [{"role", "content"}, ...], "english": {"messages": [...]}}

`id`, `input` and a `system` prompt are optional; `english` is absent in English rows, and its answer is needed only by
a method that reads it; a null field is the same as an absent one.

Published data sets write the same under other names, which are read too: question/answer, query/response and
inputs/targets; `conversations` of {from, value}; the English side as `instruction_en`, `output_en` or
`english_question`; `language_code` or `lang`. Any other name is given by `columns`. What else a row holds (a source, a
score, an index) is not read, and said; a name that looks like a misspelt field is an error.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pivotune.data.languages import UNDETERMINED, is_among, is_english, read_language
from pivotune.data.report import DataError
from pivotune.data.scripts import missing_script
from pivotune.errors import PivotuneError

__all__ = ["ParallelExample", "Text", "Turn", "check_columns", "is_among", "is_english"]

ROLES = ("system", "user", "assistant")
_ROLE_ALIASES = {
    **{"human": "user", "developer": "system"},
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot"), "assistant"),
}
_LAYOUTS: tuple[tuple[str, ...], ...] = (("instruction", "input", "output"), ("prompt", "completion"), ("messages",))
_SIDE = (*(name for layout in _LAYOUTS for name in layout), "system")
_OPTIONAL = {"input"}
_ALIASES = {
    **dict.fromkeys(("question", "query", "inputs"), "instruction"),
    **dict.fromkeys(("response", "answer", "targets"), "output"),
    **dict.fromkeys(("conversations", "conversation"), "messages"),
    **{"context": "input", "system_prompt": "system"},
}
# The code comes before the name, which may be one that no list of names has.
_LANGUAGE_NAMES = ("language_code", "lang_code", "language", "lang")
_ENGLISH_NAME = re.compile(r"(?:en|eng|english)[_.-](.+)|(.+)[_.-](?:en|eng|english)")
# They change what is asked or answered, so that leaving them out has to be somebody's decision.
_MEANINGFUL = ("history", "chosen", "rejected", "tools", "functions", "images", "image", "audio")
_KNOWN = (*_SIDE, *_ALIASES, *_LANGUAGE_NAMES, "english")
_CHOICES = "instruction/input/output, prompt/completion or messages"
COLUMNS = (*_SIDE, "id", "language", "english", *(f"english.{name}" for name in _SIDE))
"""The fields that `columns` may name."""


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
        cls,
        row: Any,
        where: str = "row",
        default_id: str | None = None,
        *,
        answered: bool = True,
        language: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        notes: list[str] | None = None,
    ) -> ParallelExample:
        """Validate one row.

        Args:
            row: a dict in one of the three layouts of this module.
            where: the place of the row, such as "train.jsonl:17", for messages.
            default_id: the id of a row without one; by default the number that ends `where`.
            answered: whether the row is to learn from. If not, it is to be answered: output, completion or the last
                assistant turn may be absent, and so may the language ("und", undetermined).
            language: the tag of a row that names no language.
            columns: other names of fields: {its name in the row: its name here, or None to leave it out}. Dots lead
                into nested objects, on either side: {"translation.zh": "instruction"}.
            notes: takes, for a `Report`, what was read in another way than it is written, or not read.

        Raises:
            DataError: with the place, the field, the value and the fix.
        """
        said: list[str] = []
        reading = _Reading(where, answered, said)
        if not isinstance(row, Mapping):
            raise _wrong_type(where, "the row", row, "an object with named fields")
        common, target, english = _fields(_renamed(row, columns or {}, reading), reading)
        layout = _layout(target, row, reading)
        tag = _language(common, language, reading)
        text = _text(target, layout, answered, reading)
        counterpart = _english(english, text, layout, tag, reading)
        _check_script(text, tag, where, "the text")
        if counterpart is not None:
            _check_script(counterpart, "en", where, "field 'english'")
        if notes is not None:
            notes.extend(said)
        return cls(_id(common, where, default_id), tag, text, counterpart, where)


def check_columns(option: str, columns: Mapping[str, str | None]) -> None:
    """Raise a PivotuneError unless every column is called by the name of a field, or left out."""
    for theirs, ours in columns.items():
        if ours is None or ours in COLUMNS:
            continue
        turned = " Its left side is the name in the file, its right side the name here." if theirs in COLUMNS else ""
        near = difflib.get_close_matches(str(ours), COLUMNS, n=1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f"; choose among {', '.join(COLUMNS)}, or null to leave it out."
        )
        raise PivotuneError(f"{option}: {{{theirs}: {ours}}} names no field of an example{hint}{turned}")


# Names ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    """Where a row is, how it is read, and what is said about it."""

    where: str
    answered: bool
    notes: list[str]

    @property
    def option(self) -> str:
        """The option that gives columns their names."""
        return "data.columns" if self.answered else "--columns"

    def leave_out(self, name: str, value: Any, known: tuple[str, ...], shown: str | None = None) -> None:
        """Note a field that has no meaning here; raise where it looks like one that has."""
        shown = shown or name
        if near := _near(name, known):
            mended = shown.removesuffix(name) + near
            fix = f"did you mean '{mended}'? If not, leave it out with {self.option}: {{{shown}: null}}"
            raise DataError(self.where, "unknown field", f"field '{shown}' with the value {_show(value)}", fix)
        if name in _MEANINGFUL and value not in ([], {}, "", "[]"):
            problem = f"field '{shown}' changes what is asked or answered, and has no place here"
            fix = f"write whole conversations as 'messages', or leave it out with {self.option}: {{{shown}: null}}"
            raise DataError(self.where, "unknown field", problem, fix)
        self.notes.append(f"a field '{_no_index(shown)}' that was not read")


@dataclass(frozen=True, slots=True)
class _Side:
    """The fields of one side under their names here; `shown` has them as the row calls them, for messages."""

    values: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shown: str, value: Any, reading: _Reading) -> None:
        if name in self.values:
            problem = f"fields '{self.shown[name]}' and '{shown}' are two names of one"
            raise DataError(
                reading.where, "mixed layouts", problem, f"leave one out with {reading.option}: {{{shown}: null}}"
            )
        self.values[name], self.shown[name] = value, shown


@lru_cache(maxsize=4096)
def _near(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that this one misspells, if any: few letters apart, and not the short name of an index."""
    if name.endswith(("_id", "_ids")):
        return None
    candidates = [one for one in known if len(one) > 3 and abs(len(one) - len(name)) <= 2]
    return next(iter(difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.75)), None)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str | None], reading: _Reading) -> dict[str, Any]:
    """The row with its fields renamed as `columns` says."""
    rest, taken = dict(row), {}
    for theirs in columns:
        value = _take(rest, theirs)
        if value is not None:
            taken[theirs] = value
    for theirs, value in taken.items():
        ours = columns[theirs]
        if ours is None:
            reading.notes.append(f"a field '{theirs}' left out, as asked")
        elif rest.get(ours) is not None:
            problem = f"field '{theirs}' is to be '{ours}', which the row has too"
            raise DataError(
                reading.where, "mixed layouts", problem, f"leave one out with {reading.option}: {{NAME: null}}"
            )
        else:
            rest[ours] = value
    return rest


def _take(row: dict[str, Any], path: str) -> Any:
    """Remove a field, which dots may name inside others, and return its value; None where there is none."""
    if path in row:
        return row.pop(path)
    first, dot, rest = path.partition(".")
    if not dot or not isinstance(row.get(first), Mapping):
        return None
    inner = dict(row[first])
    value = _take(inner, rest)
    row[first] = inner or None
    return value


def _fields(row: Mapping[str, Any], reading: _Reading) -> tuple[dict[str, Any], _Side, _Side]:
    """What both sides share, the side itself and the English one, which is empty where there is none."""
    common: dict[str, Any] = {}
    target, english = _Side(), _Side()
    for key, value in row.items():
        if value is None:
            continue
        name = _ALIASES.get(key, key)
        if name in _SIDE:
            target.add(name, key, value, reading)
        elif key in ("id", *_LANGUAGE_NAMES):
            common[key] = value
        elif key == "english":
            _add_english(english, value, reading)
        elif english_name := _english_name(key):
            english.add(english_name, key, value, reading)
        else:
            reading.leave_out(key, value, _KNOWN)
    return common, target, english


def _english_name(key: str) -> str | None:
    """The field that "output_en", "english_question" or "english.output" is on the English side."""
    found = _ENGLISH_NAME.fullmatch(key)
    if not found:
        return None
    name = _ALIASES.get(found[1] or found[2], found[1] or found[2])
    return name if name in _SIDE else None


def _add_english(english: _Side, value: Any, reading: _Reading) -> None:
    if not isinstance(value, Mapping):
        raise _wrong_type(
            reading.where, "field 'english'", value, "an object with the fields of the row, such as {instruction: ...}"
        )
    for key, part in value.items():
        if part is None:
            continue
        name = _ALIASES.get(key, key)
        if name in _SIDE:
            english.add(name, f"english.{key}", part, reading)
        else:
            reading.leave_out(key, part, _KNOWN, f"english.{key}")


def _layout(side: _Side, row: Mapping[str, Any], reading: _Reading) -> tuple[str, ...]:
    """The one layout whose fields a side uses."""
    used = [layout for layout in _LAYOUTS if any(name in side.values for name in layout)]
    if not used:
        found = ", ".join(map(repr, row)) or "nothing"
        free = [name for name, value in row.items() if isinstance(value, str) and name not in ("id", *_LANGUAGE_NAMES)]
        texts = [name for name in free if not _english_name(name)]
        fix = f"give {_CHOICES}"
        if texts:
            named = ", ".join(
                f"{theirs}: {ours}" for theirs, ours in zip(texts, ("instruction", "output"), strict=False)
            )
            fix += f", or say which fields they are: {reading.option}: {{{named}}}"
        raise DataError(reading.where, "missing field", f"no question and answer, the row holds {found}", fix)
    if len(used) > 1:
        shown = [next(side.shown[name] for name in layout if name in side.shown) for layout in used]
        fix = f"keep one of {_CHOICES}, and leave the others out with {reading.option}: {{NAME: null}}"
        if {"prompt", "output"} <= set(side.values) and "instruction" not in side.values:
            prompt, answer = side.shown["prompt"], side.shown["output"]
            fix = (
                f"if '{prompt}' is a question, {reading.option}: {{{prompt}: instruction}}; if it is the whole prompt "
                f"as it is, {reading.option}: {{{answer}: completion}}"
            )
        raise DataError(
            reading.where, "mixed layouts", f"fields {' and '.join(map(repr, shown))} belong to different layouts", fix
        )
    return used[0]


# Values --------------------------------------------------------------------------------------------------------------


def _language(common: Mapping[str, Any], default: str | None, reading: _Reading) -> str:
    tags: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key in _LANGUAGE_NAMES:
        if key in common:
            try:
                tags[key] = read_language(common[key])
            except ValueError as error:
                problems[key] = str(error)
    if problems and not tags:
        key, advice = next(iter(problems.items()))
        raise DataError(reading.where, "wrong language", f"field '{key}' is {_show(common[key])}", advice)
    reading.notes.extend(f"a field '{key}' that was not read" for key in problems)
    if not tags:
        if default is None and reading.answered:
            fix = "add a code such as zh, vi, ar or en, or set data.language for all rows without one"
            raise DataError(reading.where, "missing field", "field 'language' is missing", fix)
        return default or UNDETERMINED
    key, tag = next(iter(tags.items()))
    for other, second in tags.items():
        if second.split("-")[0] != tag.split("-")[0]:
            problem = f"field '{key}' is {_show(common[key])}, but '{other}' is {_show(common[other])}"
            fix = f"leave one out with {reading.option}: {{{other}: null}}"
            raise DataError(reading.where, "wrong language", problem, fix)
    if common[key] != tag:
        reading.notes.append(f"language {common[key]!r}, read as {tag!r}")
    return tag


def _id(row: Mapping[str, Any], where: str, default_id: str | None) -> str:
    value = row.get("id")
    if value is None:
        number = re.search(r"\d+$", where)
        return default_id or (number[0] if number else where)
    if isinstance(value, float) and value.is_integer():  # pandas makes 1.0 of 1 where some rows have none
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _wrong_type(where, "field 'id'", value, "a string or a whole number")
    return _unicode(value, where, "id") if isinstance(value, str) else str(value)


def _english(side: _Side, target: Text, layout: tuple[str, ...], language: str, reading: _Reading) -> Text | None:
    """The English counterpart, whose answer may be missing."""
    if not side.values:
        return None
    if all(isinstance(value, str) and not value.strip() for value in side.values.values()):
        reading.notes.append("an empty English side, read as none")
        return None
    if foreign := [shown for name, shown in side.shown.items() if name not in (*layout, "system")]:
        problem = f"field '{foreign[0]}' is of another layout than the row itself"
        raise DataError(reading.where, "mixed layouts", problem, f"write the English side as {', '.join(layout)}")
    english = _text(side, layout, False, reading)
    if not is_english(language):
        if reading.answered and not english.answer.strip():
            reading.notes.append("an English side without an answer")
        return english
    shown = next(iter(side.shown.values())).partition(".")[0]
    if english.question != target.question:
        problem = f"field '{shown}' in a row whose language is {language!r}"
        raise DataError(
            reading.where, "English row with a counterpart", problem, f"remove '{shown}' or correct 'language'"
        )
    reading.notes.append(f"'{shown}' that repeats an English row, not read")
    return None


def _text(side: _Side, layout: tuple[str, ...], answered: bool, reading: _Reading) -> Text:
    """One side of the row. Of the English one the answer may be missing, of `messages` then the last turn."""
    shown = side.shown
    prefix = "english." if any(name.startswith("english.") for name in shown.values()) else ""
    optional = _OPTIONAL if answered or layout == ("messages",) else _OPTIONAL | {layout[-1]}
    for name in layout:
        if name not in side.values and name not in optional:
            reason = "missing English" if reading.answered and not answered else "missing field"
            names = ", ".join(map(repr, shown.values()))
            fix = f"add it, remove the row, or say which field it is with {reading.option} (the side has {names})"
            raise DataError(reading.where, reason, f"field '{prefix}{name}' is missing", fix)
    values = {name: _string(value, reading, shown[name]) for name, value in side.values.items() if name != "messages"}
    context = (Turn("system", values["system"]),) if values.get("system", "").strip() else ()
    if "messages" in layout:
        return _conversation(side.values["messages"], shown["messages"], context, answered, reading)
    question, answer = layout[0], layout[-1]
    _check_filled(values[question], reading.where, shown[question], "empty question")
    if answered:
        _check_filled(values[answer], reading.where, shown[answer], "empty answer")
    said = values.get(answer, "")
    if question == "prompt":
        return Text(answer=said, prompt=values[question], context=context)
    return Text(answer=said, instruction=values[question], input=values.get("input", ""), context=context)


def _conversation(messages: Any, name: str, context: tuple[Turn, ...], answered: bool, reading: _Reading) -> Text:
    """Turns into a Text: ..., question (user), answer (assistant)."""
    where = reading.where
    if not isinstance(messages, (list, tuple)):
        raise _wrong_type(where, f"field '{name}'", messages, "a list of {role, content}")
    turns = [
        _turn(message, f"{name}[{index}]", index == len(messages) - 1, reading)
        for index, message in enumerate(messages)
    ]
    if not answered and turns and turns[-1].role == "user":
        turns.append(Turn("assistant", ""))
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        fix = "end with a user turn and the assistant turn that answers it"
        raise DataError(where, "wrong turns", f"field '{name}' holds the roles {roles}", fix)
    *history, question, answer = turns
    _check_filled(question.content, where, f"{name}[{len(turns) - 2}].content", "empty question")
    if answered:
        _check_filled(answer.content, where, f"{name}[{len(turns) - 1}].content", "empty answer")
    if context and any(turn.role == "system" for turn in history):
        problem = f"there is a field 'system', and a system turn in '{name}'"
        raise DataError(where, "mixed layouts", problem, f"leave one out, e.g. with {reading.option}: {{system: null}}")
    if answered and any(turn.role == "assistant" for turn in history):
        reading.notes.append("earlier answers, read as context: only the last answer is learned")
    return Text(answer=answer.content, instruction=question.content, context=(*context, *history))


def _turn(message: Any, place: str, last: bool, reading: _Reading) -> Turn:
    """One message, {role, content} or {from, value}."""
    where = reading.where
    if not isinstance(message, Mapping):
        raise _wrong_type(where, f"field '{place}'", message, "an object with role and content")
    names = {"role": "from", "content": "value"}
    if "from" not in message:
        names = {"role": "role", "content": "content"}
    for key, value in message.items():
        if key in names.values() or value is None:
            continue
        if key in ("tool_calls", "function_call"):
            if not value:
                continue
            problem, fix = f"field '{place}.{key}' is a tool call, which is not read", "remove the row"
            raise DataError(where, "tool call", problem, f"{fix}; data.on_bad: skip leaves out all of them")
        if key == "weight" and (not last or value == 1):
            continue  # earlier turns are not learned anyway
        if key == "weight" and value == 0:
            problem = f"field '{place}.weight' is 0: the answer is not to be learned"
            raise DataError(where, "nothing to learn", problem, "remove the row, or end with a turn to learn")
        reading.leave_out(key, value, ("role", "content", "from", "value"), f"{place}.{key}")
    for key in names.values():
        if message.get(key) is None:
            raise DataError(where, "missing field", f"field '{place}.{key}' is missing", "add it")
    given = message[names["role"]]
    role = _ROLE_ALIASES.get(given.lower(), given.lower()) if isinstance(given, str) else given
    if role not in ROLES:
        fix = f"use one of {', '.join(ROLES)}; turns of tools are not read"
        raise DataError(where, "wrong role", f"field '{place}.{names['role']}' is {_show(given)}", fix)
    shown, content = f"{place}.{names['content']}", message[names["content"]]
    if isinstance(content, (list, tuple)):
        content = "".join(_part(part, f"{shown}[{index}]", where) for index, part in enumerate(content))
    return Turn(role, _string(content, reading, shown))


def _part(part: Any, name: str, where: str) -> str:
    """A part of a message's content, {type: text, text: ...}."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _wrong_type(where, f"field '{name}'", part, "text, as a string or as {type: text, text: ...}")


def _string(value: Any, reading: _Reading, name: str) -> str:
    """A text. A number is its JSON text; what else a value means cannot be told."""
    if isinstance(value, str):
        return _unicode(value, reading.where, name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        reading.notes.append(f"a number in '{_no_index(name)}', read as text")
        return json.dumps(value)
    advice = "a string"
    if isinstance(value, bool):
        advice = 'the text that is meant, such as "true" or "yes"'
    elif isinstance(value, float):
        advice = "a string; pandas writes NaN where a value is missing: leave such rows out or write null"
    elif isinstance(value, (list, tuple)):
        advice = "one string: the one answer to learn, or choices as lines of the question"
    elif isinstance(value, Mapping):
        inside = next(iter(value), "name")
        advice = f"one string; a field inside is named with {reading.option}: {{{name}.{inside}: ...}}"
    raise _wrong_type(reading.where, f"field '{name}'", value, advice)


def _unicode(value: str, where: str, name: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair (an emoji cut in two); no tokenizer accepts one.
        problem = f"field '{name}' has half a surrogate pair at character {error.start}: {_show(value)}"
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


def _no_index(name: str) -> str:
    """Of messages[3].name, messages.name: one note for all turns."""
    return re.sub(r"\[\d+\]", "", name)


def _wrong_type(where: str, name: str, value: Any, expected: str) -> DataError:
    return DataError(where, "wrong type", f"{name} is {_show(value)} ({type(value).__name__})", f"give {expected}")


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
