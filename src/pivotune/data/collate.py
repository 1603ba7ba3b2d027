"""Tokenised examples to one padded batch that keeps each English row tied to its example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pivotune.losses import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]
"""As `ParallelCollator` makes it."""

Side = Literal["right", "left"]


@dataclass(frozen=True)
class ParallelCollator:
    """Pads rows of `tokenize_examples` on the right.

    B examples, T longest target; P >= 1 English rows, S longest English prompt, A longest English answer. All
    tensors are long:

        input_ids (B, T)               prompt and answer
        attention_mask (B, T)          1 on tokens, 0 on padding
        labels (B, T)                  the answer's ids, -100 elsewhere
        prompt_length (B,)             the last prompt token is at prompt_length - 1
        question_start, question_end (B,)   token span of the question within the prompt
        pair_row (P,)                  the row of the batch each English row belongs to, increasing; or [-1]
        english_input_ids (P, S)       the English PROMPT alone
        english_attention_mask (P, S)
        english_question_start, english_question_end (P,)
        english_answer_ids (P, A)      padded with -100

    When no example has English, pair_row is [-1] and one dummy row of a single token, without an answer, stands in
    for it: every rank then runs the same passes of the model, as sharded training needs.

    Args:
        pad_token_id: any id will do, for the attention mask and the labels leave the padding out.
    """

    pad_token_id: int

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ParallelCollator:
        """Pad with the tokenizer's pad token or, as many base models have none, its EOS token."""
        return cls(padding_id(tokenizer))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        pairs = [index for index, row in enumerate(rows) if row["english_prompt_ids"] is not None]
        english = [rows[index] for index in pairs] or [_dummy(rows[0])]
        english_answers = [row["english_answer_ids"] for row in english]
        inputs = [row["input_ids"] for row in rows]
        labels = [[IGNORE] * row["prompt_length"] + list(row["input_ids"][row["prompt_length"] :]) for row in rows]
        prompts = [row["english_prompt_ids"] for row in english]
        return {
            "input_ids": padded(inputs, self.pad_token_id),
            "attention_mask": padded([[1] * len(ids) for ids in inputs], 0),
            "labels": padded(labels, IGNORE),
            "prompt_length": _column(rows, "prompt_length"),
            "question_start": _column(rows, "question_start"),
            "question_end": _column(rows, "question_end"),
            "pair_row": torch.tensor(pairs or [-1]),
            "english_input_ids": padded(prompts, self.pad_token_id),
            "english_attention_mask": padded([[1] * len(ids) for ids in prompts], 0),
            "english_question_start": _column(english, "english_question_start"),
            "english_question_end": _column(english, "english_question_end"),
            "english_answer_ids": padded(english_answers, IGNORE),
        }


def pair_rows(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For each English row: the example it belongs to (0 for the stand-in), and whether it is a pair. (P,) each."""
    return batch["pair_row"].clamp(min=0), batch["pair_row"] >= 0


def padding_id(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> int:
    """The pad token, else the EOS token, else any: the attention mask hides it.

    Args:
        rows: of the embedding table, which has to have one for it.
    """
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(one) for one in choices if one is not None and (rows is None or one < rows)), 0)


def _dummy(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "english_prompt_ids": list(row["input_ids"][:1]),
        "english_question_start": 0,
        "english_question_end": 1,
        "english_answer_ids": [IGNORE],
    }


def padded(rows: Sequence[Sequence[int]], value: int, side: Side = "right") -> Tensor:
    """(number of rows, longest row) long."""
    longest = max(len(row) for row in rows)
    fill = [[value] * (longest - len(row)) for row in rows]
    both = ([*row, *more] if side == "right" else [*more, *row] for row, more in zip(rows, fill, strict=True))
    return torch.tensor(list(both), dtype=torch.long)


def padded_ids(
    rows: Sequence[Sequence[int]], value: int, side: Side = "right", device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids and their attention mask, both as `padded`."""
    mask = padded([[1] * len(row) for row in rows], 0, side)
    return padded(rows, value, side).to(device), mask.to(device)


def last_token(attention_mask_BT: Tensor) -> Tensor:
    """(B,) position of the last real token of each row, padded on either side."""
    position_T = torch.arange(1, attention_mask_BT.shape[1] + 1, device=attention_mask_BT.device)
    return (attention_mask_BT * position_T).argmax(dim=1)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows], dtype=torch.long)
