"""Target prompts with their English behind, against one row at a time."""

from __future__ import annotations

import pytest
import torch

from pivotune.data.continuation import continue_in_english, english_question
from pivotune.losses import IGNORE
from tests.batches import collate, examples_of, random_examples


@pytest.mark.parametrize("english", [(True, False, True), (True,), (False, False)])
@pytest.mark.parametrize("what", ["question", "answer"])
def test_one_row_at_a_time(english: tuple[bool, ...], what: str) -> None:
    examples = random_examples(3, english)
    batch = collate(examples, pad=9)
    english_PK = english_question(batch) if what == "question" else batch["english_answer_ids"]
    found = continue_in_english(batch, english_PK)
    seen = 0
    for pair, row in enumerate(batch["pair_row"].tolist()):
        if row < 0:  # the stand-in has no tokens to read
            assert not (found.pair == pair).any()
            continue
        prompt = batch["input_ids"][row][: batch["prompt_length"][row]].tolist()
        tokens = [token for token in english_PK[pair].tolist() if token != IGNORE]
        length = int(found.attention_mask[pair].sum())
        assert found.input_ids[pair][:length].tolist() == prompt + tokens
        assert found.attention_mask[pair].tolist() == [1] * length + [0] * (len(found.attention_mask[pair]) - length)
        here = found.pair == pair
        assert found.token[here].tolist() == tokens
        assert found.position[here].tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(tokens)))
        seen += len(tokens)
    assert len(found.token) == seen
    assert len(examples_of(batch)) == len(english)


def test_the_question_is_without_its_template() -> None:
    batch = collate(random_examples(5, (True, True)))
    for row, ids, start, end in zip(
        english_question(batch),
        batch["english_input_ids"],
        batch["english_question_start"],
        batch["english_question_end"],
        strict=True,
    ):
        assert [token for token in row.tolist() if token != IGNORE] == ids[start:end].tolist()


def test_a_batch_without_english_answers() -> None:
    batch = collate(random_examples(1, (True, True)))
    none = batch["english_answer_ids"].new_empty(2, 0)
    found = continue_in_english(batch, none)
    assert not len(found.token) and torch.equal(found.attention_mask.sum(dim=1), batch["prompt_length"])
