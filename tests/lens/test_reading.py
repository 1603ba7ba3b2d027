"""How well English is read from a layer: against one token at a time, and of some tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data.continuation import english_question
from pivotune.lens.reading import english_nats, has_tokens
from pivotune.taps import evaluating
from tests.batches import collate, examples_of, random_examples
from tests.families import FAMILIES, tiny
from tests.reference.passes import frozen_logits, run


def one_by_one(model: nn.Module, prompts: Sequence[list[int]], texts: Sequence[list[int]], layer: int) -> Tensor:
    """(P,): each text behind its prompt, token by token."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        states = run(model, prompt + text).hidden[layer]
        nats = [
            -torch.log_softmax(frozen_logits(model, states[len(prompt) + k - 1], True), dim=-1)[token]
            for k, token in enumerate(text)
        ]
        found.append(torch.stack(nats).mean())
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_token_at_a_time(family: str) -> None:
    model, batch = tiny(family), collate(random_examples(3, [True] * 3))
    anatomy, examples = Anatomy(model), examples_of(batch)
    sides = [one.english for one in examples if one.english is not None]
    for english_PK, texts in (
        (english_question(batch), [side.prompt[slice(*side.question)] for side in sides]),
        (batch["english_answer_ids"], [side.answer for side in sides]),
    ):
        with evaluating(model):
            found = english_nats(anatomy, batch, english_PK, [1, 3])
            expected = [one_by_one(model, [one.target.prompt for one in examples], texts, layer) for layer in (1, 3)]
            torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-9, atol=1e-9)
            for size in (1, 10**6):  # chunks of logits change nothing
                again = english_nats(anatomy, batch, english_PK, [1, 3], logits_per_chunk=size)
                torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-12)


def test_a_reader_of_ones_own_and_texts_without_tokens() -> None:
    model, batch = tiny("llama"), collate(random_examples(5, [True] * 3))
    anatomy, asked = Anatomy(model), []
    english_PK = batch["english_answer_ids"].clone()
    english_PK[1] = -100

    def uniform(layer: int, states_nd: Tensor) -> Tensor:
        asked.append(layer)
        return torch.zeros(len(states_nd), anatomy.vocab_size, dtype=states_nd.dtype)

    with evaluating(model):
        found = english_nats(anatomy, batch, english_PK, [2, 4], reader=uniform)
    assert has_tokens(english_PK).tolist() == [True, False, True] and found[1].isnan().all()
    guess = torch.tensor(float(anatomy.vocab_size)).double().log()
    torch.testing.assert_close(found[[0, 2]], guess.expand(2, 2), rtol=1e-6, atol=1e-6)
    assert sorted(set(asked)) == [2, 4]


def test_some_tokens_are_an_unbiased_sample() -> None:
    model, batch = tiny("llama"), collate(random_examples(6, [True] * 4))
    text = batch["english_answer_ids"]
    with evaluating(model):
        whole = english_nats(Anatomy(model), batch, text, [2])
        draws = [
            english_nats(Anatomy(model), batch, text, [2], tokens=2, draw=torch.Generator().manual_seed(seed))
            for seed in range(100)
        ]
    some = torch.stack(draws)
    error = some.std(dim=0) / 10
    assert ((some.mean(dim=0) - whole).abs() <= 4.5 * error + 1e-9).all()
    assert any(not torch.equal(one, draws[0]) for one in draws)
