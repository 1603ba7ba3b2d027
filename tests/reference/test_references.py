"""The references themselves, where something simple is known about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families import FAMILIES, tiny
from tests.reference.cc_tuning import fit, generate, gumbel_noise
from tests.reference.passes import run

PROMPTS = [[5, 17, 3, 88, 42, 9, 60, 23], [4, 50, 11, 29, 73]]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_without_connection_is_that_of_transformers(family):
    model = tiny(family)
    for prompt, answer in zip(PROMPTS, generate(model, None, PROMPTS, 5), strict=True):
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
        if model.config.eos_token_id not in answer:  # min_new_tokens forbids it, the reference does not
            assert ids[0, len(prompt) :].tolist() == answer


def test_the_connection_changes_the_answers():
    model = tiny("llama")
    decision_maker = torch.randn(4, 32, dtype=torch.float64)
    plain = generate(model, None, PROMPTS, 6)
    assert generate(model, decision_maker, PROMPTS, 6, matrix=torch.eye(32, dtype=torch.float64)) != plain
    assert generate(model, decision_maker, PROMPTS, 6, english_prompts=PROMPTS[::-1]) != plain
    own = generate(model, decision_maker, PROMPTS, 6, english_prompts=PROMPTS)
    assert own == generate(model, decision_maker, PROMPTS, 6, matrix=torch.eye(32, dtype=torch.float64))


def test_only_the_last_prompt_token_changes_above_the_connection():
    """The fact that makes cached inference possible (docs/methods/cc_tuning.md)."""
    from tests.reference.passes import Connection

    model = tiny("llama")
    plain = run(model, PROMPTS[0])
    connected = run(model, PROMPTS[0], Connection(1, [7], torch.ones(32, dtype=torch.float64)))
    for ours, theirs in zip(connected.hidden[1:], plain.hidden[1:], strict=True):
        assert torch.equal(ours[:7], theirs[:7]) and not torch.equal(ours[7], theirs[7])


@pytest.mark.parametrize("matrix", ["shared", "per_layer"])
def test_fit_recovers_a_planted_matrix(matrix):
    draw = np.random.default_rng(0)
    planted = draw.normal(size=(3, 5, 5)) if matrix == "per_layer" else draw.normal(size=(5, 5))
    S = draw.normal(size=(20, 3, 5))
    T = np.stack([[s @ (planted[n] if planted.ndim == 3 else planted) for n, s in enumerate(rows)] for rows in S])
    np.testing.assert_allclose(fit(list(zip(S, T, strict=True)), matrix=matrix), planted, rtol=1e-9, atol=1e-9)


def test_fit_with_ridge_solves_the_normal_equations():
    draw = np.random.default_rng(1)
    S, T = draw.normal(size=(4, 3, 5)), draw.normal(size=(4, 3, 5))
    rows, goals = S.reshape(-1, 5), T.reshape(-1, 5)
    gram = rows.T @ rows
    expected = np.linalg.solve(gram + 0.3 * np.mean(np.diag(gram)) * np.eye(5), rows.T @ goals)
    np.testing.assert_allclose(fit(list(zip(S, T, strict=True)), ridge=0.3), expected, rtol=1e-9, atol=1e-9)


def test_gumbel_noise_is_gumbel():
    torch.manual_seed(0)
    noise = gumbel_noise(200, 200)
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.var() - np.pi**2 / 6) < 0.03
