"""CC-Tuning at inference: the connection inside `generate()` and around a forward pass.

The connection changes nothing but the prompt's last token(s), from the layer behind it upward: every earlier token's
keys and values are those of an ordinary pass. So the released implementation's second prefill is not needed:

    prompt without its last token   -> the cache                                     (an ordinary prefill)
    last token, looking only        -> its feed-forward outputs v; the cache forgets that it saw the token
    last token, with the connection -> the logits of the first answer token, and the token's place in the cache

Taking the last token apart, instead of cropping it off afterwards, also works where a cache cannot be cropped: sliding
windows have evicted what the second look would need. With real English (`connection="english"`) the look is not needed
either. Decoding after the first token is untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.compat import prefilled_by
from pivotune.data.collate import last_token
from pivotune.errors import PivotuneError
from pivotune.objectives.base import Connection
from pivotune.objectives.cc_tuning.decision_maker import CCTuningConfig, DecisionMaker, Gate
from pivotune.taps import Injection, Tap


class LinearConnection(Connection):
    """A trained connection. Its modes:

        matrix    the question's own activations, mapped by the Transform Matrix, stand in for the English ones
        english   those of the English counterpart, which is given
        none      the model alone

    Args:
        model: the causal LM, possibly wrapped by PEFT.
        config: the options it was trained with.
        decision_maker: (L, d) weight of the Decision Maker.
        transform_matrix: (d, d) or (L, d, d); None leaves only `none` and `english`.
        gate: (1,) weight of the gate, of a run that has one.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CCTuningConfig,
        decision_maker: Tensor,
        transform_matrix: Tensor | None = None,
        gate: Tensor | None = None,
    ):
        self.anatomy = Anatomy(model)
        self.config = config
        self.decision_maker = DecisionMaker(self.anatomy.num_layers, self.anatomy.hidden_size, config).eval()
        if decision_maker.shape != self.decision_maker.weight.shape:
            raise PivotuneError(
                f"decision_maker.weight: got shape {tuple(decision_maker.shape)}, but this model needs "
                f"{tuple(self.decision_maker.weight.shape)} (layers, hidden size). The tensors belong to another model."
            )
        device = next(self.anatomy.head.parameters()).device
        self.decision_maker.weight = nn.Parameter(decision_maker.to(device), requires_grad=False)
        self.transform_matrix = None if transform_matrix is None else transform_matrix.to(device)
        self.factor: Tensor | None = None
        if config.gate:
            if gate is None:
                raise PivotuneError("gate.weight: is missing, and the run was trained with cc_tuning.gate: true.")
            made = Gate()
            made.weight = nn.Parameter(gate.to(device), requires_grad=False)
            self.factor = made()
        self.modes = modes(transform_matrix is not None)

    def check(self, mode: str) -> None:
        if mode == "matrix" and self.transform_matrix is None:
            raise PivotuneError(
                "connection: 'matrix' needs a Transform Matrix, and this run has none. Fit one "
                "(pivotune.objectives.cc_tuning.fit_transform_matrix), or choose english or none."
            )
        super().check(mode)

    def transform(self, v_BLd: Tensor) -> Tensor:
        """`v X`: the question's own activations mapped to stand in for the English ones, (B, L, d)."""
        assert self.transform_matrix is not None
        equation = "bld,de->ble" if self.transform_matrix.dim() == 2 else "bld,lde->ble"
        return torch.einsum(equation, v_BLd.to(self.transform_matrix.dtype), self.transform_matrix).to(v_BLd.dtype)

    def pick(self, v_BLd: Tensor, last_token_B: Tensor) -> Tensor:
        """(B, d): the activation that the Decision Maker lends to prompts that end in these tokens."""
        return self.decision_maker(v_BLd, self.anatomy.embeddings(last_token_B))

    def shares(self, v_BLd: Tensor, last_token_B: Tensor) -> Tensor:
        """(B, L): what part of that is which layer's; with hard selection a single 1 per row."""
        return self.decision_maker.shares(v_BLd, self.anatomy.embeddings(last_token_B))

    def activations(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """v at the last token of each prompt, padded on either side: (B, L, d)."""
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        with Tap(self.anatomy, at=last_token(attention_mask)) as tap:
            self.anatomy.decoder(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            )
        return tap.states("feed_forward")

    def lend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        english_input_ids: Tensor | None = None,
        english_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What these prompts are lent, (B, d): one pass over their English counterparts or, where none are given, over
        the prompts themselves, whose activations the Transform Matrix maps. For `connected_at`.

        Args:
            input_ids, attention_mask: (B, T) the prompts, or contexts, without what continues them; padded on either
                side.
            english_input_ids, english_attention_mask: (B, S) their English counterparts.

        Raises:
            PivotuneError: no English counterparts, and no Transform Matrix either.
        """
        if english_input_ids is None:
            self.check("matrix")
            v = self.transform(self.activations(input_ids, attention_mask))
        else:
            english_mask = (
                torch.ones_like(english_input_ids) if english_attention_mask is None else english_attention_mask
            )
            v = self.activations(english_input_ids, english_mask)
        last = last_token(attention_mask)[:, None]
        return self.pick(v, input_ids.gather(1, last)[:, 0].to(v.device))

    @contextmanager
    def at(self, lent: Sequence[Tensor] | Tensor, last_B: Tensor) -> Iterator[None]:
        """Within this context every forward pass of the model is connected, as the target pass of training is.

        The passes are ordinary ones over whole rows, without a cache: tokens behind the connection see it by attention.
        generate() does not belong here (`generating`).

        Args:
            lent: (d,) of each row, from `lend`: what is added behind `connection_layer`; zeros do not connect.
            last_B: each row's position of the context's last token, padding counted. The connection is made there and
                at the `connection_tokens - 1` tokens before.
        """
        before = torch.arange(self.config.connection_tokens, device=last_B.device)
        vectors_Bd = torch.stack(tuple(lent))
        made = injection(self.config, vectors_Bd, last_B[:, None] - before, self.factor)
        with Tap(self.anatomy, injections=[made]):
            yield

    @contextmanager
    def generating(self, mode: str, connected: Tensor | None, english: Mapping[str, Tensor]) -> Iterator[None]:
        request = _Request(mode, connected=connected)
        if mode == "english":
            if "input_ids" not in english:
                raise PivotuneError(
                    'generate(connection="english"): needs english_input_ids, the English counterpart of each prompt. '
                    'Without English text use connection="matrix".'
                )
            ids = english["input_ids"]
            request.english = self.activations(ids, english.get("attention_mask", torch.ones_like(ids)))
        with prefilled_by(self.anatomy.lm, partial(_connected_prefill, self, request)):
            yield


def modes(has_matrix: bool) -> tuple[str, ...]:
    """The modes of a run with or without a Transform Matrix, the default first."""
    return ("matrix", "english", "none") if has_matrix else ("none", "english")


def injection(config: CCTuningConfig, pick_Bd: Tensor, positions_BK: Tensor, factor: Tensor | None) -> Injection:
    """What connects these rows: their picks, at these positions behind the connection layer; zeros do not connect.

    Args:
        factor: of the gate, where there is one.
    """
    return Injection(config.connection_layer, pick_Bd, positions_BK, config.relative_norm, factor)


@dataclass
class _Request:
    """What one call of generate() asks for."""

    mode: str
    english: Tensor | None = None  # (B, L, d)
    connected: Tensor | None = None  # (B,) bool


def _connected_prefill(
    connection: LinearConnection,
    request: _Request,
    prefill: Callable,
    input_ids: Tensor,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    **kwargs: Any,
) -> Any:
    """Stands in for the model's own `prefill`: same arguments, same result, with the connection made on the way."""
    cache = model_kwargs.get("past_key_values")
    if cache is None or model_kwargs.get("inputs_embeds") is not None or int(cache.get_seq_length()) > 0:
        raise PivotuneError(
            "generate(): the connection needs token ids, an empty cache and use_cache=True, because it is made between "
            "the prompt and its last token. Drop use_cache=False, past_key_values and inputs_embeds, or pass "
            'connection="none".'
        )
    rows, length = input_ids.shape
    tail = min(connection.config.connection_tokens, length)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    model_kwargs = {**model_kwargs, "attention_mask": mask}

    def run_prompt_but_tail() -> None:
        if length == tail:
            return
        shorter = {
            k: v[..., : length - tail] if k in _PER_TOKEN and v is not None else v for k, v in model_kwargs.items()
        }
        prefill(input_ids[:, : length - tail], generation_config, shorter, **kwargs)

    def run_tail() -> Any:
        return prefill(input_ids, generation_config, model_kwargs, **kwargs)

    run_prompt_but_tail()
    if request.mode == "english":
        assert request.english is not None
        v = _per_row(request.english, rows, "english_input_ids")
    else:
        last = torch.full((rows,), tail - 1, device=input_ids.device)
        with _forgetting(cache), Tap(connection.anatomy, at=last) as tap:
            run_tail()
        v = connection.transform(tap.states("feed_forward"))
    vectors = connection.pick(v, input_ids[:, -1].to(v.device))
    if request.connected is not None:
        connected = _per_row(request.connected.to(vectors.device), rows, "connected")
        vectors = torch.where(connected[:, None], vectors, 0.0)
    everywhere = torch.arange(tail, device=vectors.device).expand(rows, -1)
    made = injection(connection.config, vectors, everywhere, connection.factor)
    with Tap(connection.anatomy, injections=[made]):
        return run_tail()


_PER_TOKEN = ("attention_mask", "position_ids", "token_type_ids", "cache_position")


def _per_row(values: Tensor, rows: int, option: str) -> Tensor:
    """One value per row of a batch that generate() may have expanded for beams or several samples."""
    if rows % len(values):
        raise PivotuneError(f"generate({option}=...): got {len(values)} rows for a batch of {rows} prompts.")
    return values.repeat_interleave(rows // len(values), dim=0)


@contextmanager
def _forgetting(cache: Any) -> Iterator[None]:
    """Whatever is written to the key-value cache within this context is undone, whether or not it can be cropped.

    Dynamic layers replace their tensors on update, so keeping the old references suffices. Static layers write in
    place: their counters are copied, and of those that slide also the window's keys and values (a full one shifts).
    Keys and values of a static layer that does not slide are left: the next pass writes the same places.
    """
    saved = []
    for layer in cache.layers:
        in_place = getattr(layer, "is_compileable", False)
        copies = {
            name: (value, value.clone())
            for name, value in vars(layer).items()
            if in_place and torch.is_tensor(value) and (value.dim() < 2 or layer.is_sliding)
        }
        saved.append((layer, dict(vars(layer)), copies))
    try:
        yield
    finally:
        del cache.layers[len(saved) :]  # an empty dynamic cache gets its layers on first use
        for layer, attributes, copies in saved:
            vars(layer).clear()
            vars(layer).update(attributes)
            for tensor, copy in copies.values():
                tensor.copy_(copy)
