"""Readings of random pairs, as a measure gets them, and what a measure says of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.lens.activations import Measure, PairActivations, read
from pivotune.lens.survey import Question, survey
from pivotune.taps import evaluating
from tests.batches import Example, Text, collate, random_examples
from tests.families import VOCAB


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


def prompts(count: int = 5, seed: int = 0) -> list[Encoded]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(3, VOCAB) for _ in range(draw.randint(4, 14))]
        start = draw.randrange(len(ids) - 1)
        made.append(Encoded(ids, [], start, draw.randint(start + 1, len(ids))))
    return made


def question_entropies(model: nn.Module, texts: Sequence[Encoded], **options: Any) -> np.ndarray:
    """Of all tokens, as the choice of layers reads them."""
    with evaluating(model):
        questions = [Question("zh", one) for one in texts]
        return survey(Anatomy(model), questions, tokens=None, **options)["entropy"]
