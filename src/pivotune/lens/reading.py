"""A batch of questions and their English counterparts, read once by the model: what every measure of the lens looks at.

One forward pass over the target-language side (prompt and answer; attention looks backward, so the answer changes
nothing before it) and one over the English prompts give the states behind every layer. Entropy, the language of each
layer, similarity and projections are all read off these; memory is that of one batch.

Shapes in names: N pairs, T tokens, L layers, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelCollator, ParallelExample, PromptEncoder, Report
from pivotune.data.tokenize import tokenize_stream
from pivotune.lens.estimates import Tables
from pivotune.losses import pool_span
from pivotune.taps import Tap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]


@dataclass
class Side:
    """One language's half of a batch.

    Attributes:
        input_ids, attention_mask: (N, T), right-padded.
        hidden: layer 1..L -> (N, T, d), the residual stream behind it. Layers may lie on several devices.
        start, end: (N,) the question's tokens are [start, end).
        last: (N,) the prompt's last token, which predicts the answer's first one.
        feed_forward: (N, L, d) each layer's feed-forward output at `last`; None unless asked for.
    """

    input_ids: Tensor
    attention_mask: Tensor
    hidden: dict[int, Tensor]
    start: Tensor
    end: Tensor
    last: Tensor
    feed_forward: Tensor | None = None

    def pooled(self, layer: int, how: str) -> Tensor:
        """The questions' vectors at a layer, (N, d) in float32 or better: `mean` over the tokens, or `last_token`."""
        states_NTd = self.hidden[layer]
        states_NTd = states_NTd.to(torch.promote_types(states_NTd.dtype, torch.float32))
        start, end = self.start.to(states_NTd.device), self.end.to(states_NTd.device)
        return pool_span(states_NTd, start, end, how)

    def at(self, layer: int, position_N: Tensor) -> Tensor:
        """The states at one token of each row: (N, d)."""
        states_NTd = self.hidden[layer]
        row = torch.arange(len(states_NTd), device=states_NTd.device)
        return states_NTd[row, position_N.to(states_NTd.device)]


@dataclass
class Reading:
    """A batch of N pairs and what the model made of it.

    Attributes:
        examples: the pairs; `example.english` is never None. Answers may be empty.
        batch: as `pivotune.data.ParallelCollator` makes it, on the model's device; pair_row is 0..N-1.
        target, english: the two sides. The target side runs over prompt and answer, the English one over the prompt.
    """

    examples: Sequence[ParallelExample]
    batch: Batch
    target: Side
    english: Side


class Measure(Protocol):
    """What looks at readings, one language of one model at a time.

    `add` and `finish` return tables of one row per example, in the order of the examples (those that the measure has to
    leave out, left out); a measure that compares examples with each other may hand rows on later than they came.
    `summary` holds what is no mean over examples.
    """

    def add(self, reading: Reading) -> Tables: ...

    def finish(self) -> Tables: ...

    def summary(self) -> dict[str, Any]: ...


def read(anatomy: Anatomy, examples: Sequence[ParallelExample], batch: Batch, *, feed_forward: bool = False) -> Reading:
    """Run both sides of a batch through all layers.

    Args:
        anatomy: the model's parts; in evaluation mode and without gradient (`pivotune.taps.evaluating`).
        examples: the batch's examples, all with an English counterpart.
        batch: of them, from a `ParallelCollator`.
        feed_forward: keep the feed-forward outputs at the last prompt token too.
    """
    device = next(anatomy.embed.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    target = _side(
        anatomy,
        batch["input_ids"],
        batch["attention_mask"],
        (batch["question_start"], batch["question_end"], batch["prompt_length"] - 1),
        feed_forward,
    )
    mask = batch["english_attention_mask"]
    english = _side(
        anatomy,
        batch["english_input_ids"],
        mask,
        (batch["english_question_start"], batch["english_question_end"], mask.sum(dim=1) - 1),
        feed_forward,
    )
    return Reading(examples, batch, target, english)


def _side(
    anatomy: Anatomy, input_ids: Tensor, mask: Tensor, places: tuple[Tensor, Tensor, Tensor], feed_forward: bool
) -> Side:
    start, end, last = places
    layers = range(1, anatomy.num_layers + 1)
    with Tap(anatomy, hidden=layers, feed_forward_at=last if feed_forward else None) as tap:
        anatomy.decoder(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return Side(input_ids, mask, tap.hidden, start, end, last, tap.feed_forward() if feed_forward else None)


@dataclass
class PairStream:
    """Examples as batches of pairs, one language at a time within a batch, whatever their order.

    Memory: at most `batch_size` examples per language, and what the tokenizer takes at once.

    Args:
        tokenizer, style: as in training.
        batch_size: pairs per batch.
        max_length: tokens of one side; pairs with a longer prompt are left out and counted, longer answers are cut.

    Attributes:
        report: how many were kept; over-long ones by place.
        without_english: examples left out because they have no English counterpart (English ones among them).
    """

    tokenizer: PreTrainedTokenizerBase
    style: str = "auto"
    batch_size: int = 8
    max_length: int = 512
    report: Report = field(default_factory=Report)
    without_english: int = 0

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
