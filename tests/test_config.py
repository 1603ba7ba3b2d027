"""The configuration: its help texts, its checks, the shipped YAML files, and the same from Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import TrainingArguments

from pivotune import cli
from pivotune.checkpoint import INFO, load_run
from pivotune.config import (
    _OWN_HELP,
    HIDDEN,
    NOT_SUPPORTED,
    DataConfig,
    LoraOptions,
    ModelConfig,
    RunConfig,
    TrainingOptions,
)
from pivotune.errors import PivotuneError
from pivotune.objectives import OBJECTIVES
from pivotune.training import train
from tests.runs import LAYERS, METHODS, configuration, rows, write_base, write_rows

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep enough for the published layers, 2 and 15."""
    return write_base(tmp_path_factory.mktemp("base"), layers=15)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rows(8)
    for row in made:  # the shipped prompt style is Alpaca's, which wants instructions
        for side in (row, row.get("english", {})):
            if side:
                side["instruction"], side["output"] = side.pop("prompt"), side.pop("completion")
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", made)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_file_runs(file: Path, base: Path, data: Path, tmp_path: Path) -> None:
    if (yaml.safe_load(file.read_text())["model"]).get("quantization"):
        pytest.importorskip("bitsandbytes", reason="needs the extra pivotune[quantization]")
    output = tmp_path / "run"
    changed = {
        "model.path": base,
        "data.train": data,
        "output": output,
        "training.max_steps": 1,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 1,
        "training.use_cpu": True,
        "training.disable_tqdm": True,
    }
    cli.main(["train", str(file), *(f"--{name}={value}" for name, value in changed.items())])
    info = json.loads((output / INFO).read_text())
    assert info["objectives"].keys() == yaml.safe_load(file.read_text()).keys() & OBJECTIVES.keys()
    assert load_run(output).info == info


def test_the_shipped_files_have_the_published_settings() -> None:
    found = {file.stem: yaml.safe_load(file.read_text()) for file in CONFIGS}
    for name in ("sft", "deep_supervision_logits", "deep_supervision_feature"):
        training = found[name]["training"]
        assert (training["learning_rate"], training["warmup_steps"], training["num_train_epochs"]) == (2e-5, 0.03, 3)
        assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * 8 == 128
        assert found[name]["data"]["max_length"] == 512
    for signal in ("logits", "feature"):
        options = found[f"deep_supervision_{signal}"]["deep_supervision"]
        assert options == dict(
            language_conversion=signal, english_thinking=signal, conversion_layer=2, thinking_layer=15
        )
    training = found["cc_tuning"]["training"]
    assert (training["learning_rate"], training["warmup_steps"], training["num_train_epochs"]) == (1e-5, 0.1, 3)
    assert training["per_device_train_batch_size"] == 16
    assert found["cc_tuning"]["data"]["max_length"] == 1024


def test_every_option_has_a_meaning() -> None:
    kinds = [RunConfig, ModelConfig, DataConfig, LoraOptions, TrainingOptions]
    for kind in [*kinds, *(objective.Options for objective in OBJECTIVES.values())]:
        documentation = kind.__doc__ or ""
        for field in dataclasses.fields(kind):
            assert f"    {field.name}: " in documentation, f"{kind}.{field.name}"
    documentation = TrainingOptions.__doc__ or ""
    assert "see the documentation of transformers" not in documentation and "%%" not in documentation
    for field in dataclasses.fields(TrainingArguments):  # from their public metadata, but where ours says more
        meaning = " ".join(field.metadata["help"].split()).replace("%%", "%")
        assert (f"    {field.name}: {meaning}\n" in f"{documentation}\n") != (field.name in _OWN_HELP), field.name


def test_refused_and_hidden_options_exist() -> None:
    """A misspelt name would refuse nothing."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert len({*NOT_SUPPORTED, *HIDDEN} - names) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "objectives", ["dft"]), "objectives: got 'dft'; give instances of DeepSupervisionConfig"),
        (lambda c: setattr(c, "objectives", [LAYERS, LAYERS]), "objectives: the same objective is given twice"),
        (lambda c: setattr(c.model, "dtype", "int8"), "model.dtype: got 'int8'"),
        (lambda c: setattr(c.lora, "alpha", 8), "lora.alpha: has no effect without adapters. Set lora.r"),
        (
            lambda c: (setattr(c.data, "style", "alpaca"), setattr(c.data, "chat_template_kwargs", {"a": 1})),
            "data.chat_template_kwargs: has no effect with data.style: alpaca",
        ),
        (lambda c: setattr(c.lora, "r", -1), "lora.r: got -1"),
        (lambda c: setattr(c.training, "label_smoothing_factor", 0.1), "label_smoothing_factor: is not supported"),
        (lambda c: setattr(c.training, "eval_strategy", "steps"), "training.eval_strategy: needs examples"),
    ],
)
def test_contradictions_are_refused(change: Callable[[RunConfig], None], message: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, tmp_path, tmp_path)
    change(config)
    with pytest.raises(PivotuneError) as caught:
        config.check()
    assert message in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_configuration_passes(method: str, tmp_path: Path) -> None:
    configuration(tmp_path, tmp_path, tmp_path, method, lora=8).check()


def test_the_example_of_the_documentation(base: Path, data: Path, tmp_path: Path) -> None:
    """The lines of RunConfig's docstring, with other paths."""
    _, _, example = (RunConfig.__doc__ or "").partition("Example:\n")
    lines = [line.strip()[4:] for line in example.splitlines() if line.strip()]
    assert len(lines) <= 10
    code = "\n".join(lines)
    for old, new in (
        ("runs/zh", tmp_path / "run"),
        ("meta-llama/Llama-2-7b-hf", base),
        ('"zh.jsonl"', repr(str(data))),
        ("num_train_epochs=3", "max_steps=1, use_cpu=True, disable_tqdm=True"),
    ):
        assert old in code
        code = code.replace(old, str(new))
    names: dict[str, Path] = {}
    exec(code, names)
    assert names["run"] == tmp_path / "run"
    assert (names["run"] / INFO).exists()


def test_bfloat16_is_off_on_the_cpu_unless_asked_for() -> None:
    assert TrainingOptions(use_cpu=True).bf16 is False
    assert TrainingOptions(use_cpu=True, bf16=True).bf16 is True


def test_numbers_of_numpy_are_numbers(base: Path, data: Path, tmp_path: Path) -> None:
    """As from a sweep over np.logspace; PEFT and JSON know only Python's."""
    config = configuration(base, data, tmp_path / "run", "deep_supervision", lora=np.int64(2), max_steps=np.int32(1))
    config.training.learning_rate = np.float32(0.01)
    config.objectives = [replace(LAYERS, conversion_layer=np.int64(1), thinking_weight=np.float32(0.5))]
    load_run(train(config))
    info = json.loads((tmp_path / "run" / INFO).read_text())
    assert info["lora"]["r"] == 2 and info["objectives"]["deep_supervision"]["thinking_weight"] == 0.5
    assert info["training"]["max_steps"] == 1


def test_a_revision_of_ones_own_files(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run")
    config.model.revision = "v2"
    with pytest.raises(PivotuneError, match=r"model\.revision: got 'v2', which has no effect on files of yours"):
        train(config)
