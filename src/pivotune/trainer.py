"""A thin transformers.Trainer for a `Method`.

It keeps the promise of the method's terms: each is a sum divided by its own count, taken over the whole accumulation
window and all ranks, so that batches of 8 x 1, 1 x 8 and 2 ranks x 4 train the same model.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, TrainOutput

from pivotune import checkpoint, compat, finite, proportions, resume
from pivotune.config import FLOAT16_BREAKS, check_warmup, is_on
from pivotune.data import Batch
from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError
from pivotune.files import reason
from pivotune.losses import IGNORE
from pivotune.method import Method, MethodOutput
from pivotune.objectives.base import AfterTraining, unobtrusive
from pivotune.taps import evaluating

logger = logging.getLogger(__name__)

compat.check(__name__)

MORE_STEPS = "raise training.max_steps or training.num_train_epochs"
GO_ON = "go on from it with --training.resume_from_checkpoint true"

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
            compat.use_one_gpu(args)
        # The re-entrant kind hides activations from the hooks. The option has been renamed in transformers.
        renamed = hasattr(args, "activation_checkpointing_kwargs")
        option = f"{'activation' if renamed else 'gradient'}_checkpointing_kwargs"
        chosen = getattr(args, option) or {}
        if chosen.get("use_reentrant"):
            raise PivotuneError(
                f"training.{option}: use_reentrant: true hides activations from the objectives. Remove it."
            )
        setattr(args, option, {**chosen, "use_reentrant": False})
        use_cache = model.config.use_cache
        super().__init__(model, args, **kwargs)
        model.config.use_cache = use_cache  # Trainer turns it off, and the saved model would generate slowly
        self._check_sharding()
        self.found: dict[str, dict[str, Any]] = {}  # what the objectives recorded after training
        self.term_summary: dict[str, dict[str, float]] = {}
        self._info = info or {}
        self._last_batch: Batch | None = None
        self._window: dict[str, Tensor] = {}  # name -> (sum, count) on this rank since the last log
        self._windows = 0
        self._silent: dict[str, int] = {}  # name -> windows in which it had nothing to say
        self._begins = False  # the next step is the first one of the run
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

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Like biases and norms, an objective's own vectors and numbers, such as a gate, do not decay."""
        own = {f"objectives.{name}" for name, value in self.method.objectives.named_parameters() if value.dim() < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in own]

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
        if model.training:
            self.method.progress = (self.state.global_step + 1) / self.state.max_steps
        output = model(inputs, counts=num_items_in_batch)
        self._last_batch = inputs
        if self._begins and model.training:
            self._begins = False
            self._report_proportions(output)
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
        """Stop at a loss that is NaN or infinite; warn, once each, about terms that have nothing to say."""
        if not math.isfinite(loss) and not self.args.logging_nan_inf_filter:
            broken = [name for name, (mean, _) in means.items() if not math.isfinite(mean)]
            terms = f"terms that are NaN or infinite: {', '.join(broken) or 'none, so it is the parameters'}"
            raise self._broken(f"the loss is {loss} ({terms})")
        self._windows += 1
        watched = [name for name, weight in self.method.weights.items() if weight]
        watched += [PAIRS] if any(part.fewest_pairs for part in self.method.parts) else []
        for name, (mean, count) in means.items():
            self.term_summary.setdefault(name, {"first": mean})["last"] = mean
            if name in watched and mean == 0.0:
                self._silent[name] = self._silent.get(name, 0) + 1
                if self._silent[name] == 1:
                    self._warn(f"step {self.state.global_step}: {_silence(name, count)} since the last log.")

    def _report_proportions(self, output: MethodOutput) -> None:
        """In the first step: each term beside guessing and beside the ordinary loss; warn where one is out of scale."""
        args = self.args
        checkpointing = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
        whole = not (checkpointing or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        found = proportions.measure(self.method, output, gradients=whole)
        if found and self.is_world_process_zero():
            print(f"First step: lm {output['terms']['lm'].mean.item():.3g}; {'; '.join(map(str, found))}.", flush=True)
        means = {name: term.mean.item() for name, term in output["terms"].items()}
        for warnings in (*(one.warnings for one in found), *(part.first_remarks(means) for part in self.method.parts)):
            for warning in warnings:
                self._warn(warning)
        if found:
            self._info["first_step"] = proportions.record(found)

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As that of Trainer. `True` resumes from the last good checkpoint of `output_dir`.

        Raises:
            PivotuneError: no step would be made, or nothing changed in any; a loss, a parameter or an optimizer's state
                is not finite; the checkpoint is not one of this run; the output is somebody else's, or too small.
        """
        check_batches(self.train_dataset, self.args)
        folder: Path | None = None
        if resume_from_checkpoint is True or str(resume_from_checkpoint).lower() == "true":
            output = str(self.args.output_dir)
            folder = on_first_process(self.args, lambda: resume.find(True, output))
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
        self._reshard()
        named = self.method.named_parameters()
        return {name.removeprefix("model.").removeprefix("objectives."): value for name, value in named}

    def _reshard(self) -> None:
        """A pass without a gradient leaves some modules of FSDP2 whole."""
        for module in self.method.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

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
        self._begins = not done
        if not done:  # of a resumed run, the last few steps may be too small to see
            self._untrained = finite.checksums(self._trained().values())

    def _end_without_a_step(self) -> TrainOutput:
        steps = self.state.global_step
        self._warn(f"{steps} of {steps} steps are done, so no step is left to train. For more, {MORE_STEPS}.")
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(steps, 0.0, {})

    def _check_numbers(self, optimizer: bool = False) -> None:
        """Raise a PivotuneError, on all ranks, where a loss since the last log or something that trains is not finite.

        One pass over the parameters, and over the optimizer's state where that is to be saved; and the loss of the last
        batch once more, because no step has seen what the last update made of it.
        """
        wrong = [] if self.args.logging_nan_inf_filter else finite.broken_names(self._window.items(), self._sum)
        wrong += finite.broken_names(self._trained().items(), self._sum)
        if not wrong and self._last_batch is not None:
            with evaluating(self.model_wrapped), unobtrusive(self.args.device):
                loss = self.model_wrapped(self._last_batch)["loss"]
            self._reshard()
            wrong += finite.broken_names([("the loss after the last step", loss)], self._sum)
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
            raise self._broken(f"{metric_key_prefix}_loss is {loss} (terms that are NaN or infinite: {broken})")
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
        with checkpoint.written_at_once(folder) as unfinished:
            checkpoint.write_model(unfinished, self.method, self.processing_class, state_dict)
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
        sharding = "fsdp" if self.is_fsdp_enabled else "deepspeed" if self.is_deepspeed_enabled else None
        known = {"adapter": isinstance(self.method.model, PeftModel), "sharding": sharding, **self._info}
        found: dict[str, dict[str, Any]] = known.pop("found", {})
        found = {name: {**found.get(name, {}), **self.found.get(name, {})} for name in {**found, **self.found}}
        return checkpoint.describe(self.method, **known, **resume.training_record(self.args), **terms, found=found)

    def after_training(self, batch_size: int, seed: int) -> None:
        """What the objectives have left to do. Every rank has to call this."""
        rows, collator = self.train_dataset, self.data_collator
        after = AfterTraining(
            self.method, rows, cast(Any, collator), batch_size, seed, is_main=self.is_world_process_zero()
        )
        for part in self.method.parts:
            if record := part.after_training(after):
                self.found[part.name] = record
        self._info["after_training"] = True

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
        compat.set_last_rates(scheduler, [group["lr"] for group in optimizer.param_groups])

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            checkpoint.restore(self.method, str(self.state.best_model_checkpoint))


def check_batches(rows: Any, args: TrainingArguments) -> None:
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
        return "no example had an English counterpart, so the objectives that need one had nothing to learn from"
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
