"""One row at a time through the model, keeping everything: the ground that the slow references stand on.

Independent of `pivotune.anatomy` and `pivotune.taps` on purpose: it has its own look-up of where each family keeps
its parts, and its own hooks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Pass:
    """What one sequence of T tokens left behind in the model of L layers.

    Attributes:
        hidden: L + 1 tensors (T, d): hidden[0] the embeddings, hidden[l] the residual stream after layer l.
        feed_forward: L + 1 tensors (T, d): what layer l's feed-forward block added; feed_forward[0] is None.
        attention: the same of its attention block.
        logits: (T, V).
    """

    hidden: list[Tensor]
    feed_forward: list[Any]
    attention: list[Any]
    logits: Tensor


@dataclass
class Connection:
    """A vector (d,) added to the hidden state after `layer` (1..L) at `positions`; scaled to `relative_norm` times the
    length of the state there, where that is given. Or to what the layer's attention or feed-forward block adds
    (`part`); or in place of it (`replace`)."""

    layer: int
    positions: list[int]
    vector: Tensor
    relative_norm: float | None = None
    part: str = "hidden"
    replace: bool = False
    factor: Tensor | None = None  # times this, at last

    def made(self, states: Tensor) -> Tensor:
        """(T, d) with the connection."""
        rows = list(states)
        for position in self.positions:
            vector = self.vector
            if self.relative_norm is not None:
                vector = vector / vector.norm() * states[position].detach().norm() * self.relative_norm
            if self.factor is not None:
                vector = self.factor * vector
            rows[position] = vector if self.replace else rows[position] + vector
        return torch.stack(rows)


def lm_of(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(model: nn.Module) -> nn.ModuleList:
    lm = lm_of(model)
    return lm.gpt_neox.layers if lm.config.model_type == "gpt_neox" else lm.model.layers


def norm_of(model: nn.Module) -> nn.Module:
    lm = lm_of(model)
    return lm.gpt_neox.final_layer_norm if lm.config.model_type == "gpt_neox" else lm.model.norm


def feed_forward_of(model: nn.Module, layer: nn.Module) -> nn.Module:
    normed_after = lm_of(model).config.model_type in ("gemma2", "gemma3_text", "olmo2")
    return layer.post_feedforward_layernorm if normed_after else layer.mlp


def attention_of(model: nn.Module, layer: nn.Module) -> nn.Module:
    kind = lm_of(model).config.model_type
    if kind in ("gemma2", "gemma3_text", "olmo2"):
        return layer.post_attention_layernorm
    return layer.attention if kind == "gpt_neox" else layer.self_attn


def run(model: nn.Module, tokens: list[int], connection: Connection | None = None) -> Pass:
    """One sequence through the whole model, without padding, mask or cache."""
    seen: dict[str, dict[int, Tensor]] = {"hidden": {}, "attention": {}, "feed_forward": {}}
    handles = []

    def keep_embeddings(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["hidden"][0] = (args[0] if args else kwargs["hidden_states"])[0]

    def keep(part: str, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            if connection is not None and (connection.layer, connection.part) == (number, part):
                state = connection.made(state[0])[None]
            seen[part][number] = state[0]
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return hook

    layers = layers_of(model)
    handles.append(layers[0].register_forward_pre_hook(keep_embeddings, with_kwargs=True))
    for number, layer in enumerate(layers, start=1):
        handles.append(attention_of(model, layer).register_forward_hook(keep("attention", number)))
        handles.append(feed_forward_of(model, layer).register_forward_hook(keep("feed_forward", number)))
        handles.append(layer.register_forward_hook(keep("hidden", number)))
    try:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    numbers = range(1, len(layers) + 1)
    feed_forward, attention = ([None, *(seen[part][n] for n in numbers)] for part in ("feed_forward", "attention"))
    return Pass([seen["hidden"][n] for n in (0, *numbers)], feed_forward, attention, logits)


def frozen_logits(model: nn.Module, hidden: Tensor, final_norm: bool) -> Tensor:
    """What a copy of the final norm and the head, that nothing trains, reads from `hidden` (d,) -> (V,)."""
    lm = lm_of(model)
    if final_norm:
        hidden = copy.deepcopy(norm_of(model)).requires_grad_(False)(hidden)
    logits = copy.deepcopy(lm.lm_head).requires_grad_(False)(hidden)
    if lm.config.model_type == "cohere":
        logits = logits * lm.config.logit_scale
    if lm.config.model_type == "gemma2":
        cap = lm.config.final_logit_softcapping
        logits = torch.tanh(logits / cap) * cap
    return logits


def answer_loss(done: Pass, prompt_length: int, labels: list[int]) -> tuple[Tensor, int]:
    """Sum of -log P(token) over the answer, and its length. `labels` may hold -100, which is skipped."""
    total, count = done.logits.sum() * 0.0, 0
    for k, token in enumerate(labels):
        if token != -100:
            total = total - torch.log_softmax(done.logits[prompt_length + k - 1], dim=-1)[token]
            count += 1
    return total, count
