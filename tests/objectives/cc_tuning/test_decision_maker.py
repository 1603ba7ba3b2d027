"""The Decision Maker by hand: scores of each layer, the pick, and what is random."""

from __future__ import annotations

import pytest
import torch

from pivotune.objectives.cc_tuning.decision_maker import CCTuningConfig, DecisionMaker, Gate

P, L, D = 5, 3, 4


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((P, L, D), (P, D)))


def made(**options: object) -> DecisionMaker:
    torch.manual_seed(1)
    return DecisionMaker(L, D, CCTuningConfig(**options), std=1.0).double()  # type: ignore[arg-type]


def scores(maker: DecisionMaker, v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Row by row: the mean over layers of activation plus embedding, times each layer's weight."""
    rows = []
    for p in range(P):
        summary = sum(v[p, n] + e[p] for n in range(L)) / L
        rows.append(torch.stack([summary @ maker.weight[n] for n in range(L)]))
    return torch.stack(rows)


def test_hard_takes_the_best_layer_and_soft_mixes(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    hard, soft = made().eval(), made(selection="soft", temperature=0.5).eval()
    want = scores(hard, *inputs)
    best = want.argmax(dim=1)
    assert torch.equal(hard(*inputs), inputs[0][torch.arange(P), best])
    shares = (want / 0.5).softmax(dim=1)
    torch.testing.assert_close(soft.shares(*inputs), shares)
    torch.testing.assert_close(soft(*inputs), (shares[..., None] * inputs[0]).sum(dim=1))


def test_noise_in_training_only(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    maker = made()
    torch.manual_seed(0)
    drawn = torch.stack([maker.train().shares(*inputs).argmax(dim=1) for _ in range(200)])
    assert (drawn != drawn[0]).any()
    assert torch.equal(maker.eval()(*inputs), maker(*inputs))


def test_the_hard_choice_has_a_gradient(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    maker = made().train()
    maker(*inputs).sum().backward()
    assert maker.weight.grad is not None and maker.weight.grad.abs().sum() > 0


def test_the_gate_begins_near_zero_and_gets_somewhere() -> None:
    """By steps of the size that Adam takes at a rate of fine-tuning."""
    gate = Gate()
    assert gate().item() == pytest.approx(0.1) and gate().shape == (1,)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=2e-5, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        (-gate()).sum().backward()
        optimizer.step()
    assert 0.5 < gate().item() < 1
