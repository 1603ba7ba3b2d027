"""`pivotune train`: one configuration, from files to a run folder."""

from __future__ import annotations

import copy
import dataclasses
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow.compute as pc
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import IntervalStrategy, TrainingArguments, set_seed

from pivotune import checkpoint, finite, proportions, quantization, resume, tokens
from pivotune.anatomy import Anatomy
from pivotune.config import Dtype, LoraOptions, RunConfig, evaluates
from pivotune.data import (
    Batch,
    ParallelCollator,
    ParallelExample,
    PromptEncoder,
    Report,
    read_examples,
    tokenize_examples,
)
from pivotune.data.prompts import fix_template_kwargs
from pivotune.data.replay import with_replay
from pivotune.data.tokenize import paired
from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError, check_choice
from pivotune.files import locked
from pivotune.method import Method
from pivotune.objectives import OBJECTIVES, objective_of
from pivotune.objectives.base import BeforeTraining
from pivotune.provenance import base_digest
from pivotune.quantization import on_device
from pivotune.trainer import GO_ON, MORE_STEPS, PivotuneTrainer, check_batches

logger = logging.getLogger(__name__)

WEIGHED_PAIRS = 64
"""Training pairs on which weights that are `auto` are found."""


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
    check_model(config)
    args = arguments_of(config)
    checkpoint.check_apart("output", config.output, config.model.path)
    checkpoint.check_output("output", config.output)
    begun = on_first_process(args, lambda: resume.find(args.resume_from_checkpoint, config.output))
    if not args.should_save:
        return _train(config, args, begun)
    with locked("output", Path(config.output)):
        checkpoint.claim("output", config.output)
        try:
            return _train(config, args, begun)
        finally:
            checkpoint.unclaim(config.output)


@dataclass(frozen=True)
class Plan:
    """All that a run is made of, once its options have been checked and its data read.

    Attributes:
        config: as it was given.
        args: of the training.
        tokenizer: of the model.
        rows, eval_rows: tokenised examples.
        objectives: options of the objectives; settled once `settle` has been called.
        info: what `pivotune.json` says beside the training itself.
        begun: the checkpoint that the run goes on from.
        record: what that checkpoint says of itself; empty for a new run.
        writes: of files about what was settled, into the run folder.
    """

    config: RunConfig
    args: TrainingArguments
    tokenizer: Any
    rows: datasets.Dataset
    eval_rows: datasets.Dataset | None
    report: Report
    objectives: Sequence[Any]
    info: Mapping[str, Any]
    begun: Path | None
    record: Mapping[str, Any]
    writes: Sequence[Callable[[Path], object]] = ()

    def settle(self, model: nn.Module) -> Plan:
        """With values for what is left to the run, such as layers that are `auto`."""
        asked: dict[str, Any] = {}
        found: dict[str, Any] = {}
        settled, writes = [], []
        for options in self.objectives:
            name = objective_of(options).name
            one = objective_of(options).settle(options, self._before(name, model))
            then, now = dataclasses.asdict(options), dataclasses.asdict(one.options)
            if changed := {option: value for option, value in then.items() if now[option] != value}:
                asked[name] = changed
            if one.record:
                found[name] = one.record
            settled.append(one.options)
            writes += [] if one.write is None else [one.write]
        info = {**self.info, "asked": asked, "found": found}
        return dataclasses.replace(self, objectives=settled, info=info, writes=writes)

    def prepare(self, method: Method) -> Plan:
        """With the objectives' own tensors filled as far as they come before training."""
        if self.begun is not None:
            checkpoint.restore_own_tensors(method, self.begun)
        found = {part.name: part.prepare(self._before(part.name, method.model)) for part in method.parts}
        known = self.info["found"]
        merged = {name: {**known.get(name, {}), **more} for name, more in found.items() if more}
        return dataclasses.replace(self, info={**self.info, "found": {**known, **merged}})

    def weigh(self, method: Method) -> Plan:
        """With the weights that are `auto`, found on some training pairs."""
        open_terms = {part.name: list(part.open_weights()) for part in method.parts if part.open_weights()}
        if not open_terms:
            return self
        found = on_first_process(self.args, lambda: _weighed(method, self))
        for name, weighed in found.items():
            line = f"Weight of {name}: {weighed}."
            if weighed.weight and self.args.process_index == 0:
                print(line, flush=True)
            elif self.args.process_index == 0:
                logger.warning("%s", line)
        asked, known = dict(self.info["asked"]), dict(self.info["found"])
        for part, terms in open_terms.items():
            own = {name: found[name] for name in terms}
            options = method.objectives[part].set_weights({name: one.weight for name, one in own.items()})  # type: ignore[operator]
            asked[part] = {**asked.get(part, {}), **dict.fromkeys(options, "auto")}
            known[part] = {**known.get(part, {}), "weights": {name: dataclasses.asdict(own[name]) for name in terms}}
        return dataclasses.replace(self, info={**self.info, "asked": asked, "found": known})

    def _before(self, name: str, model: nn.Module) -> BeforeTraining:
        known = name in self.record.get("objectives", {})
        record = (self.record["objectives"][name], self.record.get("found", {}).get(name, {})) if known else None
        return BeforeTraining(model, self.rows, self.args, record, Path(self.config.model.path).name)


def _train(config: RunConfig, args: TrainingArguments, begun: Path | None) -> Path:
    plan = _plan(config, args, begun)
    if plan is None:
        return Path(config.output)
    set_seed(args.seed)  # adapters and the objectives' own tensors start the same on every rank
    model = _load_model(config)
    _fit(config, model, plan.tokenizer, plan.report, plan.rows, plan.eval_rows)
    plan = plan.settle(model)
    method = Method(model, plan.objectives)
    plan = plan.prepare(method)
    plan = plan.weigh(method)
    try:
        trainer = PivotuneTrainer(
            method,
            args,
            info=dict(plan.info),
            train_dataset=plan.rows,
            eval_dataset=plan.eval_rows,
            data_collator=ParallelCollator.for_tokenizer(plan.tokenizer),
            processing_class=plan.tokenizer,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise error if isinstance(error, PivotuneError) else PivotuneError(f"training: {error}") from error
    for write in plan.writes:
        write(Path(config.output))
    try:
        trainer.train(None if begun is None else str(begun))
    except KeyboardInterrupt:
        last = checkpoint.last_complete_checkpoint(config.output)
        go_on = "no checkpoint had been written" if last is None else f"{last} is complete: {GO_ON}"
        if args.process_index == 0:
            logger.warning("Interrupted at step %d; %s.", trainer.state.global_step, go_on)
        raise
    try:
        trainer.after_training(args.per_device_eval_batch_size, args.seed)
    finally:  # whatever becomes of that, the trained model is kept
        trainer.save_model()
    return Path(config.output)


def _plan(config: RunConfig, args: TrainingArguments, begun: Path | None) -> Plan | None:
    """What is to be done, with the data read and compared with the checkpoint; None where nothing is left to do."""
    record = {} if begun is None else checkpoint.read_info(begun)
    info: dict[str, Any] = {
        "base_model": _resolved(config.model.path),
        "revision": config.model.revision,
        "base_digest": base_digest(config.model.path, config.model.revision),
        "lora": dataclasses.asdict(config.lora),
        "quantization": config.model.quantization,
        "data": dataclasses.asdict(config.data),
    }
    if begun is not None:
        resume.compare(begun, record, {**info, **resume.options_record(config, args)})
    tokenizer, rows, report, style = training_rows(config, args)
    info["rows_digest"] = resume.rows_digest(rows)
    if begun is not None:
        now = {**info, **resume.options_record(config, args)}
        resume.compare(begun, record, now)
        if _is_finished(config, now):
            if args.process_index == 0:
                print(f"{config.output} is complete, and no step is left. To go on, {MORE_STEPS}.", flush=True)
            return None
        resume.check_state(begun)
    eval_rows = None
    if config.data.eval is not None and evaluates(args):
        eval_rows, _, _ = _tokenised(config, "eval", config.data.eval, tokenizer)
    info |= {
        "adapter": config.lora.r > 0,
        "prompt_style": style,
        **({} if config.model.quantization is None else {"dtype": dtype_read(config)}),
        "rows": dict(report.rows),
        "pairs": dict(report.pairs),
    }
    return Plan(config, args, tokenizer, rows, eval_rows, report, config.objectives, info, begun, record)


def training_rows(config: RunConfig, args: TrainingArguments) -> tuple[Any, datasets.Dataset, Report, str]:
    """The tokenizer, and the training set that it makes: rows, what was kept, and the prompts' style."""
    tokenizer = checkpoint.open_tokenizer(config.model.path, config.model.revision)
    fix_template_kwargs(tokenizer, config.data.chat_template_kwargs, "data.chat_template_kwargs")
    rows, report, style = _tokenised(config, "train", config.data.train, tokenizer)
    _check_pairs(config, report)
    check_batches(rows, args)
    return tokenizer, rows, report, style


def _weighed(method: Method, plan: Plan) -> dict[str, proportions.Weighed]:
    """On the device that will train, in batches of the size that it will have."""
    args, rows = plan.args, plan.rows
    pairs = paired(rows)
    drawn = random.Random(args.seed).sample(pairs, min(len(pairs), WEIGHED_PAIRS))
    collator, size = ParallelCollator.for_tokenizer(plan.tokenizer), args.per_device_train_batch_size

    def batches() -> Iterator[Batch]:
        for start in range(0, len(drawn), size):
            batch = collator([rows[number] for number in drawn[start : start + size]])
            yield {name: one.to(args.device) for name, one in batch.items()}

    try:
        with on_device(method, args.device):
            return proportions.weigh(method, batches())
    except torch.OutOfMemoryError as error:
        raise PivotuneError(
            "training.per_device_train_batch_size: the whole model with its activations does not fit on one device to "
            "find weights that are auto. Lower it, or give numbers."
        ) from error


def _check_pairs(config: RunConfig, report: Report) -> None:
    """Raise a PivotuneError where an objective has fewer English counterparts to learn from than it needs."""
    pairs = report.pairs.total()
    for name in config.by_name:
        if pairs < (fewest := OBJECTIVES[name].fewest_pairs):
            raise PivotuneError(
                f"data.train: {pairs or 'no'} example{'s have' if pairs > 1 else ' has'} an English counterpart, and "
                f"{name} needs {fewest} at least{' (some 1000 are usual)' if pairs else ''}. Add the field 'english' "
                f"to the rows, or leave out the section {name}."
            )


def arguments_of(config: RunConfig) -> TrainingArguments:
    """Those of the configuration; with data.eval and no word about when, each epoch is evaluated."""
    args = copy.copy(config.training)
    args.output_dir = config.output
    if config.data.eval is not None and not evaluates(args):
        if getattr(args, "eval_is_left_open", False):
            args.eval_strategy, args.do_eval = IntervalStrategy.EPOCH, True
        elif args.process_index == 0:
            logger.warning("data.eval: is not used, because training.eval_strategy is no.")
    for name, options in config.by_name.items() if args.process_index == 0 else ():
        for remark in OBJECTIVES[name].remarks(options):
            logger.warning("%s", remark)
    return args


def _is_finished(config: RunConfig, now: dict[str, Any]) -> bool:
    """Whether the folder of a run that is resumed holds all that these options ask for."""
    if not checkpoint.is_complete(config.output):
        return False
    then = checkpoint.read_info(config.output)
    return bool(then.get("after_training")) and resume.unchanged(then, now, (*resume.LENGTH, *resume.after_training()))


def check_model(config: RunConfig) -> nn.Module:
    """What depends on the model's shape, tried on the model without its weights, before anything long begins; that
    model, with its adapters."""
    options = config.model
    if options.revision is not None and Path(options.path).exists():
        raise PivotuneError(
            f"model.revision: got {options.revision!r}, which has no effect on files of yours (model.path: "
            f"{options.path}). Remove it."
        )
    skeleton = checkpoint.open_skeleton(options.path, options.revision, attn_implementation=options.attn_implementation)
    checkpoint.check_generation(options.path, options.revision)
    quantised = getattr(skeleton.config, "quantization_config", None)
    if quantised is not None and (not config.lora.r or options.quantization is not None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise PivotuneError(
            f"model.path: the weights of {options.path} are quantised ({method}) and cannot be "
            + (
                "trained themselves. Give the model that they were made from, or train adapters (lora.r)."
                if options.quantization is None
                else f"quantised again. Leave model.quantization ({options.quantization}) out, or give the model that "
                "they were made from."
            )
        )
    if quantised is not None:
        quantization.check_sharding(f"model.path: {options.path}", config.training)
    if options.quantization is not None:
        quantization.check_modules(skeleton, config.lora.modules_to_save or [], options.quantization)
    if config.lora.r:
        skeleton = _with_adapters(skeleton, config.lora)
    Anatomy(skeleton)  # refuses an architecture that is not known
    parts = [objective_of(options).on_skeleton(options, skeleton) for options in config.objectives]
    terms = [name for part in parts for name in part.weights()]
    best = str(config.training.metric_for_best_model or "loss").removeprefix("eval_")
    check_choice("training.metric_for_best_model", best, ["loss", "lm", *terms])
    return skeleton


def _load_model(config: RunConfig) -> nn.Module:
    options: dict[str, Any] = {"dtype": config.model.dtype}
    if config.model.quantization is not None:
        options = quantization.load_options(config.model.quantization, dtype_read(config), config.training.device)
    options["attn_implementation"] = config.model.attn_implementation
    path, device = _resolved(config.model.path), config.training.device
    model = checkpoint.open_model(path, config.model.revision, device, **options)
    if config.model.quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if idle := checkpoint.repair_generation(model.generation_config, config.model.path):
        logger.warning(
            "model.path: generation_config.json of %s sets %s without effect (no sampling, no beams), which "
            "transformers refuses to save. The run leaves it out.",
            *(config.model.path, ", ".join(idle)),
        )
    finite.check_finite(f"model.path: {config.model.path}", model.named_parameters())
    return _with_adapters(model, config.lora) if config.lora.r else model


def dtype_read(config: RunConfig) -> str:
    """The type that the weights are read in, before they are quantised; the stored one where model.dtype is auto."""
    if config.model.dtype != "auto":
        return config.model.dtype
    stored = str(checkpoint.open_config(config.model.path, config.model.revision).dtype).removeprefix("torch.")
    return stored if stored in get_args(Dtype) else "float32"


def _with_adapters(model: Any, options: LoraOptions) -> nn.Module:
    wanted = options.target_modules
    if isinstance(wanted, str) and wanted != "all-linear" and re.fullmatch(r"[\w.]+", wanted):
        wanted = [wanted]  # PEFT takes a string for a pattern of the whole name
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=wanted,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        modules_to_save=options.modules_to_save,
    )
    parameters = model.named_parameters(remove_duplicate=False)
    layers = {name.removesuffix(".weight"): one.dim() for name, one in parameters if name.endswith(".weight")}
    for option, names, dims in (
        ("target_modules", [] if isinstance(wanted, str) else wanted, (2,)),
        ("modules_to_save", options.modules_to_save or [], (1, 2)),
    ):
        for name in names:
            if not any(f".{layer}".endswith(f".{name}") and dim in dims for layer, dim in layers.items()):
                found = ", ".join(sorted({layer.split(".")[-1] for layer, dim in layers.items() if dim in dims}))
                raise PivotuneError(f"lora.{option}: no layer is named {name!r}; the model has {found}.")
    quantization.check_modules(model, options.modules_to_save or [])
    try:
        with warnings.catch_warnings():  # of transformers about a name that peft uses
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            adapted = get_peft_model(model, adapter)
    except (ValueError, re.error) as error:
        raise PivotuneError(f"lora: {error}") from error
    tables = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    for option, inside in (("target_modules", "base_layer"), ("modules_to_save", "original_module")):
        on = [name for name, one in tables.items() if hasattr(one, inside)]
        if on and model.config.tie_word_embeddings:
            raise PivotuneError(
                f"lora.{option}: names {' and '.join(on)}, but this model's input embeddings and output head are one "
                "matrix (tie_word_embeddings), which training of either would pull apart. Name other modules."
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
            pairs = lengths_of_pairs(rows)
            for name, options in config.by_name.items():
                what, fix = f"data.{split}, texts that {name} makes of pairs", "Lower data.max_length to half of it."
                made = [text.tokens for text in OBJECTIVES[name].texts_read(options, pairs)]
                tokens.check_context(model, tokenizer, torch.cat(made).tolist() if made else [], what, fix)


def lengths_of_pairs(rows: datasets.Dataset) -> dict[str, Tensor]:
    """Tokens of the rows that have English: (P,) each."""
    table = rows.data.filter(pc.is_valid(rows.data.column("english_prompt_ids")))
    found = {
        "prompt": table.column("prompt_length"),
        "english_prompt": pc.list_value_length(table.column("english_prompt_ids")),
        "english_question": pc.subtract(table.column("english_question_end"), table.column("english_question_start")),
        "english_answer": pc.list_value_length(table.column("english_answer_ids")),
    }
    return {name: torch.tensor(column.to_pylist(), dtype=torch.long) for name, column in found.items()}


def _tokenised(config: RunConfig, split: str, source: Any, tokenizer: Any) -> tuple[datasets.Dataset, Report, str]:
    """The rows, what was kept, and the prompts' style."""
    data = config.data
    reads = (OBJECTIVES[name].needs_english_answer(options) for name, options in config.by_name.items())
    examples, report = read_examples(
        source,
        on_bad=data.on_bad,
        english_answer_for=next(filter(None, reads), None),
        languages=data.languages,
        language=data.language,
        columns=data.columns,
    )
    main = config.training.process_index == 0
    if split == "train" and data.english_replay:
        before = len(examples)
        examples = with_replay(examples, data.english_replay, config.training.seed)
        if main:
            more = len(examples) - before
            print(f"data.train, English replay: {more} English sides are examples of their own.", flush=True)
    rows, kept = tokenize_examples(examples, tokenizer, data.style, data.max_length, data.overlong, data.on_bad)
    kept.take_notes(report)
    if main:
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
