"""All that a trained row, or the base model, is asked and looked at for the result of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.lab.settings import INSIDE_PAIRS, MAX_LENGTH, STYLE
from pivotune.lab.trial import Questions, Record, ask, open_row, parallel, spread
from pivotune.lens.activations import PairActivations, PairStream, read
from pivotune.lens.language import BeginningIndex, LanguageMeasure
from pivotune.losses import cosine
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.objectives.cc_tuning.measure import ConnectionMeasure
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure
from pivotune.taps import evaluating
from pivotune.uncertainty import RunningMean

MODES: tuple[str, ...] = ("none", "matrix", "english")


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


def _last_token_cosines(anatomy: Anatomy, reading: PairActivations) -> dict[str, Tensor]:
    """As the cosines of `SupervisionMeasure`, between the questions' last tokens."""
    top = reading.english.pooled(anatomy.num_layers, "last_token")
    columns: dict[str, list[Tensor]] = {"question_cosine_last": [], "answer_cosine_last": []}
    for layer in range(1, anatomy.num_layers + 1):
        own, english = (side.pooled(layer, "last_token") for side in (reading.target, reading.english))
        columns["question_cosine_last"].append(cosine(english, own))
        columns["answer_cosine_last"].append(cosine(top, own))
    return {name: torch.stack(column, dim=1) for name, column in columns.items()}
