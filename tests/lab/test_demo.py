"""The demo end to end, shortened: its tables, its files, and that what is supervised has moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import RATES
from pivotune.errors import PivotuneError
from pivotune.lab.demo import ROWS, TITLES, Score, demo
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.world import World


def test_the_demo_prints_tables_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(str(tmp_path), languages="zh", epochs=1.0)
    printed = capsys.readouterr().out
    rows = [
        "base model",
        "TFT",
        *(title for title in TITLES.values() if "deep" in title),
        "CC-Tuning, matrix",
        "CC-Tuning, real English",
    ]
    assert all(printed.count(f"\n{row}") >= 1 for row in rows)
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "demo.svg").is_file() and "| TFT" in (tmp_path / "tables.md").read_text("utf-8")

    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["scores"]) == rows
    for scores in results["scores"].values():
        assert set(scores) == {"zh", "en"}
        assert all(0 <= score["right"] <= score["n"] and score["n"] > 300 for score in scores.values())
    assert results["scores"]["base model"]["en"]["right"] > 0.97 * results["scores"]["base model"]["en"]["n"]

    inside = results["inside"]
    for what in ("question, nats at i", "answer, nats at j"):
        assert inside["deep supervision, logits"][what] < 0.98 * inside["TFT"][what]
    for what in ("cosine at i", "cosine at j"):
        assert 1 - inside["deep supervision, feature"][what] < 0.98 * (1 - inside["TFT"][what])

    demo(str(tmp_path), languages="zh", epochs=0.05)  # a second demo replaces the first
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 0.05


def test_only_the_folder_of_a_demo_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is built."""

    class Built(Exception):
        pass

    def build(*_: Any) -> None:
        raise Built

    monkeypatch.setattr(World, "build", build)
    mine = tmp_path / "TFT" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(PivotuneError, match=r"^output: .* holds files that are not of a demo"):
        demo(str(tmp_path), languages="zh")
    with pytest.raises(PivotuneError, match="is a file; name a folder"):
        demo(str(mine), languages="zh")
    assert mine.read_text() == "mine"
    for _ in range(2):  # new, and again
        with pytest.raises(Built):
            demo(str(tmp_path / "demo"), languages="zh")


def test_unknown_languages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"'de'.*'zh', 'vi', 'ar', 'sw'"):
        demo(str(tmp_path), languages="zh,de")


def test_wilson_interval() -> None:
    low, high = Score(5, 10).interval
    assert (low, high) == (pytest.approx(23.66, abs=0.01), pytest.approx(76.34, abs=0.01))
    assert str(Score(0, 7)) == "  0.0 [ 0.0, 35.4]"


def test_the_rates_are_those_that_the_grid_has_chosen() -> None:
    by_subject = json.loads(RATES.read_text("utf-8"))
    chosen = by_subject[f"facts: {', '.join(LANGUAGES[1:])}"]["chosen"]
    assert {name: chosen[name] for name in ROWS} == ROWS
