"""Are the terms of a run in proportion? Each beside guessing, and its gradient beside that of the ordinary loss.

Gradients are those of the parameters of the layer that a term supervises: there both are felt. `measure` looks at the
first step, on its own batch and graph: no pass of the model is made for it, and nothing of the training changes.
`weigh` comes before the first step, and finds the weights that are `auto`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pivotune.data import Batch
from pivotune.losses import at_least_float32
from pivotune.method import Method, MethodOutput, Term
from pivotune.taps import evaluating

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
            parameters = _trained(method, layer)
            if gradients and parameters:
                if layer not in ordinary:
                    ordinary[layer] = _norm(output["terms"]["lm"], parameters)
                share = weight * _norm(term, parameters) / ordinary[layer] if ordinary[layer] else None
            guess = scale.guess(items)
            found.append(Proportion(name, term.mean.item(), guess, layer, share, weight, scale.advice))
    return found


@dataclass(frozen=True)
class Weighed:
    """What `weigh` found of one term.

    Attributes:
        weight: the term's weight from now on; 0 where one of the norms is.
        share: of the ordinary loss's gradient, which the weighted term then has.
        layer: at which.
        gradient, ordinary: the norms of the gradients of the two losses, before the weight.
    """

    weight: float
    share: float
    layer: int
    gradient: float
    ordinary: float

    def __str__(self) -> str:
        if not self.weight:
            return f"0, because at layer {self.layer} {'it' if not self.gradient else 'lm'} has no gradient"
        return f"{self.weight:.3g}, so that at layer {self.layer} its gradient is {self.share:g} times that of lm"


def weigh(method: Method, batches: Iterable[Batch]) -> dict[str, Weighed]:
    """Find the weights that are `auto`, once: each such that its term's gradient has its share of the ordinary one.

    Gradients are those of the mean over all items of all batches, so that neither the size of a batch nor its mix says
    anything. The model is in evaluation mode meanwhile, and computes in its own precision.

    Args:
        method: the whole method, not yet wrapped for distributed training; gets the weights.
        batches: of training examples, on the model's device.

    Returns:
        By the terms whose weight was open.
    """
    shares = {name: share for part in method.parts for name, share in part.open_weights().items()}
    scales = {name: scale for part in method.parts for name, scale in part.scales().items()}
    layers = {name: scales[name].layer for name in shares}
    inside = {layer: _trained(method, layer) for layer in layers.values()}
    sums: dict[tuple[str, int], list[Tensor | None]] = {}  # (term, layer) -> gradient of the sum, by parameter
    counts: Counter[str] = Counter()
    with evaluating(method, gradient=True):
        for batch in batches:
            terms = method.terms(batch)
            for term, layer in {*layers.items(), *(("lm", layer) for layer in inside)}:
                _add(sums.setdefault((term, layer), [None] * len(inside[layer])), terms[term], inside[layer])
            counts.update({name: int(terms[name].count) for name in (*layers, "lm")})
    found = {}
    for name, layer in layers.items():
        gradient, ordinary = (_length(sums.get((one, layer), [])) / max(counts[one], 1) for one in (name, "lm"))
        weight = shares[name] * ordinary / gradient if gradient else 0.0
        found[name] = Weighed(weight, shares[name], layer, gradient, ordinary)
    for part in method.parts:
        if own := {name: found[name].weight for name in part.open_weights()}:
            part.set_weights(own)
    return found


def _trained(method: Method, layer: int) -> list[Tensor]:
    """What trains of a layer."""
    return [one for one in method.anatomy.layer(layer).parameters() if one.requires_grad]


def _add(total: list[Tensor | None], term: Term, parameters: Sequence[Tensor]) -> None:
    """The gradient of a term's sum, to that of earlier batches."""
    if not term.sum.requires_grad or not parameters:
        return
    grads = torch.autograd.grad(term.sum, parameters, retain_graph=True, allow_unused=True)
    for k, grad in enumerate(grads):
        if grad is not None:
            before, wide = total[k], grad.to(at_least_float32(grad.dtype))
            total[k] = wide if before is None else before + wide


def _length(grads: Sequence[Tensor | None]) -> float:
    """The norm of a gradient that lies in several tensors."""
    norms = [torch.linalg.vector_norm(grad).double().cpu() for grad in grads if grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def record(found: Iterable[Proportion]) -> Mapping[str, Any]:
    """For `pivotune.json`, by term."""
    return {one.term: one.as_dict() for one in found}


def _norm(term: Term, parameters: Sequence[Tensor]) -> float:
    """Of the gradient of a term's mean."""
    return _length(torch.autograd.grad(term.mean, parameters, retain_graph=True, allow_unused=True))
