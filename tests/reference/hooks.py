"""What hangs on a model besides its weights."""

from __future__ import annotations

from typing import Any

from torch import nn


def footprint(model: nn.Module) -> dict[str, Any]:
    """Hooks, instance attributes that shadow methods, checkpoint functions and children of every module, to compare."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
            list(module._backward_pre_hooks),
            [id(child) for child in module.children()],
            {key: id(value) for key, value in vars(module).items() if callable(value)},
            "forward" in vars(module),
        )
    return found
