"""Readings of random pairs, as a measure gets them, and what a measure says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.lens.activations import Measure, PairActivations, read
from pivotune.taps import evaluating
from tests.batches import Example, Text, collate, random_examples


def random_pairs(count: int, seed: int = 0) -> list[Example]:
    return random_examples(seed, [True] * count)


def readings(
    model: nn.Module, pairs: Sequence[Example], sizes: Iterable[int], *, pad: int = 0, extra: int = 0
) -> Iterator[PairActivations]:
    """The pairs in batches of these sizes. Measures of questions alone do not look at `examples`: there are none."""
    anatomy, start = Anatomy(model), 0
    for size in sizes:
        with evaluating(model):  # closed before the yield: a generator's context reaches whoever waits for it
            reading = read(anatomy, [], collate(pairs[start : start + size], pad=pad, extra=extra))
        yield reading
        start += size
    assert start == len(pairs)


def tables_of(measure: Measure, made: Iterable[PairActivations]) -> dict[str, Tensor]:
    """All rows of each table, in the order in which they were handed on."""
    with torch.no_grad():
        found = [*map(measure.add, made), measure.finish()]
    names = {name: None for tables in found for name in tables}
    return {name: torch.cat([tables[name] for tables in found if name in tables]) for name in names}


def sides(pairs: Iterable[Example]) -> dict[str, list[Text]]:
    found: dict[str, list[Text]] = {"target": [], "english": []}
    for pair in pairs:
        assert pair.english is not None
        found["target"].append(pair.target)
        found["english"].append(pair.english)
    return found
