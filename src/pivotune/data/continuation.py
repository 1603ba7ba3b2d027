"""Teacher forcing: target prompts, each followed by its English text."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pivotune.data.collate import Batch, pair_rows
from pivotune.losses import IGNORE


class Continuation(NamedTuple):
    """Target prompts, each followed by its English tokens: what teacher forcing runs and reads (N tokens in all).

    `input_ids`, `attention_mask`: (P, W), right-padded. `pair`, `position`, `token`: (N,) each; the state of row `pair`
    at `position` is the one that predicts `token`. Rows that are no pair have no tokens here.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pair: Tensor
    position: Tensor
    token: Tensor


def continue_in_english(batch: Batch, english_PK: Tensor) -> Continuation:
    """Each row's target prompt followed by these English tokens, (P, K) padded behind with -100."""
    rows, is_pair = pair_rows(batch)
    if not english_PK.shape[1]:  # answers of a batch that has none
        english_PK = english_PK.new_full((len(rows), 1), IGNORE)
    prompt_P1 = batch["prompt_length"][rows][:, None]
    english_length_P1 = (english_PK != IGNORE).sum(dim=1, keepdim=True)
    width = int((prompt_P1 + english_length_P1).max())
    position_1W = torch.arange(width, device=english_PK.device)[None, :]
    prompt_PW = batch["input_ids"][rows].gather(
        1, position_1W.clamp(max=batch["input_ids"].shape[1] - 1).expand(len(rows), -1)
    )
    continued_PW = english_PK.gather(1, (position_1W - prompt_P1).clamp(0, english_PK.shape[1] - 1))
    mask_PW = position_1W < prompt_P1 + english_length_P1
    ids_PW = torch.where(position_1W < prompt_P1, prompt_PW, continued_PW)
    ids_PW = torch.where(mask_PW, ids_PW, 0)  # token 0 stands for padding; the mask hides it
    pair, k = ((english_PK != IGNORE) & is_pair[:, None]).nonzero(as_tuple=True)
    return Continuation(ids_PW, mask_PW.long(), pair, prompt_P1[pair, 0] - 1 + k, english_PK[pair, k])


def english_question(batch: Batch) -> Tensor:
    """The tokens of each English question without its template: (P, K), padded with -100."""
    start, end = batch["english_question_start"][:, None], batch["english_question_end"][:, None]
    position_PK = start + torch.arange(int((end - start).max()), device=start.device)
    ids_PK = batch["english_input_ids"].gather(1, position_PK.clamp(max=batch["english_input_ids"].shape[1] - 1))
    return torch.where(position_PK < end, ids_PK, IGNORE)
