"""How sure the model would be if it stopped at a layer: the entropy of the logit lens, layer by layer.

The lens at layer l is the distribution over the next token that the final norm and the output head read from `h_l`;
soft-cap and logit scale included, so that at layer L it is the model's own output. Its entropy, in nats, is averaged
over the tokens of a question, then over questions. All layers come from one forward pass. What is kept of an example is
one number per layer.

Shapes in names: N examples, K question tokens, T tokens, L layers, d hidden size, n rows of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.data.collate import padded_ids
from pivotune.errors import PivotuneError
from pivotune.lens.activations import Activations, PairActivations, draw_tokens, lens_logits, read_side
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.tokens import check_ids, rows_of
from pivotune.uncertainty import Tables


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


def side_entropies(
    anatomy: Anatomy,
    side: Activations,
    *,
    tokens: int | None = None,
    draw: torch.Generator | None = None,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """The mean entropy over each question's tokens, at every layer: (N, L) nats, float64 on the CPU.

    Args:
        anatomy: the model's parts.
        side: what the model made of N prompts.
        tokens: how many tokens of each question to read, drawn at random; all where None.
        draw: what draws them.
        logits_per_chunk: how many logits to hold at a time.

    Raises:
        PivotuneError: the model yields NaN.
    """
    start_N, end_N = side.start.cpu(), side.end.cpu()
    position_T = torch.arange(side.input_ids.shape[1])
    row_K, position_K = ((position_T >= start_N[:, None]) & (position_T < end_N[:, None])).nonzero(as_tuple=True)
    kept = draw_tokens(row_K, tokens, draw)
    row_K, position_K = row_K[kept], position_K[kept]
    count_N = torch.bincount(row_K, minlength=len(start_N))
    layers = []
    for layer in sorted(side.hidden):
        chunks = lens_logits(anatomy, side.at(layer, position_K, row_K), logits_per_chunk=logits_per_chunk)
        entropy_K = torch.cat([entropy(logits).cpu().double() for logits in chunks])
        if not entropy_K.isfinite().all():
            raise PivotuneError(
                f"entropy: the entropy at layer {layer} is NaN or infinite. Look at the model and its dtype."
            )
        layers.append(torch.zeros(len(start_N), dtype=torch.float64).index_add(0, row_K, entropy_K) / count_N)
    return torch.stack(layers, dim=1)


def entropy(logits_nV: Tensor) -> Tensor:
    """Entropy, in nats, of the distribution that each row of logits stands for: (n,)."""
    return torch.special.entr(logits_nV.softmax(dim=-1)).sum(dim=-1)


def read_prompts(anatomy: Anatomy, prompts: Sequence[Encoded], max_length: int) -> Activations:
    """What the model makes of prompts, of which at most `max_length` tokens are read. Padding is token 0, masked.

    Questions have to begin before that.
    """
    device = next(anatomy.embed.parameters()).device
    kept = [prompt.prompt_ids[:max_length] for prompt in prompts]
    check_ids(rows_of(anatomy.lm), (token for ids in kept for token in ids), "data")
    start = torch.tensor([prompt.question_start for prompt in prompts])
    end = torch.tensor([min(prompt.question_end, max_length) for prompt in prompts])
    last = torch.tensor([len(ids) - 1 for ids in kept])
    return read_side(anatomy, *padded_ids(kept, 0, device=device), (start, end, last))
