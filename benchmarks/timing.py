"""Paired timing: the candidates take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pivotune.provenance import versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def options(description: str | None, **defaults: int) -> argparse.Namespace:
    """The command line of a benchmark: whole numbers with defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in defaults.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    return parser.parse_args()


def random_llama(hidden: int, layers: int, vocab: int) -> LlamaForCausalLM:
    """An untrained Llama with heads of 64, on the GPU if there is one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=vocab,
    )
    return LlamaForCausalLM(config).to(DEVICE)


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each of `repeats` rounds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(repeats + 1):
        for name, run in candidates.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, str]:
    """Each candidate's time over the base's, round by round: median [least, most]."""
    out = {}
    for name, times in seconds.items():
        ratio = [t / b for t, b in zip(times, seconds[base], strict=True)]
        out[name] = f"{statistics.median(ratio):5.2f} [{min(ratio):.2f}, {max(ratio):.2f}]"
    return out


def where() -> str:
    """Commit, machine and versions, for the head of a table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    releases = ", ".join(f"{name} {release}" for name, release in versions().items())
    return f"commit {commit or 'unknown'}; {platform.machine()}, {device}; {releases}"
