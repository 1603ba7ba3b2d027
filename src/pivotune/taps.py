"""Read and write activations of one forward pass, through hooks.

    with Tap(anatomy, hidden=[2, 15], at=last_token, sites=["feed_forward"]) as tap:
        anatomy.decoder(input_ids=..., attention_mask=..., use_cache=False)
    tap.hidden[2]                 # (B, T, d): the residual stream after decoder layer 2
    tap.states("feed_forward")    # (B, L, d): each layer's feed-forward output at one token per row

A site is a place in every layer (`pivotune.anatomy.Site`): `hidden`, the residual stream behind it; `attention` and
`feed_forward`, what these parts add to the stream.

The hooks exist only while the context is open: nothing is left on the model, also after an exception. Gradient
checkpointing replays a layer's forward during the backward pass, when the context is long closed; so while it is open,
each checkpointed layer's checkpoint function is wrapped to put that layer's hooks back for its replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pivotune.anatomy import Anatomy, Site
from pivotune.compat import replayed_by
from pivotune.errors import PivotuneError
from pivotune.losses import at_least_float32


class Injection:
    """A vector per row that is added to, or put in place of, what one site gives.

    Args:
        layer: decoder layer 1..L.
        vectors_BD: what is added, row by row; zero rows change nothing. One row may stand for all.
        positions_BK: the token positions of each row that receive it; positions < 0 are skipped. One row may stand for
            all.
        relative_norm: scale each vector, at each position, to this share of the norm of the state that it joins, which
            gets no gradient by way of its norm. None takes the vectors as they are.
        factor: a number, (1,), that the vectors are multiplied by, once they are scaled. None is 1.
        site: where in the layer.
        replace: put the vectors in place of what was there; otherwise they are added to it.

    Attributes:
        ratio_B: of the last pass: the norm of what came over that of the state that was there, averaged over the
            positions of each row; 0 where there is none. None before a pass.
    """

    def __init__(
        self,
        layer: int,
        vectors_BD: Tensor,
        positions_BK: Tensor,
        relative_norm: float | None = None,
        factor: Tensor | None = None,
        *,
        site: Site = "hidden",
        replace: bool = False,
    ):
        self.layer, self.vectors_BD, self.positions_BK = layer, vectors_BD, positions_BK
        self.relative_norm, self.factor, self.site, self.replace = relative_norm, factor, site, replace
        self.ratio_B: Tensor | None = None

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        token_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
        here_BT = (token_T[None, None, :] == self.positions_BK[..., None]).any(dim=1)
        added_BTD = self.vectors_BD[:, None, :]
        if self.relative_norm is not None:
            norm_BT1 = torch.linalg.vector_norm(hidden_BTD.detach(), dim=-1, keepdim=True)
            added_BTD = F.normalize(added_BTD, dim=-1) * (self.relative_norm * norm_BT1).to(added_BTD.dtype)
        if self.factor is not None:
            added_BTD = added_BTD * self.factor.to(added_BTD.dtype)
        added_BTD = added_BTD.to(hidden_BTD.dtype)
        self._measure(added_BTD.detach(), hidden_BTD.detach())
        if self.replace:
            return torch.where(here_BT[..., None], added_BTD, hidden_BTD)
        return hidden_BTD + here_BT[..., None] * added_BTD

    def _measure(self, added_BTD: Tensor, hidden_BTD: Tensor) -> None:
        """At the positions alone: this runs in every pass."""
        rows, length, _ = hidden_BTD.shape
        at_BK = self.positions_BK.expand(rows, -1)
        inside_BK = (at_BK >= 0) & (at_BK < length)
        row_B1, at_BK = torch.arange(rows, device=at_BK.device)[:, None], at_BK.clamp(0, length - 1)
        added_BK, there_BK = (
            torch.linalg.vector_norm(one[row_B1, at_BK].to(at_least_float32(one.dtype)), dim=-1)
            for one in (added_BTD.expand_as(hidden_BTD), hidden_BTD)
        )
        ratio_BK = torch.where(inside_BK, added_BK / there_BK, 0.0)
        self.ratio_B = ratio_BK.sum(dim=1) / inside_BK.sum(dim=1).clamp(min=1)


class Tap:
    """Captures and injects during the forward passes that run while it is open.

    Args:
        anatomy: the model's parts.
        hidden: decoder layers (1..L) whose output to keep, whole: (B, T, d) each.
        at: (B,) token position per row: keeps there what each of `sites` gives in every layer.
        sites: which. `hidden` among them is the stream at that token; the argument of that name keeps whole layers.
        injections: what to add or put in on the way. What is kept of a site is what it gives after the injection.

    Attributes:
        hidden: layer number -> (B, T, d), filled by the pass.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        hidden: Iterable[int] = (),
        at: Tensor | None = None,
        sites: Iterable[Site] = ("feed_forward",),
        injections: Iterable[Injection] = (),
    ):
        self._anatomy = anatomy
        self._wanted = frozenset(hidden)
        self._at = at
        self._sites = () if at is None else tuple(sites)
        self._injections = tuple(injections)
        self._cleanup = ExitStack()
        self._open = False
        self._expects_grad = False
        self.hidden: dict[int, Tensor] = {}
        self._states: dict[Site, dict[int, Tensor]] = {site: {} for site in self._sites}

    def states(self, site: Site) -> Tensor:
        """(B, L, d): what every layer gives at this site, at the asked position."""
        of_layer = self._states[site]
        return torch.stack([of_layer[number] for number in sorted(of_layer)], dim=1)

    def __enter__(self) -> Tap:
        self._open, self._expects_grad = True, torch.is_grad_enabled()
        for number, layer in enumerate(self._anatomy.layers, start=1):
            if hooks := self._hooks(number):
                self._cleanup.enter_context(_Hooked(hooks))
                self._survive_checkpointing(layer, hooks)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False
        self._cleanup.close()

    def _hooks(self, number: int) -> list[tuple[nn.Module, Callable]]:
        """The (module, forward hook) pairs that layer `number` needs."""
        hooks: list[tuple[nn.Module, Callable]] = []
        site = self._anatomy.site
        hooks += [(site(one.site, number), _inject(one)) for one in self._injections if one.layer == number]
        hooks += [(site(name, number), self._keep_state(name, number)) for name in self._sites]
        if number in self._wanted:
            hooks.append((site("hidden", number), self._keep_hidden(number)))
        return hooks

    def _keep_hidden(self, number: int) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._open:
                self.hidden[number] = _hidden_of(output)

        return hook

    def _keep_state(self, site: Site, number: int) -> Callable:
        assert self._at is not None
        at = self._at

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._expects_grad and not torch.is_grad_enabled():
                raise PivotuneError(
                    f"gradient_checkpointing: the re-entrant variant hides {site.replace('_', '-')} activations from "
                    "the gradient. Set gradient_checkpointing_kwargs: {use_reentrant: false}."
                )
            # Gathered inside the layer: only (B, d) stays alive. A replay repeats it to save the same tensors.
            given = _hidden_of(output)
            picked = given[torch.arange(given.shape[0], device=given.device), at.to(given.device)]
            if self._open:
                self._states[site][number] = picked

        return hook

    def _survive_checkpointing(self, layer: nn.Module, hooks: list[tuple[nn.Module, Callable]]) -> None:
        def wrapped(checkpoint: Callable) -> Callable:
            def wrapper(run: Callable, *args: Any, **kwargs: Any) -> Any:
                def replayable(*a: Any, **k: Any) -> Any:
                    if self._open:  # the first forward: the hooks are in place
                        return run(*a, **k)
                    with _Hooked(hooks):
                        return run(*a, **k)

                return checkpoint(replayable, *args, **kwargs)

            return wrapper

        self._cleanup.enter_context(replayed_by(layer, wrapped))


class _Hooked:
    """Forward hooks that exist while the context is open."""

    def __init__(self, hooks: list[tuple[nn.Module, Callable]]):
        self._hooks = hooks

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()


def _inject(injection: Injection) -> Callable:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = injection(_hidden_of(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _hidden_of(output: Any) -> Tensor:
    """Attention, and some layers, return a tuple whose first item is meant."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def evaluating(model: nn.Module, *, gradient: bool = False) -> Iterator[None]:
    """Without dropout and, if not asked for, gradient; every module is left in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.set_grad_enabled(gradient):
            yield
    finally:
        for module, training in modes:
            module.training = training
