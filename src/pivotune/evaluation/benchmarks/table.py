"""The benchmarks: the one table of them, and what is looked up in it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.harness import HarnessTask
from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.mkqa import CC_MKQA, MKQA
from pivotune.evaluation.benchmarks.mlqa import MLQA
from pivotune.evaluation.benchmarks.mmlu import MMLU
from pivotune.evaluation.benchmarks.mmmlu import CC_MMMLU
from pivotune.evaluation.benchmarks.presets import Preset, presets_of
from pivotune.evaluation.benchmarks.truthfulqa import TRUTHFULQA
from pivotune.evaluation.benchmarks.xcopa import XCOPA
from pivotune.evaluation.benchmarks.xlsum import CC_XLSUM
from pivotune.evaluation.benchmarks.xnli import CC_XNLI, XNLI
from pivotune.evaluation.benchmarks.xquad import CC_XQUAD, XQUAD
from pivotune.evaluation.benchmarks.xstorycloze import CC_XSTORYCLOZE, XSTORYCLOZE

_ALL = (
    *(XQUAD, MLQA, MKQA, TRUTHFULQA, XNLI, XCOPA, XSTORYCLOZE, MMLU),
    *(CC_XNLI, CC_XSTORYCLOZE, CC_MMMLU, CC_XQUAD, CC_MKQA, CC_XLSUM),
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}
"""By name. The order is that of presets, tables and messages; nothing else depends on it."""

PRESETS: Mapping[str, Preset] = MappingProxyType(presets_of(BENCHMARKS))


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        PivotuneError: there is none; the message suggests the nearest name.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), BENCHMARKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(BENCHMARKS)}."
        raise PivotuneError(f"benchmarks: unknown benchmark {name!r}; {hint}")
    return BENCHMARKS[name]


def harness_task(items: Sequence[Item]) -> HarnessTask:
    """The task of lm-evaluation-harness that ranks the options of these items.

    Args:
        items: of one benchmark and language.

    Raises:
        PivotuneError: no items, or of several benchmarks or languages, or of a benchmark that is generated for.
    """
    kinds = {(item.benchmark, item.language) for item in items}
    if len(kinds) != 1:
        raise PivotuneError(f"items: got {sorted(kinds) or 'none'}; give the items of one benchmark and language.")
    ((name, language),) = kinds
    task = benchmark_of(name).task
    if task is None:
        raise PivotuneError(f"items: got those of {name}, which is answered by generation; here options are ranked.")
    return task(items, language)
