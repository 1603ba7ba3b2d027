"""What each rank of tests/test_distributed.py runs:  worker KIND FOLDER JOB ...

On the CPU accelerate ignores a request for FSDP (it is left out of the device types that may have it), although
torch's `fully_shard` works there, over gloo. So the state that accelerate would set on GPUs is set by hand; from there
on everything is its own FSDP2 code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from packaging.version import Version
from torch.distributed.tensor import DTensor

from pivotune.config import RunConfig
from pivotune.errors import PivotuneError
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.trainer import PivotuneTrainer
from pivotune.training import train
from tests.runs import FEATURE, configuration, without_noise

JOBS: dict[str, dict[str, Any]] = {
    "sft": {},
    "deep_supervision": {},
    "feature": {},
    "tuned_lens": {},  # fitted by one rank, on the model before it is sharded
    "auto": {},  # layers chosen by one rank, on the model before it is sharded
    "in_scale": {},  # weights and means found by one rank, on the model before it is sharded; a gate
    "cc_tuning": {},
    "both": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "few_pairs": {},  # most ranks have none in most batches
    "lora": {"lora": 4},
    "checkpointing": {"gradient_checkpointing": True},
    # AdamW has a state to resume; so large an epsilon keeps rounding as small as it is.
    "resumed": {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "adam_epsilon": 1.0},
}
METHOD = {"sft": "sft", "cc_tuning": "cc_tuning"} | dict.fromkeys(
    ("deep_supervision", "feature", "tuned_lens", "auto"), "deep_supervision"
)


def can_resume(kind: str) -> bool:
    """transformers 5.17 maps the optimizer's state to "cpu:0" on several CPU ranks, which torch does not know."""
    return kind == "fsdp" or Version(transformers.__version__) >= Version("5.23")


def job(name: str, folder: Path, kind: str, ranks: int, **changed: Any) -> RunConfig:
    """A run in which each step takes eight examples, on however many ranks."""
    settings = {**JOBS[name], **changed}
    accumulation = settings.get("gradient_accumulation_steps", 1)
    config = configuration(
        folder / "base",
        folder / ("few.jsonl" if name == "few_pairs" else "train.jsonl"),
        folder / kind / name,
        METHOD.get(name, "both"),
        **{
            "held_out": folder / "eval.jsonl",
            "per_device_train_batch_size": 8 // ranks // accumulation,
            "per_device_eval_batch_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "optim": "sgd",
            "learning_rate": 0.1,
            **settings,
        },
    )
    if name == "feature":
        config.objectives = [FEATURE]
    if name == "tuned_lens":
        config.objectives = [DeepSupervisionConfig(conversion_layer=1, thinking_layer=2, reader="tuned_lens")]
    if name == "auto":
        config.objectives = [DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto")]
    if name == "in_scale":
        weights: dict[str, Any] = {"conversion_weight": "auto", "thinking_weight": "auto", "weight_warmup": 0.5}
        supervision = replace(FEATURE, feature_loss="centred_cosine", stop_gradient=True, **weights)
        config.objectives = [supervision, CCTuningConfig(relative_norm=1.0, gate=True, ridge="auto")]
    if name == "lora":
        config.lora.dropout = 0.0  # as little as Gumbel noise can it be repeated on two ranks
    return config


def force_fsdp2(activation_checkpointing: bool) -> None:
    create = PivotuneTrainer.create_accelerator_and_postprocess

    def forced(self: PivotuneTrainer) -> None:
        create(self)
        state = self.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
            activation_checkpointing=activation_checkpointing,
        )
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    PivotuneTrainer.create_accelerator_and_postprocess = forced  # type: ignore[method-assign]


def refuse(kind: str, folder: Path) -> None:
    """What breaks on one rank, or is wrong for all, ends all of them with the same message, and hangs none."""
    last_good = PivotuneTrainer._save_checkpoint

    def broken(self: PivotuneTrainer, model: Any, trial: Any) -> None:
        if self.state.global_step == 2 and self.args.process_index == 1:
            *_, last = self._trained().values()
            local = last.to_local() if isinstance(last, DTensor) else last
            local.data.view(-1)[0] = float("nan")
        last_good(self, model, trial)

    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    said = []
    PivotuneTrainer._save_checkpoint = broken  # type: ignore[method-assign]
    config = job("both", folder, kind, 2, **saving)
    config.output = str(folder / kind / "broken")
    for changed in (
        {},
        {"resume_from_checkpoint": f"{config.output}-run"},
        {"learning_rate": 1e-30, "save_strategy": "no"},
    ):
        config.training = job("both", folder, kind, 2, **{**saving, **changed}).training
        config.output += "" if "resume_from_checkpoint" in changed else "-run"
        try:
            train(config)
        except PivotuneError as error:
            said.append(str(error))
    PivotuneTrainer._save_checkpoint = last_good  # type: ignore[method-assign]
    (folder / kind / f"refused-{config.training.process_index}.json").write_text(json.dumps(said))


def main(kind: str, folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    F.gumbel_softmax = without_noise
    create = PivotuneTrainer.create_accelerator_and_postprocess
    for name in names:
        changed: dict[str, Any] = {}
        if kind == "fsdp":
            force_fsdp2(activation_checkpointing=name == "checkpointing")
            changed = {"gradient_checkpointing": False}  # FSDP has its own
        train(job(name, Path(folder), kind, 2, **changed))
        if name == "resumed" and can_resume(kind):
            middle = str(Path(folder, kind, name, "checkpoint-2"))
            again = job(name, Path(folder), kind, 2, resume_from_checkpoint=middle)
            again.output += "-again"
            train(again)
        PivotuneTrainer.create_accelerator_and_postprocess = create  # type: ignore[method-assign]
    if kind == "fsdp":
        force_fsdp2(activation_checkpointing=False)
    refuse(kind, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
