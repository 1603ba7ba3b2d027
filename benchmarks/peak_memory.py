"""What `--dry_run` says of memory beside what a run takes, on a CPU.

    python -m benchmarks.peak_memory

Each run has a process of its own, whose C library gives freed memory back at once (MALLOC_MMAP_THRESHOLD_): what it
would keep is no part of an estimate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import where
from tests.peak_memory import estimated, measured

MODEL: dict[str, Any] = dict(layers=8, hidden_size=512, intermediate_size=1408, num_attention_heads=8)
CASES: dict[str, dict[str, Any]] = {
    "plain, full": dict(method="sft", batch=8, rank=0, training={}),
    "deep supervision, full": dict(method="deep_supervision", batch=8, rank=0, training={}),
    "CC-Tuning, LoRA, checkpointing": dict(
        method="cc_tuning", batch=16, rank=8, training={"gradient_checkpointing": True}
    ),
}


def main() -> None:
    print(where())
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            options = {**case, "model": MODEL, "tokens": 60}
            said, took = estimated(Path(folder) / "a", options), measured(Path(folder) / "b", options)
        print(
            f"{name:32s} estimated {said / 1e6:6.0f} MB, measured {took / 1e6:6.0f} MB: {said / took:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
