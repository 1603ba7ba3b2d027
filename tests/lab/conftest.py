"""The world that most tests of the lab look at."""

from __future__ import annotations

import pytest

from pivotune.lab.world import World


@pytest.fixture(scope="session")
def world() -> World:
    return World.build()
