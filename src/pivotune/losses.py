"""Pure tensor functions: the losses that the methods are made of.

Each loss is a SUM over its items, never a mean: the methods divide by a count taken over the whole accumulation window
and all ranks. Each has a plain reference in `tests/reference/`.

Shapes in names: B rows, T tokens, N items (tokens or pairs), D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Label of a position that carries no loss, as everywhere in transformers."""

LOGITS_PER_CHUNK = 2**25
"""Logits held at a time (128 MiB in float32): 128 tokens of a 256k vocabulary, 1,024 of a 32k one."""


def chunked_cross_entropy(
    hidden_ND: Tensor,
    targets_N: Tensor,
    readout: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor] = (),
    *,
    vocab_size: int,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """Summed cross-entropy of `readout(hidden)` against `targets`, without ever holding all (N, V) logits.

    Each chunk's gradient is taken while its logits are there, so nothing is recomputed: the cost is that of the plain
    loss, the memory that of one chunk.

    Args:
        hidden_ND: states to read, one row per target; drop positions without a target before calling.
        targets_N: token ids.
        readout: maps (n, D) to logits (n, V), e.g. `anatomy.logits` or `anatomy.frozen_lens`.
        parameters: the tensors inside `readout` that train; leave empty for a frozen readout.
        vocab_size: V, which sets the rows per chunk.
        logits_per_chunk: how many logits to hold at a time.

    Returns:
        The sum over N as a scalar, in float32 or better. When N is 0, a zero that is connected to `hidden` and the
        trained parameters, so that every rank has a gradient for them to reduce.
    """
    trained = tuple(p for p in parameters if p.requires_grad)
    if targets_N.numel() == 0:
        return sum((p.sum() * 0.0 for p in trained), hidden_ND.sum().to(at_least_float32(hidden_ND.dtype)) * 0.0)
    rows = max(1, logits_per_chunk // vocab_size)
    if not torch.is_grad_enabled():
        hidden_ND, trained = hidden_ND.detach(), ()
    return _ChunkedCrossEntropy.apply(hidden_ND, targets_N, readout, rows, *trained)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, readout: Callable[[Tensor], Tensor], rows: int, *parameters: Tensor
    ) -> Tensor:
        wanted = bool(parameters) or ctx.needs_input_grad[0]  # parameters come only where they train
        total = hidden.new_zeros((), dtype=at_least_float32(hidden.dtype))
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_parameters: list[Tensor | None] = [None] * len(parameters)
        several = hidden.shape[0] > rows
        for start in range(0, hidden.shape[0], rows):
            chunk = hidden[start : start + rows].detach().requires_grad_(grad_hidden is not None)
            with torch.set_grad_enabled(wanted):
                loss = _cross_entropy(readout(chunk), targets[start : start + rows], "sum")
            total += loss.detach()
            if not wanted:
                continue
            sources = [chunk, *parameters] if grad_hidden is not None else parameters
            grads = list(torch.autograd.grad(loss, sources))
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = grads.pop(0)
            for k, grad in enumerate(grads):
                # Sums over chunks in at least float32: a bfloat16 sum would lose the small chunks.
                grad = grad.to(at_least_float32(grad.dtype)) if several else grad
                before = grad_parameters[k]
                grad_parameters[k] = grad if before is None else before.add_(grad)
        ctx.save_for_backward(grad_hidden, *grad_parameters)
        ctx.dtypes = [p.dtype for p in parameters]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *grad_parameters = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * upstream.to(grad_hidden.dtype)
        scaled = [
            None if g is None else (g * upstream.to(g.dtype)).to(dtype)
            for g, dtype in zip(grad_parameters, ctx.dtypes, strict=True)
        ]
        return grad_hidden, None, None, None, *scaled


@torch.no_grad()
def chunked_token_nats(
    hidden_ND: Tensor,
    targets_N: Tensor,
    readout: Callable[[Tensor], Tensor],
    *,
    vocab_size: int,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """What `chunked_cross_entropy` sums, token by token: `-log P(target)` in nats, (N,), without gradient.

    For looking, not for training. Arguments as there.

    Returns:
        (N,) in float32 or better.
    """
    rows = max(1, logits_per_chunk // vocab_size)
    chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([_cross_entropy(readout(states), targets, "none") for states, targets in chunks])


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(logits.to(at_least_float32(logits.dtype)), targets, reduction=reduction)


def cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """`cos(a, b)` row by row: (N,), in float32 or better."""
    dtype = at_least_float32(a_ND.dtype)
    return F.cosine_similarity(a_ND.to(dtype), b_ND.to(dtype), dim=-1)


def cosine_distance(a_ND: Tensor, b_ND: Tensor, keep_N: Tensor) -> Tensor:
    """Sum over the kept rows of `1 - cos(a, b)` (DFT, relaxed signal), in float32 or better.

    Args:
        a_ND, b_ND: vectors, row by row.
        keep_N: bool; rows that are False add nothing, whatever they hold.
    """
    return torch.where(keep_N, 1.0 - cosine(a_ND, b_ND), 0.0).sum()


def contrastive(a_ND: Tensor, b_ND: Tensor, keep_N: Tensor, temperature: float) -> Tensor:
    """Sum over the kept rows n of `-log softmax_m(cos(a_n, b_m) / T)[m = n]`: InfoNCE, each row's own b against those
    of the other kept rows (van den Oord et al. 2018, arXiv 1807.03748), in float32 or better.

    A row alone has nothing to be told from, and adds 0.

    Args:
        a_ND, b_ND: vectors, row by row.
        keep_N: bool; rows that are False add nothing and are nobody's negatives, whatever they hold.
        temperature: T > 0; the lower, the more the nearest wrong row counts.
    """
    dtype = at_least_float32(a_ND.dtype)
    # Left out before any arithmetic: a row of zeros or infinities has a gradient of NaN even where it is masked.
    a_KD, b_KD = F.normalize(a_ND[keep_N].to(dtype), dim=-1), F.normalize(b_ND[keep_N].to(dtype), dim=-1)
    own_K = torch.arange(len(a_KD), device=a_KD.device)
    return F.cross_entropy(a_KD @ b_KD.T / temperature, own_K, reduction="sum")


def pool_span(hidden_BTD: Tensor, start_B: Tensor, end_B: Tensor, how: str) -> Tensor:
    """One vector per row for the tokens [start, end): their `mean`, or the `last_token`. Returns (B, D)."""
    if how == "last_token":
        return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device), end_B - 1]
    position_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
    inside_BT = (position_T >= start_B[:, None]) & (position_T < end_B[:, None])
    total = torch.where(inside_BT[..., None], hidden_BTD, 0.0).sum(dim=1)
    return total / (end_B - start_B)[:, None].to(total.dtype)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What sums of such numbers are kept in."""
    return torch.promote_types(dtype, torch.float32)
