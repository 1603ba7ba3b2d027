"""Every layout is read, and every way to get a row wrong has its message."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune.data import DataError, ParallelExample, Text, Turn
from pivotune.data.examples import check_columns
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
    "field that changes what is asked": (
        changed(INSTRUCTION, history=[["你好", "你好！"]]),
        "unknown field",
        ["'history'", "changes what is asked", "'messages'", "data.columns: {history: null}"],
    ),
    "misspelt key of a turn": (
        changed(MESSAGES, messages=[{"rol": "user", "content": "x"}]),
        "unknown field",
        ["'messages[0].rol'", "did you mean 'messages[0].role'?"],
    ),
    "no layout": ({"id": 1, "language": "zh"}, "missing field", ["'id', 'language'", "instruction/input/output"]),
    "no layout but two texts": (
        {"language": "zh", "frage": "问", "antwort": "答", "n": 3},
        "missing field",
        ["'frage', 'antwort'", "data.columns: {frage: instruction, antwort: output}"],
    ),
    "two layouts": (changed(INSTRUCTION, prompt="x"), "mixed layouts", ["'instruction' and 'prompt'", "keep one"]),
    "a prompt and a response": (
        {"language": "vi", "prompt": "Xin", "response": "chào"},
        "mixed layouts",
        ["'response' and 'prompt'", "data.columns: {prompt: instruction}", "{response: completion}"],
    ),
    "two names of one field": (
        changed(INSTRUCTION, question="问"),
        "mixed layouts",
        ["'instruction' and 'question'", "two names", "data.columns: {question: null}"],
    ),
    "two English sides": (
        changed(INSTRUCTION, instruction_en="Hi"),
        "mixed layouts",
        ["'english.instruction' and 'instruction_en'"],
    ),
    "English in another layout": (
        changed(INSTRUCTION, english=PROMPT["english"]),
        "mixed layouts",
        ["'english.prompt'", "instruction, input, output"],
    ),
    "an input and no question": (
        {"language": "vi", "input": "Xin", "output": "chào"},
        "missing field",
        ["'instruction' is missing", "'input', 'output'", "data.columns"],
    ),
    "no language": (
        without(INSTRUCTION, "language"),
        "missing field",
        ["'language'", "zh, vi, ar or en", "data.language"],
    ),
    "language misspelt": (
        changed(INSTRUCTION, language="Chineese"),
        "wrong language",
        ["'Chineese'", "did you mean 'zh' (Chinese)?", "BCP-47"],
    ),
    "language by country": (changed(INSTRUCTION, language="cn"), "wrong language", ["did you mean 'zh' (Chinese)?"]),
    "Norwegian of YAML": (changed(INSTRUCTION, language=False), "wrong language", ["is False", '"no"', "YAML"]),
    "two languages": (
        changed(INSTRUCTION, language_code="vie"),
        "wrong language",
        ["'language_code' is 'vie', but 'language' is 'zh'", "data.columns: {language: null}"],
    ),
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
    "English answer without its question": (
        changed(INSTRUCTION, english={"output": "Hi"}),
        "missing English",
        ["'english.instruction' is missing", "add it"],
    ),
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
    "truth for a text": (changed(INSTRUCTION, output=True), "wrong type", ["'output' is True (bool)", '"yes"']),
    "several answers": (
        changed(INSTRUCTION, output=["a"]),
        "wrong type",
        ["'output' is ['a'] (list)", "the one answer"],
    ),
    "object for a text": (
        changed(INSTRUCTION, output={"text": "a"}),
        "wrong type",
        ["'output' is {'text': 'a'} (dict)", "data.columns: {output.text: ...}"],
    ),
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
    "an image": (
        changed(MESSAGES, messages=turns(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "x"))),
        "wrong type",
        ["'messages[0].content[0]'", "image_url", "{type: text, text: ...}"],
    ),
    "tool call": (
        changed(MESSAGES, messages=[{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
        "tool call",
        ["'messages[0].tool_calls'", "on_bad: skip"],
    ),
    "answer of weight 0": (
        changed(MESSAGES, messages=[*turns(("user", "x")), {"role": "assistant", "content": "y", "weight": 0}]),
        "nothing to learn",
        ["'messages[1].weight' is 0"],
    ),
    "two system prompts": (changed(MESSAGES, system="x"), "mixed layouts", ["'system'", "{system: null}"]),
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
        changed(MESSAGES, messages=turns(("user", "Hi"), ("assistant", " "))),
        "empty answer",
        ["'messages[1].content' is ' '"],
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
        ParallelExample.from_dict(changed(INSTRUCTION, outputt="x" * 5000), WHERE)
    assert len(str(caught.value)) < 500


# Shapes that published data have --------------------------------------------------------------------------------------

SIDES = {"language": "zh", "instruction": "问", "output": "答"}
ENGLISH = {"instruction": "Ask", "output": "Answer"}
SHAPES: dict[str, dict[str, Any]] = {
    "CC-Tuning": {**SIDES, "instruction_en": "Ask", "output_en": "Answer"},
    "English first": {**SIDES, "english_instruction": "Ask", "en_output": "Answer"},
    "flattened": {**SIDES, "english.instruction": "Ask", "english.output": "Answer"},
    "question and answer": {
        "lang": "zh",
        "question": "问",
        "answer": "答",
        "english": {"query": "Ask", "answer": "Answer"},
    },
    "query and response": {
        "language": "zh",
        "query": "问",
        "response": "答",
        "query_en": "Ask",
        "response-en": "Answer",
    },
    "Aya": {
        **{"language": "Simplified Chinese", "language_code": "zho", "inputs": "问", "targets": "答"},
        **{"inputs_eng": "Ask", "targets_eng": "Answer", "annotation_type": "original", "user_id": "u"},
    },
    "exported by pandas": {**SIDES, "Unnamed: 0": 3, "__index_level_0__": 3, "input": None, "english": ENGLISH},
    "metadata": {**SIDES, "source": "web", "score": 0.5, "idx": 1, "prompt_id": "p", "history": [], "english": ENGLISH},
}


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(name: str) -> None:
    example = ParallelExample.from_dict(SHAPES[name], WHERE)
    assert (example.language, example.text) == ("zh", Text(instruction="问", answer="答"))
    assert example.english == Text(instruction="Ask", answer="Answer")


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": conversation("问", "答"), "conversations_en": conversation("Ask", "Answer")},
        {
            "conversation": turns(("user", "问"), ("assistant", "答")),
            "english": {"conversations": conversation("Ask", "Answer")},
        },
        {
            "messages": turns(("Human", [{"type": "text", "text": "问"}]), ("model", ["答"])),
            "english": {"messages": turns(("user", "Ask"), ("assistant", "Answer"))},
        },
        {
            "messages": [
                {"role": "user", "content": "问", "name": "Li", "weight": 0},
                {"role": "assistant", "content": "答", "weight": 1, "tool_calls": None, "function_call": []},
            ],
            "messages_en": conversation("Ask", "Answer"),
        },
    ],
)
def test_conversations(row: dict[str, Any]) -> None:
    example = ParallelExample.from_dict({"language": "zh", **row}, WHERE)
    assert example.text == Text(instruction="问", answer="答")
    assert example.english == Text(instruction="Ask", answer="Answer")


@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_prompt_is_the_first_turn(field: str) -> None:
    for row in (SIDES, {"language": "zh", "conversations": conversation("问", "答")}):
        example = ParallelExample.from_dict({**row, field: "简短。"}, WHERE)
        assert example.text == Text(instruction="问", answer="答", context=(Turn("system", "简短。"),))
        assert ParallelExample.from_dict({**row, field: ""}, WHERE).text.context == ()


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        (
            {**SIDES, "Unnamed: 0": 1, "score": 2},
            ["a field 'Unnamed: 0' that was not read", "a field 'score' that was not read"],
        ),
        ({**SIDES, "Unnamed: 0": None}, []),
        ({**SIDES, "output": 42}, ["a number in 'output', read as text"]),
        (
            {**SIDES, "language_code": "zho", "lang": "Zhongwen"},
            ["a field 'lang' that was not read", "language 'zho', read as 'zh'"],
        ),
        ({**SIDES, "language": "zho_Hans"}, ["language 'zho_Hans', read as 'zh'"]),
        ({**SIDES, "instruction_en": "Ask"}, ["an English side without an answer"]),
        ({**SIDES, "instruction_en": "", "output_en": " "}, ["an empty English side, read as none"]),
        (
            {"language": "zh", "messages": turns(*[("user", "问"), ("assistant", "答")] * 2)},
            ["earlier answers, read as context: only the last answer is learned"],
        ),
        (
            {
                "language": "zh",
                "messages": [{"role": "user", "content": "问", "name": "x"}, *turns(("assistant", "答"))],
            },
            ["a field 'messages.name' that was not read"],
        ),
        (
            {"language": "en", "question": "a", "answer": "b", "question_en": "a"},
            ["'question_en' that repeats an English row, not read"],
        ),
    ],
)
def test_what_is_not_read_is_said(row: dict[str, Any], notes: list[str]) -> None:
    said: list[str] = []
    ParallelExample.from_dict(row, WHERE, notes=said)
    assert said == notes


@pytest.mark.parametrize(("value", "text"), [(42, "42"), (-0.5, "-0.5"), (0, "0"), (10**20, str(10**20))])
def test_a_number_is_its_text(value: float, text: str) -> None:
    row = {**SIDES, "output": value, "instruction_en": value}
    example = ParallelExample.from_dict(row, WHERE)
    assert example.text.answer == text and example.english is not None and example.english.question == text


def test_columns_by_the_names_of_the_file() -> None:
    row = {"frage": "问", "t": {"antwort": "答", "rest": 1}, "auf_englisch": "Ask", "ouput": "x", "lingua": "cmn"}
    columns = {"frage": "instruction", "t.antwort": "output", "auf_englisch": "english.instruction", "ouput": None}
    example = ParallelExample.from_dict(row, WHERE, columns=columns | {"lingua": "language"})
    assert (example.text, example.language) == (Text(instruction="问", answer="答"), "zh")
    assert example.english == Text(instruction="Ask")
    with pytest.raises(DataError, match="'frage' is to be 'instruction', which the row has too"):
        ParallelExample.from_dict({**row, "instruction": "x"}, WHERE, columns=columns)
    swapped = ParallelExample.from_dict(SIDES, WHERE, columns={"instruction": "output", "output": "instruction"})
    assert swapped.text == Text(instruction="答", answer="问")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"instruction": "frage"}, ["data.columns", "{instruction: frage}", "left side is the name in the file"]),
        ({"frage": "instructoin"}, ["did you mean 'instruction'?"]),
        ({"a": "english.ouput"}, ["did you mean 'english.output'?"]),
        ({"a": "zzz"}, ["choose among instruction", "null"]),
    ],
)
def test_wrong_columns(columns: dict[str, str], words: list[str]) -> None:
    with pytest.raises(PivotuneError) as caught:
        check_columns("data.columns", columns)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_language_for_rows_without_one() -> None:
    row = without(SIDES, "language")
    assert ParallelExample.from_dict(row, WHERE, language="zh").language == "zh"
    assert ParallelExample.from_dict({**row, "language": None}, WHERE, language="zh").language == "zh"
    assert ParallelExample.from_dict({**row, "lang": "ja"}, WHERE, language="zh").language == "ja"


@given(st.sampled_from(sorted(SHAPES)), st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text()))
def test_no_row_is_read_in_silence(name: str, more: dict[str, Any]) -> None:
    """Whatever else a row holds: it is the same example and says what it left out, or a DataError."""
    row = {**SHAPES[name], **{key: value for key, value in more.items() if key not in SHAPES[name]}}
    notes: list[str] = []
    try:
        example = ParallelExample.from_dict(row, WHERE, notes=notes)
    except DataError:
        return
    added = [key for key in more if key not in SHAPES[name] and more[key] is not None and key != "id"]
    assert example.text.question.startswith("问")
    for key in added:
        assert f"a field '{key}' that was not read" in notes or key in ("input", "context", "system", "lang")
