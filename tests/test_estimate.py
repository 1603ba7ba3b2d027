"""What `--dry_run` says: sizes, steps, operations and memory, against counts by hand and against a run; the rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pivotune import cli
from pivotune.checkpoint import open_skeleton
from pivotune.config import LoraOptions
from pivotune.errors import PivotuneError
from pivotune.estimate import dry_run, kept_by_a_pass
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.training import train
from tests.peak_memory import estimated, measured
from tests.runs import FEATURE, configuration, rows, write_base, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(30))


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulation", "drop", "steps"),
    [(1, 8, 1, False, 4), (2.5, 8, 1, False, 10), (1, 8, 3, False, 2), (3, 7, 1, True, 12), (1, 4, 2, True, 4)],
)
def test_steps_are_those_of_the_run(
    epochs: float, batch: int, accumulation: int, drop: bool, steps: int, base: Path, data: Path, tmp_path: Path
) -> None:
    config = configuration(
        base,
        data,
        tmp_path / "run",
        max_steps=-1,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=drop,
    )
    assert dry_run(config).steps == steps
    assert not (tmp_path / "run").exists()
    info = json.loads((train(config) / "pivotune.json").read_text())
    assert info["steps"] == steps
    assert dry_run(replace(config, output=str(tmp_path / "other")), ranks=2).steps == pytest.approx(steps / 2, abs=1.5)


def test_parameters(base: Path, data: Path, tmp_path: Path) -> None:
    exact = sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(base).parameters())
    found = dry_run(configuration(base, data, tmp_path / "run", "cc_tuning"))
    assert found.parameters == {"model": (exact, exact), "objectives": (4 * 16, 4 * 16)}
    adapted = dry_run(configuration(base, data, tmp_path / "run", lora=4)).parameters["model"]
    assert adapted[0] > exact and adapted[0] - exact == adapted[1]


@pytest.mark.parametrize(
    ("objective", "between"),
    [
        (None, (1.0, 1.0)),
        (replace(FEATURE, stop_gradient=True), (1.05, 1.4)),  # English prompts, forward, through all layers
        (FEATURE, (1.3, 2.0)),  # and backward
        (replace(FEATURE, english_layer="same", stop_gradient=True), (1.02, 1.2)),  # no further than layer 2
        (DeepSupervisionConfig(conversion_layer=1, thinking_layer=4), (1.8, 3.0)),
        (DeepSupervisionConfig(conversion_layer=1, thinking_layer=1), (1.3, 2.5)),
        (CCTuningConfig(english_gradient=False), (1.05, 1.4)),
        (CCTuningConfig(), (1.3, 2.0)),
    ],
)
def test_operations_over_plain_fine_tuning(
    objective: Any, between: tuple[float, float], base: Path, data: Path, tmp_path: Path
) -> None:
    config = replace(configuration(base, data, tmp_path / "run"), objectives=[objective] if objective else [])
    low, high = between
    assert low <= dry_run(config).ratio <= high


def test_operations_of_a_run_by_hand(base: Path, tmp_path: Path) -> None:
    """One row, one step: 6 x weights x tokens in the layers, the attention's products, and the head on the answer."""
    data = write_rows(tmp_path / "one.jsonl", rows(1, english=0.0))
    found = dry_run(configuration(base, data, tmp_path / "run", max_steps=1, per_device_train_batch_size=1))
    model = AutoModelForCausalLM.from_pretrained(base)
    layers = sum(one.numel() for name, one in model.named_parameters() if ".layers." in name and one.dim() == 2)
    tokens = found.tokens["target text"]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    without_head = 6 * layers * tokens + 3 * 4 * (4 * 16 * tokens**2 / 2)
    answer = (found.flops - without_head) / (3 * 2 * vocabulary * 16)
    assert answer == pytest.approx(round(answer)) and 0 < answer < tokens
    assert found.padding == 0.0 and found.ratio == 1.0


def test_a_pass_keeps_what_autograd_keeps(base: Path) -> None:
    """Measured on a real pass of the same size, so small that a few copies count."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    own, found = {one.untyped_storage().data_ptr() for one in model.parameters()}, {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            found[value.untyped_storage().data_ptr()] = (value.untyped_storage().nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model.model(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False)
    assert kept_by_a_pass(open_skeleton(base), 3, 40) == pytest.approx(sum(one for one, _ in found.values()), rel=0.2)
    assert kept_by_a_pass(open_skeleton(base), 6, 40) > 1.9 * kept_by_a_pass(open_skeleton(base), 3, 40)


@pytest.mark.slow
def test_memory_is_that_of_a_run(tmp_path: Path) -> None:
    """Within 15 %; `benchmarks/peak_memory.py` has more runs."""
    model = dict(layers=4, hidden_size=512, intermediate_size=1408, num_attention_heads=8)
    options: dict[str, Any] = dict(model=model, method="deep_supervision", batch=4, tokens=60, rank=0, training={})
    said, took = estimated(tmp_path / "a", options), measured(tmp_path / "b", options)
    assert said == pytest.approx(took, rel=0.15)


def test_memory_by_kind_of_run(base: Path, data: Path, tmp_path: Path) -> None:
    def memory(**training: Any) -> dict[str, int]:
        lora = training.pop("lora", 0)
        ranks = training.pop("ranks", 1)
        return dict(dry_run(configuration(base, data, tmp_path / "run", lora=lora, **training), ranks).memory)

    plain = memory(optim="adamw_torch")
    assert plain["optimizer"] == 2 * plain["weights"] and memory(optim="sgd")["optimizer"] == 0
    assert memory(lora=4, optim="adamw_torch")["optimizer"] < plain["optimizer"] / 2
    assert memory(optim="adamw_torch", ranks=2)["gradients"] >= plain["weights"]  # the buckets of DDP
    half = tmp_path / "half"
    weights = shutil.ignore_patterns("config.json", "*.safetensors")
    shutil.copytree(base, half, ignore=weights)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    stored = configuration(half, data, tmp_path / "run")
    sizes = [dry_run(replace(stored, model=replace(stored.model, dtype=one))).memory for one in ("auto", "bfloat16")]
    assert sizes[0] == sizes[1]
    short = dict(per_device_train_batch_size=8)
    both = [sum(memory(gradient_checkpointing=on, lora=4, **short).values()) for on in (True, False)]
    assert both[0] < both[1]


def test_the_command(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--output", str(tmp_path / "run"), "--model.path", str(base), "--data.train", str(data)]
    words += ["--training.use_cpu", "true"]
    cli.main([*words, "--deep_supervision", "--dry_run", "--ranks", "8"])
    printed = capsys.readouterr().out
    assert "Parameters: " in printed and "Memory of a process, in the peak" in printed
    assert "deep_supervision: a layer is auto and chosen before training; taken here is 2 of 4." in printed
    assert "[question: " in printed and "[answer: " in printed and "English: " in printed
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        cli.main([*words, "--ranks", "8"])
    assert "ranks: got 8; give the number of processes to reckon with, beside --dry_run" in capsys.readouterr().err
    with pytest.raises(PivotuneError, match="no layer is named"):
        dry_run(replace(configuration(base, data, tmp_path / "run"), lora=LoraOptions(r=4, target_modules=["q"])))
