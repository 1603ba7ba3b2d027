"""How alike a question and its English translation are inside the model, layer by layer.

    similarity = measure_similarity(anatomy, tokenizer, read_examples("zh.jsonl"))
    similarity.poolings["mean"].mexa        # one Interval (mean and bounds) per layer 1..L

Each question becomes one vector per layer: the mean over its tokens, or its last token. On those vectors:

    parallel, non_parallel   mean cosine with the own translation, and with the other pairs' texts
    retrieval                the own translation is the nearest of the pool (top 1), both ways
    MEXA                     both at once: nearer than every other pair, in its row and in its column
                             (Kargaran et al. 2024, arXiv 2410.05873)
    linear CKA               how far the two clouds of vectors agree up to rotation and scale
                             (Kornblith et al. 2019, arXiv 1905.00414)

All but CKA compare every pair with every other. They do so inside blocks of a fixed number of pairs, so that memory
does not grow with the data and one pool size holds for every pair. CKA needs only sums, which are exact over all data.

Shapes in names: L layers, N pairs, n of them judged at a time, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelExample
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.lens.activations import Activations, PairActivations, PairStream, run_measure
from pivotune.uncertainty import Interval, Tables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pooling = Literal["mean", "last_token"]

TIE = 1e-9
"""Cosines closer than this are equal. Without it, rounding would rank the states of a layer that gives every question
the same vector."""

CKA_MEMORY = 2**30
"""Bytes. Where the sums for CKA at all layers would take more, it is computed at none unless layers are named."""


@dataclass
class PooledSimilarity:
    """The measures on one kind of question vector; each list has one entry per layer 1..L.

    Attributes:
        parallel: cosine of a question and its English translation, -1..1.
        non_parallel: mean cosine of a question (or translation) and the other pairs' translations (questions).
        retrieval_to_english: share of questions whose nearest English text of the pool is their own.
        retrieval_from_english: share of English texts whose nearest question of the pool is their own.
        mexa: share of pairs whose cosine exceeds every other one in its row and in its column, 0..1.
        cka: linear CKA of questions and translations, 0..1; None at layers where it was not computed, and where all
            questions of a side have one and the same vector.
    """

    parallel: list[Interval]
    non_parallel: list[Interval]
    retrieval_to_english: list[Interval]
    retrieval_from_english: list[Interval]
    mexa: list[Interval]
    cka: list[float | None]


@dataclass
class Similarity:
    """What `measure_similarity` found.

    Attributes:
        poolings: by kind of question vector, "mean" and "last_token".
        pairs: how many pairs were measured.
        pool: how many texts retrieval and MEXA choose from; 1 / pool is what guessing gets in retrieval.
        cka_left_out: why CKA was computed at no layer, where that was not asked for; else None.
        skipped: how many examples were left out, by reason.
    """

    poolings: Mapping[str, PooledSimilarity]
    pairs: int
    pool: int
    cka_left_out: str | None
    skipped: dict[str, int]


def measure_similarity(
    anatomy: Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[ParallelExample],
    *,
    poolings: Iterable[Pooling] = get_args(Pooling),
    block: int = 512,
    cka_layers: Iterable[int] | None = None,
    style: str = "auto",
    max_length: int = 512,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Similarity:
    """Similarity of questions and their English translations at every layer, in one pass over the data, each batch read
    as `pivotune.lens.activations` does. Memory, beside the passes themselves: see `SimilarityMeasure`.

    Args:
        anatomy: the model's parts. The model is put in evaluation mode for the time of the call.
        tokenizer: a fast tokenizer, the model's own.
        examples: those without an English counterpart are skipped and counted. With more than `block` pairs, their
            order decides who is compared with whom: shuffle them.
        poolings, block, cka_layers, device: as in `SimilarityMeasure`.
        style: of the prompt, see `pivotune.data.PromptEncoder`.
        max_length, batch_size: as in `pivotune.lens.activations.PairStream`.

    Raises:
        PivotuneError: a wrong option, fewer than two pairs, or states that are not finite.
    """
    stream = PairStream(tokenizer, style, batch_size, max_length)
    measure = SimilarityMeasure(anatomy, poolings=poolings, block=block, cka_layers=cka_layers, device=device)
    means = run_measure(anatomy, measure, stream, examples)
    found = measure.summary()
    if found["pairs"] < 2:
        reasons = "".join(f", {count} {reason}" for reason, count in stream.skipped.items())
        raise PivotuneError(
            f"similarity: needs at least 2 examples with an English counterpart, and the data have {found['pairs']}"
            f"{reasons}."
        )
    pooled: dict[str, PooledSimilarity] = {}
    for how, cka in found["cka"].items():
        estimates = {name: means[f"{how}/{name}"].estimates() for name in PairStatistics._fields}
        pooled[how] = PooledSimilarity(**estimates, cka=cka)
    return Similarity(pooled, found["pairs"], found["pool"], found["cka_left_out"], stream.skipped)


class SimilarityMeasure:
    """Similarity of questions and their English translations (a `pivotune.lens.activations.Measure`).

    Its tables are named "<pooling>/<statistic>", the statistics being those of `PairStatistics`: (N, L), numbers for
    parallel and non_parallel, truth values for the rest. They are handed on when a block is full, and at the end. When
    that happens depends on nothing but the number of pairs, so two models that read the same pairs hand on the same
    rows at the same time. A single pair can be compared with nothing: then there are no tables.

    Memory, whatever the number of examples, for each pooling: `2 L block d` numbers for the block (float32, or float64
    for such a model), and for each layer with CKA `24 d^2` bytes (three matrices of d x d in float64) and 16 d for the
    means. With d = 4096, L = 32 and 512 pairs that is 0.54 GB and 0.40 GB a layer.

    Args:
        anatomy: the model's parts.
        poolings: the vectors to measure: the mean over the question's tokens, the question's last token.
        block: pairs that are compared with each other, >= 2.
        cka_layers: layers 1..L to compute CKA at, () for none. None for all, where the sums of all poolings together
            stay below `CKA_MEMORY`, else for none; `summary` says so.
        device: where blocks and sums are kept and computed. It must know float64.

    Raises:
        PivotuneError: a wrong option; from `add`, states that are not finite.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        poolings: Iterable[Pooling] = get_args(Pooling),
        block: int = 512,
        cka_layers: Iterable[int] | None = None,
        device: torch.device | str = "cpu",
    ):
        poolings = tuple(dict.fromkeys(poolings))
        for how in poolings:
            check_choice("poolings", how, get_args(Pooling))
        check_number("block", block, 2, whole=True)
        self._anatomy, self._block = anatomy, block
        self._cka_left_out: str | None = None
        if cka_layers is None:
            cka_layers = range(1, anatomy.num_layers + 1)
            needed = len(poolings) * anatomy.num_layers * LinearCKA.memory(anatomy.hidden_size)
            if needed > CKA_MEMORY:
                cka_layers = ()
                self._cka_left_out = (
                    f"its sums would take {needed / 1e9:.1f} GB for all {anatomy.num_layers} layers; name some in "
                    "cka_layers"
                )
        checked = {anatomy.check_layer(layer, "cka_layers") for layer in cka_layers}
        self._cka = {how: {layer: LinearCKA(anatomy.hidden_size, device) for layer in checked} for how in poolings}
        self._blocks = {how: PairBlocks(anatomy.num_layers, anatomy.hidden_size, block, device) for how in poolings}
        self._pairs = 0

    def add(self, activations: PairActivations) -> Tables:
        self._pairs += len(activations.target.start)
        tables: dict[str, Tensor] = {}
        for how, blocks in self._blocks.items():
            x_LNd, y_LNd = self._pooled(activations.target, how), self._pooled(activations.english, how)
            tables |= self._tables(how, blocks.add(x_LNd, y_LNd))
        return tables

    def finish(self) -> Tables:
        tables: dict[str, Tensor] = {}
        for how, blocks in self._blocks.items():
            tables |= self._tables(how, blocks.finish())
        return tables

    def summary(self) -> dict[str, Any]:
        """{"pairs", "pool", "cka", "cka_left_out"} as in `Similarity`; "cka" by pooling, a list over the layers."""
        layers = range(1, self._anatomy.num_layers + 1)
        return {
            "pairs": self._pairs,
            "pool": min(self._pairs, self._block),
            "cka": {
                how: [by_layer[layer].value() if layer in by_layer else None for layer in layers]
                for how, by_layer in self._cka.items()
            },
            "cka_left_out": self._cka_left_out,
        }

    def _pooled(self, side: Activations, how: str) -> Tensor:
        """(L, N, d), on one device: layers may lie on several."""
        found: list[Tensor] = []
        for layer in sorted(side.hidden):
            vectors_Nd = side.pooled(layer, how)
            if not vectors_Nd.isfinite().all():
                raise PivotuneError(
                    f"similarity: layer {layer} has states that are not finite. If the model runs in float16, load it "
                    "in bfloat16 or float32."
                )
            found.append(vectors_Nd.to(found[0].device if found else vectors_Nd.device))
        return torch.stack(found)

    def _tables(self, how: Pooling, blocks: Iterator[Block]) -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {}
        for x_LNd, y_LNd, new in blocks:
            for layer, cka in self._cka[how].items():
                cka.add(x_LNd[layer - 1, :new], y_LNd[layer - 1, :new])
            if x_LNd.shape[1] < 2:
                continue
            layers = [compare_pairs(x_Nd, y_Nd, new) for x_Nd, y_Nd in zip(x_LNd, y_LNd, strict=True)]
            for name, values_Ln in zip(PairStatistics._fields, zip(*layers, strict=True), strict=True):
                rows.setdefault(f"{how}/{name}", []).append(torch.stack(values_Ln, dim=1))
        return {name: torch.cat(parts) for name, parts in rows.items()}


# All pairs of a block ------------------------------------------------------------------------------------------------


class PairStatistics(NamedTuple):
    """Per pair, what `compare_pairs` found: (n,) each; the last three are bool."""

    parallel: Tensor
    non_parallel: Tensor
    retrieval_to_english: Tensor
    retrieval_from_english: Tensor
    mexa: Tensor


def compare_pairs(x_Nd: Tensor, y_Nd: Tensor, count: int | None = None) -> PairStatistics:
    """Compare pairs with each other by cosine, in float64.

    With `S_ij = cos(x_i, y_j)`, for each of the first `count` pairs i (default: all), and j over the other N - 1:

        parallel                 S_ii
        non_parallel             mean over j of S_ij and S_ji, 2 (N - 1) numbers
        retrieval_to_english     S_ii > S_ij for all j
        retrieval_from_english   S_ii > S_ji for all j
        mexa                     both: S_ii > max_j max(S_ij, S_ji)

    A tie (see `TIE`) is a miss: a text that occurs twice cannot be told from its double. A zero vector has cosine 0.

    Args:
        x_Nd, y_Nd: N >= 2 vectors of questions and of their translations, row by row.
        count: how many pairs to judge; all N rows are still what they are compared with.
    """
    count = len(x_Nd) if count is None else count
    x_Nd, y_Nd = (nn.functional.normalize(v.double(), dim=1, eps=1e-300) for v in (x_Nd, y_Nd))
    rows_nN, columns_nN = x_Nd[:count] @ y_Nd.T, y_Nd[:count] @ x_Nd.T
    own = torch.arange(count, device=x_Nd.device)
    parallel = rows_nN[own, own]
    non_parallel = (rows_nN.sum(dim=1) + columns_nN.sum(dim=1) - 2 * parallel) / (2 * (len(x_Nd) - 1))
    rows_nN[own, own] = columns_nN[own, own] = -math.inf
    to_english = parallel > rows_nN.amax(dim=1) + TIE
    from_english = parallel > columns_nN.amax(dim=1) + TIE
    return PairStatistics(parallel, non_parallel, to_english, from_english, to_english & from_english)


Block = tuple[Tensor, Tensor, int]
"""x (G, N, d), y (G, N, d), and how many pairs, from the first, are new."""


class PairBlocks:
    """Collects pairs and hands them on in blocks of `block`.

    The last pairs of the data rarely fill a block. They are handed on together with as many of the pairs before them
    as fill it, so that every pair is judged once and against the same number of others. Only where all the data are
    fewer than `block` pairs is the block smaller.

    Args:
        groups: how many vectors each text has, e.g. one per layer.
        size: d.
        block: pairs per block.
        device: where they are kept.
    """

    def __init__(self, groups: int, size: int, block: int, device: torch.device | str = "cpu"):
        self._shape, self._device = (2, groups, block, size), device
        self._kept: Tensor | None = None  # a ring: the newest `block` pairs
        self._new = 0  # of these, the first so many have not been handed on
        self._full = False

    def add(self, x_GNd: Tensor, y_GNd: Tensor) -> Iterator[Block]:
        """Take in pairs, (G, N, d) each, and yield the blocks that they fill. Each is overwritten by what follows."""
        if self._kept is None:
            dtype = torch.promote_types(x_GNd.dtype, torch.float32)
            self._kept = torch.empty(self._shape, dtype=dtype, device=self._device)
        block, start = self._shape[2], 0
        while start < x_GNd.shape[1]:
            taken = min(block - self._new, x_GNd.shape[1] - start)
            here = slice(self._new, self._new + taken)
            for side, values in enumerate((x_GNd, y_GNd)):
                self._kept[side, :, here] = values[:, start : start + taken].to(self._kept)
            self._new, start = self._new + taken, start + taken
            if self._new == block:
                yield self._kept[0], self._kept[1], block
                self._new, self._full = 0, True

    def finish(self) -> Iterator[Block]:
        """Yield what is left."""
        if self._new and self._kept is not None:
            x_GNd, y_GNd = self._kept if self._full else self._kept[:, :, : self._new]
            yield x_GNd, y_GNd, self._new
        self._new = 0


# Linear CKA ----------------------------------------------------------------------------------------------------------


class LinearCKA:
    """Streaming linear CKA of two sets of vectors, row by row paired, in float64.

    With X and Y the (N, d) vectors minus their column means (Kornblith et al. 2019):

        CKA = ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F)

    Only X'X, Y'Y, X'Y and the means are kept, 3 d^2 + 2 d numbers or `24 d^2 + 16 d` bytes. Rows are centred on their
    own batch before they are added, and the batches' means enter apart (Chan et al. 1979): far from the origin, where
    some features of language models lie, a sum of raw squares would lose the digits that matter.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(2, size, dtype=torch.float64, device=device)
        self.products = torch.zeros(3, size, size, dtype=torch.float64, device=device)  # X'X, Y'Y, X'Y

    @staticmethod
    def memory(size: int) -> int:
        """Bytes that are kept for vectors of d = `size`."""
        return 8 * (3 * size * size + 2 * size)

    def add(self, x_Nd: Tensor, y_Nd: Tensor) -> None:
        """Take in rows: (N, d) each."""
        added = len(x_Nd)
        if not added:
            return
        both = torch.stack([x_Nd, y_Nd]).to(self.mean)
        mean = both.mean(dim=1)
        shift, weight = mean - self.mean, self.count * added / (self.count + added)
        centred = both - mean[:, None]
        for index, (left, right) in enumerate(((0, 0), (1, 1), (0, 1))):
            self.products[index].addmm_(centred[left].T, centred[right])
            self.products[index].addr_(shift[left], shift[right], alpha=weight)
        self.count += added
        self.mean += shift * (added / self.count)

    def value(self) -> float | None:
        """CKA of all rows so far; None where the rows of a side are all the same."""
        xx, yy, xy = (float(torch.linalg.vector_norm(product)) for product in self.products)
        return xy**2 / (xx * yy) if xx > 0 and yy > 0 else None
