"""Items per second of the engines of `pivotune evaluate`, against one prompt at a time, on the lab's base model.

    python -m benchmarks.evaluation [--items 64] [--repeats 5] [--max_new_tokens 40]
    python -m benchmarks.evaluation --data_dir DATA_DIR --benchmark cc_xnli --language zh

Asked are the lab's own questions in Chinese; with --data_dir, those of a benchmark. One by one is `model.generate` for
each prompt; with a connection too, as the released code of CC-Tuning answers. The engines tokenise, batch and score.
Generation is measured twice: answers that end where the model ends them, and answers that all run to --max_new_tokens,
as those of a model that learnt no end. Of likelihoods, one by one is the harness with one row per pass. `passes` are
those of the model over all items.

The floor is what the linear layers of the passes that were made need at least: their FLOPs at the rate of a large
matrix product, or one reading of their weights at the rate of a matrix-vector product as large as the model, whichever
takes longer. Both rates are measured in the same rounds. It leaves out attention, norms and whatever surrounds them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from benchmarks.timing import DEVICE, interleaved, ratios, where
from pivotune.checkpoint import Run, load_run
from pivotune.connection import connect, disconnect
from pivotune.evaluation.benchmarks import Item, benchmark_of, load
from pivotune.evaluation.engines import Engine, GenerationEngine, LikelihoodEngine, quiet_harness
from pivotune.evaluation.likelihood import PivotuneLM
from pivotune.lab.base import base_path
from pivotune.lab.world import World
from pivotune.objectives import CCTuningConfig
from pivotune.tables import table

ONE_BY_ONE, PRODUCT, READING = "one by one", "matrix product", "matrix-vector product"
BATCHES = (1, 16, 64)
MODES: tuple[str, ...] = ("none", "matrix")
SIDE = 1024  # of the matrices that the rates are measured on


def main() -> None:
    args = _options()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run = _connectable(load_run(base_path()))
    print(f"{where()}\n{str(run.model.dtype).removeprefix('torch.')}; {args.repeats} rounds", flush=True)
    for items in _questions(args):
        for title, candidates in _sections(run, items, args.max_new_tokens):
            print(f"\n{title}; {len(items)} items of {items[0].benchmark}\n")
            print(_measured(run.model, candidates, len(items), args.repeats), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("items", 64), ("repeats", 5), ("max_new_tokens", 40)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--data_dir", help="folder of the benchmarks' files; the lab's questions without it")
    parser.add_argument("--benchmark", default="cc_xnli", help="of the files in --data_dir")
    parser.add_argument("--language", default="zh", help="of the files in --data_dir")
    return parser.parse_args()


# What is asked -----------------------------------------------------------------------------------------------------


def _questions(args: argparse.Namespace) -> list[list[Item]]:
    """Items of one benchmark each."""
    if args.data_dir is not None:
        return [load(args.benchmark, args.language, args.data_dir, args.items)]
    records = list(World.build(0).examples("heldout", "zh"))[: args.items]
    answers = [record["completion"].strip() for record in records]
    asked = [
        Item(id=record["id"], benchmark="cc_mkqa", language="zh", prompt=record["prompt"], answers=(answer,))
        for record, answer in zip(records, answers, strict=True)
    ]
    # To rank: the answer, and another question's.
    others = [next(other for other in answers[k:] + answers if other != answer) for k, answer in enumerate(answers)]
    ranked = [
        Item(
            id=record["id"],
            benchmark="xstorycloze",
            language="zh",
            context=record["prompt"],
            options=(answer, other),
            gold=0,
            answers=(answer,),
        )
        for record, answer, other in zip(records, answers, others, strict=True)
    ]
    return [asked, ranked]


def _connectable(run: Run) -> Run:
    """The base with a connection. Its matrix is zero: as much work as any other, and the answers stay as they are."""
    config = run.model.config
    d, L = config.hidden_size, config.num_hidden_layers
    tensors = {"cc_tuning.decision_maker.weight": torch.randn(L, d), "cc_tuning.transform_matrix": torch.zeros(d, d)}
    return replace(run, info={"objectives": {"cc_tuning": asdict(CCTuningConfig())}}, tensors=tensors)


# Who answers -------------------------------------------------------------------------------------------------------

Candidates = dict[str, Callable[[], object]]


def _sections(run: Run, items: Sequence[Item], max_new_tokens: int) -> Iterator[tuple[str, Candidates]]:
    """Titles, and who is compared."""
    if benchmark_of(items[0].benchmark).protocol == "likelihood":
        for mode in MODES:
            yield f"likelihood, connection: {mode}", _ranking(run, items, mode)
        return
    generation = run.model.generation_config
    for end, answers in ((generation.eos_token_id, "answers"), (None, f"answers of {max_new_tokens} tokens")):
        for mode in MODES:
            generation.eos_token_id = end
            yield f"generation, {answers}, connection: {mode}", _speaking(run, items, mode, max_new_tokens)


def _speaking(run: Run, items: Sequence[Item], mode: str, max_new_tokens: int) -> Candidates:
    model, tokenizer = run.model, run.tokenizer
    disconnect(model)
    if mode != "none":
        connect(model, run.connections["cc_tuning"], mode)
    options: dict[str, Any] = {"connection": mode, "max_new_tokens": max_new_tokens}
    engines = {batch: GenerationEngine(model, tokenizer, batch_size=batch, **options) for batch in BATCHES}
    room = model.config.max_position_embeddings - max_new_tokens

    def one_by_one() -> None:
        for item in items:
            inputs = tokenizer(item.prompt, return_tensors="pt", return_token_type_ids=False).to(DEVICE)
            inputs = {name: tensor[:, -room:] for name, tensor in inputs.items()}
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return {ONE_BY_ONE: one_by_one, **{f"batch {batch}": _all(engine, items) for batch, engine in engines.items()}}


def _ranking(run: Run, items: Sequence[Item], mode: str) -> Candidates:
    def engine(rows: int, batch: int) -> Engine:
        with quiet_harness():
            return LikelihoodEngine(PivotuneLM(str(base_path()), mode, batch_size=rows, run=run), batch)

    # All items in one evaluation: one of each would add what the harness needs to begin with.
    alone = {ONE_BY_ONE: _all(engine(1, len(items)), items)}
    return alone | {f"batch {batch}": _all(engine(batch, batch), items) for batch in BATCHES}


def _all(engine: Engine, items: Sequence[Item]) -> Callable[[], object]:
    return lambda: list(engine(items))


# What it takes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """One pass through one linear layer: (rows, inputs) x (inputs, outputs)."""

    flops: int
    weight_bytes: int


def _measured(model: nn.Module, candidates: Candidates, items: int, repeats: int) -> str:
    """The table of one section."""
    made = {name: _products(model, run) for name, run in candidates.items()}
    layers = sum(isinstance(one, nn.Linear) for one in model.modules())
    rates, flops, weight_bytes = _rates(model)
    seconds = interleaved(candidates | rates, repeats)
    per_flop, per_byte = (
        [one / count for one in seconds.pop(name)] for name, count in ((PRODUCT, flops), (READING, weight_bytes))
    )
    speed_up = ratios({name: [1 / one for one in times] for name, times in seconds.items()}, ONE_BY_ONE)
    rows = []
    for name, times in seconds.items():
        floors = [
            sum(max(one.flops * f, one.weight_bytes * b) for one in made[name])
            for f, b in zip(per_flop, per_byte, strict=True)
        ]
        over = statistics.median(one / floor for one, floor in zip(times, floors, strict=True))
        passes, speed = str(len(made[name]) // layers), f"{items / statistics.median(times):.1f}"
        rows.append([name, passes, speed, speed_up[name].strip(), f"{over:.1f}"])
    heads = ["", "passes", "items per second", "over one by one, median [range]", "time over its floor"]
    note = f"{_median_rate(per_flop)} GFLOP/s, {_median_rate(per_byte)} GB/s"
    return f"{table(heads, rows, markdown=True)}\n\nfloor at {note}"


def _median_rate(seconds_per_one: Sequence[float]) -> str:
    return f"{1e-9 / statistics.median(seconds_per_one):.0f}"


def _products(model: nn.Module, run: Callable[[], object]) -> list[Product]:
    """The linear layers' passes of one run."""
    made: list[Product] = []

    def count(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        flops = 2 * args[0].numel() * layer.out_features
        made.append(Product(flops, layer.weight.numel() * layer.weight.element_size()))

    handles = [one.register_forward_hook(count) for one in model.modules() if isinstance(one, nn.Linear)]
    run()
    for handle in handles:
        handle.remove()
    return made


def _rates(model: Any) -> tuple[Candidates, int, int]:
    """A matrix product and a matrix-vector product in the model's dtype; the FLOPs of one, the bytes of the other."""
    options: dict[str, Any] = {"dtype": model.dtype, "device": DEVICE}
    square = torch.randn(SIDE, SIDE, **options)
    weights = sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Linear))
    tall, row = torch.randn(weights // SIDE, SIDE, **options), torch.randn(1, SIDE, **options)
    times = 20  # long enough for the clock

    def repeated(a: Tensor, b: Tensor) -> Callable[[], object]:
        return lambda: [nn.functional.linear(a, b) for _ in range(times)]

    rates: Candidates = {PRODUCT: repeated(square, square), READING: repeated(row, tall)}
    return rates, times * 2 * SIDE**3, times * tall.numel() * tall.element_size()


if __name__ == "__main__":
    main()
