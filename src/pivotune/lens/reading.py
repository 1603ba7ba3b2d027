"""How well English can be read from a layer: nats per token of the English question and answer.

The text is read by teacher forcing: the target prompt, then the English tokens, each predicted from the state before it
(`pivotune.data.continuation`). Guessing among V tokens costs ln V nats.

Shapes in names: P pairs, K English tokens, n tokens of all pairs, L layers, d hidden size, W longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data.collate import Batch
from pivotune.data.continuation import continue_in_english
from pivotune.lens.activations import draw_tokens
from pivotune.losses import IGNORE, LOGITS_PER_CHUNK, chunked_token_nats
from pivotune.taps import Tap

Reader = Callable[[int, Tensor], Tensor]
"""Logits (n, V) from the states (n, d) of a layer."""


@torch.no_grad()
def english_nats(
    anatomy: Anatomy,
    batch: Batch,
    english_PK: Tensor,
    layers: Sequence[int],
    *,
    reader: Reader | None = None,
    tokens: int | None = None,
    draw: torch.Generator | None = None,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """Nats per English token behind the target prompt, at each layer: (P, L), float64 on the CPU; NaN without any.

    Args:
        anatomy: the model's parts; in evaluation mode (`pivotune.taps.evaluating`).
        batch: of a `ParallelCollator`, on the model's device.
        english_PK: the English tokens, padded behind with -100.
        layers: of 1..L, in increasing order.
        reader: reads a layer; the logit lens where None.
        tokens: how many tokens of each text to read, drawn at random; all where None. The mean is over these.
        draw: what draws them.
        logits_per_chunk: how many logits to hold at a time.
    """
    text = continue_in_english(batch, english_PK)
    kept = draw_tokens(text.pair.cpu(), tokens, draw)
    pair_n, position_n, token_n = (one.cpu()[kept] for one in (text.pair, text.position, text.token))
    with anatomy.truncated(max(layers)), Tap(anatomy, hidden=layers) as tap:
        anatomy.decoder(input_ids=text.input_ids, attention_mask=text.attention_mask, use_cache=False)
    device = next(anatomy.head.parameters()).device  # a model may be spread over several
    token_n = token_n.to(device)
    sums_LP = torch.zeros(len(layers), len(english_PK), dtype=torch.float64)
    for layer, sums_P in zip(layers, sums_LP, strict=True):
        hidden_PWd = tap.hidden.pop(layer)
        states_nd = hidden_PWd[pair_n.to(hidden_PWd.device), position_n.to(hidden_PWd.device)].to(device)
        read = anatomy.frozen_lens if reader is None else _at(reader, layer)
        nats_n = chunked_token_nats(
            states_nd, token_n, read, vocab_size=anatomy.vocab_size, logits_per_chunk=logits_per_chunk
        )
        sums_P.index_add_(0, pair_n, nats_n.cpu().double())
    return sums_LP.T / torch.bincount(pair_n, minlength=len(english_PK))[:, None]


def _at(reader: Reader, layer: int) -> Callable[[Tensor], Tensor]:
    return lambda states_nd: reader(layer, states_nd)


def has_tokens(english_PK: Tensor) -> Tensor:
    """(P,) bool, on the CPU: which rows have an English text at all."""
    return (english_PK != IGNORE).any(dim=1).cpu()
