"""A tuned lens: one affine map per layer, after which the model's own norm and head read the layer better.

    logits_l = head(norm(h_l + h_l A_l + b_l))

(Belrose et al. 2023, arXiv 2303.08112.) With A = 0 and b = 0 it is the logit lens. The maps are fitted on the model's
own final distribution, so they need texts and no labels, and learn to read what the model is about to say, not what is
wanted: first least squares from h_l to h_L, then some steps of Adam on KL(final || read). The states of a fixed number
of tokens are kept, so memory does not depend on the texts; logits are held in chunks.

Shapes in names: K layers with a map, N tokens, n of them at a time, d hidden size, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data.collate import padded_ids
from pivotune.errors import PivotuneError
from pivotune.lens.activations import draw_tokens
from pivotune.lens.survey import Question
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.taps import Tap, evaluating

FIT_TOKENS, HELD_OUT_TOKENS = 8192, 512
"""Whose states are kept, of all layers with a map and of the last."""
TOKENS_PER_TEXT = 48
"""Of neighbours, one says little beyond the other."""
STEPS, TOKENS_PER_STEP = 150, 128
LOOK_EVERY = 25
"""Steps between looks at the held-out tokens; the best maps are kept."""
STEP_SIZE = 0.1
"""Adam's learning rate is this over d: a step in which all features agree moves a state by a tenth of its spread."""
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the least squares, in units of a feature's variance: the best on held-out tokens is taken."""


@dataclass(frozen=True)
class FitText:
    """A text to fit on.

    Attributes:
        ids: its tokens.
        start: tokens before this one are not drawn; a template says the same each time.
    """

    ids: Sequence[int]
    start: int = 0


class TunedLens(nn.Module):
    """The maps of some layers; the logit lens until it is fitted.

    Args:
        layers: 1..L, in increasing order.
        size: d.
        like: a parameter of the model: its device; its dtype where that is wider than float32.

    Attributes:
        weight: (K, d, d), A of each layer.
        bias: (K, d), b of each.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layers: Iterable[int], size: int, like: Tensor):
        super().__init__()
        self.layers = tuple(layers)
        dtype = torch.promote_types(like.dtype, torch.float32)
        count = len(self.layers)
        self.register_buffer("weight", torch.zeros(count, size, size, dtype=dtype, device=like.device))
        self.register_buffer("bias", torch.zeros(count, size, dtype=dtype, device=like.device))

    def mapped(self, layer: int, states_nd: Tensor) -> Tensor:
        """What stands for `h_L`: (n, d), in the dtype of the states. Those of a layer without a map stay."""
        if layer not in self.layers:
            return states_nd
        k = self.layers.index(layer)
        wide_nd = states_nd.to(self.weight.dtype)
        return (wide_nd + wide_nd @ self.weight[k] + self.bias[k]).to(states_nd.dtype)

    def logits(self, anatomy: Anatomy, layer: int, states_nd: Tensor) -> Tensor:
        """(n, V); gradients reach the states alone."""
        return anatomy.frozen_lens(self.mapped(layer, states_nd))


@dataclass(frozen=True)
class LensFit:
    """How well a tuned lens reads on tokens that it was not fitted on.

    Attributes:
        before, after: by layer, mean KL in nats of the model's own output from what the logit lens, and the tuned lens,
            reads.
        tokens, held_out: how many it was fitted on, and measured on.
    """

    before: dict[int, float]
    after: dict[int, float]
    tokens: int
    held_out: int

    def __str__(self) -> str:
        lines = [f"Tuned lens: fitted on {self.tokens} tokens. KL to the model's own output, {self.held_out} others:"]
        for layer, before in self.before.items():
            lines.append(
                f"  layer {layer}: {before:.3f} nats by the logit lens, {self.after[layer]:.3f} by the tuned lens"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        kl = {"logit_lens": self.before, "tuned_lens": self.after}
        by_lens = {name: {str(layer): round(value, 6) for layer, value in one.items()} for name, one in kl.items()}
        return {"tokens": self.tokens, "held_out_tokens": self.held_out, "kl": by_lens}


def fit_texts(rows: Sequence[Any], seed: int, made: Callable[[Any], Question] | None = None) -> list[FitText]:
    """Texts of the kinds that training reads, one of each drawn row, so that no text is both fitted and tested on.

    They are the target text or, in turn where there is English, its prompt with the English question or with the
    English answer, or the English text.

    Args:
        rows: questions, or what `made` makes one of.
    """
    enough = (FIT_TOKENS + HELD_OUT_TOKENS) // 4
    drawn = random.Random(seed).sample(range(len(rows)), min(len(rows), enough))
    return [_text(rows[number] if made is None else made(rows[number]), turn) for turn, number in enumerate(drawn)]


def _text(one: Question, turn: int) -> FitText:
    target, english = one.target, one.english
    if english is None or turn % 4 == 0:
        return FitText(target.prompt_ids + target.answer_ids, target.question_start)
    if turn % 4 == 3:
        return FitText(english.prompt_ids + english.answer_ids, english.question_start)
    asked = english.prompt_ids[english.question_start : english.question_end]
    return FitText(target.prompt_ids + (asked if turn % 4 == 1 else english.answer_ids), len(target.prompt_ids) - 1)


def fit_tuned_lens(
    model: nn.Module,
    lens: TunedLens,
    texts: Sequence[FitText],
    *,
    batch_size: int = 8,
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[int], object] = lambda done: None,
) -> LensFit:
    """Fill a lens, from what the model itself makes of some texts.

    Args:
        model: a causal LM that `pivotune.anatomy` knows; it is read where it is and left as it was.
        lens: on the model's device.
        texts: in any order; as many are read as the tokens need, and of each as much as the model's context takes.
        batch_size: texts per forward pass.
        seed: of the drawing.
        steps: of Adam.
        progress: is told how many texts have been read.

    Raises:
        PivotuneError: fewer than two texts, or states that are not finite.
    """
    if len(texts) < 2:
        raise PivotuneError(
            f"tuned lens: {len(texts)} texts to fit on. Two are needed at least: one to fit, one to test."
        )
    anatomy = Anatomy(model)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, len(texts) // 8)
    context = getattr(anatomy.lm.config, "max_position_embeddings", None)
    texts = [replace(one, ids=one.ids[:context]) for one in texts]
    held_out, fitted = ([texts[number] for number in part] for part in (order[:count], order[count:]))
    with evaluating(model):
        tests = collect_states(anatomy, lens.layers, held_out, HELD_OUT_TOKENS, batch_size, seed, progress)
        states = collect_states(anatomy, lens.layers, fitted, FIT_TOKENS, batch_size, seed, progress)
        return fit_on_states(anatomy, lens, states, tests, seed=seed, steps=steps)


@dataclass(frozen=True)
class States:
    """What the model makes of N tokens: `hidden` (K, N, d) behind some layers, `final` (N, d) behind the last."""

    hidden: Tensor
    final: Tensor


def collect_states(
    anatomy: Anatomy,
    layers: Sequence[int],
    texts: Sequence[FitText],
    tokens: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], object] = lambda done: None,
) -> States:
    """The states of so many tokens, or of as many as the texts have, drawn evenly over the texts in their order."""
    draw = torch.Generator().manual_seed(seed)
    device = next(anatomy.head.parameters()).device
    hidden: list[Tensor] = []
    final: list[Tensor] = []
    missing = tokens
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        ids_BT, mask_BT = padded_ids([one.ids for one in batch], 0, device=next(anatomy.embed.parameters()).device)
        first_B = torch.tensor([min(one.start, len(one.ids) - 1) for one in batch])
        position_T = torch.arange(ids_BT.shape[1])
        row_n, position_n = ((position_T >= first_B[:, None]) & mask_BT.cpu().bool()).nonzero(as_tuple=True)
        chosen = draw_tokens(row_n, TOKENS_PER_TEXT, draw)[:missing]
        with Tap(anatomy, hidden=[*layers, anatomy.num_layers]) as tap:
            anatomy.decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)

        places = row_n[chosen], position_n[chosen]
        hidden.append(torch.stack([_at(tap.hidden[layer], *places).to(device) for layer in layers]))
        final.append(_at(tap.hidden[anatomy.num_layers], *places).to(device))
        progress(len(batch))
        missing -= len(chosen)
        if missing <= 0:
            break
    found = States(torch.cat(hidden, dim=1), torch.cat(final))
    if not found.hidden.isfinite().all() or not found.final.isfinite().all():
        raise PivotuneError("tuned lens: states are not finite. If the model runs in float16, load it in bfloat16.")
    return found


def _at(states_BTd: Tensor, row_n: Tensor, position_n: Tensor) -> Tensor:
    return states_BTd[row_n.to(states_BTd.device), position_n.to(states_BTd.device)]


# Fitting -------------------------------------------------------------------------------------------------------------


def fit_on_states(
    anatomy: Anatomy, lens: TunedLens, states: States, held_out: States, *, seed: int = 0, steps: int = STEPS
) -> LensFit:
    """Fill a lens from states; what comes out reads the held-out ones at least as well as the logit lens."""
    lens.weight.zero_()
    lens.bias.zero_()
    before = held_out_kl(anatomy, lens, held_out)
    best = _Best(lens, before)
    for k in range(len(lens.layers)):
        problem = _LeastSquares(states.hidden[k], states.final)
        for ridge in RIDGES:
            lens.weight[k], lens.bias[k] = problem.solve(ridge)
            best.look(k, held_out_kl(anatomy, lens, held_out, [k])[0])
    best.restore()
    _descend(anatomy, lens, states, held_out, best, seed, steps)
    best.restore()
    numbers = dict(enumerate(lens.layers))
    return LensFit(
        {numbers[k]: float(value) for k, value in enumerate(before)},
        {numbers[k]: float(value) for k, value in enumerate(best.kl_K)},
        len(states.final),
        len(held_out.final),
    )


class _Best:
    """The best map of each layer so far."""

    def __init__(self, lens: TunedLens, kl_K: Tensor):
        self._lens, self.kl_K = lens, kl_K.clone()
        self._weight, self._bias = lens.weight.clone(), lens.bias.clone()

    def look(self, k: int, kl: Tensor) -> None:
        if kl < self.kl_K[k]:
            self.kl_K[k] = kl
            self._weight[k], self._bias[k] = self._lens.weight[k], self._lens.bias[k]

    def restore(self) -> None:
        self._lens.weight.copy_(self._weight)
        self._lens.bias.copy_(self._bias)


@torch.no_grad()
def held_out_kl(anatomy: Anatomy, lens: TunedLens, states: States, maps: Sequence[int] | None = None) -> Tensor:
    """Mean KL(final || read) of each layer, or of these of the K maps: (K,) nats, float64 on the CPU."""
    maps = range(len(lens.layers)) if maps is None else maps
    total_K = torch.zeros(len(maps), dtype=torch.float64)
    rows = max(1, LOGITS_PER_CHUNK // anatomy.vocab_size)
    for start in range(0, len(states.final), rows):
        here = slice(start, start + rows)
        wanted_nV = _log_probabilities(anatomy.frozen_lens(states.final[here]))
        for place, k in enumerate(maps):
            read_nV = lens.logits(anatomy, lens.layers[k], states.hidden[k, here])
            total_K[place] += _kl(wanted_nV, read_nV).cpu().double()
    return total_K / len(states.final)


def _kl(wanted_nV: Tensor, logits_nV: Tensor) -> Tensor:
    """Summed over n."""
    return torch.nn.functional.kl_div(_log_probabilities(logits_nV), wanted_nV, reduction="sum", log_target=True)


def _log_probabilities(logits_nV: Tensor) -> Tensor:
    return logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32)).log_softmax(dim=-1)


class _LeastSquares:
    """A, b of `min ||h + h A + b - h_L||^2 + ridge N ||std A||^2`.

    What is penalised is the distance from the logit lens, each feature of h in units of its spread, because a few
    features of language models are many times larger than the others.
    """

    def __init__(self, hidden_Nd: Tensor, final_Nd: Tensor):
        hidden_Nd = hidden_Nd.double()
        missing_Nd = final_Nd.double() - hidden_Nd
        self._count = len(hidden_Nd)
        self._mean_d, self._std_d, self._missing_d = hidden_Nd.mean(dim=0), _spread(hidden_Nd), missing_Nd.mean(dim=0)
        z_Nd = (hidden_Nd - self._mean_d) / self._std_d
        self._gram_dd, self._cross_dd = z_Nd.T @ z_Nd, z_Nd.T @ (missing_Nd - self._missing_d)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        penalised_dd = self._gram_dd.clone()
        penalised_dd.diagonal().add_(ridge * self._count)
        weight_dd = torch.cholesky_solve(self._cross_dd, torch.linalg.cholesky(penalised_dd)) / self._std_d[:, None]
        return weight_dd, self._missing_d - self._mean_d @ weight_dd


def _spread(states_Nd: Tensor) -> Tensor:
    """(d,): the standard deviation of each feature; of one that never changes, 1."""
    std_d = states_Nd.std(dim=0, correction=0)
    return torch.where(std_d > 0, std_d, torch.ones_like(std_d))


def _descend(
    anatomy: Anatomy, lens: TunedLens, states: States, held_out: States, best: _Best, seed: int, steps: int
) -> None:
    """Adam on the KL of a few tokens at a time.

    What moves is a map of features in units of their spread, added to the one there is: Adam takes steps of one size
    for all numbers, and the scales of features differ by orders of magnitude.
    """
    weight_Kdd, bias_Kd = lens.weight.clone(), lens.bias.clone()
    wide = states.hidden.to(lens.weight.dtype)
    mean_Kd, std_Kd = wide.mean(dim=1), torch.stack([_spread(one) for one in wide])
    final_std_d = _spread(states.final.to(lens.weight.dtype))
    turn_Kdd = torch.zeros_like(lens.weight, requires_grad=True)
    shift_Kd = torch.zeros_like(lens.bias, requires_grad=True)
    rate = STEP_SIZE / lens.weight.shape[-1]
    adam = torch.optim.Adam([turn_Kdd, shift_Kd], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps), eta_min=rate / 100)
    draw = torch.Generator().manual_seed(seed)
    rows = max(1, LOGITS_PER_CHUNK // anatomy.vocab_size)

    def mapped(k: int, states_nd: Tensor) -> Tensor:
        wide_nd = states_nd.to(lens.weight.dtype)
        moved_nd = ((wide_nd - mean_Kd[k]) / std_Kd[k]) @ turn_Kdd[k] + shift_Kd[k]
        whole_nd = wide_nd + wide_nd @ weight_Kdd[k] + bias_Kd[k] + moved_nd * final_std_d
        return whole_nd.to(states_nd.dtype)

    for step in range(1, steps + 1):
        chosen_n = torch.randint(len(states.final), (TOKENS_PER_STEP,), generator=draw).to(states.final.device)
        for part_n in chosen_n.split(rows):
            wanted_nV = _log_probabilities(anatomy.frozen_lens(states.final[part_n]))
            for k in range(len(lens.layers)):
                with torch.enable_grad():
                    loss = _kl(wanted_nV, anatomy.frozen_lens(mapped(k, states.hidden[k, part_n]))) / len(chosen_n)
                loss.backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
        if step % LOOK_EVERY == 0 or step == steps:
            with torch.no_grad():
                added_Kdd = turn_Kdd * final_std_d / std_Kd[:, :, None]
                lens.weight.copy_(weight_Kdd + added_Kdd)
                added_Kd = shift_Kd * final_std_d - torch.einsum("kd,kde->ke", mean_Kd, added_Kdd)
                lens.bias.copy_(bias_Kd + added_Kd)
            for k, kl in enumerate(held_out_kl(anatomy, lens, held_out)):
                best.look(k, kl)
