"""Layers that are `auto`: chosen from training questions, before training, by the model that will be trained."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pivotune.data import Encoded
from pivotune.data.examples import is_english
from pivotune.distributed import on_first_process
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
    if not any(signals[name] != "off" for name in automatic(options)):
        return Settled(options)
    choices: list[LayerChoice] = []

    def choose() -> dict[str, Any]:
        choices.append(_choose(before))
        print(table(choices[0]), flush=True)
        return choices[0].as_dict()

    if before.record is not None:
        found, record = before.record[0], before.record[1].get("layers")
    else:
        found = record = on_first_process(before.args, choose)
    settled = dataclasses.replace(options, **{name: found[name] for name in automatic(options)})

    def write(folder: Path) -> object:
        return write_choice(choices[0], folder / LAYERS_FILE, title=before.title)

    return Settled(settled, {"layers": record}, write if choices else None)


def automatic(options: DeepSupervisionConfig) -> list[str]:
    """The layers that are left to the run to choose."""
    return [name for name in ("conversion_layer", "thinking_layer") if getattr(options, name) == "auto"]


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
