"""Tiny random models of every family that `pivotune.anatomy` knows, for tests.

Weights are drawn large enough that each part matters: logits spread over several nats, feed-forward outputs have the
size of the residual stream, and norms and biases are not at their neutral starting values.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 97

_COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=128,
    initializer_range=0.25,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_GROUPED = dict(num_key_value_heads=2)
_WINDOW = 6
"""Sliding window in tokens: shorter than the prompts that `tests/batches.py` draws."""

_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
_SLIDING_AND_FULL = ["sliding_attention", "full_attention"] * 2

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (model_type, what differs from _COMMON)
    "llama": ("llama", dict(tie_word_embeddings=False)),
    "llama2": ("llama", dict(tie_word_embeddings=False, rms_norm_eps=1e-5, max_position_embeddings=4096)),
    "llama3": ("llama", dict(tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE, **_GROUPED)),
    "llama3_tied": ("llama", dict(tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE, **_GROUPED)),
    "mistral": ("mistral", dict(sliding_window=_WINDOW, tie_word_embeddings=False, **_GROUPED)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, **_GROUPED)),
    "qwen3": ("qwen3", dict(head_dim=16, tie_word_embeddings=False, **_GROUPED)),
    "phi3": ("phi3", dict(resid_pdrop=0.0, embd_pdrop=0.0, tie_word_embeddings=False, **_GROUPED)),
    "gemma": ("gemma", dict(head_dim=16, num_key_value_heads=1)),
    "gemma2": (
        "gemma2",
        dict(
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=_WINDOW,
            layer_types=_SLIDING_AND_FULL,
            # Low enough to bend the scores and logits of these weights visibly.
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            **_GROUPED,
        ),
    ),
    "gemma3_text": (
        "gemma3_text",
        dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=_WINDOW, layer_types=_SLIDING_AND_FULL, **_GROUPED),
    ),
    "olmo2": ("olmo2", dict(tie_word_embeddings=False, **_GROUPED)),
    "cohere": ("cohere", dict(logit_scale=0.4, **_GROUPED)),
    "gpt_neox": ("gpt_neox", dict(num_hidden_layers=3, hidden_dropout=0.0, tie_word_embeddings=False)),
}

FAMILIES = list(_CONFIGS)


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float64, **config_overrides: Any) -> PreTrainedModel:
    """A random causal LM of `family` with 4 layers (3 for gpt_neox), in eval mode.

    In float64 the norms and attentions that transformers always computes in float32 are kept in float64, so that two
    ways to compute one number can be compared to 1e-9. Other dtypes are left exactly as transformers computes them.

    Args:
        family: one of `FAMILIES`.
        seed: of the weights.
        dtype: of the weights.
        config_overrides: fields of the transformers configuration.
    """
    model_type, particular = _CONFIGS[family]
    attention = config_overrides.pop("attn_implementation", None)
    config = AutoConfig.for_model(model_type, **{**_COMMON, **particular, **config_overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases start at 0 or 1, where a forgotten one would not show
                    parameter += 0.2 * torch.randn_like(parameter)
    model = model.to(dtype).eval()
    if dtype is torch.float64:
        for module in model.modules():
            if "Attention" in type(module).__name__ or "Norm" in type(module).__name__:
                module.__class__ = _without_downcast(type(module))
    return model


class _KeepFloat64(TorchFunctionMode):
    """Turns "compute this in float32" into "compute this in float64"."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@cache
def _without_downcast(kind: type[nn.Module]) -> type[nn.Module]:
    # A subclass rather than a wrapped `forward`: it survives deepcopy, and the replay of gradient checkpointing.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _KeepFloat64():
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
