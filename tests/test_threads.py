"""How many threads: the fastest of a few, and never against the user's word."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pivotune import threads
from pivotune.threads import fastest, settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_fastest_is_taken_and_one_where_they_are_alike() -> None:
    for times, best in (
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 4.0, 2: 2.0, 4: 9.0}, 2),
        ({1: 4.0, 2: 3.9, 4: 3.95}, 1),
        ({1: 1.0, 2: 3.0}, 1),
    ):
        assert fastest(list(times), times.__getitem__) == best


def test_one_slow_round_changes_nothing() -> None:
    order: list[int] = []

    def seconds(count: int) -> float:
        order.append(count)
        return 100.0 if len(order) == 2 else {1: 4.0, 2: 2.0}[count]

    assert fastest([1, 2], seconds) == 2
    assert order == [1, 2] * threads.ROUNDS  # they take turns


def test_it_is_the_users_word_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_seconds", lambda count: 1.0 / count)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert settle() is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert settle() == 4 == torch.get_num_threads()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert settle() is None
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(threads, "cores", lambda: 1)
    assert settle() is None
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settle() is None


def test_the_trial_is_short() -> None:
    assert threads._seconds(1) > 0
    assert torch.get_num_threads() == 1
