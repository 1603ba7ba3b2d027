"""Going on with a run: which checkpoint, and whether it is a checkpoint of this very run.

A checkpoint's own record (`pivotune.json`) is compared with what the run would be now, before the model is loaded. Each
option of a run is of one of four kinds:

    FIXED     what the checkpoint's tensors, its loss or its optimizer are: another value is an error
    POSITION  which examples come when: another value is an error, because the place in the data would be lost; unless
              training.ignore_data_skip is true, which gives it up
    SAID      may change on purpose, and changes the result: a warning says both values
    the rest  (logging, saving, evaluation, loading of data, memory) may change without a word

What a record of an older Pivotune does not hold is not compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from transformers import TrainingArguments

from pivotune import checkpoint
from pivotune.config import HIDDEN, RunConfig, TrainingOptions
from pivotune.errors import PivotuneError
from pivotune.files import as_json
from pivotune.finite import problem_in_files
from pivotune.objectives import OBJECTIVES
from pivotune.options import similar

logger = logging.getLogger(__name__)

_EXAMPLES_PER_STEP = "training.per_device_train_batch_size x gradient_accumulation_steps x ranks"
_BY_OPTIMIZER = "the optimizer's state carries the old value on, so that another has no effect"
FIXED = {
    "objectives": "each objective trains other tensors on another loss",
    "model.path": "the checkpoint goes on from the weights of its own base model",
    "model.revision": "the checkpoint goes on from the weights of its own base model",
    "model.dtype": "its weights have that type",
    "lora": "adapters and full weights are different tensors",
    "lora.r": "adapters of another rank, or none, are other tensors",
    "lora.target_modules": "its adapters belong to those layers",
    "lora.alpha": "what the adapters have learned would be rescaled",
    "lora.dropout": "the loss would be another one",
    "lora.use_dora": "its adapters have other tensors",
    "lora.use_rslora": "what the adapters have learned would be rescaled",
    "lora.modules_to_save": "they are among its tensors",
    "model.quantization": "its adapters were trained on a base of other values",
    "training.optim": "its optimizer's state is of that kind",
    "training.optim_args": _BY_OPTIMIZER,
    "training.optim_target_modules": "its optimizer's state is of that kind",
    "training.weight_decay": _BY_OPTIMIZER,
    "training.adam_beta1": _BY_OPTIMIZER,
    "training.adam_beta2": _BY_OPTIMIZER,
    "training.adam_epsilon": _BY_OPTIMIZER,
    "training.lr_scheduler_type": "its scheduler's state is of that kind",
    "training.lr_scheduler_kwargs": "its scheduler's state carries the old value on",
    "training.fp16": "the scale of the loss is part of the checkpoint",
    "training.fsdp": "FSDP, DeepSpeed and DDP store the optimizer's state in different forms",
}
POSITION = {
    "data.train": "its rows, as tokens, are not those of the checkpoint",
    "training.seed": "it draws the order of the rows",
    "training.data_seed": "it draws the order of the rows",
    _EXAMPLES_PER_STEP: "so many examples are one step",
    "training.dataloader_drop_last": "it decides how many steps an epoch has",
    "training.train_sampling_strategy": "it decides the order of the rows",
}
SAID = {
    "training.learning_rate": "the schedule goes on with the new one",
    "training.num_train_epochs": "the learning rate follows the new length from here on",
    "training.max_steps": "the learning rate follows the new length from here on",
    "training.warmup_steps": "the learning rate follows the new schedule from here on",
    "training.max_grad_norm": "gradients are clipped there from here on",
    "training.bf16": "steps are rounded differently from here on",
    "training.tf32": "steps are rounded differently from here on",
}
_RATE_IN_STATE = ("reduce_lr_on_plateau", "greedy")
LENGTH = ("training.max_steps", "training.num_train_epochs")

# Which checkpoint ------------------------------------------------------------------------------------------------


def find(asked: str | bool | None, output: str | Path) -> Path | None:
    """The checkpoint to go on from; None begins a new run, whose folder must not hold another one.

    Args:
        asked: training.resume_from_checkpoint: true for the last good checkpoint of `output` (complete, and all of its
            numbers finite), or a folder.
        output: of the run.

    Returns:
        The checkpoint; `output` itself where it is a complete run that has none.

    Raises:
        PivotuneError: what was asked for cannot be gone on from, or something in `output` would be lost.
    """
    output = Path(output)
    if str(asked).lower() in ("none", "false", "null", ""):
        if checkpoint.is_complete(output) or any(output.glob("checkpoint-*")):
            raise PivotuneError(
                f"output: {output} already holds a run. Choose another folder, remove it, or continue it with "
                "training.resume_from_checkpoint: true."
            )
        return None
    if str(asked).lower() == "true":
        return _last_good(output)
    return _named(Path(str(asked)), output)


def _last_good(output: Path) -> Path | None:
    for folder in checkpoint.complete_checkpoints(output):
        check_state(folder)
        if (problem := problem_in_files(folder)) is None:
            return folder
        logger.warning("training.resume_from_checkpoint: %s is passed over: %s.", folder, problem)
    if checkpoint.is_complete(output):
        return output
    logger.warning("training.resume_from_checkpoint: %s has no complete checkpoint; training begins anew.", output)
    return None


def _named(folder: Path, output: Path) -> Path:
    option = f"training.resume_from_checkpoint: {folder}"
    last = next(iter(checkpoint.complete_checkpoints(folder)), None)
    if last is not None:
        raise PivotuneError(f"{option} is the folder of a run. Give one of its checkpoints, e.g. {last}.")
    if not os.path.isdir(folder):
        raise PivotuneError(f"{option}: no such folder{similar(folder)}")
    if not checkpoint.is_complete(folder):
        raise PivotuneError(
            f"{option} is not a complete checkpoint. Give one that is, or true for the last good one of this run."
        )
    check_state(folder)
    if problem := problem_in_files(folder):
        raise PivotuneError(f"{option}: {problem}. Give an earlier checkpoint, or true for the last good one.")
    others = [other.name for other in checkpoint.complete_checkpoints(output)]
    if folder.resolve().parent == output.resolve():
        if later := others[: others.index(folder.resolve().name)]:
            raise PivotuneError(
                f"{option}: later checkpoints of this run would be overwritten ({', '.join(later)}). Remove them, or "
                "name another output."
            )
    elif others or checkpoint.is_complete(output):
        raise PivotuneError(f"output: {output} already holds a run that is not the one of {folder}. Choose another.")
    return folder


def check_state(folder: Path) -> None:
    """Raise a PivotuneError where a folder has weights, but not the optimizer and the position to go on with."""
    if not (folder / "trainer_state.json").is_file():
        raise PivotuneError(
            f"training.resume_from_checkpoint: {folder} is a finished run and no checkpoint. Give a checkpoint-N; or, "
            "to train its model further, give it as model.path of a new run."
        )
    if not any([*folder.glob("optimizer*"), *folder.glob("global_step*")]):
        raise PivotuneError(
            f"training.resume_from_checkpoint: {folder} has no optimizer's state (training.save_only_model), so the "
            "run cannot go on. Begin a new run in another output; its model.path may be this checkpoint."
        )
    checkpoint.check_state(folder)


# What a run is, for the comparison -------------------------------------------------------------------------------


def training_record(args: TrainingArguments) -> dict[str, Any]:
    """What `pivotune.json` says of the training: the options that are set, and how many examples one step takes."""
    options = {k: v for k, v in args.to_dict().items() if v is not None and k not in HIDDEN}
    examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"training": options, "examples_per_step": examples}


def options_record(config: RunConfig, args: TrainingArguments) -> dict[str, Any]:
    """What can be compared before anything is read: `pivotune.json` of this run, as far as its options say."""
    return {
        "objectives": {name: vars(options) for name, options in config.by_name.items()},
        "adapter": config.lora.r > 0,
        "lora": vars(config.lora),
        **({} if config.model.dtype == "auto" else {"dtype": config.model.dtype}),
        **training_record(args),
    }


def rows_digest(rows: datasets.Dataset) -> str:
    """A digest of what training reads of tokenised rows, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(rows.column_names):
        parts = rows.data.column(name).chunks
        if pa.types.is_list(parts[0].type):  # how long each row's list is, then what is in them
            parts = [*(part.value_lengths() for part in parts), *(part.flatten() for part in parts)]
        for part in parts:
            if pa.types.is_integer(part.type):
                digest.update(part.fill_null(-1).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


# The comparison --------------------------------------------------------------------------------------------------


def compare(folder: str | Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Raise a PivotuneError where a checkpoint is not one of this run.

    Args:
        folder: the checkpoint, for the messages.
        then: its record.
        now: the record of the run as it is now, or the parts of it that are known.

    Returns:
        What the user should know about differences that are allowed.
    """
    old, new = _options(then, now), _options(now, then)
    anew = bool(new.get("training.ignore_data_skip"))
    refused, told = [], []
    for name in (name for name in new if name in old and old[name] != new[name]):
        fixed, position = _reason(name, FIXED), _reason(name, POSITION)
        if name == "training.learning_rate" and new.get("training.lr_scheduler_type") in _RATE_IN_STATE:
            fixed = "its scheduler's state carries the old value on"
        if fixed or (position and not anew):
            refused.append(f"{_difference(name, old, new, then, now)}: {fixed or position}")
        elif reason := position or _reason(name, SAID):
            told.append(f"{_difference(name, old, new, then, now)}: {reason}.")
    if refused:
        place = "" if len(refused) > 1 or not refused[0].startswith(tuple(POSITION)) else _BEGIN_THE_DATA_ANEW
        raise PivotuneError(
            f"{'; '.join(refused)}. So says {Path(folder) / checkpoint.INFO}. Give the old value, or begin a new run "
            f"(another output, without training.resume_from_checkpoint).{place}"
        )
    if "base_digest" in now and then.get("base_digest") and then["base_model"] != now["base_model"]:
        told.append(f"model.path: {now['base_model']} has the content of {then['base_model']}, and takes its place.")
    return told


_BEGIN_THE_DATA_ANEW = (
    " Or go on with training.ignore_data_skip: true, which gives up the place in the data and begins an epoch anew."
)


def unchanged(then: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether these options are what they were, as far as both records say."""
    old, new = _options(then, now), _options(now, then)
    return all(old[name] == new[name] for name in names if name in old and name in new)


def _options(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A record as options with their dotted names, so that what both have can be compared."""
    record = json.loads(json.dumps(record, default=as_json))
    found: dict[str, Any] = {}
    sections = {name: record.get(name, {}) for name in ("lora", "training")}
    if "objectives" in record:
        sections |= record["objectives"]
        found["objectives"] = sorted(record["objectives"])
    for section, options in sections.items():
        found |= {f"{section}.{name}": value for name, value in options.items()}
    if "training" in record:  # what is null there is left out of a record
        optional = {option.name for option in dataclasses.fields(TrainingOptions) if option.default is None}
        found |= {f"training.{name}": None for name in optional & {*other.get("training", {})} - {*record["training"]}}
        found.pop("training.fsdp", None)
        if found.get("training.max_steps", -1) > 0:
            found.pop("training.num_train_epochs", None)  # has no effect then
    elif "adapter" in record:
        found["lora"] = record["adapter"]
    named = {"dtype": "model.dtype", "sharding": "training.fsdp", "examples_per_step": _EXAMPLES_PER_STEP}
    named |= {"rows_digest": "data.train", "quantization": "model.quantization"}
    if record.get("base_digest") and other.get("base_digest"):
        named |= {"base_digest": "model.path"}  # a model that was moved is the same
    else:
        named |= {"base_model": "model.path", "revision": "model.revision"}
    found |= {option: record[key] for key, option in named.items() if key in record}
    if isinstance(found.get("lora.target_modules"), list):
        found["lora.target_modules"].sort()
    # A resumed run keeps what its checkpoint has settled.
    return {name: value for name, value in found.items() if not (_of_objective(name) and value == "auto")}


def _of_objective(name: str) -> bool:
    return name.partition(".")[0] in OBJECTIVES


def after_training() -> list[str]:
    """Options that are read only when all steps are done."""
    return [f"{name}.{option}" for name, one in OBJECTIVES.items() for option in one.read_after_training]


def _reason(name: str, table: Mapping[str, str]) -> str | None:
    if name in after_training():
        return None
    if table is FIXED and _of_objective(name):
        return "the loss would be another one"
    return table.get(name) or table.get(name.partition(".")[0])


def _difference(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
    """An option with the value it has and the one it had."""
    if name == "data.train":
        options = [
            f"data.{option}: {_shown(value)}, was {_shown(then['data'][option])}"
            for option, value in now.get("data", {}).items()
            if option in then.get("data", {}) and option != "eval" and value != then["data"][option]
        ]
        return f"data.train ({'; '.join(options) or 'the files have changed, or how they are tokenised'})"
    if name == "model.path":
        same = then.get("base_model") == now.get("base_model")
        had = "other content" if same else f"{then.get('base_model')}, of other content"
        return f"model.path: got {now.get('base_model')}, was {had if 'base_digest' in now else then.get('base_model')}"
    return f"{name}: got {_shown(new[name])}, was {_shown(old[name])}"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
