"""MMMLU: questions of 57 subjects with four options, translated by people, as CC-Tuning asks them."""

from __future__ import annotations

from pivotune.evaluation.benchmarks.cc_release import cc_benchmark, cc_choices
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.items import Located


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """1,000 questions of the test split."""
    return cc_choices(folder, "cc_mmmlu", "MMMLU", "split_sample", "ans_sample", language, ("A", "B", "C", "D"))


CC_MMMLU = cc_benchmark(
    "cc_mmmlu",
    "MMMLU",
    "ar bn en es hi id ko pt sw yo",
    _read,
    citation="OpenAI, Multilingual Massive Multitask Language Understanding (MMMLU), 2024",
    average=49.65,
    chance=1 / 4,
    # World history has another order in Korean: these lines are other questions of the subject.
    not_parallel={"ko": frozenset(map(str, range(418, 428)))},
)
