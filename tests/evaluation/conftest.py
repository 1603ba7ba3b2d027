"""The benchmarks' files: miniatures in `folder` and `hub`, and the published ones in `bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.benchmarks.made_up import folder, hub

__all__ = ["folder", "hub"]


@pytest.fixture(scope="session")
def bench(shared_data: Path) -> Path:
    return shared_data / "bench"
