"""Checks of `training.*`: what transformers, torch and accelerate would find out only after data and model are loaded,
or not at all.

Where another library knows best - its optimizers, schedules and loggers - it is asked, with a parameter of one number
in place of the model.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import json
import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, ParallelMode
from transformers.utils.import_utils import is_torch_bf16_gpu_available, is_torch_tf32_available
from transformers.utils.logging import get_log_levels_dict

from pivotune.errors import PivotuneError, check_choice, check_number, check_seed

_CHOICES: dict[str, Iterable[str]] = {
    "optim": [one.value for one in OptimizerNames],
    "lr_scheduler_type": [one.value for one in SchedulerType],
    "eval_strategy": [one.value for one in IntervalStrategy],
    "logging_strategy": [one.value for one in IntervalStrategy],
    "save_strategy": [one.value for one in SaveStrategy],
    "train_sampling_strategy": ["random", "sequential", "group_by_length"],
    "log_level": [*get_log_levels_dict(), "passive"],
    "log_level_replica": [*get_log_levels_dict(), "passive"],
    "include_num_input_tokens_seen": ["all", "non_padding", "no", "True", "False"],
    "dataloader_multiprocessing_context": ["None", *torch.multiprocessing.get_all_start_methods()],
}
_COUNTS = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "max_steps": -1,
    "save_total_limit": 1,
    "torch_empty_cache_steps": 1,
    "ddp_bucket_cap_mb": 1,
    "ddp_timeout": 1,
}
"""Whole numbers, and the least that each may be."""
_NOT_NEGATIVE = ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay")
_FILES = ("deepspeed", "accelerator_config", "fsdp_config")
"""Options whose value is a mapping, or the name of a JSON file that holds one."""
_MAPPINGS = (
    *_FILES,
    "lr_scheduler_kwargs",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",
)
_NEED_A_MODEL = ("galore", "apollo", "lomo", "adalomo")


def check_values(args: TrainingArguments) -> None:
    """Raise a PivotuneError for a value that can be judged by itself; before transformers looks at it."""
    for name, choices in _CHOICES.items():
        value = getattr(args, name, None)
        if name in _names(args):
            check_choice(f"training.{name}", str(getattr(value, "value", value)), choices)
    for name, least in _COUNTS.items():
        if (value := getattr(args, name, None)) is not None:
            check_number(f"training.{name}", value, least, whole=True)
    for name in ("seed", "data_seed"):
        if (value := getattr(args, name)) is not None:
            check_seed(f"training.{name}", value)
    for name in _NOT_NEGATIVE:
        check_number(f"training.{name}", getattr(args, name), 0)
    for name in ("adam_beta1", "adam_beta2"):
        check_number(f"training.{name}", getattr(args, name), 0, below=1)
    check_number("training.adam_epsilon", args.adam_epsilon, 0, exclusive=True)
    for name, strategy in (
        ("logging_steps", args.logging_strategy),
        ("save_steps", args.save_strategy),
        ("eval_steps", args.eval_strategy),
    ):
        value = getattr(args, name)
        if value is None or str(getattr(strategy, "value", strategy)) != "steps":
            continue
        check_number(f"training.{name}", value, 0, exclusive=True, why="; below 1 it is a share of the run")
        if value > 1 and value != int(value):
            raise PivotuneError(f"training.{name}: got {value}; above 1 give a whole number of steps.")
    for word in args.debug.split() if isinstance(args.debug, str) else ():
        check_choice("training.debug", word, [one.value for one in DebugOption])
    if args.fp16 and args.bf16:
        raise PivotuneError("training.fp16, training.bf16: both are on; choose one.")
    if args.fp16_full_eval and args.bf16_full_eval:
        raise PivotuneError("training.fp16_full_eval, training.bf16_full_eval: both are on; choose one.")
    if not args.use_cpu and not is_torch_bf16_gpu_available():
        for name in ("bf16", "bf16_full_eval"):
            if getattr(args, name):
                raise PivotuneError(
                    f"training.{name}: this machine has no GPU that computes in bfloat16. Leave it out, or train on "
                    "the CPU with training.use_cpu: true."
                )
    if args.tf32 and not is_torch_tf32_available():
        raise PivotuneError("training.tf32: this machine has no GPU that computes in TF32. Leave it out.")
    if args.dataloader_num_workers == 0 and args.dataloader_prefetch_factor is not None:
        raise PivotuneError("training.dataloader_prefetch_factor: needs training.dataloader_num_workers >= 1.")
    _check_mappings(args)


def check_libraries(args: TrainingArguments) -> None:
    """Raise a PivotuneError for what an optimizer, a schedule, a logger or a launcher would refuse later."""
    _check_schedule(args, *_optimizer(args))
    for name in args.report_to or ():
        check_choice("training.report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise PivotuneError(
                f"training.report_to: got {name!r}, which is not installed ({_first_line(error)}). Install it, or "
                "choose none."
            ) from error
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise PivotuneError(
            "training.fsdp: shards the model over several processes, and this is one. Start it with `accelerate launch "
            "-m pivotune train ...`, or leave it out."
        )


def _check_mappings(args: TrainingArguments) -> None:
    for name in _MAPPINGS:
        value = getattr(args, name, None)
        if not isinstance(value, str) or (name in _FILES and os.path.isfile(value)):
            continue
        try:
            content = json.loads(value)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            file = ", or the name of a JSON file" if name in _FILES else ""
            raise PivotuneError(
                f"training.{name}: got {value!r}; give names with values, such as {{name: value}}{file}."
            )
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise PivotuneError("training.deepspeed: the package deepspeed is not installed. Install it, or use FSDP2.")
    if isinstance(args.accelerator_config, dict):
        known = [one.name for one in dataclasses.fields(AcceleratorConfig)]
        for key in args.accelerator_config:
            check_choice("training.accelerator_config", key, known)
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        value = getattr(args, name, None)
        if isinstance(value, dict):
            takes = inspect.signature(torch.utils.checkpoint.checkpoint).parameters
            known = [*(key for key in takes if key not in ("function", "args", "kwargs")), "preserve_rng_state"]
            for key in value:
                check_choice(f"training.{name}", key, known)


def _optimizer(args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """The class of the optimizer, and what it is made with."""
    name = str(getattr(args.optim, "value", args.optim))
    needs_model = name.startswith(_NEED_A_MODEL)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        plain = Trainer.get_optimizer_cls_and_kwargs(_without(args, "optim_args"))[1] if args.optim_args else None
    except (ImportError, ValueError) as error:
        if needs_model and not isinstance(error, ImportError) and args.optim_target_modules:
            return torch.optim.SGD, {"lr": args.learning_rate}  # the rest is known when there is a model
        option = "optim"
        if isinstance(error, ValueError) and args.optim_args and "install" not in str(error):
            option = "optim_args"
        value = getattr(args, option)
        raise PivotuneError(
            f"training.{option}: got {str(getattr(value, 'value', value))!r}, which cannot be used here: "
            f"{_first_line(error)}"
        ) from error
    if plain is not None and plain == options:
        raise PivotuneError(f"training.optim_args: has no effect with training.optim: {name}. Remove it.")
    return kind, options


def _check_schedule(args: TrainingArguments, kind: Any, options: dict[str, Any]) -> None:
    optimizer: torch.optim.Optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    if isinstance(kind, type) and kind.__module__.startswith(("torch.", "transformers.")):
        try:
            optimizer = kind([nn.Parameter(torch.zeros(1))], **options)
        except (TypeError, ValueError) as error:
            raise PivotuneError(f"training.optim: {kind.__name__} refuses its options: {_first_line(error)}") from error
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_scheduler(
                name,
                optimizer,
                num_warmup_steps=args.get_warmup_steps(100),
                num_training_steps=100,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]  # a mapping by now
            )
    except (TypeError, ValueError) as error:
        given = f"got {args.lr_scheduler_kwargs}, which" if args.lr_scheduler_kwargs else "is not given, which"
        raise PivotuneError(
            f"training.lr_scheduler_kwargs: {given} does not suit training.lr_scheduler_type: {name}: "
            f"{_first_line(error)}"
        ) from error


def _without(args: TrainingArguments, name: str) -> Any:
    args = copy.copy(args)
    setattr(args, name, None)
    return args


def _names(args: TrainingArguments) -> set[str]:
    return {one.name for one in dataclasses.fields(args)}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
