"""Batches of pairs, and what one pass over each side keeps of the model, against passes one text at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelExample, encode
from pivotune.errors import PivotuneError
from pivotune.lens.activations import PairActivations, PairStream, lens_logits, read, run_measure
from pivotune.taps import evaluating
from tests.batches import collate
from tests.data.tiny_tokenizers import tokenizer_of
from tests.families import FAMILIES, VOCAB, tiny
from tests.lens.readings import random_pairs, readings, sides
from tests.reference import passes

TOKENIZER = tokenizer_of("byte-level")
QUESTIONS = {"zh": "保持健康", "vi": "Ăn một chế độ", "ar": "صحة"}


def example(number: int, language: str = "zh", *, repeat: int = 1, english: str | None = "Give tips.") -> Any:
    row: dict[str, Any] = {"id": str(number), "language": language, "prompt": QUESTIONS[language] * repeat}
    row["completion"] = QUESTIONS[language][0] * 3
    if english is not None:
        row["english"] = {"prompt": english, "completion": "tips"}
    return ParallelExample.from_dict(row)


# Batches of pairs ----------------------------------------------------------------------------------------------------


def test_languages_are_never_mixed_and_nothing_is_lost() -> None:
    order = ["zh", "vi", "zh", "ar", "zh", "vi", "zh", "zh", "vi", "zh"]
    stream = PairStream(TOKENIZER, "plain", batch_size=3)
    made = list(stream.batches(example(n, language) for n, language in enumerate(order)))
    assert [(language, [int(one.id) for one in chosen]) for language, chosen, _ in made] == [
        ("zh", [0, 2, 4]),  # full batches as they fill
        ("vi", [1, 5, 8]),
        ("zh", [6, 7, 9]),
        ("ar", [3]),  # and the remainders
    ]
    assert all(one.language == language for language, chosen, _ in made for one in chosen)
    assert stream.report.rows == {"zh": 6, "vi": 3, "ar": 1} and stream.skipped == {}


def test_a_batch_holds_the_tokens_of_its_examples() -> None:
    chosen = [example(0), example(1, repeat=3), example(2, english="Give three tips for staying healthy.")]
    ((_, kept, batch),) = PairStream(TOKENIZER, "plain", batch_size=8).batches(chosen)
    assert kept == chosen and batch["pair_row"].tolist() == [0, 1, 2]
    for row, one in enumerate(chosen):
        target, english = encode(one.text, TOKENIZER, "plain"), encode(one.english, TOKENIZER, "plain")
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == (
            target.prompt_ids + target.answer_ids
        )
        assert int(batch["prompt_length"][row]) == len(target.prompt_ids)
        mask = batch["english_attention_mask"][row].bool()
        assert batch["english_input_ids"][row][mask].tolist() == english.prompt_ids
        for side, prefix in ((target, ""), (english, "english_")):
            span = (side.question_start, side.question_end)
            assert tuple(int(batch[f"{prefix}question_{end}"][row]) for end in ("start", "end")) == span


def test_unpaired_and_over_long_are_counted() -> None:
    length = len(encode(example(0, repeat=4).text, TOKENIZER, "plain").prompt_ids)
    given = [
        example(0),
        example(1, english=None),
        example(2, repeat=4),
        example(3, english="Give tips." * length),
        example(4),
    ]
    stream = PairStream(TOKENIZER, "plain", 8, max_length=length)
    ((_, chosen, _),) = stream.batches(given)
    assert [one.id for one in chosen] == ["0", "4"]
    assert stream.skipped == {"without English": 1, "over-long prompt": 2}
    stream = PairStream(TOKENIZER, "plain", 8, max_length=length + 1)  # room for one token of the answer
    ((_, chosen, batch),) = stream.batches(given[2:3])
    assert len(chosen) == 1 and batch["input_ids"].shape[1] == length + 1 and stream.report.truncated == 1


def test_wrong_options() -> None:
    with pytest.raises(PivotuneError, match="batch_size: got 0"):
        PairStream(TOKENIZER, batch_size=0)
    with pytest.raises(PivotuneError, match="max_length: got 1"):
        PairStream(TOKENIZER, max_length=1)


def test_examples_and_readings_are_held_no_longer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pivotune.data.tokenize._BATCH", 2)
    examples: list[weakref.ref] = []
    states: list[weakref.ref] = []

    class Kept:
        """No slots, so that it can be referred to weakly."""

        def __init__(self, number: int):
            one = example(number)
            for name in ("id", "language", "text", "english", "where"):
                setattr(self, name, getattr(one, name))

    class Watching:
        def add(self, reading: PairActivations) -> dict[str, torch.Tensor]:
            gc.collect()
            states.append(weakref.ref(reading.target.hidden[2]))
            assert sum(one() is not None for one in states) == 1
            assert sum(one() is not None for one in examples) <= 6
            return {"one": torch.ones(len(reading.examples), 1)}

        def finish(self) -> dict[str, torch.Tensor]:
            return {"one": torch.zeros(4, 1)}

        def summary(self) -> dict[str, Any]:
            return {}

    def given() -> Iterator[Any]:
        for number in range(20):
            one = Kept(number)
            examples.append(weakref.ref(one))
            yield one
            del one

    model = tiny("llama", vocab_size=len(TOKENIZER), pad_token_id=None)
    means = run_measure(Anatomy(model), Watching(), PairStream(TOKENIZER, "plain", 2), given())
    assert len(states) == 10 and means["one"].count == 24 and float(means["one"].mean) == pytest.approx(20 / 24)


# One pass over each side ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_prompt_alone(family: str) -> None:
    """Neither padding, nor the other rows, nor the answer behind the prompt change them."""
    model, pairs = tiny(family), random_pairs(4)
    (reading,) = readings(model, pairs, [4])
    for name, texts in sides(pairs).items():
        side = getattr(reading, name)
        assert sorted(side.hidden) == list(range(1, Anatomy(model).num_layers + 1)) and side.feed_forward is None
        for row, text in enumerate(texts):
            alone = passes.run(model, text.prompt)
            assert (int(side.start[row]), int(side.end[row])) == text.question
            assert int(side.last[row]) == len(text.prompt) - 1
            for layer, states in side.hidden.items():
                want = alone.hidden[layer].detach()
                np.testing.assert_allclose(states[row, : len(text.prompt)], want, rtol=1e-9, atol=1e-9)
                span = want[slice(*text.question)]
                np.testing.assert_allclose(side.pooled(layer, "mean")[row], span.mean(dim=0), rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(side.pooled(layer, "last_token")[row], span[-1], rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(side.at(layer, side.last)[row], want[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forward_outputs_are_those_at_the_last_prompt_token(family: str) -> None:
    model, pairs = tiny(family), random_pairs(3)
    anatomy = Anatomy(model)

    with evaluating(model):
        reading = read(anatomy, [], collate(pairs, extra=2), feed_forward=True)
    for name, texts in sides(pairs).items():
        found = getattr(reading, name).feed_forward
        assert found.shape == (3, anatomy.num_layers, anatomy.hidden_size)
        for row, text in enumerate(texts):
            want = torch.stack([output[-1] for output in passes.run(model, text.prompt).feed_forward[1:]])
            np.testing.assert_allclose(found[row], want.detach(), rtol=1e-9, atol=1e-9)


def test_the_answer_lies_behind_the_prompt() -> None:
    model, pairs = tiny("llama"), random_pairs(2)
    (reading,) = readings(model, pairs, [2])
    for row, pair in enumerate(pairs):
        both = pair.target.prompt + pair.target.answer
        want = passes.run(model, both).hidden
        for layer, states in reading.target.hidden.items():
            np.testing.assert_allclose(states[row, : len(both)], want[layer].detach(), rtol=1e-9, atol=1e-9)
    assert reading.english.input_ids.shape[1] == max(len(pair.english.prompt) for pair in pairs if pair.english)


def test_padding_changes_nothing() -> None:
    model, pairs = tiny("llama"), random_pairs(4)
    (plain,), (padded,) = readings(model, pairs, [4]), readings(model, pairs, [4], pad=5, extra=4)
    for name in ("target", "english"):
        ours, theirs = getattr(plain, name), getattr(padded, name)
        assert theirs.input_ids.shape[1] == ours.input_ids.shape[1] + 4
        inside = ours.attention_mask.bool()
        for layer, states in ours.hidden.items():
            width = states.shape[1]
            np.testing.assert_allclose(theirs.hidden[layer][:, :width][inside], states[inside], rtol=1e-9, atol=1e-9)


def test_some_tokens_of_some_rows() -> None:
    (reading,) = readings(tiny("llama"), random_pairs(3), [3])
    rows, positions = torch.tensor([2, 0, 2]), torch.tensor([1, 4, 0])
    found = reading.target.at(3, positions, rows)
    assert torch.equal(
        found, torch.stack([reading.target.hidden[3][r, p] for r, p in zip(rows, positions, strict=True)])
    )


def test_low_precision_is_pooled_in_float32() -> None:
    (reading,) = readings(tiny("llama", dtype=torch.bfloat16), random_pairs(3), [3])
    assert reading.target.hidden[2].dtype == torch.bfloat16
    assert reading.target.pooled(2, "mean").dtype == torch.float32


def test_nothing_is_left_on_the_model() -> None:
    model = tiny("llama")
    list(readings(model, random_pairs(2), [2]))
    assert not any(module._forward_hooks for module in model.modules())


# The lens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("logits_per_chunk", [1, VOCAB, 3 * VOCAB + 1, 2**25])
def test_the_lens_in_chunks(logits_per_chunk: int, final_norm: bool) -> None:
    model = tiny("gemma2")
    anatomy = Anatomy(model)
    states = torch.randn(10, anatomy.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        chunks = list(lens_logits(anatomy, states, final_norm=final_norm, logits_per_chunk=logits_per_chunk))
        want = [passes.frozen_logits(model, state, final_norm) for state in states]
    assert max(map(len, chunks)) == min(10, max(1, logits_per_chunk // VOCAB))
    np.testing.assert_allclose(torch.cat(chunks), torch.stack(want), rtol=1e-9, atol=1e-9)


def test_the_lens_is_read_in_float32_or_better() -> None:
    anatomy = Anatomy(tiny("llama", dtype=torch.bfloat16))
    (logits,) = lens_logits(anatomy, torch.randn(2, anatomy.hidden_size, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
