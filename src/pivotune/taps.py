"""Read and write activations of one forward pass, through hooks.

    with Tap(anatomy, hidden=[2, 15], feed_forward_at=last_token) as tap:
        anatomy.decoder(input_ids=..., attention_mask=..., use_cache=False)
    tap.hidden[2]        # (B, T, d): the residual stream after decoder layer 2
    tap.feed_forward()   # (B, L, d): each layer's feed-forward output at one token per row

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

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError


class Injection:
    """A vector per row that is added to the residual stream after one decoder layer.

    Args:
        layer: decoder layer 1..L behind which it is added.
        vectors_BD: what is added, row by row; zero rows change nothing.
        positions_BK: the token positions of each row that receive it; positions < 0 are skipped.
        relative_norm: scale each vector, at each position, to this share of the norm of the state that it joins, which
            gets no gradient by way of its norm. None adds the vectors as they are.
    """

    def __init__(self, layer: int, vectors_BD: Tensor, positions_BK: Tensor, relative_norm: float | None = None):
        self.layer, self.vectors_BD, self.positions_BK = layer, vectors_BD, positions_BK
        self.relative_norm = relative_norm

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        token_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
        here_BT = (token_T[None, None, :] == self.positions_BK[..., None]).any(dim=1)
        added_BTD = self.vectors_BD[:, None, :]
        if self.relative_norm is not None:
            norm_BT1 = torch.linalg.vector_norm(hidden_BTD.detach(), dim=-1, keepdim=True)
            added_BTD = F.normalize(added_BTD, dim=-1) * (self.relative_norm * norm_BT1).to(added_BTD.dtype)
        return hidden_BTD + here_BT[..., None] * added_BTD.to(hidden_BTD.dtype)


class Tap:
    """Captures and injects during the forward passes that run while it is open.

    Args:
        anatomy: the model's parts.
        hidden: decoder layers (1..L) whose output to keep, whole: (B, T, d) each.
        feed_forward_at: (B,) token position per row; keeps every layer's feed-forward output there.
        injections: what to add on the way. A captured layer that is also injected is kept as it is after the injection.

    Attributes:
        hidden: layer number -> (B, T, d), filled by the pass.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        hidden: Iterable[int] = (),
        feed_forward_at: Tensor | None = None,
        injections: Iterable[Injection] = (),
    ):
        self._anatomy = anatomy
        self._wanted = frozenset(hidden)
        self._at = feed_forward_at
        self._injections = tuple(injections)
        self._cleanup = ExitStack()
        self._open = False
        self._expects_grad = False
        self.hidden: dict[int, Tensor] = {}
        self._feed_forward: dict[int, Tensor] = {}

    def feed_forward(self) -> Tensor:
        """(B, L, d): every layer's feed-forward output at the asked position."""
        return torch.stack([self._feed_forward[n] for n in sorted(self._feed_forward)], dim=1)

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
        layer = self._anatomy.layer(number)
        if self._at is not None:
            hooks.append((self._anatomy.feed_forward(number), self._keep_feed_forward(number)))
        hooks += [(layer, _inject(one)) for one in self._injections if one.layer == number]
        if number in self._wanted:
            hooks.append((layer, self._keep_hidden(number)))
        return hooks

    def _keep_hidden(self, number: int) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._open:
                self.hidden[number] = _hidden_of(output)

        return hook

    def _keep_feed_forward(self, number: int) -> Callable:
        assert self._at is not None
        at = self._at

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._expects_grad and not torch.is_grad_enabled():
                raise PivotuneError(
                    "gradient_checkpointing: the re-entrant variant hides feed-forward activations from the gradient. "
                    "Set gradient_checkpointing_kwargs: {use_reentrant: false}."
                )
            # Gathered inside the layer: only (B, d) stays alive. A replay repeats it to save the same tensors.
            picked = output[torch.arange(output.shape[0], device=output.device), at.to(output.device)]
            if self._open:
                self._feed_forward[number] = picked

        return hook

    def _survive_checkpointing(self, layer: nn.Module, hooks: list[tuple[nn.Module, Callable]]) -> None:
        # transformers keeps the function in `_gradient_checkpointing_func`, FSDP's wrapper in `checkpoint_fn`.
        for name in ("_gradient_checkpointing_func", "checkpoint_fn"):
            original = layer.__dict__.get(name)
            if original is None:
                continue

            def checkpoint(run: Callable, *args: Any, _original: Callable = original, **kwargs: Any) -> Any:
                def replayable(*a: Any, **k: Any) -> Any:
                    if self._open:  # the first forward: the hooks are in place
                        return run(*a, **k)
                    with _Hooked(hooks):
                        return run(*a, **k)

                return _original(replayable, *args, **kwargs)

            setattr(layer, name, checkpoint)
            self._cleanup.callback(setattr, layer, name, original)


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
    """Some layers return a tuple whose first item is the residual stream."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradient and dropout; every module is left in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
