"""Names and numbers as tables and plots write them."""

from __future__ import annotations

import math

from pivotune.evaluation.labels import benchmark_title, metric_name, percent, signed


def test_names() -> None:
    assert metric_name("f1") == "F1" and metric_name("rouge_l") == "ROUGE-L" and metric_name("else") == "else"
    assert benchmark_title("xcopa") == "xcopa" and benchmark_title("unknown") == "unknown"
    assert benchmark_title("cc_xnli").endswith(" (cc_xnli)")


def test_numbers() -> None:
    assert percent(0.1234) == "12.3" and percent(math.nan) == "–"
    assert signed(0.0123) == "+1.2" and signed(-0.0123) == "−1.2"  # a minus, not a hyphen
    assert signed(0.0001) == signed(-0.0001) == "0.0"
