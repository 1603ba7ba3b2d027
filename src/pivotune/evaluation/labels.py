"""What tables and plots call a benchmark and its metric, and how they write numbers."""

from __future__ import annotations

import math

from pivotune.evaluation.benchmarks import BENCHMARKS

_METRICS = {"accuracy": "accuracy", "f1": "F1", "em": "exact match", "rouge_l": "ROUGE-L"}


def metric_name(metric: str) -> str:
    """ "F1" for "f1"; an unknown metric as it is."""
    return _METRICS.get(metric, metric)


def benchmark_title(benchmark: str) -> str:
    """Its published name and the one on the command line; the latter alone where they are one, or nothing is known."""
    known = BENCHMARKS.get(benchmark)
    return f"{known.title} ({benchmark})" if known and known.title.lower() != benchmark else benchmark


def percent(share: float) -> str:
    """Of a share, with one digit; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def signed(share: float) -> str:
    """Percentage points with their sign; none where they round to zero."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
