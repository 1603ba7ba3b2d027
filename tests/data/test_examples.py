"""Every layout is read, and every way to get a row wrong has its message."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pivotune.data import DataError, ParallelExample, Text, Turn
from pivotune.errors import PivotuneError

INSTRUCTION: dict[str, Any] = {
    "id": "a1",
    "language": "zh",
    "instruction": "翻译",
    "input": "早上好",
    "output": "好的",
    "english": {"instruction": "Translate", "input": "good morning", "output": "fine"},
}
PROMPT: dict[str, Any] = {
    "id": 7,
    "language": "vi",
    "prompt": "Xin chào ",
    "completion": "các bạn",
    "english": {"prompt": "Hello ", "completion": "everybody"},
}
MESSAGES: dict[str, Any] = {
    "language": "ar",
    "messages": [
        {"role": "system", "content": "كن مفيدا"},
        {"role": "user", "content": "مرحبا"},
        {"role": "assistant", "content": "أهلا"},
    ],
    "english": {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
}
WHERE = "train.jsonl:17"


def changed(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with fields set; "english__output" is the field inside `english`."""
    row = copy.deepcopy(row)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = row
        for parent in parents:
            place = place[parent]
        place[name] = value
    return row


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def test_instruction_layout() -> None:
    example = ParallelExample.from_dict(INSTRUCTION, WHERE)
    assert (example.id, example.language, example.where) == ("a1", "zh", WHERE)
    assert example.text == Text(answer="好的", instruction="翻译", input="早上好")
    assert example.english == Text(answer="fine", instruction="Translate", input="good morning")
    assert example.text.question == "翻译\n早上好"


def test_prompt_layout_keeps_white_space() -> None:
    example = ParallelExample.from_dict(PROMPT, WHERE)
    assert example.id == "7"
    assert example.text == Text(answer="các bạn", prompt="Xin chào ")
    assert example.text.question == "Xin chào "
    assert example.english == Text(answer="everybody", prompt="Hello ")


def test_messages_layout() -> None:
    example = ParallelExample.from_dict(MESSAGES, WHERE)
    assert example.id == "17", "the line number is the id of a row without one"
    assert example.text == Text(answer="أهلا", instruction="مرحبا", context=(Turn("system", "كن مفيدا"),))
    assert example.english == Text(answer="Hi", instruction="Hello")


@pytest.mark.parametrize("english", [None, {"instruction": None, "input": None, "output": None}])
def test_null_is_absent(english: Any) -> None:
    row = changed(INSTRUCTION, english=english, id=None, input=None, prompt=None, messages=None)
    example = ParallelExample.from_dict(row, WHERE)
    assert example.english is None
    assert example.id == "17"
    assert example.text.input == ""


def test_language_is_normalised() -> None:
    row = changed(PROMPT, language="PT-BR")
    assert ParallelExample.from_dict(row, WHERE).language == "pt-BR"


def test_english_row_needs_no_counterpart() -> None:
    row = {"language": "en", "instruction": "Hi", "output": "Hello"}
    assert ParallelExample.from_dict(row, WHERE).english is None


def test_latin_script_tag_is_not_judged() -> None:
    row = {"language": "zh-Latn", "instruction": "Ni hao", "output": "Hao"}
    assert ParallelExample.from_dict(row, WHERE).language == "zh-Latn"


def test_a_number_for_an_answer_is_no_wrong_language() -> None:
    row = {"language": "zh", "instruction": "2 + 2 = ?", "output": "4"}
    assert ParallelExample.from_dict(row, WHERE).text.answer == "4"


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


BAD: dict[str, tuple[Any, str, list[str]]] = {
    # case: (row, reason, words that the message must hold)
    "no object": ([1, 2], "wrong type", ["the row", "[1, 2]", "list", "an object"]),
    "misspelt field": (
        without(changed(INSTRUCTION, langauge="zh"), "language"),
        "unknown field",
        ["'langauge'", "'zh'", "did you mean 'language'?"],
    ),
    "misspelt English field": (
        changed(INSTRUCTION, english={"instruction": "Hi", "ouput": "fine"}),
        "unknown field",
        ["'english.ouput'", "'fine'", "did you mean 'english.output'?"],
    ),
    "field of no layout": (changed(INSTRUCTION, zzz=3), "unknown field", ["'zzz'", "3", "remove it", "'instruction'"]),
    "misspelt key of a turn": (
        changed(MESSAGES, messages=[{"rol": "user", "content": "x"}]),
        "unknown field",
        ["'messages[0].rol'", "did you mean 'messages[0].role'?"],
    ),
    "no layout": ({"id": 1, "language": "zh"}, "missing field", ["'id', 'language'", "instruction/input/output"]),
    "two layouts": (changed(INSTRUCTION, prompt="x"), "mixed layouts", ["'instruction' and 'prompt'", "keep one"]),
    "English in another layout": (
        changed(INSTRUCTION, english=PROMPT["english"]),
        "unknown field",
        ["'english.prompt'", "'english.instruction'"],
    ),
    "no language": (without(INSTRUCTION, "language"), "missing field", ["'language'", "zh, vi, ar or en"]),
    "language by name": (changed(INSTRUCTION, language="Chinese"), "wrong language", ["'Chinese'", "BCP-47"]),
    "language with underscore": (changed(INSTRUCTION, language="zh_CN"), "wrong language", ["'zh_CN'", "BCP-47"]),
    "language no string": (changed(INSTRUCTION, language=3), "wrong language", ["'language' is 3", "BCP-47"]),
    "text in another language": (
        changed(INSTRUCTION, instruction="Translate", input="", output="fine"),
        "wrong language",
        ["the text", "'zh'", "no Chinese letter", "'Translate\\nfine'", "swap"],
    ),
    "sides swapped": (
        changed(INSTRUCTION, english={"instruction": "翻译", "output": "好的"}),
        "wrong language",
        ["field 'english'", "'en'", "no Latin letter", "swap"],
    ),
    "missing question": (without(INSTRUCTION, "instruction"), "missing field", ["'instruction' is missing", "add it"]),
    "missing answer": (without(PROMPT, "completion"), "missing field", ["'completion' is missing"]),
    "null answer": (changed(INSTRUCTION, output=None), "missing field", ["'output' is missing"]),
    "empty question": (changed(INSTRUCTION, instruction=" "), "empty question", ["'instruction' is ' '", "fill it"]),
    "empty answer": (changed(INSTRUCTION, output=""), "empty answer", ["'output' is ''", "fill it, or remove"]),
    "blank answer": (changed(PROMPT, completion="\n"), "empty answer", ["'completion' is '\\n'"]),
    "half an English side": (
        changed(INSTRUCTION, english={"instruction": "Hi"}),
        "missing English",
        ["'english.output' is missing", "add it"],
    ),
    "empty English answer": (changed(INSTRUCTION, english__output=""), "empty answer", ["'english.output' is ''"]),
    "English no object": (changed(INSTRUCTION, english="fine"), "wrong type", ["'english' is 'fine' (str)", "object"]),
    "English of an English row": (
        changed(INSTRUCTION, language="en-GB"),
        "English row with a counterpart",
        ["'english'", "'en-GB'", "remove 'english'"],
    ),
    "NaN": (changed(INSTRUCTION, output=float("nan")), "wrong type", ["'output' is nan (float)", "a string"]),
    "NaN in English": (
        changed(INSTRUCTION, english__instruction=float("nan")),
        "wrong type",
        ["'english.instruction' is nan (float)"],
    ),
    "number for a text": (changed(INSTRUCTION, output=5), "wrong type", ["'output' is 5 (int)", "give a string"]),
    "list for an id": (changed(INSTRUCTION, id=[1]), "wrong type", ["'id' is [1] (list)", "whole number"]),
    "NaN for an id": (changed(INSTRUCTION, id=float("nan")), "wrong type", ["'id' is nan (float)"]),
    "bool for an id": (changed(INSTRUCTION, id=True), "wrong type", ["'id' is True (bool)"]),
    "half a surrogate pair": (
        changed(INSTRUCTION, output="好\ud83d"),
        "invalid Unicode",
        ["'output'", "at character 1", "'好\\ud83d'", "UTF-8"],
    ),
    "messages no list": (changed(MESSAGES, messages="hi"), "wrong type", ["'messages' is 'hi'", "a list of"]),
    "turn no object": (changed(MESSAGES, messages=["hi"]), "wrong type", ["'messages[0]' is 'hi'"]),
    "turn without content": (
        changed(MESSAGES, messages=[{"role": "user", "content": None}]),
        "missing field",
        ["'messages[0].content' is missing"],
    ),
    "content in parts": (
        changed(MESSAGES, messages=turns(("user", [{"type": "text"}]), ("assistant", "x"))),
        "wrong type",
        ["'messages[0].content'", "(list)", "a string"],
    ),
    "unknown role": (
        changed(MESSAGES, messages=turns(("tool", "x"), ("assistant", "y"))),
        "wrong role",
        ["'messages[0].role' is 'tool'", "system, user, assistant"],
    ),
    "no answering turn": (
        changed(MESSAGES, messages=turns(("assistant", "x"), ("user", "y"))),
        "wrong turns",
        ["'messages'", "assistant, user", "end with a user turn"],
    ),
    "no turn": (changed(MESSAGES, messages=[]), "wrong turns", ["holds the roles nothing"]),
    "empty answering turn": (
        changed(MESSAGES, english__messages=turns(("user", "Hi"), ("assistant", " "))),
        "empty answer",
        ["'english.messages[1].content' is ' '"],
    ),
    "empty asking turn": (
        changed(MESSAGES, messages=turns(("system", "s"), ("user", ""), ("assistant", "y"))),
        "empty question",
        ["'messages[1].content' is ''"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_row(case: str) -> None:
    row, reason, words = BAD[case]
    with pytest.raises(DataError) as caught:
        ParallelExample.from_dict(row, WHERE)
    message = str(caught.value)
    assert caught.value.reason == reason
    assert isinstance(caught.value, PivotuneError)
    assert message.startswith(f"{WHERE}: {reason}: ")
    assert "Fix: " in message
    for word in words:
        assert word in message


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(DataError) as caught:
        ParallelExample.from_dict(changed(INSTRUCTION, zzz="x" * 5000), WHERE)
    assert len(str(caught.value)) < 500
