"""How many threads to compute on, where a CPU computes: as many as are fastest now.

Threads that share an operation wait for each other at its end. Where another program holds one of the cores, all wait
for the thread that has it, so that two threads may be several times slower than one. A short trial tells.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import gelu

ROUNDS, REPEATS = 5, 12
SIZE, TOKENS = 512, 256
"""Of the trial: about the products of a small model's feed-forward block, as many as take some milliseconds."""
WORTH = 0.95
"""More threads than one are taken where they need less than this share of its time."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle() -> int | None:
    """Let torch compute on the number of threads that is fastest; None where that is not ours to say.

    It is not where a GPU computes, where the user has set OMP_NUM_THREADS, or a launcher of several processes has, and
    where there is one core. Takes well below a second.
    """
    if torch.cuda.is_available() or os.environ.get("OMP_NUM_THREADS") or "LOCAL_RANK" in os.environ or cores() == 1:
        return None
    chosen = fastest(sorted({1, max(1, cores() // 2), cores()}), _seconds)
    torch.set_num_threads(chosen)
    return chosen


def fastest(counts: list[int], seconds: Callable[[int], float]) -> int:
    """The number of threads with the least median time; the trials of all take turns, so that a disturbance hits all.

    Args:
        counts: what to try, the fewest first.
        seconds: of a trial on so many threads.
    """
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            found[count].append(seconds(count))
    medians = {count: statistics.median(times) for count, times in found.items()}
    best = min(counts, key=medians.__getitem__)
    return best if medians[best] < WORTH * medians[counts[0]] else counts[0]


def _seconds(count: int) -> float:
    torch.set_num_threads(count)
    states, weight = torch.randn(TOKENS, SIZE), torch.randn(SIZE, SIZE)
    began = time.perf_counter()
    for _ in range(REPEATS):
        states = gelu(states @ weight).tanh()
    return time.perf_counter() - began
