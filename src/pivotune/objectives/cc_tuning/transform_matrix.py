"""The Transform Matrix of CC-Tuning: streaming least squares from a question's own activations to the English ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.data.tokenize import paired
from pivotune.errors import PivotuneError
from pivotune.finite import broken
from pivotune.objectives.cc_tuning.decision_maker import CCTuningConfig
from pivotune.taps import evaluating

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What `auto` tries."""


@dataclass
class TransformMatrix:
    """The least-squares map from a question's own activations to those of its English counterpart.

    Attributes:
        weight: X, (d, d) shared by all layers or (L, d, d); float32.
        report: pairs, held_out_pairs, ridge (where it was chosen a list, one per X), r2 (held-out, over all layers),
            r2_per_layer. The last two are None where a single pair is held out.
    """

    weight: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        r2 = "unknown (a single pair)" if self.report["r2"] is None else f"{self.report['r2']:.3f}"
        pairs, held_out = self.report["pairs"], self.report["held_out_pairs"]
        return f"Transform Matrix: fitted on {pairs} pairs; R^2 on {held_out} held-out pairs: {r2}."


class NormalEquations:
    """Streaming least squares `min ||S X - T||^2 + ridge * mean(diag(S'S)) ||X||^2`, in float64.

    Rows are added batch by batch; memory is that of two d x d matrices per X, however many rows come.

    Args:
        groups: how many separate X to fit (1 shared, or one per layer).
        size: d.
    """

    def __init__(self, groups: int, size: int, device: torch.device | str = "cpu"):
        self.gram = torch.zeros(groups, size, size, dtype=torch.float64, device=device)
        self.cross = torch.zeros_like(self.gram)

    def add(self, source_GNd: Tensor, target_GNd: Tensor) -> None:
        """Take in rows: (G, N, d) each."""
        source = source_GNd.double()
        self.gram += source.mT @ source
        self.cross += source.mT @ target_GNd.double()

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Of the rows of both."""
        both = copy.copy(self)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        return both

    def error(self, weight_Gdd: Tensor) -> Tensor:
        """`||S X - T||^2` of these rows, less `||T||^2`, which is the same for every X: (G,)."""
        return (weight_Gdd * (self.gram @ weight_Gdd - 2 * self.cross)).sum(dim=(1, 2))

    def solve(self, ridge: float | Tensor) -> Tensor:
        """X, (G, d, d) in float64, by one ridge or one of each group, (G,). With ridge 0 and too few rows, the solution
        of least norm."""
        scale = self.gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        if not torch.is_tensor(ridge) and ridge == 0:
            return torch.linalg.pinv(self.gram, hermitian=True) @ self.cross
        penalty = (ridge * scale)[:, None, None] * torch.eye(
            self.gram.shape[-1], dtype=torch.float64, device=scale.device
        )
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(self.gram + penalty))


class RunningR2:
    """Streaming R^2, in float64: 1 - (squared error) / (squared distance of the targets from their mean).

    Each group's targets are measured about that group's own mean. Rows are centred on their own batch before they are
    squared, and the batches' means enter apart (Chan et al. 1979): far from the origin, where some features of language
    models lie, a sum of raw squares would lose the digits that matter.

    Args:
        groups: how many separate R^2 to keep, e.g. one per layer.
        size: d.

    Attributes:
        count: rows so far.
    """

    def __init__(self, groups: int, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._mean = torch.zeros(groups, size, dtype=torch.float64, device=device)
        self._error = torch.zeros(groups, dtype=torch.float64, device=device)
        self._spread = torch.zeros_like(self._error)

    def add(self, predicted_GNd: Tensor, target_GNd: Tensor) -> None:
        """Take in rows: (G, N, d) each."""
        added = target_GNd.shape[1]
        if not added:
            return
        target_GNd = target_GNd.to(self._mean)
        mean_Gd = target_GNd.mean(dim=1)
        shift_Gd, total = mean_Gd - self._mean, self.count + added
        self._error += ((predicted_GNd.to(self._mean) - target_GNd) ** 2).sum(dim=(1, 2))
        self._spread += ((target_GNd - mean_Gd[:, None]) ** 2).sum(dim=(1, 2))
        self._spread += (shift_Gd**2).sum(dim=1) * (self.count * added / total)
        self._mean += shift_Gd * (added / total)
        self.count = total

    def overall(self) -> float | None:
        """Of all groups together, so that those of large activations weigh most. None as in `per_group`."""
        per_group = self._explained(self._error.sum()[None], self._spread.sum()[None])
        return None if per_group is None else per_group[0]

    def per_group(self) -> list[float | None] | None:
        """(G,). None for fewer than two rows, and for a group whose targets are all the same."""
        return self._explained(self._error, self._spread)

    def _explained(self, error_G: Tensor, spread_G: Tensor) -> list[float | None] | None:
        if self.count < 2:
            return None
        return [None if s == 0 else 1.0 - e / s for e, s in zip(error_G.tolist(), spread_G.tolist(), strict=True)]


def fit_transform_matrix(
    method: nn.Module,
    dataset: Any,
    collator: Callable[[list[dict]], dict[str, Tensor]],
    *,
    batch_size: int = 16,
    held_out: float = 0.1,
    seed: int = 0,
) -> TransformMatrix:
    """Fit the Transform Matrix on parallel questions, and say how well it does on questions it was not fitted on.

    Nothing is stored per example: normal equations are summed in one pass, R^2 in a second over the held-out pairs.

    Args:
        method: the trained method, with CC-Tuning among its objectives. Under FSDP2 every rank must call this, with the
            same dataset.
        dataset: tokenised examples as from `pivotune.data.tokenize_examples`; those without English are left out.
        collator: makes a batch of them.
        batch_size: pairs per forward pass.
        held_out: share of the pairs kept for R^2.
        seed: of the choice of pairs.

    Raises:
        PivotuneError: fewer than two pairs, activations that are not finite, or equations without a solution.
    """
    objective: Any = method.objectives["cc_tuning"]  # type: ignore[index]
    config = objective.options
    pairs = paired(dataset)
    if len(pairs) < 2:
        raise PivotuneError(
            f"transform matrix: needs parallel questions, and the data have {len(pairs)} with an English counterpart."
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[: config.matrix_pairs]
    chosen = [pairs[i] for i in order.tolist()]
    split = min(max(2, round(held_out * len(chosen))), len(chosen) // 2)
    held, fitted = chosen[:split], chosen[split:]
    tried = min(split, len(fitted) // 2) if config.ridge == "auto" else 0  # pairs to choose the ridge by

    anatomy, shared = objective.anatomy, config.matrix == "shared"
    device = objective.decision_maker.weight.device

    def activations(indices: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), batch_size):
            batch = collator([dataset[i] for i in indices[start : start + batch_size]])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            out = method(batch, collect="cc_tuning")
            yield out["target"].transpose(0, 1), out["english"].transpose(0, 1)  # (L, B, d)

    with evaluating(method):
        equations = _summed(activations(fitted[tried:]), per_layer=not shared)
        ridge: Any = config.ridge
        if tried:
            others = _summed(activations(fitted[:tried]), per_layer=not shared)
            ridge = best_ridge(equations, others)
            equations = equations + others
        elif ridge == "auto":
            ridge = CCTuningConfig.ridge  # too few pairs to choose by
        weight = _solved(equations, ridge)
        r2 = RunningR2(anatomy.num_layers, anatomy.hidden_size, device)
        for source, target in activations(held):
            r2.add(source.double() @ weight, target)
    report = {
        "pairs": len(fitted),
        "held_out_pairs": len(held),
        "ridge": ridge.tolist() if torch.is_tensor(ridge) else ridge,
        "r2": r2.overall(),
        "r2_per_layer": r2.per_group(),
    }
    return TransformMatrix((weight[0] if shared else weight).float(), report)


def least_squares(pairs: Iterable[tuple[Tensor, Tensor]], *, per_layer: bool, ridge: float) -> Tensor:
    """The Transform Matrix of these activations: (d, d), or (L, d, d) `per_layer`, in float32.

    Args:
        pairs: batches of own and English activations, (L, B, d) each; one at least.
        ridge: as `CCTuningConfig.ridge`.
    """
    weight = _solved(_summed(pairs, per_layer=per_layer), ridge).float()
    return weight if per_layer else weight[0]


def best_ridge(equations: NormalEquations, others: NormalEquations) -> Tensor:
    """Of `RIDGES`, that whose X, fitted on some rows, does best on others: one for each group, (G,).

    Nothing is read again: what an X does on those rows follows from their sums.
    """
    best = torch.full((len(equations.gram),), math.inf, dtype=torch.float64, device=equations.gram.device)
    found = torch.full_like(best, RIDGES[-1])
    for ridge in RIDGES:
        try:
            error = others.error(equations.solve(ridge))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # exported, though not in its __all__
            continue  # too weak a penalty for these rows
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, ridge, found)
    return found


def _summed(pairs: Iterable[tuple[Tensor, Tensor]], *, per_layer: bool) -> NormalEquations:
    equations: NormalEquations | None = None
    for source_LBd, target_LBd in pairs:
        if equations is None:
            layers, _, size = source_LBd.shape
            equations = NormalEquations(layers if per_layer else 1, size, source_LBd.device)
        equations.add(*(x if per_layer else x.flatten(0, 1)[None] for x in (source_LBd, target_LBd)))
    assert equations is not None
    return equations


def _solved(equations: NormalEquations, ridge: float | Tensor) -> Tensor:
    if broken(equations.gram) or broken(equations.cross):
        raise PivotuneError("transform matrix: the model's activations on data.train have NaN or infinity.")
    try:
        weight = equations.solve(ridge)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # exported, though not in its __all__
        raise PivotuneError(f"transform matrix: cannot be solved with {_said(ridge)}") from error
    if broken(weight.float()):
        raise PivotuneError(f"transform matrix: overflows with {_said(ridge)}")
    return weight


def _said(ridge: float | Tensor) -> str:
    if torch.is_tensor(ridge):
        return f"any ridge that cc_tuning.ridge: auto tries, up to {RIDGES[-1]:g}. Give a larger number."
    return f"cc_tuning.ridge: {ridge:g}. Raise it; 0.01 is usual."
