"""FLOPs of a training run, counted from its tokens: what "equal FLOPs" means, and the cost column of the results.

Counted are the products with weight matrices: 2 x parameters x tokens for a pass forward, twice as much backward, half
of that where a weight is frozen. Not counted: attention's own products (under 5 % at the lab's lengths), element-wise
work, and padding. The English pass of CC-Tuning and of the feature signal, the extra passes of the logits signal and
the fitting of the Transform Matrix are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.lab.rows import GridSetting
from pivotune.anatomy import Anatomy

FORWARD, FROZEN, TRAINED = 2, 4, 6  # FLOPs per parameter and token


@dataclass(frozen=True)
class Size:
    """Parameters that a token meets in one decoder layer and in the output head, and the number of layers."""

    layer: int
    head: int
    layers: int

    @classmethod
    def of(cls, model: Any) -> Size:
        anatomy = Anatomy(model)
        matrices = [p for p in anatomy.layers.parameters() if p.ndim == 2]
        head = anatomy.head.weight
        assert isinstance(head, torch.Tensor)
        return cls(sum(p.numel() for p in matrices) // anatomy.num_layers, head.numel(), anatomy.num_layers)


@dataclass(frozen=True)
class Cost:
    """FLOPs of one pass over the training data, and of what follows the training."""

    epoch: float
    afterwards: float


def cost(setting: GridSetting, rows: Sequence[Mapping[str, Any]], size: Size) -> Cost:
    """What a row of the grid costs.

    Args:
        setting: its layers are numbers.
        rows: of `pivotune.data.tokenize_examples`.
        size: of the model.
    """
    if not setting.trained:
        return Cost(0.0, 0.0)
    epoch = float(sum(_example(setting, row, size) for row in rows))
    if setting.cc_tuning is None:
        return Cost(epoch, 0.0)
    pairs = [row for row in rows if row["english_prompt_ids"] is not None]
    both_sides = sum(row["prompt_length"] + len(row["english_prompt_ids"]) for row in pairs)
    read = min(1.0, setting.cc_tuning.matrix_pairs / len(pairs)) * both_sides if pairs else 0.0
    return Cost(epoch, FORWARD * read * size.layers * size.layer)


def _example(setting: GridSetting, row: Mapping[str, Any], size: Size) -> float:
    prompt, whole = row["prompt_length"], len(row["input_ids"])
    flops = TRAINED * (whole * size.layers * size.layer + (whole - prompt) * size.head)
    if row["english_prompt_ids"] is None:
        return flops
    english_layers, english_gradient = 0, False
    if setting.cc_tuning is not None:
        english_layers, english_gradient = size.layers, setting.cc_tuning.english_gradient
    options = setting.deep_supervision
    if options is not None:
        texts = {
            "language_conversion": (
                options.conversion_layer,
                row["english_question_end"] - row["english_question_start"],
                row["question_end"] - row["question_start"],
            ),
            "english_thinking": (options.thinking_layer, len(row["english_answer_ids"]), whole - prompt),
        }
        for term, signal in setting.terms.items():
            layer, english, own = texts[term]
            assert isinstance(layer, int), "the cost depends on the layers: give numbers"
            if signal == "feature":
                english_layers = max(english_layers, layer if term == "language_conversion" else size.layers)
                english_gradient = english_gradient or not options.stop_gradient
            elif options.reading == "teacher_forced":
                flops += TRAINED * (prompt + english) * layer * size.layer + FROZEN * english * size.head
            else:
                flops += FROZEN * min(english, own) * size.head
    english_pass = len(row["english_prompt_ids"]) * english_layers * size.layer
    return flops + (TRAINED if english_gradient else FORWARD) * english_pass


def steps_of(examples: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of so many passes."""
    return math.ceil(math.ceil(examples / batch_size) * epochs)


def total(one: Cost, steps: int, examples: int, batch_size: int) -> float:
    """FLOPs of so many steps."""
    return one.epoch * steps / math.ceil(examples / batch_size) + one.afterwards


def affordable(one: Cost, flops: float, examples: int, batch_size: int) -> int:
    """The steps that `flops` pay for, at least one."""
    steps = (flops - one.afterwards) * math.ceil(examples / batch_size) / one.epoch
    return max(1, math.floor(steps + 1e-6))  # TFT itself must come out with its own steps
