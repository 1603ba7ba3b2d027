"""Jobs side by side: in as many processes as there are cores, each computing on one thread.

The models of the lab are so small that threads which share an operation mostly wait for each other: at the end of each,
some thousand times in a step, and longest where another program holds one of the cores. Processes wait for nobody
(`benchmarks/lab_threads.py` compares them). And one thread adds up in one order: a job gives the same numbers whatever
the number of cores.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm

from pivotune.errors import PivotuneError
from pivotune.threads import cores

MOST = 4
"""Processes: each takes several hundred megabytes."""
EVERY = 30.0
"""Seconds between two lines of what is being done, where there is no terminal for a progress bar."""
RECENT = 60.0
"""Seconds: the time left follows from what was done within them."""

Report = Callable[[str, float], None]
"""Called by a job as it goes on: what it is doing, and how many of its `seconds` are done since it last said so."""


@dataclass(frozen=True)
class Job:
    """A piece of work for one process.

    Attributes:
        name: for people, and of its log.
        run: a function of a module, called with a `Report` and the arguments; all of them can be pickled.
        seconds: what it may take on one core. Once some work is done, only their proportions matter.
    """

    name: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    seconds: float


def threads() -> int:
    """How many threads a job computes on: one, unless the user has set OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdigit() and int(given) > 0 else 1


def processes(jobs: int) -> int:
    """How many processes share these jobs out: as many as find cores for their threads."""
    return max(1, min(jobs, MOST, cores() // threads()))


@contextmanager
def computing_on(count: int) -> Iterator[None]:
    """Within this context torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(jobs: Sequence[Job], logs: Path, what: str = "jobs") -> list[Any]:
    """Do all jobs; say meanwhile what is being done, and how long it may still take.

    Args:
        jobs: in any order; the longest begin first.
        logs: folder of what each job prints, NAME.log.
        what: they are, in words.

    Returns:
        What the jobs have returned, in their order.

    Raises:
        PivotuneError: a process was ended from outside, as happens where memory runs out.
        Exception: what a job has raised. The others end at once, as they do where the user interrupts.
    """
    logs.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(jobs)), key=lambda number: -jobs[number].seconds)
    context = multiprocessing.get_context("spawn")
    messages: Any = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    at_a_time = processes(len(jobs))
    pool = ProcessPoolExecutor(at_a_time, mp_context=context, initializer=_begin, initargs=(messages, threads()))
    progress = _Progress(jobs, order, at_a_time, what)
    try:
        with _interruptions_held():  # the processes begun here never get any
            futures = {pool.submit(_run, number, jobs[number], logs): number for number in order}
            begun = set(multiprocessing.active_children()) - others
        waiting = set(futures)
        while waiting:
            ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            if any(process.exitcode is not None for process in begun):
                # The pool itself does not watch a process that it began after it was last woken.
                raise BrokenProcessPool("a process has ended")
            while not messages.empty():
                progress.take(*messages.get())
            for future in ended:
                future.result()
                progress.end(futures[future])
            progress.show()
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise PivotuneError(
                f"a process was ended from outside, as happens where memory runs out. {at_a_time} ran at a time; with "
                f"OMP_NUM_THREADS={cores()} it is one. What they printed is in {logs}."
            ) from error
        raise
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in sorted(futures, key=futures.__getitem__)]


def time_left(running: Sequence[float], waiting: Sequence[float], workers: int) -> float:
    """Until the last job ends: what is left of those that run, and the others in the order in which they will begin."""
    free = [*running, *[0.0] * (workers - len(running))]
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


@contextmanager
def counting(steps: int, report: Report, seconds: float) -> Iterator[None]:
    """Reports each step of the training within, which takes so many seconds."""
    done = count(1)
    hook = register_optimizer_step_post_hook(lambda *_: report(f"trained, step {next(done)} of {steps}", seconds))
    try:
        yield
    finally:
        hook.remove()


# In the processes ----------------------------------------------------------------------------------------------------

_messages: Any = None


def _begin(messages: Any, threads: int) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(number: int, job: Job, logs: Path) -> Any:
    sys.stdout.flush(), sys.stderr.flush()
    with open(logs / f"{job.name}.log", "w", encoding="utf-8") as log:
        for stream in (1, 2):  # the streams themselves: libraries print past Python's
            os.dup2(log.fileno(), stream)

    def report(doing: str, seconds: float) -> None:
        _messages.put((number, doing, seconds))

    report("begins", 0.0)
    return job.run(report, *job.arguments)


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """An interruption waits for the end of this context. Processes begun within it inherit that, for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held: list[int] = []
    first = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask is this thread's alone: a signal that another thread gets interrupts the first one all the same.
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if first else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if held:
        signal.raise_signal(signal.SIGINT)


# Showing it ----------------------------------------------------------------------------------------------------------


class _Progress:
    """What the jobs do, and the time left: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, jobs: Sequence[Job], order: Sequence[int], workers: int, what: str):
        self._jobs, self._workers = jobs, workers
        self._left = {number: jobs[number].seconds for number in order}  # those that are not done, by their beginning
        self._doing: dict[int, str] = {}  # of those that run
        self._work = self._taken = 0.0  # seconds of the jobs, and what they took
        self._past: deque[tuple[float, float, float]] = deque()  # when, work and taken by then
        self._started = self._shown = self._last = time.monotonic()
        self._bar = tqdm(
            total=sum(self._left.values()),
            bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        each = "one thread" if threads() == 1 else f"{threads()} threads"
        self._say(f"{len(jobs)} {what}, {workers} at a time on {each} each; {self._time_left()}")

    def take(self, number: int, doing: str, seconds: float) -> None:
        """A job's report."""
        self._doing[number] = doing
        seconds = min(seconds, self._left[number])
        self._left[number] -= seconds
        self._work += seconds
        self._bar.update(seconds)

    def end(self, number: int) -> None:
        """A job is done."""
        self._bar.update(self._left.pop(number))
        self._doing.pop(number, None)
        done = f"{self._jobs[number].name}: done, {len(self._jobs) - len(self._left)} of {len(self._jobs)}"
        self._say(f"{done}; {self._time_left()}" if self._left else done)

    def show(self) -> None:
        now = time.monotonic()
        self._taken += (now - self._last) * len(self._doing)
        self._last = now
        self._past.append((now, self._work, self._taken))
        while self._past[0][0] < now - RECENT:
            self._past.popleft()
        doing = "; ".join(f"{self._jobs[number].name}: {self._doing[number]}" for number in sorted(self._doing))
        self._bar.set_description_str(f"{self._time_left()}; {doing}" if doing else "the processes begin")
        if self._bar.disable and self._left and now - self._shown >= EVERY:
            self._say(f"{doing}; {self._time_left()}" if doing else "the processes begin")

    def close(self) -> None:
        self._bar.close()

    def _time_left(self) -> str:
        _, work, taken = self._past[0] if self._past else (0.0, 0.0, 0.0)
        slower = (self._taken - taken) / (self._work - work) if self._work > work else 1.0
        running = [left for number, left in self._left.items() if number in self._doing]
        waiting = [left for number, left in self._left.items() if number not in self._doing]
        seconds = slower * time_left(running, waiting, self._workers)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {max(1, round(seconds / 10))}0 s left"

    def _say(self, line: str) -> None:
        self._shown = time.monotonic()
        minutes, seconds = divmod(round(self._shown - self._started), 60)
        tqdm.write(f"{minutes:3}:{seconds:02}  {line}")
        sys.stdout.flush()
