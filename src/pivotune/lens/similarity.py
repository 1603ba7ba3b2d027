"""How alike a question and its English translation are inside the model, layer by layer.

    similarity = measure_similarity(anatomy, DataLoader(dataset, batch_size=8, collate_fn=collator))
    similarity.poolings["mean"].mexa        # one number per layer 1..L

Each question becomes one vector per layer: the mean over its tokens, or its last token. On those vectors:

    parallel, non_parallel   mean cosine with the own translation, and with the other pairs' texts
    retrieval                the own translation is the nearest of the pool (top 1), both ways
    MEXA                     both at once: nearer than every other pair, in its row and in its column
                             (Kargaran et al. 2024, arXiv 2410.05873)
    linear CKA               how far the two clouds of vectors agree up to rotation and scale
                             (Kornblith et al. 2019, arXiv 1905.00414)

All but CKA compare every pair with every other. They do so inside blocks of a fixed number of pairs, so that memory
does not grow with the data and one pool size holds for every pair. CKA needs only sums, which are exact over all data.

Shapes in names: B rows, T tokens, L layers, N pairs, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.losses import pool_span
from pivotune.taps import Tap, evaluating

Pooling = Literal["mean", "last_token"]

TIE = 1e-9
"""Cosines closer than this are equal. Without it, rounding would rank the states of a layer that gives every question
the same vector."""


@dataclass
class PooledSimilarity:
    """The measures on one kind of question vector; each list has one number per layer 1..L.

    Attributes:
        parallel: mean cosine of a question and its English translation, -1..1.
        non_parallel: mean cosine of a question (or translation) and the other pairs' translations (questions).
        mexa: share of pairs whose cosine exceeds every other one in its row and in its column, 0..1.
        retrieval_to_english: share of questions whose nearest English text of the pool is their own.
        retrieval_from_english: share of English texts whose nearest question of the pool is their own.
        cka: linear CKA of questions and translations, 0..1; NaN at layers where it was not asked for, and where all
            questions of a side have one and the same vector.
    """

    parallel: list[float] = field(default_factory=list)
    non_parallel: list[float] = field(default_factory=list)
    mexa: list[float] = field(default_factory=list)
    retrieval_to_english: list[float] = field(default_factory=list)
    retrieval_from_english: list[float] = field(default_factory=list)
    cka: list[float] = field(default_factory=list)


@dataclass
class Similarity:
    """What `measure_similarity` found.

    Attributes:
        poolings: by kind of question vector, "mean" and "last_token".
        pairs: how many pairs were measured.
        pool: how many texts retrieval and MEXA choose from; 1 / pool is what guessing gets in retrieval.
        without_english: examples that were left out because they have no English counterpart.
    """

    poolings: Mapping[str, PooledSimilarity]
    pairs: int
    pool: int
    without_english: int


def measure_similarity(
    anatomy: Anatomy,
    batches: Iterable[dict[str, Tensor]],
    *,
    poolings: Iterable[Pooling] = get_args(Pooling),
    block: int = 512,
    cka_layers: Iterable[int] | None = None,
    device: torch.device | str = "cpu",
) -> Similarity:
    """Similarity of questions and their English translations at every layer, in one pass over the data.

    Each batch costs one forward pass over its target prompts and one over its English prompts.

    Memory, beside the passes themselves, whatever the number of examples: for each pooling, `2 L block d` numbers for
    the block (float32, or float64 for such a model) and `3 d^2` float64 numbers per layer in `cka_layers`. For d =
    4096 and L = 32 that is 0.5 GB and 12.9 GB: name a few layers, or one pooling, where this is too much.

    Args:
        anatomy: the model's parts. The model is put in evaluation mode for the time of the call.
        batches: from `pivotune.data.ParallelCollator`. Positions count from each row's first token, so rows may be
            padded on either side. With more than `block` pairs, their order decides who is compared with whom:
            shuffle them.
        poolings: the vectors to measure: the mean over the question's tokens, the question's last token.
        block: pairs that are compared with each other, >= 2.
        cka_layers: layers 1..L to compute CKA at; None for all, () for none.
        device: where blocks and sums are kept and computed. It must know float64.

    Raises:
        PivotuneError: a wrong option, fewer than two pairs, or states that are not finite.
    """
    poolings = tuple(dict.fromkeys(poolings))
    for pooling in poolings:
        check_choice("poolings", pooling, get_args(Pooling))
    check_number("block", block, 2, whole=True)
    layers = range(1, anatomy.num_layers + 1)
    cka_at = set(layers if cka_layers is None else (anatomy.check_layer(n, "cka_layers") for n in cka_layers))
    statistics = {how: _PoolingStatistics(anatomy, block, cka_at, device) for how in poolings}
    pairs = without_english = 0
    with evaluating(anatomy.lm):
        for batch in batches:
            target, english = _prompts(batch)
            without_english += len(batch["input_ids"]) - len(target.input_ids)
            if not len(target.input_ids):
                continue
            pairs += len(target.input_ids)
            vectors = [_pooled(anatomy, side, poolings) for side in (target, english)]
            for how in poolings:
                statistics[how].add(vectors[0][how], vectors[1][how])
    if pairs < 2:
        raise PivotuneError(
            f"similarity: needs at least 2 examples with an English counterpart, and the data have {pairs} "
            f"({without_english} without one)."
        )
    return Similarity({how: statistics[how].result() for how in poolings}, pairs, min(pairs, block), without_english)


# All pairs of a block ------------------------------------------------------------------------------------------------


class PairStatistics(NamedTuple):
    """Per pair, what `compare_pairs` found: (n,) each; the last three are bool."""

    parallel: Tensor
    non_parallel: Tensor
    to_english: Tensor
    from_english: Tensor
    mexa: Tensor


def compare_pairs(x_Nd: Tensor, y_Nd: Tensor, count: int | None = None) -> PairStatistics:
    """Compare pairs with each other by cosine, in float64.

    With `S_ij = cos(x_i, y_j)`, for each of the first `count` pairs i (default: all), and j over the other N - 1:

        parallel       S_ii
        non_parallel   mean over j of S_ij and S_ji, 2 (N - 1) numbers
        to_english     S_ii > S_ij for all j
        from_english   S_ii > S_ji for all j
        mexa           both: S_ii > max_j max(S_ij, S_ji)

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


class PairBlocks:
    """Collects pairs and hands them on in blocks of `block`.

    The last pairs of the data rarely fill a block. They are handed on together with as many of the pairs before them
    as fill it, so that every pair is judged once and against the same number of others. Only where all the data are
    fewer than `block` pairs is the block smaller.

    Args:
        groups: how many vectors each text has, e.g. one per layer.
        size: d.
        block: pairs per block.
        use: called with x (G, N, d), y (G, N, d) and how many pairs, from the first, are new.
    """

    def __init__(
        self,
        groups: int,
        size: int,
        block: int,
        use: Callable[[Tensor, Tensor, int], None],
        device: torch.device | str = "cpu",
    ):
        self._shape, self._device, self._use = (2, groups, block, size), device, use
        self._kept: Tensor | None = None  # a ring: the newest `block` pairs
        self._new = 0  # of these, the first so many have not been handed on
        self._full = False

    def add(self, x_GNd: Tensor, y_GNd: Tensor) -> None:
        """Take in pairs: (G, N, d) each."""
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
                self._use(self._kept[0], self._kept[1], block)
                self._new, self._full = 0, True

    def finish(self) -> None:
        """Hand on what is left."""
        if self._new and self._kept is not None:
            x_GNd, y_GNd = self._kept if self._full else self._kept[:, :, : self._new]
            self._use(x_GNd, y_GNd, self._new)
        self._new = 0


# Linear CKA ----------------------------------------------------------------------------------------------------------


class LinearCKA:
    """Streaming linear CKA of two sets of vectors, row by row paired, in float64.

    With X and Y the (N, d) vectors minus their column means (Kornblith et al. 2019):

        CKA = ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F)

    Only X'X, Y'Y, X'Y and the means are kept, 3 d^2 + 2 d numbers. Rows are centred on their own batch before they are
    added, and the batches' means enter apart (Chan et al. 1979): far from the origin, where some features of language
    models lie, a sum of raw squares would lose the digits that matter.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(2, size, dtype=torch.float64, device=device)
        self.products = torch.zeros(3, size, size, dtype=torch.float64, device=device)  # X'X, Y'Y, X'Y

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

    def value(self) -> float:
        """CKA of all rows so far; NaN where the rows of a side are all the same."""
        xx, yy, xy = (float(product.square().sum()) for product in self.products)
        return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


# The passes ----------------------------------------------------------------------------------------------------------


def every_layer(anatomy: Anatomy, input_ids: Tensor, attention_mask: Tensor) -> dict[int, Tensor]:
    """The residual stream behind each layer 1..L, (B, T, d) each, of rows padded on either side."""
    device = next(anatomy.embed.parameters()).device
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    with Tap(anatomy, hidden=range(1, anatomy.num_layers + 1)) as tap:
        anatomy.decoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
    return tap.hidden


@dataclass
class _Prompts:
    """One side of a batch's pairs: N prompts, and the columns [start, end) of their questions."""

    input_ids: Tensor
    attention_mask: Tensor
    start: Tensor
    end: Tensor


def _prompts(batch: dict[str, Tensor]) -> tuple[_Prompts, _Prompts]:
    """The target and the English prompts of the pairs, in the same order."""
    paired = batch["pair_row"] >= 0
    rows = batch["pair_row"][paired]
    mask = batch["attention_mask"][rows]
    # The answer is left out: attention looks backward, so it could change nothing.
    mask = mask * (mask.cumsum(dim=1) <= batch["prompt_length"][rows][:, None])
    sides = (
        (batch["input_ids"][rows], mask, batch["question_start"][rows], batch["question_end"][rows]),
        tuple(
            batch[f"english_{name}"][paired]
            for name in ("input_ids", "attention_mask", "question_start", "question_end")
        ),
    )
    target, english = (_trimmed(*side) for side in sides)
    return target, english


def _trimmed(input_ids: Tensor, mask: Tensor, start: Tensor, end: Tensor) -> _Prompts:
    """Columns that are padding in every row left out; spans as columns."""
    used = mask.any(dim=0)
    input_ids, mask = input_ids[:, used], mask[:, used]
    first = mask.argmax(dim=1) if mask.shape[1] else start  # 0 unless padded on the left
    return _Prompts(input_ids, mask, first + start, first + end)


def _pooled(anatomy: Anatomy, prompts: _Prompts, poolings: Iterable[Pooling]) -> dict[str, Tensor]:
    """The questions' vectors at every layer: (L, N, d) per pooling, in float32 or better."""
    hidden = every_layer(anatomy, prompts.input_ids, prompts.attention_mask)
    device = hidden[1].device  # layers may lie on several
    found: dict[str, list[Tensor]] = {how: [] for how in poolings}
    for number in sorted(hidden):
        states_BTd = hidden.pop(number)
        states_BTd = states_BTd.to(torch.promote_types(states_BTd.dtype, torch.float32))
        start, end = prompts.start.to(states_BTd.device), prompts.end.to(states_BTd.device)
        for how in found:
            vectors = pool_span(states_BTd, start, end, how)
            if not vectors.isfinite().all():
                raise PivotuneError(
                    f"similarity: layer {number} has states that are not finite. If the model runs in float16, load it "
                    "in bfloat16 or float32."
                )
            found[how].append(vectors.to(device))
    return {how: torch.stack(vectors) for how, vectors in found.items()}


class _PoolingStatistics:
    """The running sums of one pooling, all layers."""

    def __init__(self, anatomy: Anatomy, block: int, cka_at: set[int], device: torch.device | str):
        layers, size = anatomy.num_layers, anatomy.hidden_size
        self.count = 0
        self.sums = torch.zeros(layers, len(PairStatistics._fields), dtype=torch.float64, device=device)
        self.cka = {number - 1: LinearCKA(size, device) for number in cka_at}
        self.blocks = PairBlocks(layers, size, block, self._use, device)

    def add(self, x_LNd: Tensor, y_LNd: Tensor) -> None:
        self.blocks.add(x_LNd, y_LNd)

    def _use(self, x_LNd: Tensor, y_LNd: Tensor, new: int) -> None:
        self.count += new
        for index, (x_Nd, y_Nd) in enumerate(zip(x_LNd, y_LNd, strict=True)):
            if x_LNd.shape[1] > 1:
                found = compare_pairs(x_Nd, y_Nd, new)
                self.sums[index] += torch.stack([values.double().sum() for values in found])
            if index in self.cka:
                self.cka[index].add(x_Nd[:new], y_Nd[:new])

    def result(self) -> PooledSimilarity:
        self.blocks.finish()
        means: dict[str, Any] = dict(zip(PairStatistics._fields, (self.sums / self.count).T.tolist(), strict=True))
        return PooledSimilarity(
            parallel=means["parallel"],
            non_parallel=means["non_parallel"],
            mexa=means["mexa"],
            retrieval_to_english=means["to_english"],
            retrieval_from_english=means["from_english"],
            cka=[self.cka[n].value() if n in self.cka else math.nan for n in range(len(self.sums))],
        )
