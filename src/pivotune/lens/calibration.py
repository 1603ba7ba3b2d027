"""Calibration of the methods: how near a model is to what deep supervision and CC-Tuning ask of it, on held-out pairs.

Deep supervision asks for four things, at every layer here, so that curves show what training at layers i and j does to
the others. CC-Tuning lives on one choice, and on a matrix that must stand in for English where it is made.

Which pairs are held out is for the caller to see to: nothing here knows what a run was trained on.

Shapes in names: N examples, P pairs, K English tokens, n tokens of all pairs, L layers, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.connection import Connection, RunningR2
from pivotune.errors import PivotuneError, check_choice, check_flags
from pivotune.lens.estimates import Tables
from pivotune.lens.reading import Batch, Reading, Side
from pivotune.losses import IGNORE, LOGITS_PER_CHUNK, chunked_token_nats, cosine
from pivotune.methods.deep_supervision import continue_in_english, english_question
from pivotune.taps import Tap


class SupervisionMeasure:
    """The quantities that deep supervision (Huo et al. 2025) trains, per example and for each layer l = 1..L.

    Tables, (N, L) float64, or a column for each of `layers`; training supervises the first and third at the conversion
    layer, the others at the thinking layer:

        question_nats    nats per English-question token that the frozen lens needs at layer l, behind the target prompt
        answer_nats      the same for the tokens of the English answer, EOS included
        question_cosine  cos(h_l of the English question, h_l of the target question)
        answer_cosine    cos(h_L of the English question, h_l of the target question)

    They are computed by the method's own functions, with its teacher-forced reading, whatever the run was trained with;
    a term of the feature signal is 1 minus the cosine. Two differences to `DeepSupervision(...)(batch)["terms"]`: a
    term of the logits signal averages over all tokens of a batch, so that long texts weigh more; here tokens are
    averaged within an example first, then examples, because examples are what an interval is taken over. And in a run
    with a connection too, the feature terms are those of the connected pass, while here no text is connected.

    An example without an English answer has no row in `answer_nats`, which is absent where none of a reading has one.

    Costs two forward passes per reading beside its own, one per text, up to the last of the layers; memory is that of
    one of them and of one chunk of logits.

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
    def add(self, reading: Reading) -> Tables:
        batch = reading.batch
        answer_PK = batch["english_answer_ids"]
        answered_P = (answer_PK != IGNORE).any(dim=1).cpu()
        self._pairs += len(answered_P)
        self._skipped += int((~answered_P).sum())
        tables = {"question_nats": self._nats(batch, english_question(batch))}
        if answered_P.any():
            tables["answer_nats"] = self._nats(batch, answer_PK)[answered_P]
        return tables | self._cosines(reading.target, reading.english)

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """`pairs`, and `skipped`: those of them that have no English answer."""
        return {"pairs": self._pairs, "skipped": self._skipped}

    def _nats(self, batch: Batch, english_PK: Tensor) -> Tensor:
        """Nats per English token behind the target prompt: (P, L); NaN for a row without tokens."""
        text = continue_in_english(batch, english_PK)
        with self.anatomy.truncated(max(self._layers)), Tap(self.anatomy, hidden=self._layers) as tap:
            self.anatomy.decoder(input_ids=text.input_ids, attention_mask=text.attention_mask, use_cache=False)
        device = next(self.anatomy.head.parameters()).device  # a model may be spread over several
        token_n, pair_n = text.token.to(device), text.pair.cpu()
        sums_LP = torch.zeros(len(self._layers), len(english_PK), dtype=torch.float64)
        for layer, sums_P in zip(self._layers, sums_LP, strict=True):
            hidden_PWd = tap.hidden.pop(layer)
            states_nd = hidden_PWd[text.pair.to(hidden_PWd.device), text.position.to(hidden_PWd.device)]
            nats_n = chunked_token_nats(
                states_nd.to(device),
                token_n,
                lambda h: self.anatomy.frozen_lens(h, final_norm=self.final_norm),
                vocab_size=self.anatomy.vocab_size,
                logits_per_chunk=self._logits_per_chunk,
            )
            sums_P.index_add_(0, pair_n, nats_n.cpu().double())
        return sums_LP.T / (english_PK != IGNORE).sum(dim=1, keepdim=True).cpu()

    def _cosines(self, target: Side, english: Side) -> dict[str, Tensor]:
        top_Pd = english.pooled(self.anatomy.num_layers, self.pooling)
        columns: dict[str, list[Tensor]] = {"question_cosine": [], "answer_cosine": []}
        for layer in self._layers:
            own_Pd, english_Pd = target.pooled(layer, self.pooling), english.pooled(layer, self.pooling)
            columns["question_cosine"].append(cosine(english_Pd, own_Pd))
            columns["answer_cosine"].append(cosine(top_Pd.to(own_Pd.device), own_Pd))
        return {
            name: torch.stack([column.cpu().double() for column in found], dim=1) for name, found in columns.items()
        }


class ConnectionMeasure:
    """What CC-Tuning's connection (Ye et al. 2025) does: the layers that it picks, and how well the matrix stands in.

    Tables; picks are those of inference, without noise. With soft selection all layers are mixed, and the pick is the
    one of the largest share.

        picks_english  (N, L) bool, one True per row: the layer picked from the activations of the real English question
        picks_matrix   (N, L) bool: the layer picked from the question's own activations, mapped by the Transform Matrix
        agreement      (N, 1) bool: both are the same

    The last two, and what belongs to them in the summary, only with a Transform Matrix.

    Args:
        connection: of the very model that is read.
    """

    def __init__(self, connection: Connection):
        self.connection = connection
        L, d = connection.anatomy.num_layers, connection.anatomy.hidden_size
        device = connection.decision_maker.weight.device
        self._copied, self._mapped = (RunningR2(L, d, device) for _ in range(2))
        self._together_LL = torch.zeros(L, L, dtype=torch.long)  # pairs by pick: from English, from the matrix

    @torch.no_grad()
    def add(self, reading: Reading) -> Tables:
        """As `Measure.add`.

        Raises:
            PivotuneError: the reading was made without `feed_forward=True`.
        """
        english_NLd, own_NLd = reading.english.feed_forward, reading.target.feed_forward
        if english_NLd is None or own_NLd is None:
            raise PivotuneError("calibration: the connection reads feed-forward outputs; call read(feed_forward=True).")
        last_N = reading.target.input_ids.gather(1, reading.target.last[:, None])[:, 0]
        self._copied.add(own_NLd.transpose(0, 1), english_NLd.transpose(0, 1))
        by_english_N = self.connection.shares(english_NLd, last_N).argmax(dim=-1).cpu()
        tables = {"picks_english": self._one_hot(by_english_N)}
        if self.connection.transform_matrix is None:
            return tables
        mapped_NLd = self.connection.transform(own_NLd)
        self._mapped.add(mapped_NLd.transpose(0, 1), english_NLd.transpose(0, 1))
        by_matrix_N = self.connection.shares(mapped_NLd, last_N).argmax(dim=-1).cpu()
        self._together_LL.index_put_((by_english_N, by_matrix_N), torch.ones_like(by_english_N), accumulate=True)
        return tables | {
            "picks_matrix": self._one_hot(by_matrix_N),
            "agreement": (by_english_N == by_matrix_N)[:, None],
        }

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """What is no mean over examples.

        Returns:
            pairs: how many were read.
            r2, r2_per_layer: R^2 of the mapped activations, 1 - (squared error) / (squared distance of the English ones
                from their mean over the pairs of this language), over all layers and per layer. 0 is what that mean
                would score; a matrix fitted on several languages may fall below it in one of them. None for a single
                pair. Layers of large activations rule the R^2 over all.
            r2_of_copy, r2_of_copy_per_layer: the same of the question's own activations, unmapped: what there would be
                without a matrix.
            chance_agreement: how often the two picks would agree if they were made independently of each other, as
                often each layer as they are.
            kappa: Cohen's (1960), the share of the agreement that is possible beyond chance. None where chance alone
                gives 1: both pick one and the same layer always.
        """
        found: dict[str, Any] = {
            "pairs": self._copied.count,
            "r2_of_copy": self._copied.overall(),
            "r2_of_copy_per_layer": self._copied.per_group(),
        }
        if self.connection.transform_matrix is None:
            return found
        chance, kappa = _kappa(self._together_LL)
        return found | {
            "r2": self._mapped.overall(),
            "r2_per_layer": self._mapped.per_group(),
            "chance_agreement": chance,
            "kappa": kappa,
        }

    def _one_hot(self, pick_N: Tensor) -> Tensor:
        return F.one_hot(pick_N, self.connection.anatomy.num_layers).bool()


def _kappa(together_LL: Tensor) -> tuple[float | None, float | None]:
    """Chance agreement and Cohen's kappa of a table of counts; in whole numbers, so that a chance of 1 is exactly 1."""
    count = int(together_LL.sum())
    if not count:
        return None, None
    by_chance, agreed = int(together_LL.sum(dim=1) @ together_LL.sum(dim=0)), int(together_LL.trace())
    possible = count**2 - by_chance
    return by_chance / count**2, (agreed * count - by_chance) / possible if possible else None
