"""What the lens measures of CC-Tuning, against the slow reference and against what generate() really lends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.connection import connect
from pivotune.errors import PivotuneError
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.objectives.cc_tuning.measure import ConnectionMeasure, _kappa
from tests.batches import examples_of
from tests.families import FAMILIES, tiny
from tests.objectives.measuring import Batch, fed, pairs, reading_of
from tests.reference import lens_calibration as reference


def connection_of(model: Any, matrix: bool = True, seed: int = 5, **options: Any) -> LinearConnection:
    """A random Decision Maker, and a Transform Matrix that is near enough to a copy for some picks to agree."""
    generator = torch.Generator().manual_seed(seed)
    anatomy, config = Anatomy(model), CCTuningConfig(**options)
    L, d = anatomy.num_layers, anatomy.hidden_size
    dtype = next(model.parameters()).dtype
    decision_maker = torch.randn(L, d, dtype=torch.float64, generator=generator)
    shape = (L, d, d) if config.matrix == "per_layer" else (d, d)
    noise = torch.randn(*shape, dtype=torch.float64, generator=generator) / d**0.5
    weight = 0.6 * torch.eye(d, dtype=torch.float64) + 0.4 * noise
    return LinearConnection(model, config, decision_maker.to(dtype), weight.to(dtype) if matrix else None)


def mapped(connection: LinearConnection, own: Sequence[Tensor]) -> list[Tensor]:
    assert connection.transform_matrix is not None
    return [reference.cc_tuning.transformed(v, connection.transform_matrix) for v in own]


OPTIONS: list[dict[str, Any]] = [{}, {"matrix": "per_layer"}, {"selection": "soft", "temperature": 0.7}]


def assert_connection_parity(model: Any, connection: LinearConnection, batch: Batch) -> None:
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
