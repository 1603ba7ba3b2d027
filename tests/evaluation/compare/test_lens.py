"""What the lens has found in the runs, within a comparison."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import compare
from tests.evaluation.compare.made_up import write_run


def lens_report() -> dict[str, Any]:
    columns = {"mean": [2.0, 1.0], "low": [1.9, 0.9], "high": [2.1, 1.1]}
    tables = {"target": {"run": columns, "baseline": None, "difference": None, "n": 9}}
    summary = {"run": None, "baseline": None}
    return {
        "run": "better",
        "baseline": None,
        "layers": {"conversion": 1, "thinking": 2, "count": 2},
        "languages": {"zh": {"examples": 9, "entropy": {"tables": tables, "summary": summary}}},
        "projection": None,
    }


def test_the_lens_has_a_section(two: tuple[str, str], tmp_path: Path) -> None:
    path = Path(two[1]) / "lens" / "lens.json"
    path.parent.mkdir()
    path.write_text(json.dumps(lens_report()))
    compare(list(two), output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "## Layer by layer" in written and "entropy, nats" in written
    assert (tmp_path / "out" / "plots" / "lens-better" / "entropy.png").is_file()
    # Another run of the same name keeps its own pictures.
    other = write_run(tmp_path / "other" / "better", {}, draw=3)
    (other / "lens").mkdir()
    (other / "lens" / "lens.json").write_text(json.dumps(lens_report()))
    compare([*two, str(other)], output=str(tmp_path / "three"))
    assert len(list((tmp_path / "three" / "plots").glob("lens-*better/entropy.png"))) == 2
    path.write_text(json.dumps({"run": "x"}))
    with pytest.raises(PivotuneError, match=re.escape(f"{path}: is no report of `pivotune lens`")):
        compare(list(two), output=str(tmp_path / "out"), overwrite=True)
