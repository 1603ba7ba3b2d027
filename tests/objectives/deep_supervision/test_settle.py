"""Layers that are `auto` in a run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import INFO
from pivotune.config import RunConfig
from pivotune.data import read_examples
from pivotune.errors import PivotuneError
from pivotune.lens import LayerChoice, choose_layers
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.training import train
from tests.families import tiny
from tests.runs import configuration, rows, write_base, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", rows(20))


AUTO = DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto")


def automatic(base: Path, data: Path, output: Path, method: str = "deep_supervision", **options: Any) -> RunConfig:
    return configuration(base, data, output, method, **{"deep_supervision": AUTO, **options})


def settled(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that the run had in the end, and what it recorded of their choice."""
    info = json.loads((run / INFO).read_text())
    return info["objectives"]["deep_supervision"], info["found"]["deep_supervision"]["layers"]


@pytest.mark.parametrize("method", ["deep_supervision", "both"])
def test_auto_is_the_same_choice(
    method: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = LayerChoice(3, 6, 0.9, (2, 4), True, "planted")
    monkeypatch.setattr("pivotune.lens.choice.find_layers", lambda values, seed: found)
    run = train(automatic(base, data, tmp_path / "run", method, save_strategy="steps", save_steps=1))
    options, record = settled(run)
    assert (options["conversion_layer"], options["thinking_layer"]) == (3, 6)
    recorded = json.loads((run / "layers.json").read_text())
    assert recorded == record
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    layers = choose_layers(model, tokenizer, read_examples(data)[0], measures=["reading"])
    assert list(recorded["curves"]) == list(layers.curves) == ["entropy", "entropy, English", "question", "answer"]
    for name, curve in layers.curves.items():
        np.testing.assert_allclose(recorded["curves"][name]["mean"], curve.mean, atol=2e-6)
    assert (run / "layers.png").exists()

    # The model that came of it equals one whose layers were given; a checkpoint keeps them.
    numbers = DeepSupervisionConfig(conversion_layer=3, thinking_layer=6)
    fixed = train(automatic(base, data, tmp_path / "fixed", method, deep_supervision=numbers))
    assert (fixed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_auto_is_the_default_and_follows_the_signal(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the entropy has no two drops; the miniature's has none."""
    rules = {
        "find_middle": LayerChoice(4, 6, 0.9, None, True, "planted middle"),
        "find_readable": LayerChoice(5, 7, 0.9, None, True, "planted reading"),
    }
    for name, found in rules.items():
        monkeypatch.setattr(f"pivotune.lens.choice.{name}", lambda *_, found=found, **__: found)
    pairs: list[tuple[Any, tuple[int, int]]] = [("logits", (5, 7)), ("feature", (4, 7))]
    for conversion, want in pairs:
        options = DeepSupervisionConfig(language_conversion=conversion)
        run = train(automatic(base, data, tmp_path / conversion, deep_supervision=options))
        got, record = settled(run)
        assert (got["conversion_layer"], got["thinking_layer"]) == want
        assert ("MEXA, mean" in record["curves"]) == (conversion == "feature")
        assert not record["rules"]["entropy"]["found"]
    assert "planted middle" in record["reason"] and "planted reading" in record["reason"]


def test_auto_for_one_layer(base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = replace(AUTO, conversion_layer=2)  # the miniature's head reads nothing
    with caplog.at_level(logging.WARNING):
        run = train(automatic(base, data, tmp_path / "run", lora=2, deep_supervision=half))
    options, record = settled(run)
    assert (options["conversion_layer"], options["thinking_layer"]) == (2, 4)
    assert not record["found"]
    assert "below the last layer the head reads the English question no better than by guessing" in caplog.text


def test_a_resumed_run_keeps_its_layers(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = LayerChoice(3, 6, 0.9, None, True, "planted")
    monkeypatch.setattr("pivotune.lens.choice.find_layers", lambda values, seed: found)
    run = train(automatic(base, data, tmp_path / "run", save_strategy="steps", save_steps=1))
    before = settled(run)
    monkeypatch.setattr("pivotune.objectives.deep_supervision.settle.choose_from_questions", None)
    train(automatic(base, data, run, max_steps=3, resume_from_checkpoint="true"))
    assert json.loads((run / INFO).read_text())["steps"] == 3
    assert settled(run) == before


def test_auto_needs_another_language(base: Path, tmp_path: Path) -> None:
    english = [{"language": "en", "prompt": "give tips", "completion": "sleep"}]
    config = automatic(base, write_rows(tmp_path / "en.jsonl", english), tmp_path / "run")
    with pytest.raises(PivotuneError):
        train(config)
    assert not (tmp_path / "run").exists()


def test_the_objective_itself_needs_numbers() -> None:
    with pytest.raises(PivotuneError, match=r"conversion_layer: got 'auto', but the method needs a number in 1\.\.4"):
        Method(tiny("llama"), [DeepSupervisionConfig(thinking_layer=2)])
