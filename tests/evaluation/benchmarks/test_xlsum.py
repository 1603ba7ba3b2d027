"""xlsum"""

from __future__ import annotations

from pathlib import Path

from pivotune.evaluation.benchmarks import load


def test_fields(folder: Path) -> None:
    summary = load("cc_xlsum", "ar", folder)[0]
    assert summary.english is not None and (summary.english.prompt, summary.english.answers) == ("in en a", ())
