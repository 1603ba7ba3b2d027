"""The whole way from real translations to batches; skipped where the data set is not beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from tests.data.alpaca import alpaca_rows, write_jsonl
from tests.data.tiny_tokenizers import tokenizer_of


@pytest.mark.parametrize("language", ["zh", "vi"])
def test_alpaca(language: str, shared_data: Path, tmp_path: Path) -> None:
    path = write_jsonl(alpaca_rows(language, 300, shared_data / "instruct"), tmp_path / f"{language}.jsonl")
    examples, report = read_examples(path, on_bad="skip", require_english=True, languages=[language])
    # Both have one empty answer among their first 300 rows: the Chinese text, the English one beside the Vietnamese.
    assert report.kept + report.skipped.total() == 300
    assert (report.skipped, report.notes) == {
        "zh": ({"empty answer": 1}, {}),
        "vi": ({}, {"an English side without an answer": 1}),
    }[language]
    assert report.pair_share(language) == 1.0

    tokenizer = tokenizer_of("metaspace BPE with byte fallback and BOS")
    dataset, report = tokenize_examples(examples, tokenizer, max_length=1024, overlong="skip")
    assert report.kept + report.skipped.total() == len(examples)
    by_id = {example.id: example for example in examples}
    for row in dataset:
        example = by_id[row["id"]]
        question = tokenizer.decode(row["input_ids"][row["question_start"] : row["question_end"]])
        assert example.text.instruction in question or example.text.question.strip() in question
        assert example.english is not None
        english = row["english_prompt_ids"][row["english_question_start"] : row["english_question_end"]]
        assert example.english.instruction.strip() in tokenizer.decode(english)

    batch = ParallelCollator.for_tokenizer(tokenizer)(dataset.select(range(8)).to_list())
    assert batch["pair_row"].tolist() == list(range(8))
