"""Calibration against the slow reference, against the methods' own terms, and against what generate() really lends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.connection import Connection, connect
from pivotune.errors import PivotuneError
from pivotune.lens.calibration import ConnectionMeasure, SupervisionMeasure, _kappa
from pivotune.lens.reading import Reading, read
from pivotune.methods import CCTuningConfig, DeepSupervision, DeepSupervisionConfig
from pivotune.taps import evaluating
from tests.batches import Example, Text, collate, examples_of, random_examples, select
from tests.families import FAMILIES, VOCAB, tiny
from tests.reference import lens_calibration as reference
from tests.reference.hooks import footprint

TABLES = ("question_nats", "answer_nats", "question_cosine", "answer_cosine")
Batch = dict[str, Tensor]


def pairs(seed: int = 0, count: int = 5, unanswered: Sequence[int] = ()) -> Batch:
    """A batch of pairs; those named have no English answer."""
    examples = random_examples(seed, [True] * count)
    for row in unanswered:
        examples[row].english.answer.clear()
    return collate(examples)


def reading_of(model: Any, batch: Batch, feed_forward: bool = False) -> Reading:
    anatomy = Anatomy(model)
    with evaluating(anatomy.lm):
        return read(anatomy, [None] * len(batch["input_ids"]), batch, feed_forward=feed_forward)


def measured(model: Any, batch: Batch, division: Sequence[Sequence[int]] | None = None, **options: Any):
    """The tables and the summary, from one reading or from several."""
    measure = SupervisionMeasure(Anatomy(model), **options)
    return fed(measure, model, batch, division)


def fed(measure: Any, model: Any, batch: Batch, division: Sequence[Sequence[int]] | None = None):
    parts: dict[str, list[Tensor]] = {}
    for rows in division or [range(len(batch["input_ids"]))]:
        with evaluating(model):
            tables = measure.add(reading_of(model, select(batch, rows), feed_forward=True))
        for name, table in tables.items():
            parts.setdefault(name, []).append(table)
    assert measure.finish() == {}
    json.dumps(measure.summary(), allow_nan=False)
    return {name: torch.cat(tables) for name, tables in parts.items()}, measure.summary()


# Deep supervision ----------------------------------------------------------------------------------------------------


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
        terms = DeepSupervision(model, config)(batch)["terms"]
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


# CC-Tuning -----------------------------------------------------------------------------------------------------------


def connection_of(model: Any, matrix: bool = True, seed: int = 5, **options: Any) -> Connection:
    """A random Decision Maker, and a Transform Matrix that is near enough to a copy for some picks to agree."""
    generator = torch.Generator().manual_seed(seed)
    anatomy, config = Anatomy(model), CCTuningConfig(**options)
    L, d = anatomy.num_layers, anatomy.hidden_size
    dtype = next(model.parameters()).dtype
    decision_maker = torch.randn(L, d, dtype=torch.float64, generator=generator)
    shape = (L, d, d) if config.matrix == "per_layer" else (d, d)
    noise = torch.randn(*shape, dtype=torch.float64, generator=generator) / d**0.5
    weight = 0.6 * torch.eye(d, dtype=torch.float64) + 0.4 * noise
    return Connection(model, config, decision_maker.to(dtype), weight.to(dtype) if matrix else None)


def mapped(connection: Connection, own: Sequence[Tensor]) -> list[Tensor]:
    assert connection.transform_matrix is not None
    return [reference.cc_tuning.transformed(v, connection.transform_matrix) for v in own]


OPTIONS: list[dict[str, Any]] = [{}, {"matrix": "per_layer"}, {"selection": "soft", "temperature": 0.7}]


def assert_connection_parity(model: Any, connection: Connection, batch: Batch) -> None:
    got, summary = fed(ConnectionMeasure(connection), model, batch)
    own, english = zip(*reference.activations(model, batch), strict=True)
    instead = mapped(connection, own)
    config = connection.config
    picks = [
        reference.picks(
            model,
            connection.decision_maker.weight,
            batch,
            lent,
            selection=config.selection,
            temperature=config.temperature,
        )
        for lent in (english, instead)
    ]
    for name, want in zip(("picks_english", "picks_matrix"), picks, strict=True):
        assert got[name].dtype == torch.bool and got[name].sum(dim=1).tolist() == [1] * len(want)
        assert got[name].int().argmax(dim=1).tolist() == want, name
    assert got["agreement"].dtype == torch.bool
    assert got["agreement"].tolist() == [[a == b] for a, b in zip(*picks, strict=True)]

    chance, kappa = reference.kappa(*picks)
    assert summary["chance_agreement"] == pytest.approx(chance, rel=1e-12)
    assert summary["kappa"] == (None if kappa is None else pytest.approx(kappa, rel=1e-9, abs=1e-12))
    targets = torch.stack(english).numpy()
    for name, lent in (("r2", instead), ("r2_of_copy", own)):
        r2, per_layer = reference.r_squared(torch.stack(lent).numpy(), targets)
        assert summary[name] == pytest.approx(r2, rel=1e-9)
        np.testing.assert_allclose(summary[f"{name}_per_layer"], per_layer, rtol=1e-9)
    assert summary["pairs"] == len(targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_connection_equals_the_reference(family: str) -> None:
    model = tiny(family)
    assert_connection_parity(model, connection_of(model), pairs(1, 8))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_connection_options_equal_the_reference(options: dict[str, Any]) -> None:
    model = tiny("llama")
    assert_connection_parity(model, connection_of(model, **options), pairs(2, 12))


def test_the_cases_above_are_no_trivial_ones() -> None:
    """Picks vary, and the two agree on some pairs but not on all."""
    model = tiny("llama")
    got, summary = fed(ConnectionMeasure(connection_of(model)), model, pairs(2, 12))
    assert (got["picks_english"].any(dim=0)).sum() > 1 and (got["picks_matrix"].any(dim=0)).sum() > 1
    assert 0 < got["agreement"].sum() < 12
    assert 0 < summary["chance_agreement"] < 1 and -1 <= summary["kappa"] < 1


@pytest.mark.parametrize("mode", ["english", "matrix"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_picks_are_those_that_generate_lends(family: str, mode: str) -> None:
    model, batch = tiny(family), pairs(3, 6)
    connection = connection_of(model)
    tables, _ = fed(ConnectionMeasure(connection), model, batch)
    own, english = zip(*reference.activations(model, batch), strict=True)
    lent = torch.stack(english if mode == "english" else mapped(connection, own))

    handed: list[Tensor] = []
    pick = connection.pick
    connection.pick = lambda v, last: handed.append(pick(v, last)) or handed[-1]
    connect(model, connection)
    examples = examples_of(batch)
    inputs = left_padded([e.target.prompt for e in examples])
    if mode == "english":
        inputs |= {f"english_{k}": v for k, v in left_padded([e.english.prompt for e in examples]).items()}
    model.generate(**inputs, connection=mode, max_new_tokens=1, pad_token_id=0)
    torch.testing.assert_close(handed[0], lent[tables[f"picks_{mode}"]], rtol=1e-9, atol=1e-9)


def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }


def test_connection_does_not_depend_on_the_batches() -> None:
    model, batch = tiny("llama"), pairs(4, 9)
    connection = connection_of(model)
    want, summary = fed(ConnectionMeasure(connection), model, batch)
    for division in ([range(4), range(4, 9)], [[n] for n in range(9)], [range(8), [8]]):
        got, divided = fed(ConnectionMeasure(connection), model, batch, division)
        assert all(torch.equal(got[name], want[name]) for name in want)
        assert divided.keys() == summary.keys()
        for name, value in summary.items():
            assert divided[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_without_a_transform_matrix() -> None:
    model, batch = tiny("llama"), pairs(5)
    got, summary = fed(ConnectionMeasure(connection_of(model, matrix=False)), model, batch)
    want, whole = fed(ConnectionMeasure(connection_of(model)), model, batch)
    assert set(got) == {"picks_english"} and torch.equal(got["picks_english"], want["picks_english"])
    assert summary == {name: whole[name] for name in ("pairs", "r2_of_copy", "r2_of_copy_per_layer")}


def test_a_single_pair_and_none_at_all() -> None:
    model = tiny("llama")
    measure = ConnectionMeasure(connection_of(model))
    empty = measure.summary()
    assert empty.pop("pairs") == 0 and set(empty.values()) == {None}
    _, summary = fed(measure, model, pairs(6, 1))
    assert summary["pairs"] == 1 and summary["r2"] is None and summary["r2_per_layer"] is None


def test_connection_in_bfloat16() -> None:
    model, batch = tiny("llama", dtype=torch.bfloat16), pairs(7, 6)
    got, summary = fed(ConnectionMeasure(connection_of(model)), model, batch)
    assert got["picks_matrix"].sum(dim=1).tolist() == [1] * 6
    _, exact = fed(ConnectionMeasure(connection_of(tiny("llama"))), tiny("llama"), batch)
    assert summary["r2"] == pytest.approx(exact["r2"], abs=0.1)


def test_a_reading_without_feed_forward_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(PivotuneError, match="feed_forward=True"):
        ConnectionMeasure(connection_of(model)).add(reading_of(model, pairs()))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_kappa_equals_the_reference(rated: list[tuple[int, int]]) -> None:
    together = torch.zeros(4, 4, dtype=torch.long)
    for a, b in rated:
        together[a, b] += 1
    chance, kappa = _kappa(together)
    want_chance, want = reference.kappa(*zip(*rated, strict=True))
    assert chance == pytest.approx(want_chance, rel=1e-12)
    assert kappa == (None if want is None else pytest.approx(want, rel=1e-9, abs=1e-12))
