"""Comparing a method's output with a reference: terms, the loss they make, and the gradients of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def loss_of(terms: Mapping[str, tuple[Tensor, Any]], weights: Mapping[str, float] | None = None) -> Tensor:
    """The contract's loss: each term's sum divided by its count, weighted (1 unless given), added up. The norm of a
    connection is measured alone."""
    weights = {"connection_norm": 0.0, **(weights or {})}
    return torch.stack([weights.get(name, 1.0) * value / max(int(n), 1) for name, (value, n) in terms.items()]).sum()


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of `loss` for every parameter, by name; leaves no `.grad` behind."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return found


def assert_terms(actual: Mapping[str, Any], expected: Mapping[str, tuple[Tensor, Any]], rtol: float) -> None:
    assert set(actual) == set(expected)
    for name, (value, count) in expected.items():
        assert int(actual[name].count) == int(count), f"{name}: count {int(actual[name].count)} != {int(count)}"
        torch.testing.assert_close(
            actual[name].sum.detach(), value.detach().to(actual[name].sum.dtype), rtol=rtol, atol=rtol, msg=_named(name)
        )


def assert_gradients(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], rtol: float, bitwise: bool = False
) -> None:
    """Equal up to `rtol` of each parameter's largest gradient; a missing gradient is a zero one."""
    assert set(actual) == set(expected)
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    assert largest > 0, "nothing has a gradient: the comparison would be empty"
    for name, want in expected.items():
        got = actual[name]
        if want is None and got is None:
            continue
        want = torch.zeros_like(got) if want is None else want
        got = torch.zeros_like(want) if got is None else got
        if bitwise:
            assert torch.equal(got, want), f"{name}: off by {float((got - want).abs().max())}"
            continue
        # A parameter whose exact gradient is 0 (a key bias, say) still has rounding of the size of its neighbours'.
        scale = max(float(want.abs().max()), 1e-4 * largest)
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * scale, msg=_named(name))


def _named(name: str) -> Any:
    return lambda message: f"{name}: {message}"
