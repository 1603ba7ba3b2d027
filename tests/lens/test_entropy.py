"""Entropy of the logit lens against its slow reference, and what it leaves untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from pivotune.anatomy import Anatomy
from pivotune.lens.entropy import EntropyMeasure, entropy, side_entropies
from tests.families import FAMILIES, VOCAB, tiny
from tests.lens.readings import prompts, question_entropies, random_pairs, readings, sides, tables_of
from tests.reference import lens_entropy as reference


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference(family: str) -> None:
    model, texts = tiny(family), prompts()
    got = question_entropies(model, texts, batch_size=3)
    want = [reference.lens_entropy(model, one.prompt_ids, (one.question_start, one.question_end)) for one in texts]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_models_own_output(family: str) -> None:
    model = tiny(family)
    (one,) = prompts(1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.prompt_ids])).logits[0, one.question_start : one.question_end]
    own = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert question_entropies(model, [one])[0, -1] == pytest.approx(own.item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    want = question_entropies(tiny("llama", dtype=torch.float64), prompts())
    got = question_entropies(tiny("llama", dtype=dtype), prompts())
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-5 if dtype is torch.float32 else 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measure_equals_the_reference_on_both_sides(family: str) -> None:
    model, pairs = tiny(family), random_pairs(5)
    found = tables_of(EntropyMeasure(Anatomy(model)), readings(model, pairs, [3, 2]))
    assert list(found) == ["target", "english"]
    for name, texts in sides(pairs).items():
        want = [reference.lens_entropy(model, text.prompt, text.question) for text in texts]
        assert found[name].dtype == torch.float64
        np.testing.assert_allclose(found[name], want, rtol=1e-9, atol=1e-9)


def test_batches_and_padding_do_not_matter() -> None:
    model, pairs = tiny("llama"), random_pairs(5)
    want = tables_of(EntropyMeasure(Anatomy(model)), readings(model, pairs, [5]))
    for sizes, options in (([1] * 5, {}), ([2, 3], {}), ([5], {"pad": 5, "extra": 4})):
        found = tables_of(EntropyMeasure(Anatomy(model)), readings(model, pairs, sizes, **options))
        for name, table in want.items():
            np.testing.assert_allclose(found[name], table, rtol=1e-11)


@pytest.mark.parametrize("logits_per_chunk", [1, VOCAB, 3 * VOCAB + 1, 2**25])
def test_chunks_change_nothing(logits_per_chunk: int) -> None:
    model = tiny("llama")
    (reading,) = readings(model, random_pairs(4), [4])
    found = side_entropies(Anatomy(model), reading.target, logits_per_chunk=logits_per_chunk)
    np.testing.assert_allclose(found, side_entropies(Anatomy(model), reading.target), rtol=1e-12)


def test_rows_equal_the_reference() -> None:
    logits = torch.randn(10, VOCAB, dtype=torch.float64) * 4
    want = [reference.entropy(row.tolist()) for row in logits.softmax(dim=-1)]
    np.testing.assert_allclose(entropy(logits), want, rtol=1e-12)


def test_extremes() -> None:
    certain, uniform = torch.zeros(8), torch.zeros(8)
    certain[3] = 1e4
    masked = torch.tensor([0.0, 0.0] + [-torch.inf] * 6)
    got = entropy(torch.stack([certain, uniform, masked]))
    np.testing.assert_allclose(got, [0.0, math.log(8), math.log(2)], rtol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"]))
    model.train()
    model.get_base_model().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    got = question_entropies(model, prompts())
    np.testing.assert_allclose(got, question_entropies(tiny("llama"), prompts()), rtol=1e-12)  # a new adapter is silent
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer._forward_hooks for layer in Anatomy(model).layers)
