"""Rows of token ids: long answers lose their end, over-long pairs go as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from pivotune.data import DataError, ParallelExample, Text, Turn, encode, tokenize_examples
from pivotune.data import tokenize as module
from pivotune.data.prompts import AS_TEXT, AS_TOKENS, ENDED, fix_template_kwargs
from pivotune.errors import PivotuneError
from tests.data.chat_shapes import tokenizer_of_shape
from tests.data.tiny_tokenizers import byte_level, tokenizer_of

TOKENIZER = tokenizer_of("byte-level")
COLUMNS = [
    "id",
    "language",
    "input_ids",
    "prompt_length",
    "question_start",
    "question_end",
    "english_prompt_ids",
    "english_question_start",
    "english_question_end",
    "english_answer_ids",
]


def pair(question: str, answer: str, english_question: str = "q", english_answer: str = "a") -> ParallelExample:
    return ParallelExample(
        "7",
        "zh",
        Text(answer, prompt=question),
        Text(english_answer, prompt=english_question),
        where="train.jsonl:3",
    )


def test_row_holds_both_encodings() -> None:
    example = ParallelExample("7", "zh", Text("好的", "翻译", "早上好"), Text("fine", "Translate", "good morning"))
    alone = ParallelExample("8", "en", Text("fine", "Translate"))
    dataset, report = tokenize_examples([example, alone], TOKENIZER, "alpaca", 200)
    assert dataset.column_names == COLUMNS
    assert report.rows == {"zh": 1, "en": 1} and report.pairs == {"zh": 1, "en": 0}
    target = encode(example.text, TOKENIZER, "alpaca")
    english = encode(Text("fine", "Translate", "good morning"), TOKENIZER, "alpaca")
    assert dataset[0] == {
        "id": "7",
        "language": "zh",
        "input_ids": target.prompt_ids + target.answer_ids,
        "prompt_length": len(target.prompt_ids),
        "question_start": target.question_start,
        "question_end": target.question_end,
        "english_prompt_ids": english.prompt_ids,
        "english_question_start": english.question_start,
        "english_question_end": english.question_end,
        "english_answer_ids": english.answer_ids,
    }
    assert [dataset[1][name] for name in COLUMNS[6:]] == [None] * 4


def test_long_answers_keep_their_start() -> None:
    dataset, report = tokenize_examples([pair("xyz", "1234567", "uv", "abcdefghij")], TOKENIZER, max_length=8)
    row = dataset[0]
    assert TOKENIZER.decode(row["input_ids"]) == "xyz12345"
    assert TOKENIZER.decode(row["english_prompt_ids"]) == "uv"
    assert TOKENIZER.decode(row["english_answer_ids"][:3]) == "abc"
    assert len(row["english_prompt_ids"]) + len(row["english_answer_ids"]) == 8
    assert TOKENIZER.eos_token_id not in row["input_ids"] + row["english_answer_ids"]
    assert (report.truncated, report.english_truncated) == (1, 1)
    assert "answers cut at the end: 1 target, 1 English" in str(report)


def test_an_answer_that_fits_is_whole() -> None:
    dataset, report = tokenize_examples([pair("xyz", "1234")], TOKENIZER, max_length=8)
    assert TOKENIZER.decode(dataset[0]["input_ids"]) == "xyz1234</s>"
    assert report.truncated == 0


@pytest.mark.parametrize("side", ["prompt", "English prompt"])
def test_over_long_prompt_takes_the_whole_pair(side: str) -> None:
    long, short = "x" * 8, "y"
    bad = pair(long, "a", short) if side == "prompt" else pair(short, "a", long)
    with pytest.raises(DataError) as caught:
        tokenize_examples([pair("x" * 7, "a"), bad], TOKENIZER, max_length=8)
    for word in ["train.jsonl:3", f"the {side} of id '7'", "8 tokens", "max_length 8", "raise max_length", "skip"]:
        assert word in str(caught.value)

    dataset, report = tokenize_examples([pair("x" * 7, "a"), bad, pair("z", "b")], TOKENIZER, "auto", 8, "skip")
    assert dataset["prompt_length"][:] == [7, 1]
    assert report.skipped == {"over-long prompt": 1} and report.pairs == {"zh": 2}
    assert report.places == {"over-long prompt": ["train.jsonl:3"]}


def test_nothing_left_and_wrong_options() -> None:
    with pytest.raises(PivotuneError, match="no example to train on: 0 kept, 1 skipped"):
        tokenize_examples([pair("x" * 9, "a")], TOKENIZER, max_length=8, overlong="skip")
    with pytest.raises(PivotuneError, match="overlong: got 'drop'; choose one of 'error', 'skip'"):
        tokenize_examples([pair("x", "a")], TOKENIZER, overlong="drop")
    with pytest.raises(PivotuneError, match="max_length: got 1"):
        tokenize_examples([pair("x", "a")], TOKENIZER, max_length=1)


def test_rendering_errors_name_the_place() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataError, match=r"^train\.jsonl:3: chat template: .*refuses the roles user: no"):
        tokenize_examples([pair("x", "a")], tokenizer, "chat")


CONVERSATIONS = [
    ([("user", "a"), ("assistant", "b")], "fine"),
    ([("system", "s"), ("user", "a"), ("assistant", "b")], "no system role"),
    ([("user", "a"), ("user", "a"), ("assistant", "b")], "roles must alternate"),
    ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "fine"),
]


def conversations() -> list[ParallelExample]:
    return [
        ParallelExample.from_dict(
            {"language": "en", "messages": [{"role": role, "content": content} for role, content in turns]},
            f"f:{number}",
        )
        for number, (turns, _) in enumerate(CONVERSATIONS)
    ]


def test_rows_that_the_template_refuses_can_be_skipped() -> None:
    tokenizer = tokenizer_of_shape("Gemma")
    with pytest.raises(DataError, match=r"^f:1: chat template: .*System role not supported.*on_bad: skip"):
        tokenize_examples(conversations(), tokenizer)
    dataset, report = tokenize_examples(conversations(), tokenizer, on_bad="skip")
    assert dataset["id"][:] == ["0", "3"]
    assert report.skipped == {"chat template": 2} and report.places["chat template"] == ["f:1", "f:2"]
    assert report.ends == {"<end_of_turn>": 2}
    assert "skipped, chat template: 2 (f:1, f:2)" in str(report)


def test_a_bad_english_side_takes_the_whole_pair() -> None:
    tokenizer = tokenizer_of_shape("Gemma")
    pairs = [
        ParallelExample(
            str(n), "zh", Text("答", "问"), Text("a", "q", context=(Turn("system", "s"),) * n), where=f"f:{n}"
        )
        for n in range(2)
    ]
    dataset, report = tokenize_examples(pairs, tokenizer, on_bad="skip")
    assert dataset["id"][:] == ["0"] and report.skipped == {"chat template": 1} and report.pairs == {"zh": 1}
    with pytest.raises(DataError, match=r"^f:1: turns without a place"):
        tokenize_examples(pairs, tokenizer, "alpaca")
    assert tokenize_examples(pairs, tokenizer, "alpaca", on_bad="skip")[1].skipped == {"turns without a place": 1}


def test_a_question_without_tokens_can_be_skipped() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200d", "")
    dataset, report = tokenize_examples([pair("x", "a"), pair("\u200d", "a")], tokenizer, on_bad="skip")
    assert len(dataset) == 1 and report.skipped == {"empty question": 1}
    with pytest.raises(PivotuneError, match="on_bad: got 'drop'"):
        tokenize_examples([pair("x", "a")], tokenizer, on_bad="drop")


def test_the_report_counts_what_was_found_in_the_texts() -> None:
    rows = [pair("x", "a"), pair("</s>x", "a"), pair("x", "a</s>"), pair("x", "a</s>b")]
    _, report = tokenize_examples(rows, TOKENIZER)
    assert report.notes == {AS_TOKENS: 2, ENDED: 1}
    assert f"rows with {AS_TOKENS}: 2 (train.jsonl:3, train.jsonl:3)" in str(report)
    assert report.ends == {"</s>": 8} and "answers end with </s> (8)" in str(report)
    asked = [replace(row, text=Text(row.text.answer, row.text.question)) for row in rows]
    assert tokenize_examples(asked, TOKENIZER)[1].notes == {AS_TEXT: 2, ENDED: 1}


def test_a_date_in_every_prompt_is_said() -> None:
    tokenizer = tokenizer_of_shape("Llama-3")
    _, report = tokenize_examples(conversations()[:1], tokenizer)
    assert "today's date" in str(report)
    assert "today's date" not in str(tokenize_examples([pair("x", "a")], tokenizer)[1]), "these rows are plain"
    fix_template_kwargs(tokenizer, {"date_string": "26 Jul 2024"})
    dataset, report = tokenize_examples(conversations()[:1], tokenizer)
    assert "today's date" not in str(report)
    assert "Today: 26 Jul 2024" in tokenizer.decode(dataset[0]["input_ids"])


@given(
    st.lists(st.tuples(st.text("你好ab", min_size=1, max_size=9), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(3, 40),
)
def test_pairs_never_cross(rows: list[tuple[str, bool]], batch: int, max_length: int) -> None:
    # Each English side repeats its own question, so a crossed or split pair shows.
    examples = [
        ParallelExample(str(n), "zh", Text("答", prompt=q), Text("a", prompt=q) if paired else None, where=f"f:{n}")
        for n, (q, paired) in enumerate(rows)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", batch)
        try:
            dataset, report = tokenize_examples(iter(examples), TOKENIZER, "plain", max_length, "skip")
        except PivotuneError:
            return  # every one was over-long
    assert len(dataset) + report.skipped.total() == len(examples)
    for row in dataset:
        assert len(row["input_ids"]) <= max_length
        english = row["english_prompt_ids"]
        question, paired = rows[int(row["id"])]
        assert (english is not None) == paired
        assert TOKENIZER.decode(row["input_ids"][: row["prompt_length"]]) == question
        assert english is None or TOKENIZER.decode(english) == question
