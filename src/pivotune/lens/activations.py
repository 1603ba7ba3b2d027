"""A batch of questions and their English counterparts, read once by the model: what every measure of the lens looks at.

One forward pass over the target-language side (prompt and answer; attention looks backward, so the answer changes
nothing before it) and one over the English prompts give the states behind every layer. Entropy, the language of each
layer, similarity and projections are all read off these; memory is that of one batch.

Shapes in names: N pairs, T tokens, L layers, d hidden size, K tokens or n states looked at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import Batch, ParallelCollator, ParallelExample, PromptEncoder, Report
from pivotune.data.collate import last_token
from pivotune.data.tokenize import tokenize_stream
from pivotune.errors import check_number
from pivotune.losses import LOGITS_PER_CHUNK, pool_span
from pivotune.taps import Tap, evaluating
from pivotune.tokens import check_ids, rows_of
from pivotune.uncertainty import RunningMean, Tables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pivotune.lens.tuned import TunedLens


@dataclass
class Activations:
    """One language's half of a batch.

    Attributes:
        input_ids, attention_mask: (N, T), right-padded.
        hidden: layer 1..L -> (N, T, d), the residual stream behind it. Layers may lie on several devices.
        start, end: (N,) the question's tokens are [start, end).
        last: (N,) the prompt's last token, which predicts the answer's first one.
        feed_forward: (N, L, d) each layer's feed-forward output at `last`; None unless asked for.
        tuned: maps the states that the lens reads; None for the logit lens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    hidden: dict[int, Tensor]
    start: Tensor
    end: Tensor
    last: Tensor
    feed_forward: Tensor | None = None
    tuned: TunedLens | None = None

    def pooled(self, layer: int, how: str) -> Tensor:
        """The questions' vectors at a layer, (N, d) in float32 or better: `mean` over the tokens, or `last_token`."""
        states_NTd = self.hidden[layer]
        states_NTd = states_NTd.to(torch.promote_types(states_NTd.dtype, torch.float32))
        start, end = self.start.to(states_NTd.device), self.end.to(states_NTd.device)
        return pool_span(states_NTd, start, end, how)

    def at(self, layer: int, position_K: Tensor, row_K: Tensor | None = None) -> Tensor:
        """What the lens reads at one token of each row, or at the tokens `position_K` of the rows `row_K`: (K, d)."""
        states_NTd = self.hidden[layer]
        row_K = torch.arange(len(states_NTd)) if row_K is None else row_K
        states_Kd = states_NTd[row_K.to(states_NTd.device), position_K.to(states_NTd.device)]
        return states_Kd if self.tuned is None else self.tuned.mapped(layer, states_Kd)


@dataclass
class PairActivations:
    """A batch of N pairs and what the model made of it.

    Attributes:
        examples: the pairs; `example.english` is never None. Answers may be empty.
        batch: as `pivotune.data.ParallelCollator` makes it, on the model's device; pair_row is 0..N-1.
        target, english: the two sides. The target side runs over prompt and answer, the English one over the prompt.
    """

    examples: Sequence[ParallelExample]
    batch: Batch
    target: Activations
    english: Activations


class Measure(Protocol):
    """What looks at the activations of pairs, one language of one model at a time.

    `add` and `finish` return tables of one row per example, in the order of the examples (those that the measure has to
    leave out, left out); a measure that compares examples with each other may hand rows on later than they came.
    `summary` holds what is no mean over examples.
    """

    def add(self, activations: PairActivations) -> Tables: ...

    def finish(self) -> Tables: ...

    def summary(self) -> dict[str, Any]: ...


def read(
    anatomy: Anatomy,
    examples: Sequence[ParallelExample],
    batch: Batch,
    *,
    feed_forward: bool = False,
    tuned: TunedLens | None = None,
) -> PairActivations:
    """Run both sides of a batch through all layers.

    Args:
        anatomy: the model's parts; in evaluation mode and without gradient (`pivotune.taps.evaluating`).
        examples: the batch's examples, all with an English counterpart.
        batch: of them, from a `ParallelCollator`.
        feed_forward: keep the feed-forward outputs at the last prompt token too.
        tuned: what the lens reads with; the logit lens where None.
    """
    device = next(anatomy.embed.parameters()).device
    for ids, one in zip((batch["input_ids"], batch["english_input_ids"]), ("data", "data, English"), strict=True):
        check_ids(rows_of(anatomy.lm), ids.unique().tolist(), one)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    target = read_side(
        anatomy,
        batch["input_ids"],
        batch["attention_mask"],
        (batch["question_start"], batch["question_end"], batch["prompt_length"] - 1),
        feed_forward=feed_forward,
    )
    mask = batch["english_attention_mask"]
    english = read_side(
        anatomy,
        batch["english_input_ids"],
        mask,
        (batch["english_question_start"], batch["english_question_end"], last_token(mask)),
        feed_forward=feed_forward,
    )
    target.tuned = english.tuned = tuned
    return PairActivations(examples, batch, target, english)


def read_side(
    anatomy: Anatomy,
    input_ids: Tensor,
    attention_mask: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    *,
    feed_forward: bool = False,
) -> Activations:
    """One pass over right-padded rows (N, T), on the model's device; `places`: start, end and last of `Activations`."""
    start, end, last = places
    layers = range(1, anatomy.num_layers + 1)
    with Tap(anatomy, hidden=layers, at=last if feed_forward else None) as tap:
        anatomy.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    lent = tap.states("feed_forward") if feed_forward else None
    return Activations(input_ids, attention_mask, tap.hidden, start, end, last, lent)


def lens_logits(
    anatomy: Anatomy, states_nd: Tensor, *, final_norm: bool = True, logits_per_chunk: int = LOGITS_PER_CHUNK
) -> Iterator[Tensor]:
    """What the logit lens (`Anatomy.frozen_lens`) reads from n states, in chunks of rows: (.., V) in float32 or better.

    At most `logits_per_chunk` logits, but at least one row of them, are held at a time.
    """
    device = next(anatomy.head.parameters()).device  # a model may be spread over several
    for chunk in states_nd.split(max(1, logits_per_chunk // anatomy.vocab_size)):
        logits = anatomy.frozen_lens(chunk.to(device), final_norm=final_norm)
        yield logits.to(torch.promote_types(logits.dtype, torch.float32))


def draw_tokens(row_K: Tensor, most: int | None, draw: torch.Generator | None = None) -> Tensor:
    """Which of K tokens to look at: at most so many of each row, drawn at random, in order; all where None.

    Args:
        row_K: the row that each token is of, in increasing order, on the CPU.
    """
    if most is None:
        return torch.arange(len(row_K))
    shuffled = torch.randperm(len(row_K), generator=draw)
    order = shuffled[row_K[shuffled].argsort(stable=True)]  # row by row, at random inside
    first_K = torch.searchsorted(row_K, row_K)
    return order[torch.arange(len(order)) - first_K < most].sort().values


def run_measure(
    anatomy: Anatomy, measure: Measure, stream: PairStream, examples: Iterable[ParallelExample]
) -> dict[str, RunningMean]:
    """One measure over all examples, whatever their languages: the mean of each of its tables."""
    means: dict[str, RunningMean] = {}

    def take_in(tables: Tables) -> None:
        for name, table in tables.items():
            means.setdefault(name, RunningMean()).add(table)

    with evaluating(anatomy.lm):
        for _, chosen, batch in stream.batches(examples):
            take_in(measure.add(read(anatomy, chosen, batch)))
        take_in(measure.finish())
    return means


@dataclass
class PairStream:
    """Examples as batches of pairs, one language at a time within a batch, whatever their order.

    Memory: at most `batch_size` examples per language, and what the tokenizer takes at once.

    Args:
        tokenizer, style: as in training.
        batch_size: pairs per batch.
        max_length: tokens of one side. Pairs of which either prompt leaves no room for an answer token are left out and
            counted; longer answers are cut.

    Attributes:
        report: how many were kept; over-long ones by place.
        without_english: examples left out because they have no English counterpart (English ones among them).

    Raises:
        PivotuneError: a wrong option.
    """

    tokenizer: PreTrainedTokenizerBase
    style: str = "auto"
    batch_size: int = 8
    max_length: int = 512
    report: Report = field(default_factory=Report)
    without_english: int = 0

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("max_length", self.max_length, 2, whole=True)

    @property
    def skipped(self) -> dict[str, int]:
        """How many examples were left out so far, by reason."""
        return ({"without English": self.without_english} if self.without_english else {}) | dict(self.report.skipped)

    def batches(self, examples: Iterable[ParallelExample]) -> Iterator[tuple[str, list[ParallelExample], Batch]]:
        """(language, examples, batch) as they fill; the remainders at the end."""
        collator = ParallelCollator.for_tokenizer(self.tokenizer)
        waiting: dict[str, list[tuple[ParallelExample, Mapping[str, Any]]]] = {}

        def made(language: str) -> tuple[str, list[ParallelExample], Batch]:
            chosen = waiting.pop(language)
            return language, [example for example, _ in chosen], collator([row for _, row in chosen])

        encoder = PromptEncoder(self.tokenizer, self.style)
        for example, row in tokenize_stream(self._pairs(examples), encoder, self.max_length, "skip", self.report):
            waiting.setdefault(example.language, []).append((example, row))
            if len(waiting[example.language]) == self.batch_size:
                yield made(example.language)
        for language in sorted(waiting):
            yield made(language)

    def _pairs(self, examples: Iterable[ParallelExample]) -> Iterator[ParallelExample]:
        for example in examples:
            if example.english is None:
                self.without_english += 1
            else:
                yield example
