"""The Transform Matrix against plain least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import fit_transform_matrix
from pivotune.objectives.cc_tuning.transform_matrix import RIDGES, NormalEquations, RunningR2
from tests.families import VOCAB, tiny
from tests.reference import cc_tuning as reference
from tests.reference.lens_calibration import r_squared


def draw(lengths: list[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


class Pairs:
    """Parallel questions in the form that the tokenised data have, as far as the fit needs it."""

    def __init__(self, number: int):
        lengths = [3 + n % 7 for n in range(number)]
        self.target, self.english = draw(lengths, 20), draw(lengths[::-1], 21)

    def __getitem__(self, key: Any) -> Any:
        return self.english if key == "english_prompt_ids" else key

    def activations(self, model: Any, seed: int) -> list[tuple[np.ndarray, ...]]:
        """Of either side, one question at a time, in the order that the fit draws them in."""
        order = torch.randperm(len(self.target), generator=torch.Generator().manual_seed(seed)).tolist()
        sides = (self.target, self.english)
        return [tuple(reference.last_feed_forward(model, side[i]).detach().numpy() for side in sides) for i in order]

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        def right(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
            width = max(map(len, ids))
            padded = torch.tensor([r + [0] * (width - len(r)) for r in ids])
            return padded, torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in ids])

        answered = [self.target[i] + [5, 2] for i in rows]  # an answer follows; the fit must not look at it
        ids, mask = right(answered)
        english, english_mask = right([self.english[i] for i in rows])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "prompt_length": torch.tensor([len(self.target[i]) for i in rows]),
            "pair_row": torch.arange(len(rows)),
            "english_input_ids": english,
            "english_attention_mask": english_mask,
        }


@pytest.mark.parametrize("matrix", ["shared", "per_layer"])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_transform_matrix_equals_plain_least_squares(matrix: str, ridge: float) -> None:
    model = tiny("gemma2")
    method = Method(model, [CCTuningConfig(matrix=matrix, ridge=ridge)])
    pairs = Pairs(80)
    fitted = fit_transform_matrix(method, pairs, pairs.collate, batch_size=7, seed=3)
    activations = pairs.activations(model, seed=3)
    expected = reference.fit(activations[8:], matrix=matrix, ridge=ridge)
    np.testing.assert_allclose(fitted.weight.numpy(), expected, rtol=1e-4, atol=1e-5)

    held = activations[:8]
    per_layer = expected if matrix == "per_layer" else [expected] * 4
    T = np.stack([t for _, t in held])
    predicted = np.stack([[s[n] @ per_layer[n] for n in range(4)] for s, _ in held])
    residual, variance = ((predicted - T) ** 2).sum((0, 2)), ((T - T.mean(0)) ** 2).sum((0, 2))
    np.testing.assert_allclose(fitted.report["r2_per_layer"], 1 - residual / variance, rtol=1e-6)
    assert fitted.report["r2"] == pytest.approx(1 - residual.sum() / variance.sum(), rel=1e-6)
    assert (fitted.report["pairs"], fitted.report["held_out_pairs"]) == (72, 8)
    assert str(fitted).startswith("Transform Matrix: fitted on 72 pairs; R^2 on 8 held-out pairs: ")


@pytest.mark.parametrize("matrix", ["shared", "per_layer"])
def test_an_automatic_ridge_is_the_best_on_pairs_kept_for_that(matrix: str) -> None:
    """Fitted on some, compared on others by their residuals, fitted again on both; R^2 on those that neither saw."""
    model = tiny("llama")
    method = Method(model, [CCTuningConfig(matrix=matrix, ridge="auto")])
    pairs = Pairs(60)
    fitted = fit_transform_matrix(method, pairs, pairs.collate, batch_size=7, seed=3)
    activations = pairs.activations(model, seed=3)
    _, others, rest = activations[:6], activations[6:12], activations[12:]
    layers = [None] if matrix == "shared" else [slice(n, n + 1) for n in range(4)]
    chosen, expected = [], []
    for layer in layers:

        def of(some: list, layer: Any = layer) -> list:
            return [(s[layer or slice(None)], t[layer or slice(None)]) for s, t in some]

        errors = {}
        for ridge in RIDGES:
            X = reference.fit(of(rest), ridge=ridge)
            errors[ridge] = sum(float(((s @ X - t) ** 2).sum()) for s, t in of(others))
        chosen.append(min(errors, key=errors.__getitem__))
        expected.append(reference.fit(of(others + rest), ridge=chosen[-1]))
    assert fitted.report["ridge"] == chosen
    weight = expected[0] if matrix == "shared" else np.stack(expected)
    np.testing.assert_allclose(fitted.weight.numpy(), weight, rtol=1e-4, atol=1e-5)
    assert (fitted.report["pairs"], fitted.report["held_out_pairs"]) == (54, 6)


def test_too_few_pairs_to_choose_a_ridge_by() -> None:
    for count, few in ((2, True), (3, False)):
        pairs = Pairs(count)
        method = Method(tiny("llama"), [CCTuningConfig(ridge="auto")])
        ridge = fit_transform_matrix(method, pairs, pairs.collate).report["ridge"]
        assert (ridge == 0.01) if few else (ridge[0] in RIDGES)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 6), batches=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_streaming_least_squares_recovers_a_planted_matrix(size: int, batches: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    planted = torch.randn(2, size, size, dtype=torch.float64, generator=generator)
    equations = NormalEquations(2, size)
    for _ in range(batches):
        rows = torch.randn(2, 4 * size, size, dtype=torch.float64, generator=generator)
        equations.add(rows, rows @ planted)
    torch.testing.assert_close(equations.solve(0.0), planted, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    offset=st.sampled_from([0.0, 1.0, -1e6, 1e6]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_running_r2_equals_its_definition(sizes: list[int], offset: float, scale: float, seed: int) -> None:
    """However the rows come in parts; also far from the origin, where raw squares would lose the digits that matter."""
    draw = np.random.default_rng(seed)
    targets = offset + scale * draw.normal(size=(3, sum(sizes), 4)) * np.array([1.0, 2.0, 0.1])[:, None, None]
    predicted = targets + 0.5 * scale * draw.normal(size=targets.shape)
    running, start = RunningR2(3, 4), 0
    for size in sizes:
        part = slice(start, start + size)
        running.add(torch.from_numpy(predicted[:, part]), torch.from_numpy(targets[:, part]))
        start += size
    r2, per_group = r_squared(predicted.transpose(1, 0, 2), targets.transpose(1, 0, 2))
    # What the numbers themselves can say: at 1e6 they are spaced 1e-10 apart.
    tolerance = dict(rel=1e-9, abs=1e-9) if scale >= 1 or abs(offset) < 2 else dict(rel=1e-5, abs=1e-5)
    assert running.count == sum(sizes)
    assert running.overall() == pytest.approx(r2, **tolerance)
    assert running.per_group() == pytest.approx(per_group, **tolerance)


def test_raw_squares_would_not_do() -> None:
    """Guards the test above: the obvious one-pass formula is far off where RunningR2 is exact."""
    draw = np.random.default_rng(0)
    targets = torch.from_numpy(1e6 + 1e-2 * draw.normal(size=(1, 50, 4)))
    predicted = targets + 5e-3 * torch.from_numpy(draw.normal(size=targets.shape))
    running = RunningR2(1, 4)
    for part in range(0, 50, 10):
        running.add(predicted[:, part : part + 10], targets[:, part : part + 10])
    exact = r_squared(predicted.numpy().transpose(1, 0, 2), targets.numpy().transpose(1, 0, 2))[0]
    raw = ((targets**2).sum(dim=1) - targets.sum(dim=1) ** 2 / 50).sum()
    assert running.overall() == pytest.approx(exact, rel=1e-6)
    assert abs(1 - float(((predicted - targets) ** 2).sum() / raw) - exact) > 1e-3


def test_r2_of_too_little() -> None:
    running = RunningR2(2, 3)
    assert running.overall() is None and running.per_group() is None
    row = torch.ones(2, 1, 3)
    running.add(row, row)
    assert running.count == 1 and running.overall() is None and running.per_group() is None
    running.add(row, row)  # a target that never changes has no variance to explain
    assert running.overall() is None and running.per_group() == [None, None]
    other = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 1, 3)
    running.add(other, other)
    assert running.overall() == 1.0 and running.per_group() == [None, 1.0]


def test_fitting_needs_pairs() -> None:
    pairs = Pairs(1)
    with pytest.raises(PivotuneError, match="parallel questions"):
        fit_transform_matrix(Method(tiny("llama"), [CCTuningConfig()]), pairs, pairs.collate)
