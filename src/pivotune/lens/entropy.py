"""How sure the model would be if it stopped at a layer: the entropy of the logit lens, layer by layer.

The lens at layer l is the distribution over the next token that the final norm and the output head read from `h_l`;
soft-cap and logit scale included, so that at layer L it is the model's own output. Its entropy, in nats, is averaged
over the tokens of a question, then over questions. All layers come from one forward pass. What is kept of an example is
one number per layer.

Shapes in names: N examples, K question tokens, T tokens, L layers, d hidden size, n rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.data.collate import padded_ids
from pivotune.errors import PivotuneError
from pivotune.lens.activations import Activations, PairActivations, lens_logits, read_side
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.taps import evaluating
from pivotune.tokens import check_ids, rows_of
from pivotune.uncertainty import Tables

logger = logging.getLogger(__name__)


class EntropyMeasure:
    """The entropy of each layer on both sides of a pair (a `pivotune.lens.activations.Measure`).

    Its tables are "target" and "english": (N, L) nats, the mean over each question's tokens.

    Raises:
        PivotuneError: from `add`, where the model yields NaN.
    """

    def __init__(self, anatomy: Anatomy):
        self._anatomy = anatomy

    def add(self, activations: PairActivations) -> Tables:
        sides = {"target": activations.target, "english": activations.english}
        return {name: side_entropies(self._anatomy, side) for name, side in sides.items()}

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        return {}


def side_entropies(anatomy: Anatomy, side: Activations, *, logits_per_chunk: int = LOGITS_PER_CHUNK) -> Tensor:
    """The mean entropy over each question's tokens, at every layer: (N, L) nats, float64 on the CPU.

    Args:
        anatomy: the model's parts.
        side: what the model made of N prompts.
        logits_per_chunk: how many logits to hold at a time.

    Raises:
        PivotuneError: the model yields NaN.
    """
    start_N, end_N = side.start.cpu(), side.end.cpu()
    position_T = torch.arange(side.input_ids.shape[1])
    row_K, position_K = ((position_T >= start_N[:, None]) & (position_T < end_N[:, None])).nonzero(as_tuple=True)
    layers = []
    for layer in sorted(side.hidden):
        chunks = lens_logits(anatomy, side.at(layer, position_K, row_K), logits_per_chunk=logits_per_chunk)
        entropy_K = torch.cat([entropy(logits).cpu().double() for logits in chunks])
        if not entropy_K.isfinite().all():
            raise PivotuneError(
                f"entropy: the entropy at layer {layer} is NaN or infinite. Look at the model and its dtype."
            )
        layers.append(torch.zeros(len(start_N), dtype=torch.float64).index_add(0, row_K, entropy_K) / (end_N - start_N))
    return torch.stack(layers, dim=1)


def entropy(logits_nV: Tensor) -> Tensor:
    """Entropy, in nats, of the distribution that each row of logits stands for: (n,)."""
    return torch.special.entr(logits_nV.softmax(dim=-1)).sum(dim=-1)


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
            rows.append(side_entropies(anatomy, _read_prompts(anatomy, batch, max_length)).numpy())
    if cut or left_out:
        logger.warning(
            "%d questions were read up to token %d only, and %d begin later and were left out; see max_length.",
            *(cut, max_length, left_out),
        )
    if not rows:
        raise PivotuneError("layers: there is no question to read.")
    return np.concatenate(rows)


def _read_prompts(anatomy: Anatomy, prompts: list[Encoded], max_length: int) -> Activations:
    """What the model makes of the prompts up to `max_length`. Padding is token 0, masked."""
    device = next(anatomy.embed.parameters()).device
    kept = [prompt.prompt_ids[:max_length] for prompt in prompts]
    check_ids(rows_of(anatomy.lm), (token for ids in kept for token in ids), "data")
    start = torch.tensor([prompt.question_start for prompt in prompts])
    end = torch.tensor([min(prompt.question_end, max_length) for prompt in prompts])
    last = torch.tensor([len(ids) - 1 for ids in kept])
    return read_side(anatomy, *padded_ids(kept, 0, device=device), (start, end, last))


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
