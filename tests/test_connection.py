"""Connections of any kind: turned on and off, and several as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pivotune.connection import Together, connect, disconnect, is_connected
from pivotune.errors import PivotuneError
from pivotune.objectives import Connection
from tests.families import tiny

IDS = torch.tensor([[5, 9, 3], [4, 8, 7]])


class Noted(Connection):
    """Writes down when it is entered and left."""

    def __init__(self, name: str, modes: tuple[str, ...], notes: list[str]):
        self.name, self.modes, self.notes = name, modes, notes

    @contextmanager
    def generating(self, mode: str, connected: Tensor | None, english: Mapping[str, Tensor]) -> Iterator[None]:
        self.notes.append(f"{self.name}: {mode}, {sorted(english)}")
        yield
        self.notes.append(f"{self.name}: left")

    def lend(self, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        return [f"{self.name}{row}" for row in range(len(input_ids))]

    @contextmanager
    def at(self, lent: Sequence[Any], last_B: Tensor) -> Iterator[None]:
        self.notes.append(f"{self.name}: {list(lent)}")
        yield


def generate(model: Any, **options: Any) -> Tensor:
    return model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0, **options)


def test_a_mode_for_each_call() -> None:
    notes: list[str] = []
    model = tiny("llama").eval()
    expected = generate(model)
    assert not is_connected(model)
    connect(model, Noted("a", ("on", "soft", "none"), notes))
    assert is_connected(model)
    assert torch.equal(generate(model), expected)
    generate(model, connection="soft", english_input_ids=IDS)
    assert notes == ["a: on, []", "a: left", "a: soft, ['input_ids']", "a: left"]
    notes.clear()
    generate(model, connection="none")
    assert notes == []
    with pytest.raises(PivotuneError, match=r"connection: got 'hard'; this run can be connected by on, soft, none"):
        generate(model, connection="hard")
    with pytest.raises(PivotuneError, match="connection: got 'hard'"):
        connect(model, Noted("b", ("none",), notes), "hard")
    connect(model, Noted("b", ("on", "none"), notes), "none")  # takes the other's place
    generate(model)
    assert notes == []
    disconnect(model)
    disconnect(model)
    assert not is_connected(model)
    with pytest.raises(ValueError, match="connection"):
        generate(model, connection="on")


def test_several_are_one() -> None:
    notes: list[str] = []
    both = Together([Noted("a", ("on", "none"), notes), Noted("b", ("none", "soft"), notes)])
    assert both.modes == ("on", "none", "soft")
    model = tiny("llama").eval()
    connect(model, both)
    generate(model)  # b has no mode of this name, and none is its own default
    assert notes == ["a: on, []", "a: left"]
    notes.clear()
    generate(model, connection="soft")
    assert notes == ["a: on, []", "b: soft, []", "b: left", "a: left"]
    notes.clear()
    generate(model, connection="none")
    assert notes == []
    lent = both.lend(IDS, torch.ones_like(IDS))
    assert lent == [("a0", "b0"), ("a1", "b1")]
    with both.at(lent[::-1], torch.tensor([2, 2])):
        assert notes == ["a: ['a1', 'a0']", "b: ['b1', 'b0']"]
