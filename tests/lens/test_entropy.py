"""Entropy of the logit lens against its slow reference, and what it leaves untouched."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import nn

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.errors import PivotuneError
from pivotune.lens.curve import LayerCurve
from pivotune.lens.entropy import EntropyMeasure, entropy, side_entropies
from pivotune.lens.survey import Question, survey
from pivotune.taps import evaluating
from tests.families import FAMILIES, VOCAB, tiny
from tests.lens.readings import random_pairs, readings, sides, tables_of
from tests.reference import lens_entropy as reference


def prompts(count: int = 5, seed: int = 0) -> list[Encoded]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(3, VOCAB) for _ in range(draw.randint(4, 14))]
        start = draw.randrange(len(ids) - 1)
        made.append(Encoded(ids, [], start, draw.randint(start + 1, len(ids))))
    return made


def question_entropies(model: nn.Module, texts: Sequence[Encoded], **options: Any) -> np.ndarray:
    """Of all tokens, as the choice of layers reads them."""
    with evaluating(model):
        questions = [Question("zh", one) for one in texts]
        return survey(Anatomy(model), questions, tokens=None, **options)["entropy"]


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


def test_one_forward_per_batch() -> None:
    model, calls = tiny("llama"), []
    model.model.register_forward_hook(lambda module, args, output: calls.append(1))
    question_entropies(model, prompts(7), batch_size=3)
    assert len(calls) == 3


def test_long_prompts_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    long = Encoded(list(range(3, 23)), [], 2, 20)
    late = Encoded(list(range(3, 23)), [], 12, 20)
    with caplog.at_level(logging.WARNING):
        got = question_entropies(model, [long, late], max_length=10)
    np.testing.assert_allclose(got, [reference.lens_entropy(model, long.prompt_ids, (2, 10))], rtol=1e-9)
    assert "1 questions were read up to token 10 only, and 1 begin later and were left out" in caplog.text


def test_nothing_to_read_and_no_number() -> None:
    with pytest.raises(PivotuneError, match="there is no question to read"):
        question_entropies(tiny("llama"), [])
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(PivotuneError, match="the entropy at layer 3 is NaN or infinite"):
        question_entropies(model, prompts())
    with pytest.raises(PivotuneError, match="the entropy at layer 3 is NaN or infinite"):
        tables_of(EntropyMeasure(Anatomy(model)), readings(model, random_pairs(2), [2]))


def test_some_tokens() -> None:
    """Drawn evenly, without bias, and the same for the same seed."""
    model, texts = tiny("llama"), prompts(6)
    anatomy, questions = Anatomy(model), [Question("zh", one) for one in texts]
    with evaluating(model):
        whole = survey(anatomy, questions, tokens=None)["entropy"]
        some = [survey(anatomy, questions, tokens=12, seed=seed)["entropy"] for seed in range(200)]
        again = survey(anatomy, questions, tokens=12, seed=3)["entropy"]
        plenty = survey(anatomy, questions, tokens=10_000)["entropy"]
    np.testing.assert_array_equal(again, some[3])
    np.testing.assert_array_equal(plenty, whole)
    assert not np.array_equal(some[0], some[1])
    error = np.std(some, axis=0) / 200**0.5
    assert (np.abs(np.mean(some, axis=0) - whole) <= 4.5 * error + 1e-9).all()


def test_the_intervals() -> None:
    values = np.random.default_rng(0).normal(5, 1, size=(12, 3))
    for layer, interval in enumerate(LayerCurve(values).intervals):
        low, high = stats.ttest_1samp(values[:, layer], 0).confidence_interval(0.95)
        np.testing.assert_allclose(interval, (values[:, layer].mean(), low, high))
    shares = values > 5
    for layer, interval in enumerate(LayerCurve(shares).intervals):
        low, high = stats.binomtest(int(shares[:, layer].sum()), 12).proportion_ci(method="wilson")
        np.testing.assert_allclose(interval, (shares[:, layer].mean(), low, high))
    assert LayerCurve(values[:1]).as_dict()["low"] == [None] * 3
