"""The containment table against babel's own names of its codes."""

from __future__ import annotations

import pytest

from pivotune.lab.regions import _MEMBERS, REGION_OF


def test_each_territory_is_in_one_region_that_has_a_name() -> None:
    Locale = pytest.importorskip("babel").Locale
    names = Locale("en").territories
    assert sum(len(members.split()) for members in _MEMBERS.values()) == len(REGION_OF)
    assert all(code in names for code in REGION_OF)
    assert all(region in names for region in _MEMBERS)
    assert names[REGION_OF["VN"]] == "Southeast Asia" and names[REGION_OF["KE"]] == "Eastern Africa"
