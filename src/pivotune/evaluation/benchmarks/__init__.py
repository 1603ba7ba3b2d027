"""The benchmarks of both papers as typed items, from the hub or the publishers' own files. docs/benchmarks.md."""

from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.harness import HarnessTask, task_specs
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.loading import chance_level, check_data_dir, load
from pivotune.evaluation.benchmarks.presets import Preset, Published
from pivotune.evaluation.benchmarks.table import BENCHMARKS, PRESETS, benchmark_of, harness_task

__all__ = [
    "BENCHMARKS",
    "PRESETS",
    "Benchmark",
    "HarnessTask",
    "Hub",
    "Item",
    "Preset",
    "Published",
    "benchmark_of",
    "chance_level",
    "check_data_dir",
    "harness_task",
    "load",
    "task_specs",
]
