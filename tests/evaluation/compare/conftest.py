"""Runs that most tests compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.compare.made_up import gain, write_run


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A baseline and a run with one planted gain and one planted loss."""
    return str(write_run(tmp_path / "base", {}, draw=1)), str(write_run(tmp_path / "better", gain, draw=2))


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A run that is compared quickly."""
    return str(write_run(tmp_path / "small", {}, benchmarks={"likelihood.xnli": ("zh",)}, items=20))
