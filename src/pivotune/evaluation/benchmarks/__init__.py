"""The benchmarks of both papers as typed items, read offline from the publishers' own files. docs/benchmarks.md."""

from pivotune.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark, Hub, benchmark_of, chance_level, load
from pivotune.evaluation.benchmarks.harness import HarnessTask, harness_task, task_specs
from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.presets import PRESETS, Preset, Published

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
    "harness_task",
    "load",
    "task_specs",
]
