"""Batches: padding on the right, English rows tied to their examples."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from pivotune.data import ParallelCollator, ParallelExample, Text, tokenize_examples
from pivotune.data.collate import last_token, padded, padded_ids, padding_id
from tests.data.tiny_tokenizers import byte_level

IDS = st.lists(st.integers(1, 50), min_size=2, max_size=9)
PAD = 99


@st.composite
def rows(draw: Any) -> list[dict[str, Any]]:
    batch = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(IDS)
        row: dict[str, Any] = {"input_ids": ids, "prompt_length": draw(st.integers(1, len(ids) - 1))}
        row |= {"question_start": 0, "question_end": row["prompt_length"]}
        prompt, answer = (draw(IDS), draw(IDS)) if draw(st.booleans()) else (None, None)
        row |= {"english_prompt_ids": prompt, "english_answer_ids": answer}
        row |= {
            "english_question_start": None if prompt is None else 1,
            "english_question_end": None if prompt is None else len(prompt),
        }
        batch.append(row)
    return batch


@given(rows())
def test_batch_gives_every_row_back(batch: list[dict[str, Any]]) -> None:
    out = ParallelCollator(PAD)(batch)
    assert all(tensor.dtype == torch.long for tensor in out.values())
    length = max(len(row["input_ids"]) for row in batch)
    assert out["input_ids"].shape == out["attention_mask"].shape == out["labels"].shape == (len(batch), length)
    for index, row in enumerate(batch):
        ids, prompt = row["input_ids"], row["prompt_length"]
        padding = length - len(ids)
        assert out["input_ids"][index].tolist() == ids + [PAD] * padding
        assert out["attention_mask"][index].tolist() == [1] * len(ids) + [0] * padding
        assert out["labels"][index].tolist() == [-100] * prompt + ids[prompt:] + [-100] * padding
        for name in ("prompt_length", "question_start", "question_end"):
            assert out[name][index] == row[name]

    pairs = [index for index, row in enumerate(batch) if row["english_prompt_ids"] is not None]
    assert out["pair_row"].tolist() == (pairs or [-1])
    assert out["english_input_ids"].shape == out["english_attention_mask"].shape
    for place, index in enumerate(pairs):
        row = batch[index]
        real = out["english_attention_mask"][place].bool()
        assert out["english_input_ids"][place][real].tolist() == row["english_prompt_ids"]
        assert out["english_input_ids"][place][~real].tolist() == [PAD] * int((~real).sum())
        assert real.tolist() == sorted(real.tolist(), reverse=True), "padding is on the right"
        answer = out["english_answer_ids"][place]
        assert answer[: len(row["english_answer_ids"])].tolist() == row["english_answer_ids"]
        assert (answer[len(row["english_answer_ids"]) :] == -100).all()
        for name in ("english_question_start", "english_question_end"):
            assert out[name][place] == row[name]


def test_exact_keys_and_dummy() -> None:
    row = {"input_ids": [5, 6, 7], "prompt_length": 2, "question_start": 0, "question_end": 1}
    row |= dict.fromkeys(("english_prompt_ids", "english_question_start", "english_question_end", "english_answer_ids"))
    out = ParallelCollator(PAD)([row, row])
    assert {name: tensor.tolist() for name, tensor in out.items()} == {
        "input_ids": [[5, 6, 7], [5, 6, 7]],
        "attention_mask": [[1, 1, 1], [1, 1, 1]],
        "labels": [[-100, -100, 7], [-100, -100, 7]],
        "prompt_length": [2, 2],
        "question_start": [0, 0],
        "question_end": [1, 1],
        "pair_row": [-1],
        "english_input_ids": [[5]],
        "english_attention_mask": [[1]],
        "english_question_start": [0],
        "english_question_end": [1],
        "english_answer_ids": [[-100]],
    }


def test_padding_token() -> None:
    tokenizer = byte_level()
    assert ParallelCollator.for_tokenizer(tokenizer) == ParallelCollator(tokenizer.eos_token_id)
    tokenizer.pad_token = "<s>"
    assert ParallelCollator.for_tokenizer(tokenizer) == ParallelCollator(tokenizer.bos_token_id)
    tokenizer.pad_token = tokenizer.eos_token = None
    assert ParallelCollator.for_tokenizer(tokenizer) == ParallelCollator(0), "the mask hides it, whatever it is"
    tokenizer.eos_token = "</s>"
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert padding_id(tokenizer) == len(tokenizer) - 1
    assert padding_id(tokenizer, len(tokenizer) - 1) == tokenizer.eos_token_id, "one that the table has a row for"


def test_padding_with_eos_hides_no_answer_token() -> None:
    tokenizer = byte_level()
    examples = [ParallelExample(str(n), "zh", Text("答" * n, prompt="问")) for n in (1, 3)]
    dataset, _ = tokenize_examples(examples, tokenizer)
    out = ParallelCollator.for_tokenizer(tokenizer)(list(dataset))
    assert (out["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]
    assert out["attention_mask"].sum(dim=1).tolist() == [len(ids) for ids in dataset["input_ids"]]


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_on_either_side_hides_nothing_and_the_last_token_is_found(rows: list[list[int]]) -> None:
    for side in ("left", "right"):
        ids, mask = padded_ids(rows, PAD, side)
        assert ids.shape == mask.shape == (len(rows), max(map(len, rows))) and ids.dtype == mask.dtype == torch.long
        assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
        assert (ids[mask == 0] == PAD).all() and torch.equal(ids, padded(rows, PAD, side))
        for row, kept in zip(rows, mask.tolist(), strict=True):
            missing = [0] * (len(kept) - len(row))
            assert kept == ([*missing, *[1] * len(row)] if side == "left" else [*[1] * len(row), *missing])
        assert ids.gather(1, last_token(mask)[:, None])[:, 0].tolist() == [row[-1] for row in rows]
