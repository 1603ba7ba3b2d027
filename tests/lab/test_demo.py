"""The demo end to end, shortened: its tables, its files, that what is supervised has moved, and how it ends early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.lab.grids import RATES
from pivotune.cli import main
from pivotune.errors import PivotuneError
from pivotune.lab import demo as module
from pivotune.lab import workers
from pivotune.lab.demo import ROWS, TITLES, Share, demo
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.world import World


@pytest.mark.slow
def test_the_demo_prints_tables_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
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

    # A second demo replaces the first; and on one core it gives the same numbers.
    conversion, thinking = results["layers"]
    entropy = SimpleNamespace(conversion_layer=conversion, thinking_layer=thinking)
    layers = SimpleNamespace(rules={"entropy": entropy})
    monkeypatch.setattr(module, "choose", lambda *_: layers)
    monkeypatch.setattr(module, "ROWS", {"TFT": ROWS["TFT"]})
    monkeypatch.setattr(workers, "cores", lambda: 1)
    demo(str(tmp_path), languages="zh", epochs=1.0)
    again = json.loads((tmp_path / "results.json").read_text())
    for table in ("scores", "inside"):
        assert again[table] == {name: results[table][name] for name in ("base model", "TFT")}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends the signal of Ctrl-C to a group of processes")
def test_an_interruption_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pivotune", "demo", "--languages", "zh", "--output", str(tmp_path / "demo")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a group of its own, as a terminal makes
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell in the background ignores
    ) as process:
        assert process.stdout is not None
        while "at a time" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, shown = process.communicate()
    assert process.returncode == 130
    assert [line for line in shown.splitlines() if "WARNING" not in line] == ["pivotune: interrupted"]
    for _ in range(100):  # its processes have ended too
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the demo goes on")


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


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--output", str(tmp_path / "demo")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is not installed; get it with: pip install 'pivotune[demo]'")
    assert not (tmp_path / "demo").exists()


def test_unknown_languages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"'de'.*'zh', 'vi', 'ar', 'sw'"):
        demo(str(tmp_path), languages="zh,de")


def test_wilson_interval() -> None:
    low, high = Share(5, 10).interval
    assert (low, high) == (pytest.approx(23.66, abs=0.01), pytest.approx(76.34, abs=0.01))
    assert str(Share(0, 7)) == "  0.0 [ 0.0, 35.4]"


def test_the_rates_are_those_that_the_grid_has_chosen() -> None:
    by_subject = json.loads(RATES.read_text("utf-8"))
    chosen = by_subject[f"facts: {', '.join(LANGUAGES[1:])}"]["chosen"]
    assert {name: chosen[name] for name in ROWS} == ROWS
