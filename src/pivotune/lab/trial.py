"""One run of a comparison: train a row of `pivotune.lab.settings`, ask it every question, look inside.

The demo shows a few of these, the grids in `experiments/` hundreds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import Run, load_run
from pivotune.config import DataConfig, ModelConfig, RunConfig, TrainingOptions
from pivotune.connection import connect
from pivotune.data import ParallelExample
from pivotune.generation import generate_texts
from pivotune.lab.settings import ANSWER_TOKENS, INSIDE_PAIRS, MAX_LENGTH, STYLE, TRAINING, Setting
from pivotune.lens import LayerChoice, choose_layers
from pivotune.lens.estimates import RunningMean
from pivotune.lens.language import BeginningIndex, LanguageMeasure
from pivotune.lens.reading import PairStream, Reading, read
from pivotune.losses import cosine
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.objectives.cc_tuning.measure import ConnectionMeasure
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure
from pivotune.taps import evaluating
from pivotune.training import train

MODES: tuple[str, ...] = ("none", "matrix", "english")

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


def examine(
    model_folder: str | Path,
    questions: Mapping[str, Questions],
    inside: Questions | None,
    connections: Sequence[str] = MODES,
) -> dict[str, Any]:
    """Ask a trained row, or the base model, everything.

    Args:
        model_folder: of a run or a model.
        questions: by split.
        inside: the pairs to look inside with; None for not at all. At most `INSIDE_PAIRS` of each language are read.
        connections: how a connected run is asked; others are asked as they are.

    Returns:
        answers: split -> mode -> language -> {items, right, given}. inside: language -> name -> one number per layer.
        terms, transform_matrix: of the training.
    """
    opened, connection = open_row(model_folder)
    model, tokenizer = opened.model, opened.tokenizer
    modes: Sequence[str] = ("none",) if connection is None else connections
    answers = {
        split: {mode: ask(model, tokenizer, asked, mode) for mode in modes} for split, asked in questions.items()
    }
    return {
        "answers": answers,
        "inside": {
            language: look_inside(model, tokenizer, spread(records, INSIDE_PAIRS), connection)
            for language, records in (inside or {}).items()
            if language != "en"
        },
        "terms": opened.info.get("terms", {}),
        "transform_matrix": opened.info.get("found", {}).get("cc_tuning", {}).get("transform_matrix"),
    }


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


def look_inside(
    model: Any, tokenizer: Any, records: Sequence[Record], connection: LinearConnection | None = None
) -> dict[str, list[float]]:
    """Means over the pairs of one language, one number per layer: what deep supervision asks for (see
    `SupervisionMeasure`; cosines of the last token too), the probability that the lens gives to a first token of the
    English and of the own answer, and of a connection how far the Transform Matrix stands in for English."""
    anatomy = Anatomy(model)
    supervision = SupervisionMeasure(anatomy)
    language = LanguageMeasure(anatomy, BeginningIndex(tokenizer), after_blank=True)
    connected = ConnectionMeasure(connection) if isinstance(connection, LinearConnection) else None
    means: dict[str, RunningMean] = {}
    with evaluating(model):
        batches = PairStream(tokenizer, STYLE, batch_size=32, max_length=MAX_LENGTH).batches(parallel(records))
        for _, chosen, batch in batches:
            reading = read(anatomy, chosen, batch, feed_forward=connected is not None)
            tables = {**supervision.add(reading), **_last_token_cosines(anatomy, reading)}
            masses = language.add(reading)
            tables |= {f"{whose}_mass": masses[whose] for whose in ("english", "target") if masses}
            if connected is not None:
                tables |= connected.add(reading)
            for name, rows in tables.items():
                means.setdefault(name, RunningMean()).add(rows)
    found = {name: [round(value, 6) for value in mean.mean.tolist()] for name, mean in means.items()}
    if connected is not None:
        summary = connected.summary()
        found |= {name: [round(summary[name], 6)] for name in ("r2", "r2_of_copy") if summary.get(name) is not None}
    return found


def _last_token_cosines(anatomy: Anatomy, reading: Reading) -> dict[str, Tensor]:
    """As the cosines of `SupervisionMeasure`, between the questions' last tokens."""
    top = reading.english.pooled(anatomy.num_layers, "last_token")
    columns: dict[str, list[Tensor]] = {"question_cosine_last": [], "answer_cosine_last": []}
    for layer in range(1, anatomy.num_layers + 1):
        own, english = (side.pooled(layer, "last_token") for side in (reading.target, reading.english))
        columns["question_cosine_last"].append(cosine(english, own))
        columns["answer_cosine_last"].append(cosine(top, own))
    return {name: torch.stack(column, dim=1) for name, column in columns.items()}


def choose(model: Any, tokenizer: Any, records: Sequence[Record]) -> LayerChoice:
    """The layers that `auto` stands for, from the base model and the training records of all languages."""
    with evaluating(model):
        return choose_layers(
            model, tokenizer, list(parallel(records)), style=STYLE, max_length=MAX_LENGTH, batch_size=32
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
