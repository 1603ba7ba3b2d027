"""What objectives stand on: what they want of a pass, the English pass, and measuring without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.objectives.base import Connection, Objective, Pass, Wants, english_pass, unobtrusive
from tests.batches import examples_of, random_batch
from tests.families import FAMILIES, tiny
from tests.reference.passes import layers_of, run


def test_wants_add_up() -> None:
    assert not Wants() and Wants(feed_forward=True) and Wants(hidden=frozenset([2]))
    both = Wants(frozenset([1, 2])) | Wants(frozenset([2, 3]), feed_forward=True, gradient=True)
    assert both == Wants(frozenset([1, 2, 3]), feed_forward=True, gradient=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_english_pass_is_that_of_each_prompt_alone(family: str) -> None:
    model, batch = tiny(family), random_batch(0, [True] * 3)
    made = english_pass(Anatomy(model), batch, Wants(frozenset([1, 3]), feed_forward=True, gradient=True))
    assert made is not None and made.feed_forward is not None
    for row, example in enumerate(examples_of(batch)):
        assert example.english is not None
        alone = run(model, example.english.prompt)
        length = len(example.english.prompt)
        for layer in (1, 3):
            torch.testing.assert_close(made.hidden[layer][row, :length], alone.hidden[layer], rtol=1e-9, atol=1e-9)
        last = torch.stack([one[-1] for one in alone.feed_forward[1:]])
        torch.testing.assert_close(made.feed_forward[row], last, rtol=1e-9, atol=1e-9)


def test_it_runs_no_further_than_somebody_looks_and_only_then_with_gradient() -> None:
    model, batch, ran = tiny("llama"), random_batch(0, [True, True]), []
    for number, layer in enumerate(layers_of(model), start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert english_pass(Anatomy(model), batch, Wants()) is None and ran == []
    made = english_pass(Anatomy(model), batch, Wants(frozenset([2])))
    assert made is not None and ran == [1, 2] and not made.hidden[2].requires_grad
    made = english_pass(Anatomy(model), batch, Wants(frozenset([2]), gradient=True))
    assert made is not None and made.hidden[2].requires_grad


def test_measuring_leaves_the_random_state_and_the_gradients() -> None:
    layer = nn.Linear(2, 2)
    state = torch.get_rng_state()
    with unobtrusive(torch.device("cpu")):
        torch.rand(3)
        assert not layer(torch.ones(2)).requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    with unobtrusive(torch.device("cpu"), active=False):
        torch.rand(3)
        assert layer(torch.ones(2)).requires_grad
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_mode_that_a_connection_does_not_have() -> None:
    class Some(Connection):
        modes = ("matrix", "none")

        @contextmanager
        def generating(self, *given: Any) -> Iterator[None]:
            yield

        @contextmanager
        def at(self, *given: Any) -> Iterator[None]:
            yield

        def lend(self, *given: Any) -> Any:
            return []

    Some().check("none")
    with pytest.raises(PivotuneError, match="connection: got 'english'; this run can be connected by matrix, none"):
        Some().check("english")


def test_what_an_objective_leaves_out_does_nothing() -> None:
    """All of it is optional but the names."""

    class Idle(Objective):
        name, title, summary, Options = "idle", "Idle", "does nothing", dict

    model = tiny("llama")
    idle = Idle({}, model)
    assert idle.weights() == idle.scales() == idle.open_weights() == idle.terms({}, Pass(torch.empty(0)), None) == {}
    assert not idle.english_wants() and not idle.target_wants()
    assert idle.injection({}, None) is None and idle.strength(0.5) == 1.0
    assert Idle.modes([]) == ("none",) and Idle.connection(model, {}, {}) is None
    assert Idle.marked_layers({}) is None and Idle.measure(Anatomy(model), None, None) is None
