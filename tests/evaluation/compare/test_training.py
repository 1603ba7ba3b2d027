"""What training cost, and how its terms went: read from the logs of the runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import compare
from tests.evaluation.compare.made_up import write_log


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "training_log.json:1: is not valid JSON"),
        ("{}", "a list of objects is expected"),
        ('[{"step": "1", "loss": 2}]', "step of entry 1 is '1', not a number"),
        ('[{"step": 1}, {"train_runtime": []}]', "train_runtime of entry 2"),
    ],
)
def test_a_damaged_training_log_is_named(content: str, problem: str, small: str, tmp_path: Path) -> None:
    Path(small, "training_log.json").write_text(content)
    with pytest.raises(PivotuneError, match=re.escape(problem)):
        compare([small], output=str(tmp_path / "out"))


def test_losses_that_are_no_numbers_are_left_out(small: str, tmp_path: Path) -> None:
    log = [{"step": 1, "loss": None, "lm": None}, {"step": 2, "loss": 1.5, "lm": 1.5}, {"train_runtime": None}]
    Path(small, "training_log.json").write_text(json.dumps(log))
    compare([small], output=str(tmp_path / "out"))
    assert "1.5 → 1.5" in (tmp_path / "out" / "compare.md").read_text()


def test_training_is_shown_term_by_term(two: tuple[str, str], tmp_path: Path) -> None:
    write_log(Path(two[0]), {"lm": 2.0})
    write_log(Path(two[1]), {"lm": 2.0, "english_thinking": 4.0})
    compare(list(two), output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    row = next(line for line in written.splitlines() if "→" in line and line.startswith("| better"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["better", "30", "90 min", "12.5", "3 → 1", "2 → 0.667", "4 → 1.33"]
    assert (tmp_path / "out" / "plots" / "training.english_thinking.svg").is_file()
