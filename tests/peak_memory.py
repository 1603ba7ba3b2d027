"""What a training run takes at its peak, measured in a process of its own:  peak_memory FOLDER JSON-OF-THE-RUN

Printed are the bytes above those of the same process with its libraries loaded and one tiny run behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from pivotune.config import LoraOptions
from pivotune.estimate import dry_run
from pivotune.objectives import DeepSupervisionConfig
from pivotune.training import train
from tests.runs import configuration, write_base, write_rows


def run_of(folder: Path, options: dict[str, Any]) -> Any:
    """The configuration of a run whose rows are all of one length."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        write_base(base, **{"max_position_embeddings": 4096} | options["model"])
    word = "健" * options["tokens"]
    row = {
        "language": "zh",
        "prompt": word,
        "completion": word,
        "english": dict.fromkeys(("prompt", "completion"), "sleep" * (options["tokens"] // 2)),
    }
    data = write_rows(folder / "rows.jsonl", [{"id": str(k), **row} for k in range(options["batch"] * 3)])
    config = configuration(
        base, data, folder / "run", options["method"], max_steps=3, optim="adamw_torch", **options["training"]
    )
    config.training.per_device_train_batch_size = options["batch"]
    config.data.max_length = 100_000
    config.lora = LoraOptions(r=options["rank"])
    if options["method"] == "deep_supervision":
        config.objectives = [DeepSupervisionConfig(conversion_layer=1, thinking_layer=2)]
    return config


def estimated(folder: Path, options: dict[str, Any]) -> int:
    """Bytes that the run of these options is said to take."""
    folder.mkdir(parents=True, exist_ok=True)
    return dry_run(run_of(folder, options)).peak


def measured(folder: Path, options: dict[str, Any]) -> int:
    """Bytes that it takes, in a process that gives freed memory back at once."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.peak_memory", str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("PEAK ")[2])


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    tiny = {**options, "model": {"layers": 2, "max_position_embeddings": 4096}, "batch": 1, "tokens": 3}
    train(run_of(folder / "tiny", tiny))
    process, peak, done = psutil.Process(os.getpid()), 0, False
    config = run_of(folder / "large", options)
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    train(config)
    done = True
    watcher.join()
    print(f"PEAK {peak - before}")


if __name__ == "__main__":
    main()
