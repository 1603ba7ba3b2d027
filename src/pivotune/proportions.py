"""Are the terms of a run in proportion? Each beside guessing, and its gradient beside that of the ordinary loss.

Measured in the first step, on its own batch and graph: no pass of the model is made for it, and nothing of the training
changes. Gradients are those of the parameters of the layer that a term supervises: there both are felt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pivotune.method import Method, MethodOutput, Term

TOO_MUCH = 10.0
"""Times the gradient of the ordinary loss: more is warned of."""


@dataclass(frozen=True)
class Proportion:
    """A term in the first step.

    Attributes:
        term: its name.
        value: its mean, before its weight.
        guess: what guessing gives; None where that means nothing.
        layer: the layer that it supervises.
        gradient: norm of its gradient, after its weight, over that of the ordinary loss, at that layer; None where it
            was not measured.
        weight: its weight.
        advice: what to do where it is worse than guessing.
    """

    term: str
    value: float
    guess: float | None
    layer: int
    gradient: float | None
    weight: float
    advice: str

    def __str__(self) -> str:
        told = [f"{self.term} {self.value:.3g}"]
        if self.guess is not None:
            told.append(f"guessing gives {self.guess:.3g}")
        if self.gradient is not None:
            told.append(f"at layer {self.layer} its gradient is {self.gradient:.2g} times that of lm")
        return ", ".join(told)

    @property
    def warnings(self) -> list[str]:
        """What is out of proportion, and what to do."""
        found = []
        if self.guess is not None and self.value > self.guess:
            found.append(
                f"{self.term}: starts at {self.value:.3g}, worse than guessing ({self.guess:.3g}). {self.advice}"
            )
        if self.gradient is not None and self.gradient > TOO_MUCH:
            found.append(
                f"{self.term}: its gradient at layer {self.layer} is {self.gradient:.0f} times that of the ordinary "
                f"loss, which is hardly heard. A weight of about {self.weight / self.gradient:.1g} makes them equal."
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """For `pivotune.json`."""
        return {name: value for name, value in asdict(self).items() if name not in ("term", "advice")}


def measure(method: Method, output: MethodOutput, *, gradients: bool) -> list[Proportion]:
    """Every term that trains, but the ordinary loss.

    Args:
        method: the whole method, without the wrappers of distributed training.
        output: of its forward pass on a batch, with its graph.
        gradients: measure these too. The graph is kept for the step itself.
    """
    weights = method.weights
    found = []
    ordinary: dict[int, float] = {}
    for part in method.parts:
        for name, scale in part.scales().items():
            term, weight, layer = output["terms"][name], weights[name], scale.layer
            items = int(term.count)
            if not weight or not items:
                continue
            share = None
            parameters = [one for one in method.anatomy.layer(layer).parameters() if one.requires_grad]
            if gradients and parameters:
                if layer not in ordinary:
                    ordinary[layer] = _norm(output["terms"]["lm"], parameters)
                share = weight * _norm(term, parameters) / ordinary[layer] if ordinary[layer] else None
            guess = scale.guess(items)
            found.append(Proportion(name, term.mean.item(), guess, layer, share, weight, scale.advice))
    return found


def record(found: Iterable[Proportion]) -> Mapping[str, Any]:
    """For `pivotune.json`, by term."""
    return {one.term: one.as_dict() for one in found}


def _norm(term: Term, parameters: Sequence[Tensor]) -> float:
    """Of the gradient of a term's mean."""
    grads = torch.autograd.grad(term.mean, parameters, retain_graph=True, allow_unused=True)
    norms = [grad.float().norm() for grad in grads if grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
