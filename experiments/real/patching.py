"""Activation patching: what could the English question lend to the target-language one, at the best?

Held-out answers are scored, each token given those before it, in four ways:

* `alone`: after the target-language question;
* `lent` at layer l: at the prompt's last token the stream behind the layer becomes that of the English question, less
  the mean difference of the two languages (`x_en - mean_en + mean_target`, means over development pairs), so that only
  what the question says is exchanged;
* `shuffled` at layer l: the same with the English side of another question, the control;
* `context`: after the English question and the target-language one, both in the prompt: what all layers and tokens
  together could make of the English question.

A method that works through one token of the prompt (CC-Tuning, the feature signal at the last token) cannot be expected
to gain more than `lent` does over `alone`; `context` is what one that works through every token might.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.cells import environment
from experiments.real import pairs
from experiments.real.trial import CELLS, Trial, batch_nats, batches, examples, numbers, trained
from pivotune.anatomy import Anatomy
from pivotune.checkpoint import Run, load_run
from pivotune.data import Batch, ParallelExample
from pivotune.data.collate import last_token
from pivotune.files import write_text
from pivotune.taps import Injection, Tap

COUNT = 200
"""Test examples: each is scored some fifteen times."""


def path_of(trial: Trial) -> Path:
    return CELLS / f"patching-{trial.name}.json"


def run_patching(trial: Trial, work: Path, data: Path = pairs.DATA) -> dict[str, Any]:
    """Patch the run of a trial, trained where it is not there yet; the result, which is also written, or read."""
    path = path_of(trial)
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    run = load_run(trained(trial, work, data))
    asked = examples("test", trial.language, data, COUNT)
    layers = range(2, Anatomy(run.model).num_layers, 3)
    content = {
        **dataclasses.asdict(trial),
        **environment(),
        "layers": list(layers),
        "nats": patched(run, asked, examples("dev", trial.language, data), layers),
    }
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")
    return content


@torch.no_grad()
def patched(
    run: Run, asked: Sequence[ParallelExample], others: Sequence[ParallelExample], layers: Iterable[int], size: int = 16
) -> dict[str, dict[str, list[float]]]:
    """Nats of each answer: of its first token, and of all of them; the number of its tokens.

    Args:
        others: what the means of the languages are taken over.
        layers: where to patch, each by itself.

    Returns:
        By the way it was scored: "alone", "context", "lent N" and "shuffled N".
    """
    anatomy = Anatomy(run.model)
    sums, count = torch.zeros(()), 0
    for _, batch in batches(run, others, size):
        sums = sums + torch.stack([states.double().sum(dim=0) for states in _states(anatomy, batch)])
        count += len(batch["input_ids"])
    of_target_Ld, of_english_Ld = sums / count
    scores: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for chosen, batch in batches(run, asked, size):
        scores["alone"].update(zip(chosen, batch_nats(anatomy, batch), strict=True))
        english_BLd = _states(anatomy, batch)[1]
        moved_BLd = (english_BLd - of_english_Ld + of_target_Ld).to(english_BLd.dtype)
        last_B1 = batch["prompt_length"][:, None] - 1
        for layer in layers:
            moved_Bd = moved_BLd[:, layer - 1]
            for name, vectors_Bd in (("lent", moved_Bd), ("shuffled", moved_Bd.roll(1, 0))):
                with Tap(anatomy, injections=[Injection(layer, vectors_Bd, last_B1, replace=True)]):
                    scores[f"{name} {layer}"].update(zip(chosen, batch_nats(anatomy, batch), strict=True))
    for chosen, batch in batches(run, [_with_english(one) for one in asked], size):
        scores["context"].update(zip(chosen, batch_nats(anatomy, batch), strict=True))
    return {name: numbers(of[number] for number in range(len(asked))) for name, of in scores.items()}


def _states(anatomy: Anatomy, batch: Batch) -> tuple[Tensor, Tensor]:
    """The streams at the last token of the prompts, target-language and English: (B, L, d) each."""
    target = _last_states(anatomy, batch["input_ids"], batch["attention_mask"], batch["prompt_length"] - 1)
    mask = batch["english_attention_mask"]
    return target, _last_states(anatomy, batch["english_input_ids"], mask, last_token(mask))


def _last_states(anatomy: Anatomy, input_ids: Tensor, attention_mask: Tensor, last_B: Tensor) -> Tensor:
    with Tap(anatomy, at=last_B, sites=["hidden"]) as tap:
        anatomy.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return tap.states("hidden")


def _with_english(example: ParallelExample) -> ParallelExample:
    assert example.english is not None
    both = f"{example.english.instruction}\n{example.text.instruction}"
    return dataclasses.replace(example, text=dataclasses.replace(example.text, instruction=both))
