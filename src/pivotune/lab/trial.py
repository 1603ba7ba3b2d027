"""One run of a comparison: train a row of `pivotune.lab.settings` and ask it every question.

The demo shows a few of these, the grids in `experiments/lab` hundreds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pivotune.checkpoint import Run, load_run
from pivotune.config import DataConfig, ModelConfig, RunConfig, TrainingOptions
from pivotune.connection import connect
from pivotune.data import ParallelExample
from pivotune.generation import generate_texts
from pivotune.lab.settings import ANSWER_TOKENS, MAX_LENGTH, STYLE, TRAINING, Setting
from pivotune.lens import Layers, choose_layers
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.taps import evaluating
from pivotune.training import train

Record = dict[str, Any]
Questions = Mapping[str, Sequence[Record]]
"""By language, what is asked: {id, language, prompt, completion} and, where not English, `english`."""


def train_row(setting: Setting, base: str | Path, records: Sequence[Record], folder: Path, **training: Any) -> Path:
    """Train a row from the base on its records; data and run are written into the folder.

    Args:
        setting: any row but the base model itself.
        training: what is not the same for all rows: learning_rate, seed, max_steps, ... (`TrainingOptions`).

    Returns:
        The folder of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return train(run_config(setting, base, data, folder / "run", **training))


def run_config(setting: Setting, base: str | Path, data: Path, output: Path, **training: Any) -> RunConfig:
    """The training run of a row, on the CPU: a GPU would give other numbers."""
    assert setting.trained
    return RunConfig(
        output=str(output),
        model=ModelConfig(str(base)),
        data=DataConfig(str(data), style=STYLE, max_length=MAX_LENGTH),
        objectives=setting.objectives,
        training=TrainingOptions(use_cpu=True, save_strategy="no", report_to="none", **(dict(TRAINING) | training)),
    )


def open_row(model_folder: str | Path) -> tuple[Run, LinearConnection | None]:
    """A trained row, or the base model, and the connection that it has; asked without it where no mode is given."""
    run = load_run(model_folder, dtype=torch.float32, device="cpu")
    connection = run.connections.get("cc_tuning")
    if not isinstance(connection, LinearConnection):
        return run, None
    connect(run.model, connection, "none")
    return run, connection


def ask(model: Any, tokenizer: Any, questions: Questions, mode: str = "none") -> dict[str, Any]:
    """What is answered to each item, and whether that is word for word right."""
    found = {}
    for language, records in questions.items():
        asked = list(parallel(records))
        answers = generate_texts(
            model, tokenizer, asked, style=STYLE, connection=mode, batch_size=64, max_new_tokens=ANSWER_TOKENS
        )
        right = [int(a == q.text.answer.strip()) for a, q in zip(answers, asked, strict=True)]
        found[language] = {"items": [item(record) for record in records], "right": right, "given": answers}
    return found


def choose(model: Any, tokenizer: Any, records: Sequence[Record]) -> Layers:
    """The layers by the paper's rule, from the base model and the training records of all languages."""
    with evaluating(model):
        return choose_layers(
            model,
            tokenizer,
            list(parallel(records)),
            style=STYLE,
            tokens=None,
            max_length=MAX_LENGTH,
            batch_size=32,
            measures=(),
        )


def item(record: Record) -> str:
    """What a record asks, whatever the language."""
    return str(record["id"]).removesuffix(f".{record['language']}")


def parallel(records: Sequence[Record]) -> Iterator[ParallelExample]:
    """The records, checked."""
    for record in records:
        yield ParallelExample.from_dict(record, where=str(record["id"]))


def spread(records: Sequence[Record], count: int | None) -> list[Record]:
    """At most `count`, evenly spread over all of them: the facts are sorted, and their beginning is no sample."""
    if count is None or count >= len(records):
        return list(records)
    return [records[k * len(records) // count] for k in range(count)]
