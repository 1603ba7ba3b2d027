"""`pivotune train --dry_run`: what a run will take, and what its model will see, found without the model's weights.

Counted are the parameters, from the model on no device; the steps and tokens, from the data; the floating-point
operations of a step over those of plain fine-tuning; and memory. What a pass keeps for its backward pass is measured on
tensors that have a shape and no content (torch's FakeTensorMode), so that it is that of the architecture itself.

What counts as one operation: a product and its sum are two. A layer costs two for each of its weights and token, and
the attention's two products; a backward pass costs as much again for the states, and again for weights that train.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import TrainingArguments

from pivotune.anatomy import Anatomy
from pivotune.config import RunConfig
from pivotune.files import size
from pivotune.lens.rule import paper_layers
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.objectives import OBJECTIVES, objective_of
from pivotune.objectives.base import Objective, Wants
from pivotune.training import arguments_of, check_model, dtype_read, lengths_of_pairs, training_rows

SHOWN = 3
"""Rows."""
DRAWN = 200
"""Batches whose padding is counted."""
STATES = {"adamw": 2, "adam": 2, "lion": 1, "adafactor": 0, "sgd": 0, "rmsprop": 1, "adagrad": 1}
"""Numbers that an optimizer keeps for each parameter, by how its name begins."""
COPIES_OF_LOGITS = 3
"""Logits, their distribution and their gradient."""


@dataclass(frozen=True)
class TextPass:
    """Texts of one kind through the model in a step.

    Attributes:
        name: for people.
        tokens: of each, (N,).
        layers: how many it runs through.
        trained: a backward pass follows.
        read: how many tokens of each the head reads, (N,).
        head: the head trains on them, as far as it trains at all.
    """

    name: str
    tokens: Tensor
    layers: int
    trained: bool
    read: Tensor | None = None
    head: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        parameters: by part, all of them and those that train.
        rows, steps: of the data, and of the whole training.
        tokens: in an epoch, by kind of text.
        padding: the share of what the model computes that is padding.
        ratio: floating-point operations of a step over those of plain fine-tuning.
        flops: of the whole training, padding counted.
        memory: bytes in the peak, of each process, by part.
        remarks: what was assumed.
    """

    parameters: Mapping[str, tuple[int, int]]
    rows: int
    steps: int
    tokens: Mapping[str, int]
    padding: float
    ratio: float
    flops: float
    memory: Mapping[str, int]
    remarks: Sequence[str]

    @property
    def peak(self) -> int:
        """Bytes of all parts."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        total, trained = (sum(one[k] for one in self.parameters.values()) for k in (0, 1))
        lines = [
            f"Parameters: {_count(total)}, of which {_count(trained)} train"
            f" ({'; '.join(f'{name} {_count(all_)}, {_count(of)}' for name, (all_, of) in self.parameters.items())}).",
            f"Training: {self.rows} rows, {self.steps} steps. Tokens of an epoch: "
            f"{', '.join(f'{name} {_count(count)}' for name, count in self.tokens.items())}; "
            f"{self.padding:.0%} of what is computed is padding.",
            f"Operations: {self.flops:.2g} in all; a step takes {self.ratio:.2f} times those of plain fine-tuning.",
            f"Memory of a process, in the peak: {size(self.peak)}"
            f" ({', '.join(f'{name} {size(count)}' for name, count in self.memory.items() if count)})."
            " Python and its libraries come on top; on a CPU, so does memory that the C library keeps when it is freed"
            " (MALLOC_MMAP_THRESHOLD_=65536 lets it go).",
        ]
        return "\n".join([*lines, *self.remarks])


def dry_run(config: RunConfig, ranks: int | None = None) -> Estimate:
    """Print what a run will take and its first rows, and train nothing.

    Args:
        config: as for `pivotune.training.train`.
        ranks: processes that share the training; those that it was launched with where None.

    Raises:
        PivotuneError: what `train` would raise before it loads the weights.
    """
    config.check()
    model = check_model(config)
    args = arguments_of(config)
    tokenizer, rows, _, _ = training_rows(config, args)
    found = estimate(config, model, rows, args, args.world_size if ranks is None else ranks)
    print(found)
    print(*(shown(row, tokenizer) for row in rows.select(range(min(SHOWN, len(rows))))), sep="\n\n", flush=True)
    return found


def estimate(config: RunConfig, model: nn.Module, rows: Any, args: TrainingArguments, ranks: int = 1) -> Estimate:
    """What the run of this configuration takes.

    Args:
        model: without its weights, with its adapters.
        rows: the tokenised training set.
        ranks: processes that share the training.
    """
    parts = [objective_of(options).on_skeleton(options, model) for options in config.objectives]
    passes, remarks = passes_of(config, model, rows, parts)
    anatomy = Anatomy(model)
    lengths = passes[0].tokens
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    own = [value for part in parts for value in part.parameters()]
    parameters = {"model": _sizes(model.parameters()), "objectives": _sizes(own)}
    of_layer, attention = _layer_costs(anatomy)
    ordinary = _flops(passes[0], anatomy, of_layer, attention)
    together = sum(_flops(one, anatomy, of_layer, attention) for one in passes)
    per_epoch = math.ceil(len(rows) // (batch * ranks) if args.dataloader_drop_last else len(rows) / (batch * ranks))
    steps = (
        args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * math.ceil(per_epoch / accumulation))
    )
    padding = _padding(lengths, batch, args.seed)
    epochs = steps * batch * accumulation * ranks / len(rows)
    memory, more = _memory(config, model, own, passes, args, ranks)
    return Estimate(
        {name: one for name, one in parameters.items() if one[0]},
        len(rows),
        steps,
        {one.name: int(one.tokens.sum()) for one in passes},
        padding,
        together / ordinary,
        together * epochs / (1 - padding),
        memory,
        [*remarks, *more],
    )


def passes_of(
    config: RunConfig, model: nn.Module, rows: Any, parts: Sequence[Objective]
) -> tuple[list[TextPass], list[str]]:
    """What runs through the model in an epoch, the ordinary text first; and what had to be assumed."""
    anatomy = Anatomy(model)
    L, remarks = anatomy.num_layers, []
    target = torch.tensor([len(ids) for ids in rows["input_ids"]])
    answer = target - torch.tensor(rows["prompt_length"])
    found = [TextPass("target text", target, L, True, answer, head=True)]
    pairs = lengths_of_pairs(rows)
    wants = reduce(or_, (part.english_wants() for part in parts), Wants())
    if wants and len(pairs["english_prompt"]):
        depth = L if wants.feed_forward else max(wants.hidden)
        found.append(TextPass("English prompts", pairs["english_prompt"], depth, wants.gradient))
    for options in config.objectives:
        name = objective_of(options).name
        texts = OBJECTIVES[name].texts_read(options, pairs)
        for text, suggested in zip(texts, paper_layers(L)[2 - len(texts) :], strict=True):
            layer = text.layer
            if not isinstance(layer, int):
                layer = suggested
                remarks.append(f"{name}: a layer is auto and chosen before training; taken here is {layer} of {L}.")
            found.append(TextPass(f"texts of {name} up to layer {layer}", text.tokens, layer, True, text.read))
    return found, remarks


def _sizes(parameters: Any) -> tuple[int, int]:
    all_ = trained = 0
    for one in parameters:
        all_ += one.numel()
        trained += one.numel() * one.requires_grad
    return all_, trained


# Operations ----------------------------------------------------------------------------------------------------------


def _layer_costs(anatomy: Anatomy) -> tuple[tuple[float, float], int]:
    """Weights of a layer that multiply each token, all and those that train, on the average; and the width of the
    attention's products."""
    per_layer, trained = zip(
        *(_sizes(one for one in layer.parameters() if one.dim() == 2) for layer in anatomy.layers), strict=True
    )
    config = anatomy.lm.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return (sum(per_layer) / len(per_layer), sum(trained) / len(trained)), width


def _flops(one: TextPass, anatomy: Anatomy, of_layer: tuple[float, float], width: int) -> float:
    tokens = one.tokens.double()
    weights, trained = of_layer
    attention = 4 * width * (tokens**2 / 2).sum()
    forward = 2 * weights * tokens.sum() + attention
    backward = forward + 2 * trained * tokens.sum() + attention if one.trained else 0.0
    total = one.layers * (forward + backward)
    if one.read is not None:
        head = 2 * anatomy.vocab_size * anatomy.hidden_size * one.read.double().sum()
        learns = one.head and any(value.requires_grad for value in anatomy.head.parameters())
        total = total + head * (3 if learns else 2)
    return float(total)


def _padding(lengths: Tensor, batch: int, seed: int) -> float:
    draw, found = random.Random(seed), []
    every = lengths.tolist()
    for _ in range(DRAWN):
        rows = draw.choices(every, k=batch)
        found.append((sum(rows), batch * max(rows)))
    return 1 - sum(real for real, _ in found) / sum(padded for _, padded in found)


# Memory --------------------------------------------------------------------------------------------------------------


def _memory(
    config: RunConfig,
    model: nn.Module,
    own: Sequence[Tensor],
    passes: Sequence[TextPass],
    args: TrainingArguments,
    ranks: int,
) -> tuple[dict[str, int], list[str]]:
    """Bytes of a process, by part, in the peak of a step but the first; and what was assumed."""
    remarks = [f"The peak is that of a batch as long as the longest text, {int(passes[0].tokens.max())} tokens."]
    stored = getattr(torch, dtype_read(config)).itemsize
    packed = {"nf4": 0.5 * 1.06, "int8": 1.0}.get(str(config.model.quantization))
    adapters = isinstance(model, PeftModel)
    weights = trained = 0.0
    for name, one in model.named_parameters():
        inside = packed is not None and one.dim() == 2 and ".layers." in name and not one.requires_grad
        wide = 4 if packed is not None or (adapters and one.requires_grad) else stored
        weights += one.numel() * (packed if inside and packed is not None else wide)
        trained += one.numel() * wide * one.requires_grad
    weights += sum(one.numel() * 4 for one in own)
    trained += sum(one.numel() * 4 for one in own)
    name = str(getattr(args.optim, "value", args.optim)).lower()
    states = next((count for start, count in STATES.items() if name.startswith(start)), None)
    if states is None:
        remarks.append(f"training.optim: {name} is not known here; two numbers for each parameter are assumed.")
        states = 2
    kept_by_optimizer = trained * states * (0.27 if "8bit" in name else 1)
    share = ranks if args.fsdp else 1
    buckets = trained if ranks > 1 and not args.fsdp else 0  # of DDP
    kept, widest, head = _activations(config, model, passes, args)
    accumulated = args.gradient_accumulation_steps > 1
    # A backward pass begins with all that was kept, and ends with all gradients.
    begin = kept + head + (trained / share if accumulated else 0)
    end = trained / share + widest
    moving = {"activations and logits": kept + head} if begin > end else {"activations": widest}
    gradients = (trained / share if accumulated else 0) if begin > end else trained / share
    gathered = 2 * weights / max(1, Anatomy(model).num_layers) if args.fsdp else 0
    parts = {
        "weights": weights / share + gathered,
        "optimizer": kept_by_optimizer / share,
        "gradients": gradients + buckets,
        **moving,
    }
    return {part: round(count) for part, count in parts.items()}, remarks


def _activations(
    config: RunConfig, model: nn.Module, passes: Sequence[TextPass], args: TrainingArguments
) -> tuple[float, float, float]:
    """Bytes that a batch keeps until its backward pass; those of one layer; and those of reading with the head."""
    anatomy = Anatomy(model)
    batch, L = args.per_device_train_batch_size, anatomy.num_layers
    checkpointing = bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", False))
    kept, of_layer, head = 0.0, 0.0, 0.0
    dtype = getattr(torch, dtype_read(config))
    cast = copy.deepcopy(model).to(dtype)
    for one in passes:
        if not one.trained:
            continue
        longest = int(one.tokens.max())
        whole = float(kept_by_a_pass(cast, batch, longest, bool(args.bf16)))
        layer = whole / L
        states = batch * longest * anatomy.hidden_size * (2 if args.bf16 else dtype.itemsize)
        kept += (states if checkpointing else layer) * one.layers
        of_layer = max(of_layer, layer)
        if one.read is not None:
            tokens = min(batch * int(one.read.max()), max(1, LOGITS_PER_CHUNK // anatomy.vocab_size))
            chunk = COPIES_OF_LOGITS * 4 * tokens * anatomy.vocab_size
            head = max(head, float(chunk))
            kept += batch * int(one.read.max()) * anatomy.hidden_size * 4  # the gradient of what is read
    if checkpointing:
        kept += of_layer  # one at a time is computed again
    if any(value.requires_grad for value in anatomy.head.parameters()):
        head += 4 * anatomy.vocab_size * anatomy.hidden_size  # of the head's weights, taken with the loss
    return kept, of_layer, head


def kept_by_a_pass(model: nn.Module, batch: int, tokens: int, mixed: bool = False) -> int:
    """Bytes that a pass over so many texts of so many tokens keeps for its backward pass, but for the weights.

    Args:
        model: without its weights, of the dtype that they will have.
        mixed: in bfloat16, over weights of another type, whose copies count.
    """
    skeleton = copy.deepcopy(model).train()
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed might give its place to another
    with FakeTensorMode(allow_non_fake_inputs=True):
        skeleton.to_empty(device="cpu")
        own = {StorageWeakRef(one.untyped_storage()).cdata for one in skeleton.parameters()}

        def keep(value: Tensor) -> Tensor:
            key = StorageWeakRef(value.untyped_storage()).cdata
            if key not in own:
                found[key] = value.untyped_storage().nbytes()
            alive.append(value)
            return value

        with (
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        ):
            Anatomy(skeleton).decoder(input_ids=torch.zeros(batch, tokens, dtype=torch.long), use_cache=False)
    return sum(found.values())


# Rows -----------------------------------------------------------------------------------------------------------------

_COLOURS = {"prompt": "2", "question": "36", "answer": "32", "English": "35"}


def shown(row: Mapping[str, Any], tokenizer: Any) -> str:
    """A row as the model will see it: prompt, question, answer, English. Colours on a terminal, brackets elsewhere."""
    ids, end = row["input_ids"], row["prompt_length"]
    lines = [
        f"{row['id']} ({row['language']}): {len(ids)} tokens",
        _side(ids, row["question_start"], row["question_end"], end, tokenizer),
    ]
    if row["english_prompt_ids"] is not None:
        english = row["english_prompt_ids"] + (row["english_answer_ids"] or [])
        span = row["english_question_start"], row["english_question_end"], len(row["english_prompt_ids"])
        lines.append(_side(english, *span, tokenizer, name="English"))
    return "\n".join(lines)


def _side(ids: Sequence[int], start: int, stop: int, end: int, tokenizer: Any, name: str = "") -> str:
    parts = (("prompt", ids[:start]), ("question", ids[start:stop]), ("prompt", ids[stop:end]), ("answer", ids[end:]))
    text = "".join(_part(kind, tokenizer.decode(some)) for kind, some in parts if some)
    return f"{_part('English', name + ': ') if name else ''}{text}"


def _part(kind: str, text: str) -> str:
    if sys.stdout.isatty():
        return f"\033[{_COLOURS[kind]}m{text}\033[0m"
    return text if kind in ("prompt", "English") else f"[{kind}: {text}]"


def _count(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"
