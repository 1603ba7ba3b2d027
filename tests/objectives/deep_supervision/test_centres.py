"""The centred cosine: its means, against means taken one question at a time, and the term, against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pivotune.checkpoint import load_run
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.objectives.base import BeforeTraining
from pivotune.objectives.deep_supervision import centres as module
from pivotune.objectives.deep_supervision.centres import fit_centres
from pivotune.training import train
from tests.batches import examples_of, random_batch
from tests.families import FAMILIES, tiny
from tests.reference.compare import assert_gradients, assert_terms, gradients, loss_of
from tests.reference.deep_supervision import deep_supervision
from tests.reference.passes import run as passed
from tests.runs import FEATURE, configuration, options, rows, same, weights, write_base, write_rows

CENTRED = replace(FEATURE, feature_loss="centred_cosine", stop_gradient=True)


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference(family: str, stop_gradient: bool, pooling: Any) -> None:
    model, batch = tiny(family), random_batch()
    options = {**vars(CENTRED), "pooling": pooling, "stop_gradient": stop_gradient, "english_layer": 3}
    method = Method(model, [DeepSupervisionConfig(**options)])
    centres = method.objectives["deep_supervision"].centres
    centres.copy_(torch.randn(centres.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    wanted = ("language_conversion", "english_thinking", "conversion_layer", "thinking_layer", "pooling")
    wanted += ("feature_loss", "english_layer", "stop_gradient")
    means = {name: tuple(centres[k]) for k, name in enumerate(("language_conversion", "english_thinking"))}
    expected = deep_supervision(model, batch, **{name: options[name] for name in wanted}, centres=means)
    output = method(batch)
    assert_terms(output["terms"], expected, 1e-9)
    loss = loss_of(expected, {"language_conversion": 1.0, "english_thinking": 1.0})
    assert_gradients(gradients(output["loss"], model), gradients(loss, model), 1e-9)
    assert not any(name.startswith("objectives") for name, _ in method.named_parameters())  # nothing of it trains


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(24))


def tokenised(base: Path, data: Path) -> tuple[Any, Any]:
    run = load_run(base)
    examples, _ = read_examples(data)
    return run.model.double(), tokenize_examples(examples, run.tokenizer, "plain", 128)[0]


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_means_of_one_question_at_a_time(pooling: str, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = tokenised(base, data)
    before = BeforeTraining(model, dataset, options(per_device_eval_batch_size=4))
    method = Method(model, [CENTRED])
    found = fit_centres(method.anatomy, [(1, 1), (2, 3)], pooling, before)
    total, count = torch.zeros(2, 2, 16, dtype=torch.float64), 0
    with torch.no_grad():
        for example in examples_of(ParallelCollator(0)(list(dataset))):
            if example.english is None:
                continue
            count += 1
            for side, text in enumerate((example.target, example.english)):
                states, (start, end) = passed(model, text.prompt).hidden, text.question
                for k, layers in enumerate([(1, 1), (2, 3)]):
                    span = states[layers[side]][start:end]
                    total[k, side] += span[-1] if pooling == "last_token" else span.mean(dim=0)
    torch.testing.assert_close(found, total / count, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(module, "PAIRS", 5)  # of many, some are drawn, the same each time
    fewer = fit_centres(method.anatomy, [(1, 1), (2, 3)], pooling, before)
    assert not torch.allclose(fewer, found)
    assert torch.equal(fewer, fit_centres(method.anatomy, [(1, 1), (2, 3)], pooling, before))


def test_means_need_english_questions(base: Path, tmp_path: Path) -> None:
    model, dataset = tokenised(base, write_rows(tmp_path / "alone.jsonl", rows(4, english=0.0)))
    with pytest.raises(
        PivotuneError, match=r"deep_supervision\.feature_loss: centred_cosine needs the mean of English"
    ):
        fit_centres(Method(model, [CENTRED]).anatomy, [(1, 1)], "mean", BeforeTraining(model, dataset, options()))


@pytest.mark.parametrize("rank", [0, 2])
def test_saved_and_resumed(rank: int, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = dict(deep_supervision=CENTRED, lora=rank, save_strategy="steps", save_steps=1)
    whole = train(configuration(base, data, tmp_path / "whole", "deep_supervision", max_steps=3, **settings))
    kept = load_run(whole).tensors["deep_supervision.centres"]
    assert kept.shape == (2, 2, 16) and kept.abs().amax(dim=-1).min() > 0
    part = tmp_path / "part"
    (part).mkdir()
    (whole / "checkpoint-1").rename(part / "checkpoint-1")
    monkeypatch.setattr("pivotune.objectives.deep_supervision.objective.fit_centres", lambda *_: pytest.fail("again"))
    settings["resume_from_checkpoint"] = True
    resumed = train(configuration(base, data, part, "deep_supervision", max_steps=3, **settings))
    same(whole, resumed)
    assert any(name.endswith("deep_supervision.centres") for name in weights(resumed))
