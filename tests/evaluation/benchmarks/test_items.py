"""One item."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from pivotune.evaluation.benchmarks import Item


def test_items_are_frozen_and_checked() -> None:
    item = Item(id="1", benchmark="b", language="vi", question="q", options=("a", "b"), gold=1)
    with pytest.raises(FrozenInstanceError):
        item.gold = 0  # type: ignore[misc]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gold": 2}, "gold 2 is outside the 2 options"),
        ({"gold": None}, "options and gold, or neither"),
        ({"labels": ("A",)}, "1 labels for 2 options"),
        ({"question": ""}, "nothing is asked"),
        ({"english": item}, "is not its English"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            replace(item, **changes)
