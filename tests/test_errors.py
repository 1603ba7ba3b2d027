"""The checks of single options: what passes, and that the message names option, value and fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pivotune.errors import PivotuneError, check_choice, check_flags, check_number, check_seed


def test_choices() -> None:
    check_choice("style", "chat", ("chat", "plain"))
    with pytest.raises(PivotuneError, match=r"^style: got 'Chat'; choose one of 'chat', 'plain'\.$"):
        check_choice("style", "Chat", ("chat", "plain"))


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (0, {"exclusive": True}),
        (-1, {}),
        (float("nan"), {}),
        (float("inf"), {}),
        (True, {}),
        ("1", {}),
        (None, {}),
        (1.5, {"whole": True}),
        (2, {"below": 2}),
    ],
)
def test_numbers_that_are_refused(value: Any, options: dict[str, Any]) -> None:
    with pytest.raises(PivotuneError, match=r"^n: got .*; give a (whole )?number >=? ?0"):
        check_number("n", value, 0, **options)


def test_numbers_that_pass() -> None:
    check_number("n", 0, 0)
    check_number("n", 1.5, 0, below=2)
    check_number("n", 10**400, 0, whole=True)  # too large for a float
    check_seed("seed", 2**32 - 1)
    for wrong in (2**32, -1, 0.0):
        with pytest.raises(PivotuneError, match=r"^seed: got"):
            check_seed("seed", wrong)


def test_flags() -> None:
    @dataclass
    class Options:
        on: Any

    check_flags("group", Options(True), ["on"])
    for wrong in (1, "true", None):
        with pytest.raises(PivotuneError, match=r"^group\.on: got .*; give true or false\.$"):
            check_flags("group", Options(wrong), ["on"])
