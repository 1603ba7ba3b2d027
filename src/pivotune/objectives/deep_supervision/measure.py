"""What the lens measures of deep supervision: how near a model is to what it asks for, on held-out pairs.

It asks for four things, at every layer here, so that curves show what training at layers i and j does to the others.
Which pairs are held out is for the caller to see to: nothing here knows what a run was trained on.

Shapes in names: N examples, P pairs, K English tokens, n tokens of all pairs, L layers, d hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import Batch
from pivotune.data.continuation import english_question
from pivotune.errors import check_choice, check_flags
from pivotune.lens import panels
from pivotune.lens.activations import Activations, PairActivations
from pivotune.lens.panels import BLUE, VERMILION
from pivotune.lens.reading import english_nats, has_tokens
from pivotune.lens.tuned import TunedLens
from pivotune.losses import LOGITS_PER_CHUNK, cosine
from pivotune.uncertainty import Tables


class SupervisionMeasure:
    """The quantities that deep supervision (Huo et al. 2025) trains, per example and for each layer l = 1..L.

    Tables, (N, L) float64, or a column for each of `layers`; training supervises the first and third at the conversion
    layer, the others at the thinking layer:

        question_nats    nats per English-question token that the frozen lens needs at layer l, behind the target prompt
        answer_nats      the same for the tokens of the English answer, EOS included
        question_cosine  cos(h_l of the English question, h_l of the target question)
        answer_cosine    cos(h_L of the English question, h_l of the target question)

    They are computed by the method's own functions, with its teacher-forced reading, whatever the run was trained with;
    a term of the feature signal is 1 minus the cosine. There are two differences to the terms of training. A term of
    the logits signal averages over all tokens of a batch, so that long texts weigh more; here tokens are averaged
    within an example first, then examples, because examples are what an interval is taken over. And in a run with a
    connection too, the feature terms are those of the connected pass, while here no text is connected.

    An example without an English answer has no row in `answer_nats`, which is absent where no example of a batch has
    one.

    Costs two forward passes per batch beside the batch's own, one per text, up to the last of the layers; memory is
    that of one of them and of one chunk of logits.

    Args:
        anatomy: the model's parts; in evaluation mode (`pivotune.taps.evaluating`).
        layers: those to look at, in increasing order; all where None.
        pooling, final_norm: as in `DeepSupervisionConfig`.
        logits_per_chunk: how many logits to hold at a time.

    Raises:
        PivotuneError: a wrong option.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        layers: Sequence[int] | None = None,
        pooling: str = "mean",
        final_norm: bool = True,
        logits_per_chunk: int = LOGITS_PER_CHUNK,
    ):
        self.anatomy, self.pooling, self.final_norm = anatomy, pooling, final_norm
        check_choice("pooling", pooling, ("mean", "last_token"))
        check_flags("calibration", self, ["final_norm"])
        self._logits_per_chunk = logits_per_chunk
        self._layers: Sequence[int] = range(1, anatomy.num_layers + 1)
        if layers is not None:
            self._layers = [anatomy.check_layer(layer, "layers") for layer in layers]
        self._pairs = self._skipped = 0

    @torch.no_grad()
    def add(self, activations: PairActivations) -> Tables:
        batch = activations.batch
        answer_PK = batch["english_answer_ids"]
        answered_P = has_tokens(answer_PK)
        self._pairs += len(answered_P)
        self._skipped += int((~answered_P).sum())
        tuned = activations.target.tuned
        tables = {"question_nats": self._nats(batch, english_question(batch), tuned)}
        if answered_P.any():
            tables["answer_nats"] = self._nats(batch, answer_PK, tuned)[answered_P]
        return tables | self._cosines(activations.target, activations.english)

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """`pairs`, and `skipped`: those of them that have no English answer."""
        return {"pairs": self._pairs, "skipped": self._skipped}

    def _nats(self, batch: Batch, english_PK: Tensor, tuned: TunedLens | None) -> Tensor:
        """Nats per English token behind the target prompt: (P, L); NaN for a row without tokens."""

        def reader(layer: int, states_nd: Tensor) -> Tensor:
            if tuned is not None:
                return tuned.logits(self.anatomy, layer, states_nd)
            return self.anatomy.frozen_lens(states_nd, final_norm=self.final_norm)

        return english_nats(
            self.anatomy, batch, english_PK, self._layers, reader=reader, logits_per_chunk=self._logits_per_chunk
        )

    def _cosines(self, target: Activations, english: Activations) -> dict[str, Tensor]:
        top_Pd = english.pooled(self.anatomy.num_layers, self.pooling)
        columns: dict[str, list[Tensor]] = {"question_cosine": [], "answer_cosine": []}
        for layer in self._layers:
            own_Pd, english_Pd = target.pooled(layer, self.pooling), english.pooled(layer, self.pooling)
            columns["question_cosine"].append(cosine(english_Pd, own_Pd))
            columns["answer_cosine"].append(cosine(top_Pd.to(own_Pd.device), own_Pd))
        return {
            name: torch.stack([column.cpu().double() for column in found], dim=1) for name, found in columns.items()
        }


def supervision_figure(report: Mapping[str, Any], path_without_suffix: str | Path) -> list[Path]:
    """A row per language, for what deep supervision trains: nats per English token, and cosines to English."""
    names = {"question": ("English question", BLUE), "answer": ("English answer", VERMILION)}
    found = panels.with_tables(report, "deep_supervision")
    if not found:
        return []
    figure, grid = panels.rows(len(found), 2)
    for row, (code, tables) in zip(grid, found.items(), strict=True):
        for axes, unit, label in ((row[0], "nats", "nats per English token"), (row[1], "cosine", "cosine to English")):
            for name, (_, color) in names.items():
                panels.curves(axes, tables.get(f"{name}_{unit}"), color)
            axes.set_ylabel(label)
            panels.layer_axis(axes, report)
        row[0].set_ylim(bottom=0)
        panels.headed(row[0], report, code)
    panels.outer_labels(grid, grid.size)
    return panels.finished(figure, report, "What deep supervision trains", names.values(), path_without_suffix)
