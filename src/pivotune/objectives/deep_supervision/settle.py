"""Layers that are `auto`: chosen from training questions, before training, by the model that will be trained."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from pivotune.data import Encoded
from pivotune.data.examples import is_english
from pivotune.errors import PivotuneError
from pivotune.lens.choice import choose_from_prompts, table, write_choice
from pivotune.lens.rule import LayerChoice
from pivotune.objectives.base import BeforeTraining, Settled

if TYPE_CHECKING:
    from pivotune.objectives.deep_supervision.objective import DeepSupervisionConfig

AUTO_EXAMPLES = 256
"""Training questions that `auto` layers are chosen from."""

LAYERS_FILE = "layers"
"""Name, without suffix, of the files about the choice in a run folder."""


def settle_layers(options: DeepSupervisionConfig, before: BeforeTraining) -> Settled:
    """Numbers for layers that are `auto`. A resumed run keeps those of its checkpoint."""
    signals = {"conversion_layer": options.language_conversion, "thinking_layer": options.english_thinking}
    automatic = [name for name in signals if getattr(options, name) == "auto"]
    if not any(signals[name] != "off" for name in automatic):
        return Settled(options)
    choice: LayerChoice | None = None
    if before.record is not None:
        found, record = before.record[0], before.record[1].get("layers")
    else:
        answers: list[Any] = [None]
        failure: Exception | None = None
        if before.args.process_index == 0:
            try:
                choice = _choose(before)
                answers = [choice.as_dict()]
                print(table(choice), flush=True)
            except Exception as error:
                failure, answers = error, [str(error)]
        if before.args.world_size > 1:  # the other processes wait for an answer, also for a bad one
            broadcast_object_list(answers)
        if isinstance(answers[0], str):
            raise failure or PivotuneError(answers[0])
        found = record = answers[0]
    settled = dataclasses.replace(options, **{name: found[name] for name in automatic})

    def write(folder: Path) -> object:
        assert choice is not None
        return write_choice(choice, folder / LAYERS_FILE, title=before.title)

    return Settled(settled, {"layers": record}, None if choice is None else write)


def _choose(before: BeforeTraining) -> LayerChoice:
    """From questions of the training data, on the device that will train."""
    model, rows, args = before.model, before.rows, before.args
    others = [number for number, language in enumerate(rows["language"]) if not is_english(language)]
    if not others:
        raise PivotuneError(
            "deep_supervision: layers are auto, but data.train has no question that is not English. Give numbers."
        )
    drawn = sorted(random.Random(args.seed).sample(others, min(len(others), AUTO_EXAMPLES)))
    sample = [rows[number] for number in drawn]
    target = [
        Encoded(row["input_ids"][: row["prompt_length"]], [], row["question_start"], row["question_end"])
        for row in sample
    ]
    english = [
        Encoded(row["english_prompt_ids"], [], row["english_question_start"], row["english_question_end"])
        for row in sample
        if row["english_prompt_ids"] is not None
    ]
    home = next(model.parameters()).device
    longest = max(len(prompt.prompt_ids) for prompt in target + english)
    try:
        return choose_from_prompts(
            model.to(args.device),
            target,
            english,
            batch_size=args.per_device_eval_batch_size,
            max_length=longest,
            seed=args.seed,
        )
    except torch.OutOfMemoryError as error:
        raise PivotuneError(
            "deep_supervision: the whole model does not fit on one device to choose the layers. Lower "
            "training.per_device_eval_batch_size, or run `pivotune layers` elsewhere and give its numbers."
        ) from error
    finally:
        model.to(home)
