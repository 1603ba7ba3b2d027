"""Options of the trainer that other libraries check late or not at all: refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from pivotune import checkpoint, training
from pivotune.config import DataConfig, TrainingOptions
from pivotune.errors import PivotuneError
from pivotune.objectives import DeepSupervisionConfig
from pivotune.training_checks import check_libraries, check_values
from tests.runs import METHODS, configuration, rows, write_base, write_rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"per_device_train_batch_size": 0}, "training.per_device_train_batch_size: got 0; give a whole number >= 1."),
        ({"per_device_train_batch_size": -4}, "training.per_device_train_batch_size: got -4"),
        ({"per_device_train_batch_size": 2.5}, "training.per_device_train_batch_size: got 2.5; give a whole number"),
        ({"per_device_eval_batch_size": 0}, "training.per_device_eval_batch_size: got 0"),
        ({"gradient_accumulation_steps": 0}, "training.gradient_accumulation_steps: got 0"),
        ({"dataloader_num_workers": -1}, "training.dataloader_num_workers: got -1; give a whole number >= 0."),
        ({"dataloader_prefetch_factor": 2}, "training.dataloader_prefetch_factor: needs"),
        ({"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1}, "training.dataloader_prefetch_factor: got 0"),
        ({"seed": -1}, "training.seed: got -1; give a whole number >= 0 and < 4294967296."),
        ({"seed": 2**32}, "training.seed: got 4294967296"),
        ({"data_seed": -7}, "training.data_seed: got -7"),
        ({"max_steps": -2}, "training.max_steps: got -2"),
        ({"learning_rate": float("nan")}, "training.learning_rate: got nan; give a number >= 0."),
        ({"learning_rate": float("inf")}, "training.learning_rate: got inf"),
        ({"learning_rate": "1e-5"}, "training.learning_rate: got '1e-5'; give a number"),
        ({"learning_rate": -1e-5}, "training.learning_rate: got -1e-05"),
        ({"weight_decay": -0.1}, "training.weight_decay: got -0.1"),
        ({"max_grad_norm": -1.0}, "training.max_grad_norm: got -1.0"),
        ({"warmup_steps": -1}, "training.warmup_steps: got -1"),
        ({"adam_beta1": 2.0}, "training.adam_beta1: got 2.0; give a number >= 0 and < 1."),
        ({"adam_beta2": 1}, "training.adam_beta2: got 1; give a number >= 0 and < 1."),
        ({"adam_beta2": -0.1}, "training.adam_beta2: got -0.1"),
        ({"adam_epsilon": 0}, "training.adam_epsilon: got 0; give a number > 0."),
        ({"adam_epsilon": -1e-8}, "training.adam_epsilon: got -1e-08"),
        ({"logging_steps": 0}, "training.logging_steps: got 0; give a number > 0; below 1 it is a share of the run."),
        ({"logging_steps": -3}, "training.logging_steps: got -3"),
        ({"logging_steps": 2.5}, "training.logging_steps: got 2.5; above 1 give a whole number of steps."),
        ({"save_strategy": "steps", "save_steps": 0}, "training.save_steps: got 0"),
        ({"save_strategy": "steps", "save_steps": 1.5}, "training.save_steps: got 1.5"),
        ({"eval_strategy": "steps", "eval_steps": 0}, "training.eval_steps: got 0"),
        ({"save_total_limit": 0}, "training.save_total_limit: got 0; give a whole number >= 1."),
        ({"torch_empty_cache_steps": 0}, "training.torch_empty_cache_steps: got 0"),
        ({"ddp_timeout": 0}, "training.ddp_timeout: got 0"),
        ({"lr_scheduler_type": "cosin"}, "training.lr_scheduler_type: got 'cosin'; choose one of 'linear'"),
        ({"optim": "adam"}, "training.optim: got 'adam'; choose one of 'adamw_torch'"),
        ({"eval_strategy": "never"}, "training.eval_strategy: got 'never'; choose one of 'no', 'steps', 'epoch'."),
        ({"save_strategy": "epochs"}, "training.save_strategy: got 'epochs'; choose one of 'no'"),
        ({"train_sampling_strategy": "shuffle"}, "training.train_sampling_strategy: got 'shuffle'; choose"),
        ({"log_level": "loud"}, "training.log_level: got 'loud'; choose one of"),
        ({"dataloader_multiprocessing_context": "thread"}, "training.dataloader_multiprocessing_context: got 'thread'"),
        ({"debug": "everything"}, "training.debug: got 'everything'; choose one of 'underflow_overflow'"),
        ({"fp16": True, "bf16": True}, "training.fp16, training.bf16: both are on; choose one."),
        ({"fp16_full_eval": True, "bf16_full_eval": True}, "training.bf16_full_eval: both are on"),
        ({"deepspeed": "nowhere.json"}, "training.deepspeed: got 'nowhere.json'; give names with values"),
        ({"fsdp_config": "nowhere.json"}, "training.fsdp_config: got 'nowhere.json'; give names with values"),
        ({"accelerator_config": "nowhere.json"}, "training.accelerator_config: got 'nowhere.json'"),
        ({"accelerator_config": {"split": True}}, "training.accelerator_config: got 'split'; choose"),
        ({"accelerator_config": "{"}, "training.accelerator_config: got '{'"),
        ({"lr_scheduler_kwargs": "min_lr=0"}, "training.lr_scheduler_kwargs: got 'min_lr=0'; give names"),
        ({"activation_checkpointing_kwargs": {"reentrant": False}}, "got 'reentrant'; choose one of 'use_reentrant'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_values(changed: dict[str, Any], message: str) -> None:
    if not changed.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}:
        pytest.skip("this transformers has no such option")
    with pytest.raises(PivotuneError) as caught:
        TrainingOptions(use_cpu=True, **changed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text("[1, 2")
    with pytest.raises(PivotuneError, match="training: "):
        TrainingOptions(use_cpu=True, accelerator_config=str(file))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"report_to": "weights"}, "training.report_to: got 'weights'; choose one of"),
        ({"report_to": ["tensorboard", "nowhere"]}, "training.report_to: got 'nowhere'"),
        ({"fsdp": True}, "training.fsdp: shards the model over several processes, and this is one. Start it with `acc"),
        (
            {"lr_scheduler_kwargs": {"cycles": 2}},
            "training.lr_scheduler_kwargs: got {'cycles': 2}, which does not suit",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "training.lr_scheduler_kwargs: is not given, which does not suit",
        ),
        ({"optim_args": "betas"}, "training.optim_args: got 'betas', which cannot be used here"),
        ({"optim_args": "fast=1"}, "training.optim_args: has no effect with training.optim: adamw"),
        ({"optim": "galore_adamw"}, "training.optim: got 'galore_adamw', which cannot be used here"),
    ],
)
def test_what_only_the_libraries_know(changed: dict[str, Any], message: str) -> None:
    args = TrainingOptions(**{"use_cpu": True, "report_to": "none", **changed})
    with pytest.raises(PivotuneError) as caught:
        check_libraries(args)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_an_optimizer_works_or_says_what_is_missing(name: str) -> None:
    args = TrainingOptions(use_cpu=True, report_to="none", optim=name, optim_target_modules="all-linear")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_libraries(args)
    except PivotuneError as error:
        assert str(error).startswith(f"training.optim: got {name!r}, which cannot be used here: ")
        assert "install" in str(error).lower() or "import" in str(error)


def test_a_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from pivotune import training_checks

    def missing() -> None:
        raise RuntimeError("Wandb requires wandb.\nRun pip install wandb.")

    monkeypatch.setitem(training_checks.INTEGRATION_TO_CALLBACK, "wandb", missing)
    args = TrainingOptions(use_cpu=True, report_to="wandb")
    with pytest.raises(PivotuneError, match=r"got 'wandb', which is not installed \(Wandb requires wandb\.\)"):
        check_libraries(args)


def test_usual_settings_pass() -> None:
    for changed in (
        {},
        {"report_to": None},
        {"report_to": "tensorboard"},
        {"warmup_steps": 0.1, "lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"optim": "adafactor"},
        {"optim": "sgd", "max_grad_norm": 0, "seed": 0},
        {"train_sampling_strategy": "group_by_length", "logging_steps": 0.1},
        {"data_seed": 2**32 - 1, "weight_decay": 0.1, "eval_steps": None},
    ):
        args = TrainingOptions(use_cpu=True, **changed)  # type: ignore[arg-type]
        check_values(args)
        check_libraries(args)
    check_values(TrainingArguments("out", use_cpu=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_on_start": True}, "training.eval_on_start: needs examples to evaluate on. Set data.eval."),
        ({"load_best_model_at_end": True}, "training.load_best_model_at_end: needs examples"),
        ({"metric_for_best_model": "accuracy"}, "training.metric_for_best_model: got 'accuracy'; choose"),
        ({"optim": "lomo"}, "training.optim: got 'lomo'"),
    ],
)  # fmt: skip
def test_a_run_is_refused_before_anything_is_read(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_read(monkeypatch)
    base = write_base(tmp_path / "base")
    data = write_rows(tmp_path / "train.jsonl", rows(8))
    with pytest.raises(PivotuneError) as caught:
        training.train(configuration(base, data, tmp_path / "run", **change))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"max_length": 0}}, "data.max_length: got 0; give a whole number >= 2"),
        ({"data": {"languages": []}}, "data.languages: got []; give a list of languages"),
        ({"data": {"languages": "zh"}}, "data.languages: got 'zh'; give a list of languages"),
        ({"lora": {"r": 4, "dropout": -1.0}}, "lora.dropout: got -1.0; give a number >= 0 and < 1."),
        ({"lora": {"r": 4, "dropout": 1.5}}, "lora.dropout: got 1.5"),
        ({"lora": {"r": 4, "target_modules": []}}, "lora.target_modules: names no layer"),
        ({"lora": {"r": 4, "target_modules": ["q_prj"]}}, "lora.target_modules: no layer is named 'q_prj'"),
        ({"lora": {"r": 4, "target_modules": "(q_proj"}}, "lora: "),
        ({"lora": {"r": 4, "target_modules": ["embed_tokens"]}}, "lora.target_modules: names embed_tokens, but"),
        ({"lora": {"r": 4, "target_modules": ["q_proj", "lm_head"]}}, "lora.target_modules: names lm_head, but"),
        ({"model": {"attn_implementation": "fast"}}, "cannot be opened as a causal language model: "),
        ({"model": {"dtype": "int8"}}, "model.dtype: got 'int8'"),
        ({"deep_supervision": {"conversion_layer": 9}}, "got 9, but this llama model has decoder layers 1..3"),
        ({"cc_tuning": {"connection_layer": 0}}, "cc_tuning.connection_layer: got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_depends_on_the_model(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on the model without its weights."""
    nothing_is_read(monkeypatch)
    (section,) = change
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    config = configuration(base, tmp_path / "train.jsonl", tmp_path / "run", section if section in METHODS else "sft")
    config = dataclasses.replace(config, data=DataConfig(str(tmp_path / "train.jsonl")))
    if section in METHODS:
        config.objectives = [dataclasses.replace(config.by_name[section], **change[section])]
    else:
        setattr(config, section, dataclasses.replace(getattr(config, section), **change[section]))
    with pytest.raises(PivotuneError) as caught:
        training.train(config)
    assert message in str(caught.value)


def test_automatic_layers_pass_the_check(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    auto = DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto")
    run = configuration(base, tmp_path / "data", tmp_path / "run", "deep_supervision", deep_supervision=auto)
    training.check_model(run)


def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded or data are read."""

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("it went on to read data or weights")

    monkeypatch.setattr(checkpoint, "open_model", never)
    monkeypatch.setattr(training, "read_examples", never)
