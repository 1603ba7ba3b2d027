"""Jobs side by side: how many at a time, on how many threads, what is said of them, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pivotune.errors import PivotuneError
from pivotune.lab import workers
from pivotune.lab.workers import Job, Report, computing_on, processes, side_by_side, threads, time_left

SECONDS = st.floats(0, 1e4)


def tell(report: Report, what: str) -> tuple[str, int, int]:
    report("half way", 1.0)
    print(f"printed: {what}", flush=True)
    os.system("echo printed by another program")
    time.sleep(1.5)
    return what, os.getpid(), torch.get_num_threads()


def fail(report: Report, message: str) -> None:
    raise PivotuneError(message)


def die(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(report: Report) -> None:
    time.sleep(600)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, whatever the machine has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(workers, "cores", lambda: 2)


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_all_jobs_are_done_and_told_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "EVERY", 0.2)
    names = ["short", "long", "middle"]
    jobs = [Job(name, tell, (name * 2,), seconds) for name, seconds in zip(names, (2.0, 600.0, 60.0), strict=True)]
    found = side_by_side(jobs, tmp_path / "logs")

    assert [what for what, _, _ in found] == [name * 2 for name in names]
    pids = {pid for _, pid, _ in found}
    assert len(pids) <= 2 and os.getpid() not in pids
    assert [count for _, _, count in found] == [1, 1, 1]
    for name in names:
        log = (tmp_path / "logs" / f"{name}.log").read_text("utf-8")
        assert log.splitlines() == [f"printed: {name * 2}", "printed by another program"]

    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert "3 jobs, 2 at a time on one thread each; about 10 min left" in lines[0]
    assert sum("half way" in line and "left" in line for line in lines) >= 1
    assert [line.partition("done, ")[2][:6] for line in lines if "done, " in line] == ["1 of 3", "2 of 3", "3 of 3"]
    assert not printed.err and "printed" not in printed.out
    assert not set(multiprocessing.active_children())


@pytest.mark.slow
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("failing", fail, ("data: line 3 is empty. Fill it.",), 1.0), r"^data: line 3 is empty\. Fill it\.$"),
        (Job("killed", die, (), 1.0), "ended from outside.*memory.*OMP_NUM_THREADS=2"),
    ],
    ids=["failing", "killed"],
)
def test_one_that_ends_badly_ends_all(job: Job, message: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(PivotuneError, match=message):
        side_by_side([Job("sleeping", sleep, (), 600.0), job], tmp_path)
    assert time.monotonic() - started < 300
    assert not set(multiprocessing.active_children())


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_a_process_that_the_pool_does_not_watch_is_missed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = ProcessPoolExecutor._spawn_process  # type: ignore[attr-defined]

    def begin_late(pool: ProcessPoolExecutor) -> None:
        time.sleep(0.3)  # the pool, woken for the new job, watches the processes begun before: not this one
        begin(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", begin_late)
    started = time.monotonic()
    with pytest.raises(PivotuneError, match="ended from outside"):
        side_by_side([Job("sleeping", sleep, (), 600.0), Job("killed", die, (), 1.0)], tmp_path)
    assert time.monotonic() - started < 300


def test_as_many_processes_as_find_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    for cores, jobs, expected in [(1, 5, 1), (2, 5, 2), (2, 1, 1), (64, 5, workers.MOST)]:
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        assert (processes(jobs), threads()) == (expected, 1)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    for given_threads, expected_threads, expected in [
        ("2", 2, 2),
        ("3", 3, 1),
        ("8,2", 8, 1),
        ("no", 1, 4),
        ("0", 1, 4),
    ]:
        monkeypatch.setenv("OMP_NUM_THREADS", given_threads)
        assert (threads(), processes(5)) == (expected_threads, expected)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_cores_are_those_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert workers.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert workers.cores() == len(allowed)


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), computing_on(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@given(running=st.lists(SECONDS, max_size=3), waiting=st.lists(SECONDS, max_size=6), spare=st.integers(0, 2))
def test_the_time_left_is_that_of_a_schedule(running: list[float], waiting: list[float], spare: int) -> None:
    count = max(1, len(running) + spare)
    left = time_left(running, waiting, count)
    everything = sum(running) + sum(waiting)
    assert left >= max([0.0, *running, *waiting])
    assert everything / count <= left * (1 + 1e-9)
    assert left <= (everything / count + max([0.0, *running, *waiting])) * (1 + 1e-9)
    assert time_left(running, waiting, count + 1) <= left * (1 + 1e-9)


def test_the_time_left_by_hand() -> None:
    assert time_left([10.0, 4.0], [5.0, 3.0, 2.0], 2) == 12.0  # 10 + 2, beside 4 + 5 + 3
    assert time_left([], [5.0, 5.0], 1) == 10.0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals here")
def test_an_interruption_waits_though_another_thread_gets_it() -> None:
    """The first thread must not leave in the middle of starting a process, which would then end with a traceback."""
    done, reached = threading.Event(), False
    other = threading.Thread(target=done.wait)
    other.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever these tests were started with
    try:
        with pytest.raises(KeyboardInterrupt), workers._interruptions_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            reached = True
        assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        done.set()
        other.join()
