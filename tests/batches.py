"""Random batches in the form that every method takes, and slices of them.

A batch is a dict of right-padded tensors (B examples, T target tokens, P English rows, S English prompt tokens, A
English answer tokens):

    input_ids, attention_mask, labels   (B, T)   prompt and answer; labels are -100 outside the answer
    prompt_length                       (B,)     the last prompt token is at prompt_length - 1
    question_start, question_end        (B,)     the question is [start, end) within the prompt
    pair_row                            (P,)     the example that each English row belongs to, or -1 for a dummy row
    english_input_ids, english_attention_mask    (P, S)   the English prompt alone
    english_question_start, english_question_end (P,)
    english_answer_ids                  (P, A)   padded with -100
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.families import VOCAB

IGNORE = -100
FIRST_ORDINARY_TOKEN = 3  # 0, 1, 2 are padding, begin and end of text


@dataclass
class Text:
    """A prompt with a question inside, and its answer, in one language. Token ids as lists."""

    prompt: list[int]
    question: tuple[int, int]
    answer: list[int]


@dataclass
class Example:
    target: Text
    english: Text | None


def random_batch(
    seed: int = 0, english: Sequence[bool] = (True, False, True, True), *, pad: int = 0, extra: int = 0
) -> dict[str, Tensor]:
    """Ragged rows; `english` says which have English. `pad` fills and `extra` more columns change nothing."""
    return collate(random_examples(seed, english), pad=pad, extra=extra)


def random_examples(seed: int, english: Sequence[bool]) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Example(_random_text(draw, prompt=(8, 13), answer=(3, 7)), _random_text(draw, prompt=(7, 12), answer=(2, 8)))
        if has_english
        else Example(_random_text(draw, prompt=(8, 13), answer=(3, 7)), None)
        for has_english in english
    ]


def collate(examples: Sequence[Example], *, pad: int = 0, extra: int = 0) -> dict[str, Tensor]:
    targets = [e.target for e in examples]
    pairs = [(row, e.english) for row, e in enumerate(examples) if e.english is not None]
    if not pairs:
        pairs = [(-1, Text(prompt=[FIRST_ORDINARY_TOKEN], question=(0, 1), answer=[]))]
    english = [text for _, text in pairs]
    no_answer = not any(text.answer for text in english)
    return {
        "input_ids": _padded([t.prompt + t.answer for t in targets], pad, extra),
        "attention_mask": _padded([[1] * len(t.prompt + t.answer) for t in targets], 0, extra),
        "labels": _padded([[IGNORE] * len(t.prompt) + t.answer for t in targets], IGNORE, extra),
        "prompt_length": torch.tensor([len(t.prompt) for t in targets]),
        "question_start": torch.tensor([t.question[0] for t in targets]),
        "question_end": torch.tensor([t.question[1] for t in targets]),
        "pair_row": torch.tensor([row for row, _ in pairs]),
        "english_input_ids": _padded([t.prompt for t in english], pad, extra),
        "english_attention_mask": _padded([[1] * len(t.prompt) for t in english], 0, extra),
        "english_question_start": torch.tensor([t.question[0] for t in english]),
        "english_question_end": torch.tensor([t.question[1] for t in english]),
        "english_answer_ids": _padded([t.answer for t in english], IGNORE, max(extra, no_answer)),
    }


def examples_of(batch: dict[str, Tensor]) -> list[Example]:
    """The inverse of `collate`: every row alone, cut to its own length."""
    english_of: dict[int, Text] = {}
    for p, row in enumerate(batch["pair_row"].tolist()):
        if row >= 0:
            english_of[row] = Text(
                prompt=_cut(batch["english_input_ids"][p], batch["english_attention_mask"][p]),
                question=(int(batch["english_question_start"][p]), int(batch["english_question_end"][p])),
                answer=[token for token in batch["english_answer_ids"][p].tolist() if token != IGNORE],
            )
    examples = []
    for b in range(len(batch["input_ids"])):
        tokens, length = _cut(batch["input_ids"][b], batch["attention_mask"][b]), int(batch["prompt_length"][b])
        question = (int(batch["question_start"][b]), int(batch["question_end"][b]))
        examples.append(Example(Text(tokens[:length], question, tokens[length:]), english_of.get(b)))
    return examples


def select(batch: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """These rows as a batch of their own, padded anew. Masked labels stay masked."""
    examples = examples_of(batch)
    part = collate([examples[row] for row in rows])
    width = part["labels"].shape[1]
    part["labels"] = torch.stack([batch["labels"][row, :width] for row in rows])
    return part


def singles(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [select(batch, [row]) for row in range(len(batch["input_ids"]))]


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with every label masked."""
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}


def _random_text(draw: torch.Generator, prompt: tuple[int, int], answer: tuple[int, int]) -> Text:
    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    def tokens(n: int) -> list[int]:
        return torch.randint(FIRST_ORDINARY_TOKEN, VOCAB, (n,), generator=draw).tolist()

    length = between(*prompt)
    # A template in front of the question and one behind it, either of which may be absent.
    start, behind = between(0, 2), between(0, 2)
    return Text(tokens(length), (start, length - behind), tokens(between(*answer)))


def _padded(rows: Sequence[Sequence[int]], fill: int, extra: int) -> Tensor:
    width = max(len(row) for row in rows) + extra
    return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=torch.long)


def _cut(ids: Tensor, mask: Tensor) -> list[int]:
    return ids[mask.bool()].tolist()
