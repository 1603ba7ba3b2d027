"""Training: a thin transformers.Trainer, and `train()`, which runs one configuration from files to a run folder.

The Trainer keeps the promise of `methods/base.py`: each term is a sum divided by its own count, taken over the whole
accumulation window and all ranks, so that batches of 8 x 1, 1 x 8 and 2 ranks x 4 train the same model.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import random
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    IntervalStrategy,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy, TrainOutput

from pivotune import checkpoint, finite, resume, tokens
from pivotune.config import FLOAT16_BREAKS, LoraOptions, RunConfig, check_warmup, evaluates, is_on
from pivotune.connection import TransformMatrix, fit_transform_matrix
from pivotune.data import (
    Encoded,
    ParallelCollator,
    ParallelExample,
    PromptEncoder,
    Report,
    read_examples,
    tokenize_examples,
)
from pivotune.data.examples import is_english
from pivotune.data.prompts import fix_template_kwargs
from pivotune.errors import PivotuneError, check_choice
from pivotune.files import locked, reason
from pivotune.lens.layers import LayerChoice, choose_from_prompts, table, write_choice
from pivotune.losses import IGNORE
from pivotune.methods import SFT, CCTuning, ConnectedSupervision, DeepSupervision, Method
from pivotune.methods.base import Batch, MethodOutput

logger = logging.getLogger(__name__)

AUTO_EXAMPLES = 256
"""Training questions that `auto` layers are chosen from."""

PAIRS = "pairs"
"""Logged beside the terms: the share of examples that have an English counterpart."""


class PivotuneTrainer(Trainer):
    """transformers.Trainer for a `Method`.

    Logs every term by name at every logging step, and the share of examples with an English pair; reports terms that
    stay at zero; evaluates exactly, each term over its items; writes run folders (`pivotune.checkpoint`) as checkpoints
    and as the result, and resumes from them.

    Args:
        model: the method, which owns the model.
        args: as for Trainer; gradient checkpointing is always of the non-re-entrant kind.
        info: what else `pivotune.json` should say, e.g. {"base_model": ..., "prompt_style": ...}.
        kwargs: as for Trainer: train_dataset and eval_dataset of `pivotune.data.tokenize_examples`, data_collator a
            `pivotune.data.ParallelCollator`, processing_class the tokenizer, ...

    Example:
        >>> trainer = PivotuneTrainer(method, args, train_dataset=rows, data_collator=collator)
        >>> trainer.train()
        >>> trainer.save_model()
    """

    def __init__(
        self, model: Method, args: TrainingArguments, *, info: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        args.remove_unused_columns = False  # the collator needs columns that no forward() names
        if args.n_gpu > 1:
            logger.warning(
                "%d GPUs are visible, but one process uses one. For all: accelerate launch -m pivotune train ...",
                args.n_gpu,
            )
            args._n_gpu = 1  # otherwise Trainer would wrap the method in nn.DataParallel
        # The re-entrant kind hides activations from the hooks. The option has been renamed in transformers.
        renamed = hasattr(args, "activation_checkpointing_kwargs")
        option = f"{'activation' if renamed else 'gradient'}_checkpointing_kwargs"
        chosen = getattr(args, option) or {}
        if chosen.get("use_reentrant"):
            raise PivotuneError(
                f"training.{option}: use_reentrant: true hides activations from the methods. Remove it."
            )
        setattr(args, option, {**chosen, "use_reentrant": False})
        use_cache = model.config.use_cache
        super().__init__(model, args, **kwargs)
        model.config.use_cache = use_cache  # Trainer turns it off, and the saved model would generate slowly
        self._check_sharding()
        self.transform_matrix: TransformMatrix | None = None
        self.term_summary: dict[str, dict[str, float]] = {}
        self._info = info or {}
        self._window: dict[str, Tensor] = {}  # name -> (sum, count) on this rank since the last log
        self._windows = 0
        self._silent: dict[str, int] = {}  # name -> windows in which it had nothing to say
        self._untrained: list[Tensor] = []  # checksums of what trains, until a change of it is seen
        self._check_model()
        self.add_callback(_AtTheStart(self))

    @property
    def method(self) -> Method:
        """The method, without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def _check_sharding(self) -> None:
        state = self.accelerator.state
        if self.is_fsdp_enabled and state.fsdp_plugin.fsdp_version != 2:
            raise PivotuneError(
                "training.fsdp_config: FSDP1 is not supported. Set version: 2 (fsdp_version in accelerate)."
            )
        if self.is_deepspeed_enabled and state.deepspeed_plugin.zero_stage == 3:
            raise PivotuneError("training.deepspeed: ZeRO stage 3 is not supported, use FSDP2 (training.fsdp: true).")

    def _check_model(self) -> None:
        if not self.is_deepspeed_enabled and any(p.dtype == torch.float16 for p in self._trained().values()):
            raise PivotuneError(f"model.dtype: float16 {FLOAT16_BREAKS}")
        metric = self.args.metric_for_best_model
        names = ["loss", PAIRS, *self.method.weights]
        if metric and not isinstance(self.eval_dataset, dict) and metric.removeprefix("eval_") not in names:
            raise PivotuneError(
                f"training.metric_for_best_model: got {metric!r}; this run evaluates {', '.join(names)}. Choose one."
            )

    # One step ------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """What each term is divided by: its count over the micro-batches of the window, on all ranks."""
        if not batch_samples:
            return None
        counts = [self.method.counts(batch) for batch in batch_samples]
        names = list(counts[0])
        total = torch.stack([torch.stack([one[name] for one in counts]).sum() for name in names]).to(device)
        return dict(zip(names, self.accelerator.reduce(total, "sum"), strict=True))

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(inputs, counts=num_items_in_batch)
        _accumulate(self._window, inputs, output)
        loss = output["loss"]
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP and FSDP average gradients over ranks
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a logging step of the training, on all ranks
            window, self._window = self._window, {}
            means = self._means(window)
            logs.update({name: mean for name, (mean, _) in means.items()})
            self._report(logs["loss"], means)
        super().log(logs, start_time)
        self.state.log_history[-1] = finite.without_nan(self.state.log_history[-1])  # JSON has none

    def _means(self, totals: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Mean and count of each term over all ranks."""
        if not totals:
            return {}
        reduced = self.accelerator.reduce(torch.stack(list(totals.values())), "sum").tolist()
        return {name: (total / max(count, 1.0), count) for name, (total, count) in zip(totals, reduced, strict=True)}

    # Reporting -----------------------------------------------------------------------------------------------------

    def _report(self, loss: float, means: dict[str, tuple[float, float]]) -> None:
        """Stop at a loss that is no number; warn, once each, about terms that have nothing to say."""
        if not math.isfinite(loss) and not self.args.logging_nan_inf_filter:
            broken = [name for name, (mean, _) in means.items() if not math.isfinite(mean)]
            terms = f"terms that are no number: {', '.join(broken) or 'none, so it is the parameters'}"
            raise self._broken(f"the loss is {loss} ({terms})")
        self._windows += 1
        watched = [name for name, weight in self.method.weights.items() if weight]
        watched += [] if isinstance(self.method, SFT) else [PAIRS]
        for name, (mean, count) in means.items():
            self.term_summary.setdefault(name, {"first": mean})["last"] = mean
            if name in watched and mean == 0.0:
                self._silent[name] = self._silent.get(name, 0) + 1
                if self._silent[name] == 1:
                    self._warn(f"step {self.state.global_step}: {_silence(name, count)} since the last log.")

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As that of Trainer. `True` resumes from the last good checkpoint of `output_dir`.

        Raises:
            PivotuneError: no step would be made, or nothing changed in any; a loss, a parameter or an optimizer's state
                is not finite; the checkpoint is not one of this run; the output is somebody else's, or too small.
        """
        _check_batches(self.train_dataset, self.args)
        folder: Path | None = None
        if resume_from_checkpoint is True or str(resume_from_checkpoint).lower() == "true":
            output = str(self.args.output_dir)
            folder = resume.on_first_process(self.args, lambda: resume.find(True, output))
        elif resume_from_checkpoint:
            folder = Path(str(resume_from_checkpoint))
        if folder is not None:
            resume.check_state(folder)
            if self.is_world_process_zero():
                print(f"The run goes on from {folder}.", flush=True)
            for difference in resume.compare(folder, checkpoint.read_info(folder), self.describe()):
                self._warn(difference)
        if self.args.should_save:
            self._check_output()
        try:
            result = super().train(None if folder is None else str(folder), *args, **kwargs)
        except _NoStepLeft:
            result = self._end_without_a_step()
        else:
            self._check_numbers()
            self._check_change()
        for name, windows in self._silent.items():
            self._warn(f"In {windows} of {self._windows} logging windows {_silence(name, 1)}.")
        if is_on(self.args.eval_strategy) and not any("eval_loss" in entry for entry in self.state.log_history):
            self._warn("No evaluation was due in so short a run: lower training.eval_steps or training.eval_delay.")
        return result

    def _check_output(self) -> None:
        """Raise a PivotuneError where the output is somebody else's, or has no room for a result and a checkpoint."""
        folder = Path(str(self.args.output_dir))
        checkpoint.claim("output", folder)
        saves = self.args.save_strategy != SaveStrategy.NO
        try:
            checkpoint.check_space(folder, self._bytes() + (self._bytes(optimizer=True) if saves else 0))
        except OSError as error:
            raise PivotuneError(f"output: {folder} is too small: {reason(error)}. Make room first.") from error

    # Whether it trains, and with numbers ---------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Tensor]:
        """All of them, by the names they have in the model; under FSDP2, this rank's parts."""
        for module in self.method.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation leaves some whole
        return {name.removeprefix("model."): value for name, value in self.method.named_parameters()}

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._parameters().items() if value.requires_grad}

    def _start(self) -> None:
        """When all is loaded and no step made: raise a PivotuneError where the run cannot go well."""
        done, steps = self.state.global_step, self.state.max_steps
        wrong = finite.broken_names(self._parameters().items(), self._sum)
        if self._optimizer_is_broken():
            wrong.append("the optimizer's state")
        if wrong:
            raise PivotuneError(
                f"before the first step: NaN or infinity in {finite.listed(wrong)}. Use a sound model or checkpoint."
            )
        if done > steps or steps < 1:
            raise PivotuneError(
                f"training.max_steps, training.num_train_epochs: make {steps} steps, and {done} are done. Raise them."
            )
        if done == steps:
            raise _NoStepLeft
        check_warmup(self.args, steps)
        if not done:  # of a resumed run, the last few steps may be too small to see
            self._untrained = finite.checksums(self._trained().values())

    def _end_without_a_step(self) -> TrainOutput:
        steps = self.state.global_step
        self._warn(f"{steps} of {steps} steps are done, so no step is left to train. For more, {_MORE_STEPS}.")
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(steps, 0.0, {})

    def _check_numbers(self, optimizer: bool = False) -> None:
        """Raise a PivotuneError, on all ranks, where a loss since the last log or something that trains is not finite.

        One pass over the parameters, and over the optimizer's state where that is to be saved.
        """
        wrong = [] if self.args.logging_nan_inf_filter else finite.broken_names(self._window.items(), self._sum)
        wrong += finite.broken_names(self._trained().items(), self._sum)
        if optimizer and self._optimizer_is_broken():
            wrong.append("the optimizer's state")
        if wrong:
            raise self._broken(f"NaN or infinity in {finite.listed(wrong)}")

    def _check_change(self) -> None:
        """Raise a PivotuneError, on all ranks, where not a bit of anything that trains has changed since the start."""
        if not self._untrained:
            return
        now = finite.checksums(self._trained().values())
        changed = any(bool(a != b) for a, b in zip(self._untrained, now, strict=True))
        if not self._sum(torch.tensor([int(changed)])).item():
            dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in self._trained().values()}
            raise PivotuneError(
                f"step {self.state.global_step}: not a bit of any parameter has changed, so nothing is trained. Raise "
                f"training.learning_rate ({self.args.learning_rate:g}), whose updates may be too small for weights in "
                f"{', '.join(sorted(dtypes))}, and look at its schedule (a warm-up begins at 0; training.fp16 may skip "
                "the first steps) and at the answers (is the term lm above 0?)."
            )
        self._untrained = []

    def _optimizer_is_broken(self) -> bool:
        if self.optimizer is None or self.is_deepspeed_enabled:
            return False
        kept = (value for state in self.optimizer.state.values() for value in state.values())
        found = finite.any_broken((value for value in kept if torch.is_tensor(value)), self.args.device)
        return bool(self._sum(found.int()[None]).item())  # one flag: ranks may differ in what they keep

    def _sum(self, values: Tensor) -> Tensor:
        """Over all ranks."""
        summed: Any = self.accelerator.reduce(values.to(self.args.device), "sum")
        return summed

    def _broken(self, what: str) -> PivotuneError:
        """The error for numbers that broke in training: where, what, the likely option, and how to go on."""
        args, step = self.args, self.state.global_step
        if args.fp16:
            fix = "use training.bf16, whose numbers reach farther than those of training.fp16"
        elif not args.max_grad_norm:
            fix = f"set training.max_grad_norm (1.0 is usual), or lower training.learning_rate ({args.learning_rate:g})"
        else:
            fix = f"lower training.learning_rate ({args.learning_rate:g})"
        if step <= 1:
            fix += ", or look at the model, its dtype and the data"
        last = checkpoint.last_complete_checkpoint(str(args.output_dir))
        go_on = "" if last is None else f" The last good checkpoint is {last} (training.resume_from_checkpoint: true)."
        return PivotuneError(f"step {step}: {what}. Nothing of it is saved. To mend it, {fix}.{go_on}")

    # Evaluation ----------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]  # type: ignore[index]
        return super().get_eval_dataloader(_Filled(dataset, self.args.eval_batch_size * self.args.world_size))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """`eval_loss` and `eval_<term>`: each term over its items in the whole set, on all ranks, each item once."""
        self._evaluated: dict[str, Tensor] = {}
        output: Any = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        means = {name: mean for name, (mean, _) in self._means(self._evaluated).items()}
        loss = sum(weight * means[name] for name, weight in self.method.weights.items())
        if not math.isfinite(loss):
            broken = ", ".join(name for name, mean in means.items() if not math.isfinite(mean))
            raise self._broken(f"{metric_key_prefix}_loss is {loss} (terms that are no number: {broken})")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **means}.items()})
        return output._replace(num_samples=dataloader.dataset.examples)

    def prediction_step(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> tuple[None, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            _accumulate(self._evaluated, inputs, model(inputs))
        return None, None, None

    # Saving and resuming -------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the run folder: all of it, or nothing. Every rank has to call this.

        Raises:
            PivotuneError: a parameter, or a loss since the last log, is not finite; the folder holds what is not of a
                run; or it cannot be written, and then the message says where the trained weights are instead.
        """
        if not _internal_call:
            self._check_numbers()
        if _internal_call and not self.is_fsdp_enabled:  # a checkpoint
            super().save_model(output_dir, _internal_call=True)
            return
        folder = output_dir or str(self.args.output_dir)
        state_dict: Any = None
        if self.is_fsdp_enabled:  # whatever fsdp_config.state_dict_type: a checkpoint is a run folder too
            gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state_dict = get_model_state_dict(self.model, options=gathered)  # type: ignore[arg-type]
        if _internal_call:
            self._save(folder, state_dict)
        elif self.args.should_save:
            with self._kept_elsewhere("the run", Path(folder), state_dict):
                self._write_run(folder, state_dict)
        self.accelerator.wait_for_everyone()

    def _write_run(self, folder: str | Path, state_dict: dict[str, Tensor] | None) -> None:
        checkpoint.check_space(folder, self._bytes())
        matrix = None if self.transform_matrix is None else self.transform_matrix.weight
        with checkpoint.written_at_once(folder) as unfinished:
            checkpoint.write_model(unfinished, self.method, self.processing_class, state_dict, matrix)
            checkpoint.write_json(unfinished / "training_log.json", self.state.log_history)
            checkpoint.mark_complete(unfinished, self.describe())

    def _bytes(self, *, optimizer: bool = False) -> int:
        """Of what is saved of the model; with the optimizer's state, which before the first step is an estimate."""
        adapter = isinstance(self.method.model, PeftModel)
        saved = [value for value in self.method.parameters() if value.requires_grad or not adapter]
        count = sum(value.numel() * value.element_size() for value in saved)
        if not optimizer or self.args.save_only_model:
            return count
        if self.optimizer is None:
            trained = sum(value.numel() * value.element_size() for value in saved if value.requires_grad)
            return count + (2 * trained if self.args.optim in ("adamw_torch", "adamw_torch_fused") else 0)
        states = [value for state in getattr(self.optimizer, "state", {}).values() for value in state.values()]
        return count + sum(value.numel() * value.element_size() for value in states if isinstance(value, Tensor))

    @contextmanager
    def _kept_elsewhere(
        self, what: str, folder: Path, state_dict: dict[str, Tensor] | None = None, half: Path | None = None
    ) -> Iterator[None]:
        """Where a write fails, remove what is `half` written, keep the trained weights in another place, and say so."""
        try:
            yield
        except Exception as error:
            if isinstance(error, PivotuneError) and not isinstance(error.__cause__, OSError):
                raise  # not about writing
            cause = error.__cause__ if isinstance(error, PivotuneError) else error
            said = f"output: {what} could not be written into {folder}: {reason(cause or error)}."
            if not self.args.should_save:
                raise PivotuneError(said) from error
            if half is not None and not checkpoint.is_complete(half):
                shutil.rmtree(half, ignore_errors=True)
            raise PivotuneError(f"{said} {self._keep(folder, state_dict)}") from error

    def _keep(self, folder: Path, state_dict: dict[str, Tensor] | None) -> str:
        """Write the run wherever there is room, unless a checkpoint holds its weights; says where they are."""
        last = checkpoint.last_complete_checkpoint(folder)
        resume = "make room and give --training.resume_from_checkpoint true."
        if last is not None and last.name == f"checkpoint-{self.state.global_step}":
            return f"The trained weights are in {last}; to end the run, {resume}"
        go_on = "" if last is None else f" To go on from the last complete checkpoint, {last}, {resume}"
        places = [folder.resolve().parent, Path.home(), Path(tempfile.gettempdir())]
        if self.is_fsdp_enabled and state_dict is None:
            places = []  # the parts of the other ranks are out of reach
        for place in dict.fromkeys(places):
            rescued = None
            try:
                rescued = tempfile.mkdtemp(prefix=f"{folder.name}-rescued-", dir=place)
                self._write_run(rescued, state_dict)
            except Exception:
                if rescued is not None:
                    shutil.rmtree(rescued, ignore_errors=True)
            else:
                return f"The model as trained up to step {self.state.global_step} is complete in {rescued}.{go_on}"
        return f"It could not be written anywhere else either.{go_on}"

    def describe(self) -> dict[str, Any]:
        """What `pivotune.json` says."""
        terms = {"terms": self.term_summary, "steps": self.state.global_step}
        matrix = {} if self.transform_matrix is None else {"transform_matrix": self.transform_matrix.report}
        sharding = "fsdp" if self.is_fsdp_enabled else "deepspeed" if self.is_deepspeed_enabled else None
        known = {"adapter": isinstance(self.method.model, PeftModel), "sharding": sharding, **self._info}
        return checkpoint.describe(self.method, **known, **resume.training_record(self.args), **terms, **matrix)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            checkpoint.write_model(folder, self.method, self.processing_class, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_numbers(optimizer=True)
        # Older checkpoints go only when this one is complete on all ranks.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = self._get_output_dir(trial=trial)
        new = Path(folder, f"checkpoint-{self.state.global_step}")
        with self._kept_elsewhere(new.name, new.parent, half=new):
            try:
                if self.args.should_save:
                    checkpoint.check_space(new, self._bytes(optimizer=True))
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            new = Path(folder, f"checkpoint-{self.state.global_step}")
            with self._kept_elsewhere(new.name, new.parent, half=new):
                checkpoint.mark_complete(new, self.describe())
            checkpoint.remove_old_checkpoints(folder, limit, self.state.best_model_checkpoint, new)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoint.restore(self.method, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What was changed of the learning rate and its schedule takes effect: the states hold the old rate."""
        rates = list(getattr(self.lr_scheduler, "base_lrs", []))
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler, optimizer = self.lr_scheduler, self.optimizer
        if checkpoint is None or optimizer is None or not isinstance(scheduler, LambdaLR):
            return
        scheduler.base_lrs = rates
        for group, rate, factor in zip(optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            checkpoint.restore(self.method, str(self.state.best_model_checkpoint))


def _check_batches(rows: Any, args: TrainingArguments) -> None:
    """Raise a PivotuneError where an epoch would have no batch for some rank."""
    if not hasattr(rows, "__len__"):
        return
    if not len(rows):
        raise PivotuneError("train_dataset: is empty, so nothing would be trained.")
    batch, ranks = args.per_device_train_batch_size, args.world_size
    if args.dataloader_drop_last and len(rows) < batch * ranks:
        raise PivotuneError(
            f"training.dataloader_drop_last: leaves nothing of {len(rows)} rows, which are fewer than one batch "
            f"(training.per_device_train_batch_size: {batch}, ranks: {ranks}). Lower the batch size or drop the option."
        )


class _NoStepLeft(Exception):
    """A checkpoint to go on from has all of the run's steps."""


class _AtTheStart(TrainerCallback):
    def __init__(self, trainer: PivotuneTrainer):
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._start()


def _accumulate(totals: dict[str, Tensor], batch: Batch, output: MethodOutput) -> None:
    """Add a batch's terms, and its pairs, to (sum, count) tensors. They stay on the device: no waiting for it."""
    pairs, examples = (batch["pair_row"] >= 0).sum(), (batch["labels"] != IGNORE).any(dim=1).sum()
    counted = {**output["terms"], PAIRS: (pairs, examples)}
    dtype = torch.float32 if pairs.device.type == "mps" else torch.float64
    for name, (total, count) in counted.items():
        added = torch.stack([total.detach().to(dtype), count.to(dtype)])
        totals[name] = added if name not in totals else totals[name] + added


def _silence(name: str, count: float) -> str:
    if name == PAIRS:
        return "no example had an English counterpart, so the methods that need one had nothing to learn from"
    return f"the term '{name}' was exactly zero" if count else f"the term '{name}' had no items"


class _Filled(torch.utils.data.Dataset):
    """An evaluation set filled up to a multiple of what all ranks read at a time, with rows that count for nothing.

    Otherwise distributed samplers would fill it up with examples, which then count twice.
    """

    def __init__(self, rows: Any, multiple: int) -> None:
        self._rows, self.examples = rows, len(rows)
        self._length = math.ceil(len(rows) / multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < self.examples:
            return self._rows[index]
        row = dict(self._rows[0])
        # All prompt, no answer: no label; and no English: no pair.
        return row | {"prompt_length": len(row["input_ids"])} | {n: None for n in row if n.startswith("english_")}


# From a configuration to a run folder --------------------------------------------------------------------------------


def train(config: RunConfig) -> Path:
    """Train one run and write its folder.

    Args:
        config: see `pivotune.config.RunConfig`.

    Returns:
        The run folder, complete.

    Raises:
        PivotuneError: an option, a file or a model that does not work, with the reason and the fix.
    """
    config.check()
    _check_model(config)
    args = _arguments(config)
    checkpoint.check_apart("output", config.output, config.model.path)
    checkpoint.check_output("output", config.output)
    begun = resume.on_first_process(args, lambda: resume.find(args.resume_from_checkpoint, config.output))
    if not args.should_save:
        return _train(config, args, begun)
    with locked("output", Path(config.output)):
        checkpoint.claim("output", config.output)
        try:
            return _train(config, args, begun)
        finally:
            checkpoint.unclaim(config.output)


def _train(config: RunConfig, args: TrainingArguments, begun: Path | None) -> Path:
    record = {} if begun is None else checkpoint.read_info(begun)
    info: dict[str, Any] = {
        "base_model": _resolved(config.model.path),
        "revision": config.model.revision,
        "base_digest": resume.base_digest(config.model.path, config.model.revision),
        "lora": dataclasses.asdict(config.lora),
        "data": dataclasses.asdict(config.data),
    }
    if begun is not None:
        resume.compare(begun, record, {**info, **resume.options_record(config, args)})
    set_seed(args.seed)  # adapters and the Decision Maker start the same on every rank

    tokenizer = checkpoint.open_tokenizer(config.model.path, config.model.revision)
    fix_template_kwargs(tokenizer, config.data.chat_template_kwargs, "data.chat_template_kwargs")
    rows, report, style = _tokenised(config, "train", config.data.train, tokenizer)
    if config.method != "sft" and not report.pairs.total():
        raise PivotuneError(
            f"data.train: no example has an English counterpart, and method: {config.method} learns from them. Add the "
            "field 'english' to the rows, or use method: sft."
        )
    if config.connects and report.pairs.total() < 2:
        raise PivotuneError(
            f"data.train: one example has an English counterpart, but method: {config.method} needs 2 at least (some "
            "1000 are usual) to fit its Transform Matrix. Add the field 'english' to more rows."
        )
    _check_batches(rows, args)
    info["rows_digest"] = resume.rows_digest(rows)
    if begun is not None:
        now = {**info, **resume.options_record(config, args)}
        resume.compare(begun, record, now)
        if _is_finished(config, now):
            if args.process_index == 0:
                print(f"{config.output} is complete, and no step is left. To go on, {_MORE_STEPS}.", flush=True)
            return Path(config.output)
        resume.check_state(begun)
    eval_rows = None
    if config.data.eval is not None and evaluates(args):
        eval_rows, _, _ = _tokenised(config, "eval", config.data.eval, tokenizer)
    model = _load_model(config)
    _fit(config, model, tokenizer, report, rows, eval_rows)
    automatic = _automatic_layers(config)
    config, choice, layers = _with_layers(config, model, rows, args, record)
    method = build_method(config, model)

    collator = ParallelCollator.for_tokenizer(tokenizer)
    info |= {
        "adapter": config.lora.r > 0,
        "prompt_style": style,
        "rows": dict(report.rows),
        "pairs": dict(report.pairs),
        **({} if layers is None else {"layers": layers, "automatic_layers": automatic}),
    }
    try:
        trainer = PivotuneTrainer(
            method,
            args,
            info=info,
            train_dataset=rows,
            eval_dataset=eval_rows,
            data_collator=collator,
            processing_class=tokenizer,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise error if isinstance(error, PivotuneError) else PivotuneError(f"training: {error}") from error
    if choice is not None:
        write_choice(choice, Path(config.output, "layers"), title=Path(config.model.path).name)
    try:
        trainer.train(None if begun is None else str(begun))
    except KeyboardInterrupt:
        last = checkpoint.last_complete_checkpoint(config.output)
        go_on = "no checkpoint had been written" if last is None else f"{last} is complete: {_GO_ON}"
        if args.process_index == 0:
            logger.warning("Interrupted at step %d; %s.", trainer.state.global_step, go_on)
        raise
    trained = trainer.method
    if isinstance(trained, CCTuning):
        try:
            trainer.transform_matrix = fit_transform_matrix(
                trained, rows, collator, batch_size=args.per_device_eval_batch_size, seed=args.seed
            )
            if trainer.is_world_process_zero():
                print(trainer.transform_matrix, flush=True)
        finally:  # whatever becomes of the matrix, the trained model is kept
            trainer.save_model()
    else:
        trainer.save_model()
    return Path(config.output)


_MORE_STEPS = "raise training.max_steps or training.num_train_epochs"
_GO_ON = "go on from it with --training.resume_from_checkpoint true"


def _arguments(config: RunConfig) -> TrainingArguments:
    """Those of the configuration; with data.eval and no word about when, each epoch is evaluated."""
    args = copy.copy(config.training)
    args.output_dir = config.output
    if config.data.eval is not None and not evaluates(args):
        if getattr(args, "eval_is_left_open", False):
            args.eval_strategy, args.do_eval = IntervalStrategy.EPOCH, True
        elif args.process_index == 0:
            logger.warning("data.eval: is not used, because training.eval_strategy is no.")
    if config.supervises and args.process_index == 0:
        options = config.deep_supervision
        signals = {"conversion": options.language_conversion, "thinking": options.english_thinking}
        if not any(getattr(options, f"{name}_weight") for name, signal in signals.items() if signal != "off"):
            logger.warning(
                "deep_supervision: its weights are 0, so its terms are measured and not trained, as with method: %s.",
                "cc_tuning" if config.connects else "sft",
            )
    return args


def _is_finished(config: RunConfig, now: dict[str, Any]) -> bool:
    """Whether the folder of a run that is resumed holds all that these options ask for."""
    if not checkpoint.is_complete(config.output):
        return False
    then = checkpoint.read_info(config.output)
    whole = not config.connects or "transform_matrix" in then
    return whole and resume.unchanged(then, now, (*resume.LENGTH, *resume.AFTER_TRAINING))


def build_method(config: RunConfig, model: nn.Module) -> Method:
    """The method that a configuration asks for, on a model."""
    if config.method == "both":
        return ConnectedSupervision(model, config.deep_supervision, config.cc_tuning)
    if config.method == "cc_tuning":
        return CCTuning(model, config.cc_tuning)
    if config.method == "deep_supervision":
        return DeepSupervision(model, config.deep_supervision)
    return SFT(model)


def _automatic_layers(config: RunConfig) -> list[str]:
    """Which layers are left to the run to choose."""
    return [name for name in ("conversion_layer", "thinking_layer") if getattr(config.deep_supervision, name) == "auto"]


def _with_layers(
    config: RunConfig, model: nn.Module, rows: datasets.Dataset, args: TrainingArguments, record: dict[str, Any]
) -> tuple[RunConfig, LayerChoice | None, dict[str, Any] | None]:
    """The configuration with numbers for layers that are `auto`; the choice, where this process made it; its record.

    A resumed run keeps the layers of its checkpoint, whose record this is.
    """
    options = config.deep_supervision
    signals = {"conversion_layer": options.language_conversion, "thinking_layer": options.english_thinking}
    automatic = _automatic_layers(config)
    if not config.supervises or not any(signals[name] != "off" for name in automatic):
        return config, None, None
    choices: list[LayerChoice] = []

    def choose() -> dict[str, Any]:
        choices.append(_choose_layers(model, rows, args))
        print(table(choices[0]), flush=True)
        return choices[0].as_dict()

    if "deep_supervision" in record:
        found, chosen_layers = record["deep_supervision"], record.get("layers")
    else:
        found = chosen_layers = resume.on_first_process(args, choose)
    chosen = dataclasses.replace(options, **{name: found[name] for name in automatic})
    return dataclasses.replace(config, deep_supervision=chosen), choices[0] if choices else None, chosen_layers


def _choose_layers(model: nn.Module, rows: datasets.Dataset, args: TrainingArguments) -> LayerChoice:
    """From questions of the training data, on the device that will train."""
    others = [number for number, language in enumerate(rows["language"]) if not is_english(language)]
    if not others:
        raise PivotuneError(
            "deep_supervision: layers are auto, but data.train has no question that is not English. Give numbers."
        )
    drawn = sorted(random.Random(args.seed).sample(others, min(len(others), AUTO_EXAMPLES)))
    sample = [rows[number] for number in drawn]
    target = [
        Encoded(row["input_ids"][: row["prompt_length"]], [], row["question_start"], row["question_end"])
        for row in sample
    ]
    english = [
        Encoded(row["english_prompt_ids"], [], row["english_question_start"], row["english_question_end"])
        for row in sample
        if row["english_prompt_ids"] is not None
    ]
    home = next(model.parameters()).device
    longest = max(len(prompt.prompt_ids) for prompt in target + english)
    try:
        return choose_from_prompts(
            model.to(args.device),
            target,
            english,
            batch_size=args.per_device_eval_batch_size,
            max_length=longest,
            seed=args.seed,
        )
    except torch.OutOfMemoryError as error:
        raise PivotuneError(
            "deep_supervision: the whole model does not fit on one device to choose the layers. Lower "
            "training.per_device_eval_batch_size, or run `pivotune layers` elsewhere and give its numbers."
        ) from error
    finally:
        model.to(home)


def _check_model(config: RunConfig) -> None:
    """What depends on the model's shape, tried on the model without its weights, before anything long begins."""
    options = config.model
    skeleton = checkpoint.open_skeleton(options.path, options.revision, attn_implementation=options.attn_implementation)
    checkpoint.check_generation(options.path, options.revision)
    quantised = getattr(skeleton.config, "quantization_config", None)
    if quantised is not None and not config.lora.r:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise PivotuneError(
            f"model.path: the weights of {options.path} are quantised ({method}) and cannot be trained themselves. "
            "Give the model that they were made from, or train adapters (lora.r)."
        )
    if config.lora.r:
        skeleton = _with_adapters(skeleton, config.lora)
    supervision = config.deep_supervision
    if config.supervises:  # `auto` finds numbers later; any will do here
        numbers: dict[str, Any] = dict.fromkeys(_automatic_layers(config), 1)
        config = dataclasses.replace(config, deep_supervision=dataclasses.replace(supervision, **numbers))
    method = build_method(config, skeleton)
    best = str(config.training.metric_for_best_model or "loss").removeprefix("eval_")
    check_choice("training.metric_for_best_model", best, ["loss", *method.weights])


def _load_model(config: RunConfig) -> nn.Module:
    model = checkpoint.open_model(
        _resolved(config.model.path),
        config.model.revision,
        dtype=config.model.dtype,
        attn_implementation=config.model.attn_implementation,
    )
    if idle := checkpoint.repair_generation(model.generation_config, config.model.path):
        logger.warning(
            "model.path: generation_config.json of %s sets %s without effect (no sampling, no beams), which "
            "transformers refuses to save. The run leaves it out.",
            *(config.model.path, ", ".join(idle)),
        )
    finite.check_finite(f"model.path: {config.model.path}", model.named_parameters())
    return _with_adapters(model, config.lora) if config.lora.r else model


def _with_adapters(model: Any, options: LoraOptions) -> nn.Module:
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
    )
    layers = [name for name, one in model.named_parameters(remove_duplicate=False) if one.dim() == 2]
    for wanted in [] if isinstance(options.target_modules, str) else options.target_modules:
        if not any(f".{layer}".endswith(f".{wanted}.weight") for layer in layers):
            found = ", ".join(sorted({layer.split(".")[-2] for layer in layers}))
            raise PivotuneError(f"lora.target_modules: no layer is named {wanted!r}; the model has {found}.")
    try:
        adapted = get_peft_model(model, adapter)
    except (ValueError, re.error) as error:
        raise PivotuneError(f"lora: {error}") from error
    tables = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    if model.config.tie_word_embeddings and (
        on := [name for name, one in tables.items() if hasattr(one, "base_layer")]
    ):
        raise PivotuneError(
            f"lora.target_modules: names {' and '.join(on)}, but this model's input embeddings and output head are one "
            "matrix (tie_word_embeddings), which an adapter of either would pull apart. Name other modules."
        )
    return adapted


def _fit(config: RunConfig, model: nn.Module, tokenizer: Any, report: Report, *splits: datasets.Dataset | None) -> None:
    """Make model and tokenizer fit each other and the data: vocabulary, padding, ends, context."""
    columns = ("input_ids", "english_prompt_ids", "english_answer_ids")
    used = (
        token
        for rows in splits
        if rows is not None
        for name in columns
        for token in pc.unique(pc.list_flatten(rows.data.column(name))).to_pylist()
    )
    done = tokens.fit_vocabulary(model, tokenizer, used, config.model.path, adapters=config.lora.r > 0)
    if done and config.training.process_index == 0:
        print(f"{done}.", flush=True)
    tokens.fit_padding(tokenizer, tokens.rows_of(model))
    tokens.align(model, tokenizer, tokenizer.convert_tokens_to_ids(list(report.ends)))
    for split, rows in zip(("train", "eval"), splits, strict=True):
        if rows is not None:
            target, *english = (pc.list_value_length(rows.data.column(name)) for name in columns)
            lengths = [*target.to_pylist(), *pc.add(*english).drop_null().to_pylist()]
            fix = "Lower data.max_length to it: longer answers are then cut and counted."
            tokens.check_context(model, tokenizer, lengths, f"data.{split}, texts", fix)


def _tokenised(config: RunConfig, split: str, source: Any, tokenizer: Any) -> tuple[datasets.Dataset, Report, str]:
    """The rows, what was kept, and the prompts' style."""
    data = config.data
    thinks = config.supervises and config.deep_supervision.english_thinking == "logits"
    examples, report = read_examples(
        source,
        on_bad=data.on_bad,
        english_answer_for="deep_supervision.english_thinking: logits" if thinks else None,
        languages=data.languages,
        language=data.language,
        columns=data.columns,
    )
    rows, kept = tokenize_examples(examples, tokenizer, data.style, data.max_length, data.overlong, data.on_bad)
    kept.take_notes(report)
    if config.training.process_index == 0:
        if report.skipped:
            print(f"data.{split}, read: {report}")
        print(f"data.{split}: {kept}", flush=True)
    return rows, kept, _style_of(examples, tokenizer, data.style)


def _style_of(examples: Iterable[ParallelExample], tokenizer: Any, style: str) -> str:
    """The style of all these prompts; `auto` where it gave several."""
    encoder = PromptEncoder(tokenizer, style)
    found = {encoder.style_of(one.text) for one in examples}
    return found.pop() if len(found) == 1 else style


def _resolved(path: str) -> str:
    """Folders and files by their absolute path, so that an adapter finds its base model from anywhere; hub names as
    they are."""
    return str(Path(path).resolve()) if Path(path).exists() else path
