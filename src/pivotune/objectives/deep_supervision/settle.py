"""Layers that are `auto`: chosen from training questions, before training, by the model that will be trained."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pivotune.data import Encoded
from pivotune.data.examples import is_english
from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError
from pivotune.lens.choice import Layers, choose_from_questions, numbers, record, table, write_layers
from pivotune.lens.rule import LayerChoice
from pivotune.lens.survey import Question
from pivotune.objectives.base import BeforeTraining, Settled
from pivotune.quantization import on_device

if TYPE_CHECKING:
    from pivotune.objectives.deep_supervision.objective import DeepSupervisionConfig

logger = logging.getLogger(__name__)

AUTO_EXAMPLES = 256
"""Training questions that `auto` layers are chosen from."""

LAYERS_FILE = "layers"
"""Name, without suffix, of the files about the choice in a run folder."""


def settle_layers(options: DeepSupervisionConfig, before: BeforeTraining) -> Settled:
    """Numbers for layers that are `auto`, each by its own signal. A resumed run keeps those of its checkpoint."""
    signals = {"conversion_layer": options.language_conversion, "thinking_layer": options.english_thinking}
    if not any(signals[name] != "off" for name in automatic(options)):
        return Settled(options)
    found: list[tuple[Layers, LayerChoice]] = []

    def choose() -> dict[str, Any]:
        layers = _choose(options, before)
        choice = layers.picked(options.language_conversion, options.english_thinking, options.pooling)
        found.append((layers, choice))
        print(table(layers), f"This run takes {numbers(choice)}.", sep="\n", flush=True)
        if not choice.found:
            logger.warning("layers: %s.", choice.reason)
        return record(layers, choice)

    if before.record is not None:
        numbered, recorded = before.record[0], before.record[1].get("layers")
    else:
        numbered = recorded = on_first_process(before.args, choose)
    settled = dataclasses.replace(options, **{name: numbered[name] for name in automatic(options)})

    def write(folder: Path) -> object:
        layers, choice = found[0]
        return write_layers(layers, folder / LAYERS_FILE, before.title, choice)

    return Settled(settled, {"layers": recorded}, write if found else None)


def automatic(options: DeepSupervisionConfig) -> list[str]:
    """The layers that are left to the run to choose."""
    return [name for name in ("conversion_layer", "thinking_layer") if getattr(options, name) == "auto"]


def _choose(options: DeepSupervisionConfig, before: BeforeTraining) -> Layers:
    """From questions of the training data, on the device that will train."""
    model, rows, args = before.model, before.rows, before.args
    others = [number for number, language in enumerate(rows["language"]) if not is_english(language)]
    if not others:
        raise PivotuneError(
            "deep_supervision: layers are auto, but data.train has no question that is not English. Give numbers."
        )
    drawn = sorted(random.Random(args.seed).sample(others, min(len(others), AUTO_EXAMPLES)))
    sample = [rows[number] for number in drawn]
    questions = [question_of(row) for row in sample]
    signals = {options.language_conversion, options.english_thinking}
    measures = [name for signal, name in (("feature", "similarity"), ("logits", "reading")) if signal in signals]
    prompts = [one for question in questions for one in (question.target, question.english) if one is not None]
    try:
        with on_device(model, args.device):
            return choose_from_questions(
                model,
                questions,
                batch_size=args.per_device_eval_batch_size,
                max_length=max(len(one.prompt_ids) + len(one.answer_ids) for one in prompts),
                seed=args.seed,
                measures=measures,
                reader=options.reader,
                progress=not args.disable_tqdm,
            )
    except torch.OutOfMemoryError as error:
        raise PivotuneError(
            "deep_supervision: the whole model does not fit on one device to choose the layers. Lower "
            "training.per_device_eval_batch_size, or run `pivotune layers` elsewhere and give its numbers."
        ) from error


def question_of(row: Mapping[str, Any]) -> Question:
    """A tokenised row of the training data."""
    end = row["prompt_length"]
    target = Encoded(row["input_ids"][:end], row["input_ids"][end:], row["question_start"], row["question_end"])
    if row["english_prompt_ids"] is None:
        return Question(row["language"], target)
    span = row["english_question_start"], row["english_question_end"]
    return Question(row["language"], target, Encoded(row["english_prompt_ids"], row["english_answer_ids"], *span))
