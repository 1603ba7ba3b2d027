"""The tuned lens: its reference, a planted map that it recovers, what the fit gains, what it leaves untouched."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.lens import tuned
from pivotune.lens.tuned import FitText, States, TunedLens, fit_on_states, fit_tuned_lens, held_out_kl
from tests.families import FAMILIES, VOCAB, tiny
from tests.reference import tuned_lens as reference

LAYERS = (1, 3)


def lens_of(model: nn.Module, layers: tuple[int, ...] = LAYERS) -> TunedLens:
    return TunedLens(layers, Anatomy(model).hidden_size, next(model.parameters()))


def texts(count: int = 40, seed: int = 0) -> list[FitText]:
    draw = random.Random(seed)
    made = ([draw.randrange(3, VOCAB) for _ in range(draw.randint(8, 30))] for _ in range(count))
    return [FitText(ids, draw.randrange(6)) for ids in made]


def states(count: int, size: int, layers: int = 1, seed: int = 0) -> Tensor:
    """Features whose scales differ by orders of magnitude, as in language models."""
    draw = torch.Generator().manual_seed(seed)
    scale = 10 ** (2 * torch.rand(size, generator=draw, dtype=torch.float64) - 1)
    return torch.randn(layers, count, size, generator=draw, dtype=torch.float64) * scale + scale


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference(family: str) -> None:
    model = tiny(family)
    lens, size = lens_of(model), Anatomy(model).hidden_size
    draw = torch.Generator().manual_seed(1)
    lens.weight.copy_(0.1 * torch.randn(lens.weight.shape, generator=draw))
    lens.bias.copy_(torch.randn(lens.bias.shape, generator=draw))
    hidden, final = states(5, size, 2), states(5, size, seed=2)[0]
    got = held_out_kl(Anatomy(model), lens, States(hidden, final))
    with torch.no_grad():
        want = [reference.mean_kl(model, hidden[k], final, lens.weight[k], lens.bias[k]) for k in range(2)]
    assert got.tolist() == pytest.approx(want, rel=1e-9)


def test_an_unfitted_lens_is_the_logit_lens() -> None:
    model = tiny("gemma2")
    anatomy, some = Anatomy(model), states(4, 32)[0]
    torch.testing.assert_close(lens_of(model).logits(anatomy, 3, some), anatomy.frozen_lens(some), rtol=0, atol=0)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_least_squares(ridge: float) -> None:
    hidden, final = states(100, 12)[0], states(100, 12, seed=1)[0]
    found = tuned._LeastSquares(hidden, final).solve(ridge)
    for got, want in zip(found, reference.ridge_map(hidden, final, ridge), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2", "llama3_tied"])
def test_a_planted_map_is_recovered(family: str) -> None:
    model = tiny(family)
    anatomy, lens, size = Anatomy(model), lens_of(model), 32
    draw = torch.Generator().manual_seed(3)
    hidden = states(700, size, 2)
    planted = 0.2 * torch.randn(size, size, generator=draw, dtype=torch.float64)
    shift = torch.randn(size, generator=draw, dtype=torch.float64)
    final = hidden[0] + hidden[0] @ planted + shift
    made, tested = (States(hidden[:, part], final[part]) for part in (slice(600), slice(600, 700)))
    with torch.no_grad():
        fit = fit_on_states(anatomy, lens, made, tested, steps=30)
    torch.testing.assert_close(lens.weight[0], planted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lens.bias[0], shift, rtol=1e-3, atol=2e-2)
    assert fit.after[1] < 1e-5 < 0.1 < fit.before[1]
    assert (fit.tokens, fit.held_out) == (600, 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fit_beats_the_logit_lens_at_every_layer(family: str) -> None:
    model = tiny(family, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    layers = tuple(range(1, Anatomy(model).num_layers))
    lens = lens_of(model, layers)
    state = torch.get_rng_state()
    fit = fit_tuned_lens(model, lens, texts(), steps=20)
    for layer in layers:
        assert fit.after[layer] < fit.before[layer], str(fit)
    assert f"layer 2: {fit.before[2]:.3f} nats by the logit lens, {fit.after[2]:.3f} by the tuned lens" in str(fit)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not any(layer._forward_hooks for layer in Anatomy(model).layers)


def test_the_steps_on_the_kl_gain_beyond_least_squares_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    found = {}
    for steps, chunk in ((0, tuned.LOGITS_PER_CHUNK), (100, tuned.LOGITS_PER_CHUNK), (100, 7 * VOCAB)):
        monkeypatch.setattr(tuned, "LOGITS_PER_CHUNK", chunk)
        lens = lens_of(model)
        found[steps, chunk] = fit_tuned_lens(model, lens, texts(200), steps=steps), lens
    (none, _), (some, whole), (_, chunked) = found.values()
    assert all(some.after[layer] < 0.97 * none.after[layer] for layer in LAYERS), (none, some)
    torch.testing.assert_close(chunked.weight, whole.weight, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_fitted() -> None:
    model = tiny("llama")
    with pytest.raises(PivotuneError, match=r"tuned lens: 1 texts to fit on\. Two are needed"):
        fit_tuned_lens(model, lens_of(model), texts(1))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(PivotuneError, match="tuned lens: states are not finite"):
        fit_tuned_lens(model, lens_of(model), texts(4))
