"""The lab's base on all cores: threads inside one training, or trainings side by side on one thread each.

    python -m benchmarks.lab_threads [--seconds 10] [--repeats 3] [--busy 0]

Training steps per second of all processes together. `--busy` processes that only count run beside them. The candidates
take turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any

import torch

from benchmarks.timing import options, where
from pivotune.data import ParallelCollator, tokenize_examples
from pivotune.lab.base import load_base
from pivotune.lab.settings import MAX_LENGTH, STYLE, TRAINING
from pivotune.lab.trial import parallel
from pivotune.lab.world import World
from pivotune.method import Method
from pivotune.threads import cores


def main() -> None:
    args = options(__doc__, seconds=10, repeats=3, busy=0)
    every = cores()
    candidates = {  # processes, threads of each
        "one thread": (1, 1),
        f"{every} threads": (1, every),
        f"{every} processes of one thread": (every, 1),
    }
    context = multiprocessing.get_context("spawn")
    neighbours = [context.Process(target=_count, daemon=True) for _ in range(args.busy)]
    for neighbour in neighbours:
        neighbour.start()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.repeats):
        for name, (processes, threads) in candidates.items():
            found[name].append(_steps_per_second(context, processes, threads, args.seconds))
    for neighbour in neighbours:
        neighbour.terminate()
    print(f"{where()}; {every} cores, {args.busy} of them taken by other processes")
    for name, rates in found.items():
        print(f"{name:28}{statistics.median(rates):6.2f} [{min(rates):.2f}, {max(rates):.2f}] steps per second")


def _steps_per_second(context: Any, processes: int, threads: int, seconds: int) -> float:
    ready, steps = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_train, args=(ready, steps, threads, seconds)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    done = sum(steps.get() for _ in workers)
    for worker in workers:
        worker.join()
    return done / seconds


def _train(ready: Any, steps: Any, threads: int, seconds: int) -> None:
    torch.set_num_threads(threads)
    (model, tokenizer), world = load_base(), World.build()
    records = [record for language in ("zh", "vi", "ar", "sw") for record in world.examples("training", language)]
    rows, _ = tokenize_examples(list(parallel(records[::29])), tokenizer, STYLE, MAX_LENGTH)
    size = TRAINING["per_device_train_batch_size"]
    batch = ParallelCollator.for_tokenizer(tokenizer)([rows[number] for number in range(size)])
    method = Method(model).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        method(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    ready.wait()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        step()
        count += 1
    steps.put(count)


def _count() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
