"""NaN and infinity: found wherever they are, in memory and in files, and never in JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pivotune import finite
from pivotune.errors import PivotuneError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]
BAD = [math.nan, math.inf, -math.inf]


@given(st.sampled_from(DTYPES), st.sampled_from(BAD), st.integers(1, 70), st.data())
def test_one_bad_value_is_found_anywhere(dtype: torch.dtype, bad: float, size: int, data: st.DataObject) -> None:
    root = 0.99 * torch.finfo(dtype if dtype == torch.float64 else torch.float32).max ** 0.5
    values = torch.full((size,), min(torch.finfo(dtype).max, root), dtype=torch.float64)
    assert not finite.broken(values.to(dtype))  # the greatest number is one
    values[data.draw(st.integers(0, size - 1))] = bad
    assert finite.broken(values.to(dtype))
    assert finite.broken(values.to(dtype).view(1, size).mT)


def test_what_is_no_floating_number_and_what_is_empty_is_fine() -> None:
    assert not finite.broken(torch.zeros(0))
    assert not finite.broken(torch.tensor([255], dtype=torch.uint8))
    assert finite.broken_names([]) == []
    assert not finite.any_broken([], torch.device("cpu"))


def test_names_are_listed() -> None:
    bad, good = torch.tensor([math.nan]), torch.ones(2)
    assert finite.broken_names([("a", bad), ("b", good), ("c", bad)]) == ["a", "c"]
    assert finite.listed(["a"]) == "a"
    assert finite.listed(["a", "c"]) == "a and c"
    assert finite.listed(list("abcd")) == "a, b and 2 more"
    with pytest.raises(PivotuneError, match=r"model\.path: has NaN or infinity in a"):
        finite.check_finite("model.path", [("a", bad)])


@given(st.sampled_from(DTYPES), st.integers(1, 40), st.data())
def test_a_checksum_sees_every_changed_bit(dtype: torch.dtype, size: int, data: st.DataObject) -> None:
    before = torch.randn(size).to(dtype)
    after = before.clone()
    changed = after.view(torch.uint8)
    at = data.draw(st.integers(0, changed.numel() - 1))
    changed[at] = int(changed[at]) ^ 1 << data.draw(st.integers(0, 7))
    [old], [new] = finite.checksums([before]), finite.checksums([after])
    assert old != new
    assert finite.checksums([before.clone()]) == [old]


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_json_without_nan_is_valid(content: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json.dumps(finite.without_nan(content))
    assert json.loads(written, parse_constant=refuse) == finite.without_nan(content)


@pytest.mark.parametrize("bad", BAD)
def test_files_of_a_checkpoint(bad: float, tmp_path: Path) -> None:
    good = {"a": torch.ones(3), "b": torch.ones(2)}
    save_file(good, tmp_path / "model.safetensors")
    state = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}
    torch.save(state, tmp_path / "optimizer.pt")
    assert finite.problem_in_files(tmp_path) is None
    state["state"][0]["exp_avg"][1] = bad  # type: ignore[index, call-overload]
    torch.save(state, tmp_path / "optimizer.pt")
    assert finite.problem_in_files(tmp_path) == "optimizer.pt has NaN or infinity in state.0.exp_avg"
    save_file({**good, "b": torch.tensor([1.0, bad])}, tmp_path / "pivotune.tensors")
    assert finite.problem_in_files(tmp_path) == "pivotune.tensors has NaN or infinity in b"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_file_that_cannot_be_read_is_a_problem(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"none of it")
    assert str(finite.problem_in_files(tmp_path)).startswith(f"{name} cannot be read")


def test_a_number_whose_square_is_infinite_counts_as_infinite() -> None:
    assert finite.broken(torch.tensor([1.0, -1e20]))
    assert not finite.broken(torch.tensor([1.0, -1e18]))
    assert not finite.broken(torch.tensor([6e4], dtype=torch.float16))
