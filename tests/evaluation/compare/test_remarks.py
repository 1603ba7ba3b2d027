"""What limits a comparison, and what its reader should know."""

from __future__ import annotations

from pathlib import Path

from pivotune.evaluation.compare import Comparison, collect
from tests.evaluation.compare.made_up import write_run


def test_a_torn_line_is_left_out_and_reported(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    path.write_text(path.read_text()[:-10])
    warnings = Comparison(collect(two)).warnings
    assert any(f"{path}: ends in a line without its end" in one for one in warnings)
    assert "Compared on the 399 items that all have, of 400 (base: 400, better: 399): xnli zh." in warnings


def test_files_that_differ_are_reported(tmp_path: Path) -> None:
    data = [{"data_dir": {"path": "data", "digests": {"xnli.zh": digest}}} for digest in ("1", "2")]
    runs = [str(write_run(tmp_path / str(k), {}, items=20, config=one)) for k, one in enumerate(data)]
    assert "The benchmark files differ between the runs: xnli.zh." in Comparison(collect(runs)).warnings
