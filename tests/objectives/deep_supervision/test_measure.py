"""What the lens measures of deep supervision, against the slow reference and against the terms of training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure
from tests.batches import Example, Text, collate, examples_of
from tests.families import FAMILIES, VOCAB, tiny
from tests.objectives.measuring import Batch, fed, pairs, reading_of
from tests.reference import lens_calibration as reference
from tests.reference.hooks import footprint

TABLES = ("question_nats", "answer_nats", "question_cosine", "answer_cosine")


def measured(model: Any, batch: Batch, division: Sequence[Sequence[int]] | None = None, **options: Any):
    """The tables and the summary, from one reading or from several."""
    measure = SupervisionMeasure(Anatomy(model), **options)
    return fed(measure, model, batch, division)


@pytest.mark.parametrize("family", FAMILIES)
def test_supervision_equals_the_reference(family: str) -> None:
    model, batch = tiny(family), pairs(unanswered=[1])
    got, summary = measured(model, batch)
    want = reference.supervised_quantities(model, batch)
    assert set(got) == set(want) == set(TABLES)
    for name in TABLES:
        assert got[name].dtype == torch.float64
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert summary == {"pairs": 5, "skipped": 1}
    assert got["answer_nats"].shape == (4, Anatomy(model).num_layers)


@pytest.mark.parametrize("pooling,final_norm", list(product(("mean", "last_token"), (True, False))))
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt_neox"])
def test_token_weights_give_the_terms_of_deep_supervision(family: str, pooling: str, final_norm: bool) -> None:
    """An example's mean times its tokens is its sum; summed over examples, the method's term at layers i and j."""
    model, batch, (i, j) = tiny(family), pairs(3, unanswered=[2]), (2, 3)
    got, _ = measured(model, batch, pooling=pooling, final_norm=final_norm)
    english = [example.english for example in examples_of(batch)]
    question = torch.tensor([float(e.question[1] - e.question[0]) for e in english]).double()
    answer = torch.tensor([float(len(e.answer)) for e in english if e.answer]).double()
    assert len(set(question.tolist())) > 1 and len(set(answer.tolist())) > 1  # otherwise the weights would not matter
    sums = {
        ("logits", "language_conversion"): got["question_nats"][:, i - 1] @ question,
        ("logits", "english_thinking"): got["answer_nats"][:, j - 1] @ answer,
        ("feature", "language_conversion"): (1 - got["question_cosine"][:, i - 1]).sum(),
        ("feature", "english_thinking"): (1 - got["answer_cosine"][:, j - 1]).sum(),
    }
    for signal in ("logits", "feature"):
        config = DeepSupervisionConfig(signal, signal, i, j, pooling=pooling, final_norm=final_norm)
        terms = Method(model, [config])(batch)["terms"]
        for name in ("language_conversion", "english_thinking"):
            torch.testing.assert_close(sums[signal, name], terms[name].sum.detach(), rtol=1e-11, atol=0)
    assert int(terms["language_conversion"].count) == 5


def test_supervision_in_float32_and_bfloat16() -> None:
    batch = pairs(4)
    want, _ = measured(tiny("llama"), batch)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15)):
        got, _ = measured(tiny("llama", dtype=dtype), batch)
        for name in TABLES:
            assert got[name].dtype == torch.float64
            np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_supervision_does_not_depend_on_the_batches(family: str) -> None:
    model, batch = tiny(family), pairs(5, unanswered=[0, 3])
    want, summary = measured(model, batch)
    for division in ([[0, 1], [2, 3, 4]], [[0], [1], [2], [3], [4]], [[0, 3], [1, 2, 4]]):
        got, divided = measured(model, batch, division)
        assert divided == summary == {"pairs": 5, "skipped": 2}
        order = [row for rows in division for row in rows]
        answered = [row for row in order if row not in (0, 3)]
        for name in TABLES:
            rows = [[1, 2, 4].index(row) for row in answered] if name == "answer_nats" else order
            torch.testing.assert_close(got[name], want[name][rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [0, 1])
def test_no_english_answer_at_all(width: int) -> None:
    batch = pairs(6, unanswered=range(5))
    batch["english_answer_ids"] = batch["english_answer_ids"][:, :width]  # the collator makes (P, 0) of them
    measure = SupervisionMeasure(Anatomy(model := tiny("llama")))
    tables = measure.add(reading_of(model, batch))
    assert set(tables) == set(TABLES) - {"answer_nats"}
    assert all(table.shape == (5, 4) and table.isfinite().all() for table in tables.values())
    assert measure.summary() == {"pairs": 5, "skipped": 5}


def test_english_texts_longer_than_all_else() -> None:
    """Nothing is cut that should count."""
    long, short = list(range(10, 60)), [70, 71]
    batch = collate(
        [
            Example(Text([3, 4, *short], (2, 4), [80]), Text([5, *long], (1, 51), long[:30])),
            Example(Text([3, *long, 4], (1, 51), long[10:]), Text([5, *short, 6], (1, 3), [90])),
        ]
    )
    model = tiny("llama")
    got, _ = measured(model, batch)
    for name, want in reference.supervised_quantities(model, batch).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-9, err_msg=name)


def test_supervision_costs_one_pass_per_text_and_no_logits_beyond_a_chunk() -> None:
    model, batch = tiny("llama"), pairs(7)
    reading, passes, rows = reading_of(model, batch), [], []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    measure = SupervisionMeasure(Anatomy(model), logits_per_chunk=3 * VOCAB)
    frozen_lens = measure.anatomy.frozen_lens

    def lens(hidden: Tensor, **options: Any) -> Tensor:
        rows.append(len(hidden))
        return frozen_lens(hidden, **options)

    measure.anatomy.frozen_lens = lens
    got = measure.add(reading)
    assert len(passes) == 2
    assert max(rows) == 3
    want, _ = measured(model, batch)
    for name in TABLES:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("layers", [(1, 2), (2, 4), (3,)], ids=str)
def test_supervision_at_some_layers_is_that_of_all_and_runs_no_further(layers: Sequence[int]) -> None:
    model, batch = tiny("llama"), pairs(9, unanswered=[2])
    every, _ = measured(model, batch)
    passes = []
    reading, measure = reading_of(model, batch), SupervisionMeasure(Anatomy(model), layers=layers)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: passes.append(1))
    for name, got in measure.add(reading).items():
        torch.testing.assert_close(got, every[name][:, [layer - 1 for layer in layers]], rtol=1e-12, atol=0)
    assert len(passes) == 2 * max(layers)
    assert len(model.model.layers) == 4


def test_supervision_leaves_no_trace() -> None:
    model, batch = tiny("llama"), pairs(8)
    reading = reading_of(model, batch)
    hidden = {layer: states.clone() for layer, states in reading.target.hidden.items()}
    graphs = []
    model.model.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    before, random_state = footprint(model), torch.get_rng_state()
    tables = SupervisionMeasure(Anatomy(model)).add(reading)
    assert footprint(model) == before and torch.equal(torch.get_rng_state(), random_state)
    assert not any(graphs) and not any(table.requires_grad for table in tables.values())
    assert sorted(reading.target.hidden) == sorted(reading.english.hidden) == [1, 2, 3, 4]
    assert all(torch.equal(reading.target.hidden[layer], states) for layer, states in hidden.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(pooling="max"), ["pooling", "'max'", "last_token"]),
        (dict(final_norm="yes"), ["final_norm", "'yes'"]),
        (dict(layers=(1, 5)), ["layers", "5", "1..4"]),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PivotuneError) as caught:
        SupervisionMeasure(Anatomy(tiny("llama")), **options)
    assert all(word in str(caught.value) for word in words)
