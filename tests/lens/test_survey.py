"""One look at all layers: what is cut and left out, and what is drawn of many tokens."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded
from pivotune.errors import PivotuneError
from pivotune.lens.entropy import EntropyMeasure
from pivotune.lens.survey import Question, survey
from pivotune.taps import evaluating
from tests.families import tiny
from tests.lens.readings import prompts, question_entropies, random_pairs, readings, tables_of
from tests.reference import lens_entropy as reference


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
