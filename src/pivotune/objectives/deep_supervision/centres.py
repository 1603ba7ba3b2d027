"""Where questions lie on the average, in the model before training: what the centred cosine leaves out.

Inner states of many models share a few huge features, so that any two questions have a cosine near 1. Less their mean,
each side's own, they differ in what they say. The means stay fixed in training: means of a batch would depend on its
size, and a model could move them instead of the questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelCollator
from pivotune.data.tokenize import paired
from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError
from pivotune.losses import pool_span
from pivotune.objectives.base import BeforeTraining, Wants, decode, english_pass
from pivotune.quantization import on_device
from pivotune.taps import Tap, evaluating

PAIRS = 512
"""Training pairs whose mean is taken, at most."""


def fit_centres(anatomy: Anatomy, layers: Sequence[tuple[int, int]], pooling: str, before: BeforeTraining) -> Tensor:
    """The mean target and English question at each of these (target, English) layers: (K, 2, d), in float64.

    Every process calls this and gets the same.

    Args:
        pooling: mean or last_token, what stands for a question.
    """

    def fit() -> Tensor:
        model, args = before.model, before.args
        pairs = paired(before.rows)
        if not pairs:
            raise PivotuneError(
                "deep_supervision.feature_loss: centred_cosine needs the mean of English questions, and data.train has "
                "none. Add the field 'english' to the rows, or choose cosine."
            )
        drawn = sorted(random.Random(args.seed).sample(pairs, min(len(pairs), PAIRS)))
        with on_device(model, args.device):
            return _means(anatomy, [before.rows[number] for number in drawn], layers, pooling, args)

    return on_first_process(before.args, fit)


def _means(anatomy: Anatomy, rows: Sequence[Any], layers: Sequence[tuple[int, int]], pooling: str, args: Any) -> Tensor:
    collator, size = ParallelCollator(0), args.per_device_eval_batch_size  # padding is masked
    total = torch.zeros(len(layers), 2, anatomy.hidden_size, dtype=torch.float64)
    wants = Wants(hidden=frozenset(english for _, english in layers))
    with evaluating(anatomy.lm):
        for start in range(0, len(rows), size):
            batch = {name: one.to(args.device) for name, one in collator(rows[start : start + size]).items()}
            english = english_pass(anatomy, batch, wants)
            assert english is not None
            with Tap(anatomy, hidden={own for own, _ in layers}) as tap:
                decode(anatomy, batch["input_ids"], batch["attention_mask"])
            own_span = batch["question_start"], batch["question_end"]
            english_span = batch["english_question_start"], batch["english_question_end"]
            for k, (own, other) in enumerate(layers):
                total[k, 0] += pool_span(tap.hidden[own], *own_span, pooling).double().sum(dim=0).cpu()
                total[k, 1] += pool_span(english.hidden[other], *english_span, pooling).double().sum(dim=0).cpu()
    return total / len(rows)
