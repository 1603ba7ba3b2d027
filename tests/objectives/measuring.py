"""Batches of pairs, and what a measure of the lens makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import Batch
from pivotune.lens.activations import PairActivations, read
from pivotune.taps import evaluating
from tests.batches import collate, random_examples, select


def pairs(seed: int = 0, count: int = 5, unanswered: Sequence[int] = ()) -> Batch:
    """A batch of pairs; those named have no English answer."""
    examples = random_examples(seed, [True] * count)
    for row in unanswered:
        examples[row].english.answer.clear()
    return collate(examples)


def reading_of(model: Any, batch: Batch, feed_forward: bool = False) -> PairActivations:
    anatomy = Anatomy(model)
    with evaluating(anatomy.lm):
        return read(anatomy, [None] * len(batch["input_ids"]), batch, feed_forward=feed_forward)


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
