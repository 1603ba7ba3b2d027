"""How sure the model would be if it stopped at a layer: the entropy of the logit lens, layer by layer.

The lens at layer l is the distribution over the next token that the final norm and the output head read from `h_l`;
soft-cap and logit scale included, so that at layer L it is the model's own output. Its entropy, in nats, is averaged
over the tokens of a question, then over questions. All layers come from one forward pass. What is kept of an example is
one number per layer.

Shapes in names: N examples or tokens, L layers, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.errors import PivotuneError
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.taps import Tap, evaluating

logger = logging.getLogger(__name__)


def token_entropy(
    states_ND: Tensor,
    readout: Callable[[Tensor], Tensor],
    *,
    vocab_size: int,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """Entropy, in nats, of the distribution that `readout` reads from each state: (N,), in float32 or better.

    Args:
        states_ND: hidden states, one per row.
        readout: maps (n, D) to logits (n, V), e.g. `anatomy.frozen_lens`.
        vocab_size: V, which sets the rows per chunk.
        logits_per_chunk: how many logits to hold at a time.
    """
    found = []
    for chunk in states_ND.split(max(1, logits_per_chunk // vocab_size)):
        logits = readout(chunk)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1))
    return torch.cat(found)


def question_entropies(
    model: nn.Module, prompts: Iterable[Encoded], *, batch_size: int = 8, max_length: int = 512
) -> np.ndarray:
    """The mean entropy over each question's tokens, at every layer.

    Args:
        model: a causal LM that `pivotune.anatomy` knows. It is read in evaluation mode and left as it was.
        prompts: encoded prompts, in any number; they are read as they come.
        batch_size: prompts per forward pass.
        max_length: longer prompts are read up to this many tokens. Those whose question begins later are left out.
            Both are counted in a warning.

    Returns:
        (N, L) float64, row by row in the order of the prompts; column l-1 is layer l.

    Raises:
        PivotuneError: no prompt is left, or the model yields NaN.
    """
    anatomy = Anatomy(model)
    rows: list[np.ndarray] = []
    cut, left_out = 0, 0

    def fitting() -> Iterator[Encoded]:
        nonlocal cut, left_out
        for prompt in prompts:
            if prompt.question_start >= max_length:
                left_out += 1
                continue
            cut += prompt.question_end > max_length
            yield prompt

    remaining = fitting()
    with evaluating(model):
        while batch := list(islice(remaining, batch_size)):
            rows.append(_batch_entropies(anatomy, batch, max_length))
    if cut or left_out:
        logger.warning(
            "%d questions were read up to token %d only, and %d begin later and were left out; see max_length.",
            *(cut, max_length, left_out),
        )
    if not rows:
        raise PivotuneError("layers: there is no question to read.")
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        layer = int(np.nonzero(~np.isfinite(found).all(axis=0))[0][0]) + 1
        raise PivotuneError(f"layers: the entropy at layer {layer} is no number. Look at the model and its dtype.")
    return found


def _batch_entropies(anatomy: Anatomy, batch: list[Encoded], max_length: int) -> np.ndarray:
    """(B, L)."""
    device = next(anatomy.embed.parameters()).device
    ids_BT, mask_BT, question_BT = _right_padded(batch, max_length)
    layers = range(1, anatomy.num_layers + 1)
    with Tap(anatomy, hidden=layers) as tap:
        anatomy.decoder(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
    row_N, position_N = question_BT.nonzero(as_tuple=True)
    length_B = question_BT.sum(dim=1)
    found = []
    for layer in layers:
        hidden_BTD = tap.hidden.pop(layer)
        states_ND = hidden_BTD[row_N.to(hidden_BTD.device), position_N.to(hidden_BTD.device)]
        # A model spread over devices keeps its head where the last layer is.
        states_ND = states_ND.to(next(anatomy.norm.parameters()).device)
        entropy_N = token_entropy(states_ND, anatomy.frozen_lens, vocab_size=anatomy.vocab_size).cpu().double()
        found.append(torch.zeros(len(batch), dtype=torch.float64).index_add(0, row_N, entropy_N) / length_B)
    return torch.stack(found, dim=1).numpy()


def _right_padded(batch: list[Encoded], max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask, and which tokens are the question's: (B, T) each. Padding is token 0, masked."""
    width = min(max_length, max(len(prompt.prompt_ids) for prompt in batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, question = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(batch):
        kept = prompt.prompt_ids[:width]
        ids[row, : len(kept)] = torch.tensor(kept)
        mask[row, : len(kept)] = 1
        question[row, prompt.question_start : prompt.question_end] = True
    return ids, mask, question


@dataclass(frozen=True, eq=False)
class EntropyCurve:
    """The entropy of each layer over some questions.

    Attributes:
        values: (N, L) nats: the mean over each question's tokens.
    """

    values: np.ndarray

    @property
    def examples(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> np.ndarray:
        """(L,): the curve."""
        return self.values.mean(axis=0)

    @property
    def half_width(self) -> np.ndarray:
        """(L,): half the 95 % t interval of the mean over examples; NaN for a single example."""
        if self.examples < 2:
            return np.full(self.values.shape[1], np.nan)
        error = self.values.std(axis=0, ddof=1) / self.examples**0.5
        return stats.t.ppf(0.975, self.examples - 1) * error

    def as_dict(self) -> dict[str, Any]:
        """For JSON: layers 1..L in order."""
        mean, half = self.mean, self.half_width
        known = self.examples > 1
        return {
            "examples": self.examples,
            "mean": [round(float(x), 6) for x in mean],
            "low": [round(float(x), 6) for x in mean - half] if known else None,
            "high": [round(float(x), 6) for x in mean + half] if known else None,
        }
