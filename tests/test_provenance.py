"""What made a result."""

from __future__ import annotations

from importlib.metadata import version

import pivotune
from pivotune.provenance import versions


def test_versions_are_of_pivotune_of_the_two_it_rests_on_and_of_what_is_asked_for() -> None:
    found = versions("numpy", "no-such-package")
    assert list(found) == ["pivotune", "torch", "transformers", "numpy", "no-such-package"]
    assert found["pivotune"] == pivotune.__version__ and found["no-such-package"] is None
    assert all(found[name] == version(name) for name in ("torch", "transformers", "numpy"))
