"""The tuned lens as the reader of the logits signal: against the slow reference, and in whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pivotune.checkpoint import INFO, TENSORS, load_run
from pivotune.data import read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.lens.tuned import fit_texts
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.objectives.deep_supervision import reader as module
from pivotune.objectives.deep_supervision.settle import question_of
from pivotune.training import train
from tests.batches import random_batch
from tests.families import FAMILIES, tiny
from tests.reference.compare import assert_gradients, assert_terms, gradients, loss_of
from tests.reference.deep_supervision import deep_supervision
from tests.runs import configuration, rows, same, weights, write_base, write_rows

TUNED = DeepSupervisionConfig(conversion_layer=1, thinking_layer=2, reader="tuned_lens")


def with_maps(model: nn.Module, **options: Any) -> Method:
    """A method whose reader has maps that matter."""
    method = Method(model, [DeepSupervisionConfig(reader="tuned_lens", **options)])
    maps = method.objectives["deep_supervision"].reader
    draw = torch.Generator().manual_seed(0)
    maps.weight.copy_(0.2 * torch.randn(maps.weight.shape, generator=draw, dtype=torch.float64))
    maps.bias.copy_(torch.randn(maps.bias.shape, generator=draw, dtype=torch.float64))
    return method


@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference(family: str, reading: Any) -> None:
    model, batch = tiny(family), random_batch()
    options: dict[str, Any] = dict(conversion_layer=1, thinking_layer=2, reading=reading)
    method = with_maps(model, **options)
    maps = method.objectives["deep_supervision"].reader
    readers = {layer: (maps.weight[k], maps.bias[k]) for k, layer in enumerate(maps.layers)}
    output, expected = method(batch), deep_supervision(model, batch, **options, readers=readers)
    assert_terms(output["terms"], expected, 1e-9)
    loss = loss_of(expected, {"language_conversion": 1.0, "english_thinking": 1.0})
    assert_gradients(gradients(output["loss"], model), gradients(loss, model), 1e-9)
    assert not any(name.startswith("objectives") for name, _ in method.named_parameters())  # nothing of it trains


def test_both_terms_may_read_one_layer_and_a_feature_term_reads_none() -> None:
    for options, layers in (
        (dict(conversion_layer=2, thinking_layer=2), (2,)),
        (dict(conversion_layer=1, thinking_layer=2, language_conversion="feature"), (2,)),
    ):
        method = with_maps(tiny("llama"), **options)
        assert method.objectives["deep_supervision"].reader.layers == layers
        assert torch.isfinite(method(random_batch())["loss"])


def test_options_that_do_not_fit() -> None:
    layers: dict[str, Any] = dict(conversion_layer=1, thinking_layer=2)
    feature = dict(language_conversion="feature", english_thinking="feature")
    for options, message in (
        ({"reader": "tuned"}, "deep_supervision.reader: got 'tuned'"),
        ({"reader": "tuned_lens", **feature}, "deep_supervision.reader: tuned_lens is of the logits signal"),
        ({"reader": "tuned_lens", "final_norm": False}, "deep_supervision.final_norm: got false"),
    ):
        with pytest.raises(PivotuneError, match=message):
            Method(tiny("llama"), [DeepSupervisionConfig(**layers, **options)])


# Whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(40))


def maps_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights(folder).items() if name.startswith(TENSORS)}


@pytest.mark.parametrize("rank", [0, 2])
def test_saved_resumed_and_loaded(
    rank: int, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options: dict[str, Any] = dict(deep_supervision=TUNED, lora=rank, save_strategy="steps", save_steps=1)
    whole = train(configuration(base, data, tmp_path / "whole", "deep_supervision", max_steps=3, **options))
    printed = capsys.readouterr().out
    found = json.loads((whole / INFO).read_text())["found"]["deep_supervision"]["tuned_lens"]
    for layer in ("1", "2"):
        assert found["kl"]["tuned_lens"][layer] < found["kl"]["logit_lens"][layer]
        assert f"layer {layer}: {found['kl']['logit_lens'][layer]:.3f} nats by the logit lens" in printed

    part = tmp_path / "part"
    shutil.copytree(whole / "checkpoint-1", part / "checkpoint-1")
    monkeypatch.setattr(module, "fit_tuned_lens", lambda *_, **__: pytest.fail("it is fitted again"))
    options["resume_from_checkpoint"] = True
    resumed = train(configuration(base, data, part, "deep_supervision", max_steps=3, **options))
    same(whole, resumed)
    assert json.loads((resumed / INFO).read_text())["found"] == json.loads((whole / INFO).read_text())["found"]

    # Frozen: what was fitted before the first step is in every checkpoint and in the run.
    maps = maps_of(whole)
    assert {tuple(value.shape) for value in maps.values()} == {(2, 16, 16), (2, 16)}
    assert all(value.abs().max() > 0 for value in maps.values())
    for name, value in maps_of(whole / "checkpoint-1").items():
        assert torch.equal(value, maps[name])
    name = "deep_supervision.reader.weight"
    assert torch.equal(load_run(whole).tensors[name], maps[f"{TENSORS}: {name}"])


def test_another_reader_cannot_be_resumed(base: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(save_strategy="steps", save_steps=1)
    run = train(configuration(base, data, tmp_path / "run", "deep_supervision", **options))
    options |= dict(deep_supervision=TUNED, max_steps=3, resume_from_checkpoint=True)
    with pytest.raises(PivotuneError, match=r'deep_supervision\.reader: got "tuned_lens", was "logit_lens"'):
        train(configuration(base, data, run, "deep_supervision", **options))


def test_the_texts_are_of_the_kinds_that_training_reads(base: Path, data: Path) -> None:
    run = load_run(base)
    examples, _ = read_examples(data)
    dataset, _ = tokenize_examples(examples, run.tokenizer, "plain", 128)
    texts = fit_texts(dataset, 0, question_of)
    assert len(texts) == len(dataset)
    prompts = [tuple(row["input_ids"][: row["prompt_length"]]) for row in dataset]
    english = {tuple(row["english_answer_ids"]) for row in dataset if row["english_answer_ids"] is not None}
    behind = [one for one in texts if tuple(one.ids[: one.start + 1]) in prompts]
    assert any(tuple(one.ids[one.start + 1 :]) in english for one in behind)
    assert all(0 <= one.start < len(one.ids) for one in texts)
