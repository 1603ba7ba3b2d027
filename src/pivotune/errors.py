"""The one exception that user-facing checks raise, and the checks of single options that everything shares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class PivotuneError(ValueError):
    """A problem the user can fix. The message names the option or the file and line, the value, and the fix."""


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Raise a PivotuneError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise PivotuneError(f"{option}: got {value!r}; choose one of {', '.join(map(repr, choices))}.")


def check_number(
    option: str,
    value: Any,
    minimum: float,
    *,
    exclusive: bool = False,
    below: float = math.inf,
    whole: bool = False,
    why: str = "",
) -> None:
    """Raise a PivotuneError unless `value` is a finite number >= `minimum` (> with `exclusive`) and < `below`, `whole`
    or not."""
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    fits = fits and (isinstance(value, Integral) or math.isfinite(value))
    if not fits or value < minimum or (exclusive and value == minimum) or value >= below:
        kind = "whole number" if whole else "number"
        end = "" if below == math.inf else f" and < {below}"
        raise PivotuneError(f"{option}: got {value!r}; give a {kind} {'>' if exclusive else '>='} {minimum}{end}{why}.")


def check_seed(option: str, value: Any) -> None:
    """Raise a PivotuneError unless every library takes `value` as a seed of random numbers."""
    check_number(option, value, 0, below=2**32, whole=True)


def check_flags(group: str, options: Any, names: Iterable[str]) -> None:
    """Raise a PivotuneError unless these attributes of `options` are True or False."""
    for name in names:
        if not isinstance(value := getattr(options, name), bool):
            raise PivotuneError(f"{group}.{name}: got {value!r}; give true or false.")
