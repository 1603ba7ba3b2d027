"""Typed configuration of a training run: what a YAML file of `pivotune train` holds, and `train()` in Python takes.

Every option is described once, in the `Args` of its dataclass; the command line's help is made from these.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import IntervalStrategy, TrainingArguments

from pivotune import quantization
from pivotune.data.examples import check_columns
from pivotune.data.languages import read_languages
from pivotune.errors import PivotuneError, check_number
from pivotune.objectives import objective_of
from pivotune.quantization import Quantization
from pivotune.training_checks import check_libraries, check_values

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class ModelConfig:
    """The model to fine-tune.

    Args:
        path: folder or hub name, as `AutoModelForCausalLM.from_pretrained` takes it.
        dtype: of the weights. float32 with training.bf16 is mixed precision; bfloat16 halves the memory, at a cost in
            precision for full fine-tuning; auto keeps the type they are stored in.
        attn_implementation: of transformers: eager, sdpa, flash_attention_2, ...; its own choice where null.
        revision: of the model on the hub.
        quantization: keep the base in 4 bits (nf4) or 8 (int8) by bitsandbytes, and train adapters on it; null keeps it
            as it is.
    """

    path: str
    dtype: Dtype = "float32"
    attn_implementation: str | None = None
    revision: str | None = None
    quantization: Quantization | None = None


@dataclass
class DataConfig:
    """The examples: JSONL, JSON, Parquet or `hub:owner/name[/configuration][:split]`.

    Args:
        train: file, or list of files, of examples with their English counterparts.
        eval: the same, for evaluation during training: after each epoch, or as training.eval_strategy says.
        languages: the languages to expect; a row in another one is a bad row. All where null.
        language: of the rows that name none; where null, they are bad rows.
        columns: other names of fields, {name in the file: name here}, e.g. {frage: instruction, antwort: output,
            question_english: english.instruction}; {name: null} leaves a field out.
        style: prompt style: alpaca; chat, the tokenizer's template; plain, the prompt as it is; auto chooses: plain for
            prompt/completion rows, else chat where the tokenizer has a template, else alpaca.
        chat_template_kwargs: arguments of the chat template, e.g. {enable_thinking: false}. They are saved with the
            run's template, so that it is asked as it was trained.
        max_length: the most tokens a prompt and its answer may have together; longer answers are cut at their end.
        on_bad: a malformed row, or one that the chat template refuses, stops the run with its line number (error), or
            is left out and counted (skip).
        overlong: the same for a prompt that leaves no room for an answer.
        english_replay: the share of the English sides of pairs, in 0..1, that is trained on besides, as examples of
            their own, so that English is not forgotten. Drawn by id and training.seed.
    """

    train: str | list[str]
    eval: str | list[str] | None = None
    languages: list[str] | None = None
    language: str | None = None
    columns: dict[str, str | None] | None = None
    style: Literal["auto", "alpaca", "chat", "plain"] = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    max_length: int = 512
    on_bad: Literal["error", "skip"] = "error"
    overlong: Literal["error", "skip"] = "error"
    english_replay: float = 0.0


@dataclass
class LoraOptions:
    """Low-rank adapters instead of full fine-tuning.

    Args:
        r: rank of the adapters; 0 is full fine-tuning.
        alpha: their scale is alpha / r.
        dropout: in front of the adapters.
        target_modules: names of the linear layers that get one; all-linear is every one but the output head.
        use_dora: DoRA (Liu et al. 2024, arXiv 2402.09353): adapt the direction of each weight and learn its length.
        use_rslora: scale by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732), for large ranks.
        modules_to_save: names of modules that are trained in full besides, and saved with the adapter, e.g. [lm_head].
            As in PEFT, a name stands for all that end in it.
    """

    r: int = 0
    alpha: int = 32
    dropout: float = 0.05
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    modules_to_save: list[str] | None = None


@dataclass
class TrainingOptions(TrainingArguments):
    # The docstring is made below: each option's meaning from transformers itself, so that it says what is installed.

    output_dir: str | None = "run"  # replaced by RunConfig.output
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    bf16: bool | None = None  # type: ignore[assignment]
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    save_strategy: str = "epoch"
    eval_strategy: IntervalStrategy | str | None = None  # type: ignore[assignment]
    resume_from_checkpoint: str | bool | None = None  # type: ignore[assignment]
    fsdp: bool | str | None = None  # type: ignore[assignment]
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False  # none changes in training, and maps of a tuned lens are large
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = on_gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        self.eval_is_left_open = self.eval_strategy is None
        if self.eval_strategy is None:  # where the best checkpoint is asked for, each one is evaluated
            wanted = self.save_strategy if self.load_best_model_at_end else "no"
            self.eval_strategy = "epoch" if wanted == "best" else wanted
        # transformers renamed two options and warns about the old names; here both are welcome.
        for ending in ("", "_kwargs"):
            new, old = f"activation_checkpointing{ending}", f"gradient_checkpointing{ending}"
            if getattr(self, new, False) is None:
                setattr(self, new, getattr(self, old))
                setattr(self, old, None)
        self.report_to = self.report_to or "none"
        check_values(self)
        try:
            super().__post_init__()
        except (ValueError, TypeError, OSError, ImportError, RuntimeError, LookupError) as error:
            raise PivotuneError(f"training: {error}") from error

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """A share is at most all steps but one: the rate of the first step is zero, and might be that of the last."""
        steps = super().get_warmup_steps(num_training_steps)
        return steps if self.warmup_steps >= 1 else min(steps, num_training_steps - 1)


_OWN_HELP = {
    "bf16": "mixed precision in bfloat16; null: on where there is a GPU that can, else off.",
    "resume_from_checkpoint": "true: go on from the last good checkpoint in `output`, or begin where there is none; or "
    "the folder of a checkpoint.",
    "eval_strategy": "when to evaluate on data.eval: no, steps or epoch; null: after each epoch where data.eval is "
    "given.",
    "logging_nan_inf_filter": "hide NaN and infinite losses from the log. Where they are not hidden, they end the run; "
    "weights that are not finite always do.",
    "dataloader_pin_memory": "pin batches in memory, for faster copies to a GPU; on by default where there is one.",
    "fsdp": "shard the model over all GPUs (FSDP2), under `accelerate launch`.",
    "fsdp_config": "options of FSDP2, e.g. {activation_checkpointing: true, cpu_offload: false}.",
    "gradient_checkpointing": "recompute activations in the backward pass to save memory.",
    "report_to": "where to log: tensorboard, wandb, mlflow, ..., a list of them, all, or none.",
}

NOT_SUPPORTED = {
    "label_smoothing_factor": "each objective computes its own losses, without smoothing",
    "use_liger_kernel": "it replaces the modules that Pivotune reads; the losses here are already chunked",
    "liger_kernel_config": "it replaces the modules that Pivotune reads; the losses here are already chunked",
    "neftune_noise_alpha": "it changes the embeddings that objectives read",
    "torch_compile": "the objectives' hooks change from step to step",
    "torch_compile_backend": "the objectives' hooks change from step to step",
    "torch_compile_mode": "the objectives' hooks change from step to step",
    "push_to_hub": "upload the finished run folder instead (`hf upload`)",
    "parallelism_config": "tensor and context parallelism would split what the hooks read; use fsdp",
    "eval_accumulation_steps": "evaluation keeps no predictions",
    "include_for_metrics": "evaluation keeps no predictions",
    "batch_eval_metrics": "evaluation keeps no predictions",
    "prediction_loss_only": "evaluation keeps no predictions",
    "label_names": "batches have their own layout, see pivotune.data.ParallelCollator",
    "average_tokens_across_devices": "each term is always divided by its count over all devices",
}
"""Options of TrainingArguments that a run refuses, and why."""

HIDDEN = {
    *NOT_SUPPORTED,
    *("output_dir", "remove_unused_columns", "do_train", "do_eval", "do_predict", "local_rank", "use_cache"),
    *("eval_do_concat_batches", "eval_use_gather_object", "length_column_name", "ddp_find_unused_parameters"),
    *("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
}
"""Options of TrainingArguments that the command line does not show: refused, or without effect on a run."""


def _documentation() -> str:
    """The docstring of TrainingOptions, in the style that jsonargparse reads."""
    unknown = "see the documentation of transformers."
    help_of = {one.name: one.metadata.get("help", unknown) for one in dataclasses.fields(TrainingArguments)} | _OWN_HELP
    lines = ["Options of `transformers.TrainingArguments`, with defaults for this job.", "", "Args:"]
    for option in dataclasses.fields(TrainingOptions):
        lines.append(f"    {option.name}: {' '.join(help_of[option.name].split()).replace('%%', '%')}")
    return "\n".join(lines)


TrainingOptions.__doc__ = _documentation()


@dataclass
class RunConfig:
    """One training run.

    Args:
        output: the run folder to write; checkpoints go into it too.
        model: the model to fine-tune.
        data: the examples.
        objectives: options of each objective beside the ordinary loss, in any order (`pivotune.objectives`); none for
            plain fine-tuning. In a YAML file each has a section of its own name.
        lora: low-rank adapters instead of full fine-tuning.
        training: options of transformers.TrainingArguments.

    Example:
        >>> from pivotune import DataConfig, ModelConfig, RunConfig, TrainingOptions
        >>> from pivotune.training import train
        >>> run = train(RunConfig(
        ...     output="runs/zh",
        ...     model=ModelConfig("meta-llama/Llama-2-7b-hf"), data=DataConfig("zh.jsonl"),
        ...     training=TrainingOptions(learning_rate=2e-5, num_train_epochs=3),
        ... ))
    """

    output: str
    model: ModelConfig
    data: DataConfig
    objectives: list[Any] = field(default_factory=list)
    lora: LoraOptions = field(default_factory=LoraOptions)
    training: TrainingArguments = field(default_factory=TrainingOptions)

    @property
    def by_name(self) -> dict[str, Any]:
        """The options of the objectives by their names."""
        return {objective_of(options).name: options for options in self.objectives}

    def check(self) -> None:
        """Raise a PivotuneError for options that contradict each other or would have no effect."""
        groups = {"model": ModelConfig, "data": DataConfig, "lora": LoraOptions, "training": TrainingArguments}
        for name, kind in groups.items():
            if not isinstance(group := getattr(self, name), kind):
                given = TrainingOptions if kind is TrainingArguments else kind
                raise PivotuneError(f"{name}: got a {type(group).__name__}; give a {given.__name__}(...).")
        if self.model.dtype not in get_args(Dtype):
            raise PivotuneError(f"model.dtype: got {self.model.dtype!r}; choose one of {', '.join(get_args(Dtype))}.")
        if len(self.by_name) < len(self.objectives):
            raise PivotuneError("objectives: the same objective is given twice; give it once.")
        for options in (self.model, self.data, self.lora, self.training, *self.objectives):
            for one in dataclasses.fields(options):
                if isinstance(value := getattr(options, one.name, None), np.generic):  # which JSON and PEFT do not know
                    setattr(options, one.name, value.item())
        check_number(
            "data.max_length", self.data.max_length, 2, whole=True, why="; a prompt and its answer need as many"
        )
        check_number("data.english_replay", self.data.english_replay, 0, why="; a share of the English sides")
        if self.data.english_replay > 1:
            raise PivotuneError(f"data.english_replay: got {self.data.english_replay:g}; give a share, at most 1.")
        if isinstance(self.data.languages, str) or self.data.languages == []:
            raise PivotuneError(
                f"data.languages: got {self.data.languages!r}; give a list of languages, or leave it out for all."
            )
        check_number("lora.r", self.lora.r, 0, whole=True, why="; 0 is full fine-tuning")
        check_number("lora.dropout", self.lora.dropout, 0, below=1)
        if not self.lora.target_modules:
            raise PivotuneError("lora.target_modules: names no layer. Name some, such as q_proj,v_proj, or all-linear.")
        if self.lora.r == 0 and (changed := changed_fields(self.lora)):
            raise PivotuneError(f"lora.{changed[0]}: has no effect without adapters. Set lora.r, e.g. to 16.")
        if self.data.chat_template_kwargs and self.data.style in ("alpaca", "plain"):
            raise PivotuneError(
                f"data.chat_template_kwargs: has no effect with data.style: {self.data.style}. Remove it."
            )
        check_columns("data.columns", self.data.columns or {})
        read_languages("data.languages", self.data.languages or [])
        read_languages("data.language", [] if self.data.language is None else [self.data.language])
        for option, reason in NOT_SUPPORTED.items():
            if option in changed_fields(self.training):
                raise PivotuneError(f"training.{option}: is not supported: {reason}. Remove it.")
        if self.data.eval is None and (wants := _needs_evaluation(self.training)):
            raise PivotuneError(f"training.{wants}: needs examples to evaluate on. Set data.eval.")
        check_values(self.training)
        check_libraries(self.training)
        check_that_it_trains(self)
        quantization.check(self)


def check_that_it_trains(config: RunConfig) -> None:
    """Raise a PivotuneError for options under which a run would train nothing."""
    args, nothing = config.training, ": nothing would be trained"
    check_number("training.learning_rate", args.learning_rate, 0, exclusive=True, why=nothing)
    if args.max_steps < -1 or args.max_steps == 0:
        raise PivotuneError(
            f"training.max_steps: got {args.max_steps}; give the number of steps, or -1 for training.num_train_epochs."
        )
    if args.max_steps < 0:
        check_number("training.num_train_epochs", args.num_train_epochs, 0, exclusive=True, why=nothing)
    else:
        check_warmup(args, args.max_steps)
    if config.lora.r:
        check_number("lora.alpha", config.lora.alpha, 0, exclusive=True, why=nothing)
    elif config.model.dtype == "float16":
        raise PivotuneError(f"model.dtype: float16 {FLOAT16_BREAKS}")


FLOAT16_BREAKS = (
    "holds too few numbers for weights that are trained (updates vanish or overflow). Use float32, with training.fp16: "
    "true for mixed precision; or bfloat16; or adapters (lora.r)."
)


def check_warmup(args: TrainingArguments, steps: int) -> None:
    """Raise a PivotuneError for a warm-up that takes all of a run's steps."""
    without = ("constant", "reduce_lr_on_plateau", "greedy")
    warmup = args.get_warmup_steps(steps)
    if warmup >= steps and str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) not in without:
        raise PivotuneError(
            f"training.warmup_steps: got {args.warmup_steps:g}, but the run has {steps} steps: the learning rate would "
            "never be reached. Give fewer, a share below 1 (e.g. 0.03), or train for longer."
        )


def changed_fields(options: object) -> list[str]:
    """Names of the fields of a dataclass that differ from their defaults."""
    assert dataclasses.is_dataclass(options)
    changed = []
    for option in dataclasses.fields(options):
        default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        if default is not dataclasses.MISSING and getattr(options, option.name) != default:
            changed.append(option.name)
    return changed


def _needs_evaluation(training: TrainingArguments) -> str | None:
    """The option that has no effect, or fails, where nothing is evaluated during training."""
    chosen = {
        name: str(getattr(value := getattr(training, name), "value", value))
        for name in ("eval_strategy", "save_strategy", "lr_scheduler_type")
    }
    wants = {
        "eval_strategy": chosen["eval_strategy"] != "no",
        "eval_on_start": training.eval_on_start,
        "load_best_model_at_end": training.load_best_model_at_end,
        "save_strategy": chosen["save_strategy"] == "best",
        "lr_scheduler_type": chosen["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"),
    }
    return next((name for name, wanted in wants.items() if wanted), None)


def evaluates(args: TrainingArguments) -> bool:
    """Whether a run evaluates while it trains."""
    return is_on(args.eval_strategy) or args.eval_on_start


def is_on(strategy: object) -> bool:
    return str(getattr(strategy, "value", strategy)) != "no"
