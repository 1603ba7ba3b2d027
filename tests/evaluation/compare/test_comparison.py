"""Comparisons of made-up results: planted differences are found, and noise is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import CellName, Comparison, Entry, collect
from tests.evaluation.compare.made_up import gain, write_run


def test_a_planted_gain_and_loss_are_marked_and_noise_is_not(two: tuple[str, str]) -> None:
    comparison = Comparison(collect(two))
    changes = {
        (cell.benchmark, cell.language): row["better"].change
        for results in comparison.results.values()
        for cell, row in results.cells.items()
    }
    assert changes.pop(("xnli", "zh")) == "up"
    assert changes.pop(("xnli", "en")) == "down"
    assert set(changes.values()) == {""}
    tests = {cell.benchmark: row["better"].test for r in comparison.results.values() for cell, row in r.cells.items()}
    assert tests == {"xnli": "mcnemar", "xquad": "sign-flip"}


def test_the_baseline_can_be_chosen_by_name_and_by_folder(two: tuple[str, str]) -> None:
    for baseline in ("better", two[1]):
        comparison = Comparison(collect(two), baseline)
        cell = CellName("likelihood", "xnli", "zh")
        assert [entry.name for entry in comparison.entries] == ["better", "base"]
        assert comparison.results["likelihood"].cells[cell]["base"].change == "down"
    with pytest.raises(PivotuneError, match="baseline: got 'nobody'; choose one of the compared runs: base, better"):
        Comparison(collect(two), "nobody")


def test_seeds_of_one_run_are_summarised(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "base", {}, draw=50))]
    runs += [
        str(write_run(tmp_path / f"zh-seed{s}", gain, seed=s, draw=s, info={"steps": 9, "seed": s})) for s in (2, 0, 1)
    ]
    comparison = Comparison(collect(runs))
    assert [entry.name for entry in comparison.entries] == ["base", "zh"]
    assert [member.seed for member in comparison.entries[1].members] == [0, 1, 2]
    found = comparison.results["likelihood"].cells[CellName("likelihood", "xnli", "zh")]["zh"]
    assert len(found.score.seeds) == 3 and found.test == "crossed" and found.change == "up"
    assert found.score.mean == pytest.approx(np.mean(found.score.seeds))
    assert found.score.sd == pytest.approx(np.std(found.score.seeds, ddof=1))
    assert found.score.minimum <= found.score.mean <= found.score.maximum
    assert any("3 seeds (0, 1, 2)" in note for note in comparison.notes)


def test_missing_items_are_left_out_on_both_sides_and_counted(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {})
    b = write_run(tmp_path / "b", {}, keep=lambda k: k >= 100, config={"limit": 300})
    comparison = Comparison(collect([str(a), str(b)]))
    for row in comparison.results["likelihood"].cells.values():
        assert {one.score.items for one in row.values()} == {300}
    remark = "Compared on the 300 items that all have, of 400 (a: 400, b: 300): xquad en, xquad vi, xquad zh, xnli en"
    assert any(one.startswith(remark) for one in comparison.warnings)
    assert "limit differs: a: null, b: 300." in comparison.warnings


def test_runs_without_a_common_item_are_an_error(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, keep=lambda k: k < 200)
    b = write_run(tmp_path / "b", {}, keep=lambda k: k >= 200)
    with pytest.raises(PivotuneError, match="xquad en: a: 200 items, b: 200 items, none of them the same"):
        Comparison(collect([str(a), str(b)]))


def test_another_right_option_for_an_id_is_an_error(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    path.write_text(path.read_text().replace('"gold": 1', '"gold": 0', 1))
    with pytest.raises(PivotuneError, match="xnli zh: item 'q0' has another right option in another run"):
        Comparison(collect(two))


def test_averages_are_means_of_cells_and_leave_english_out(tmp_path: Path) -> None:
    benchmarks = {"likelihood.xnli": ("en", "zh", "vi"), "likelihood.xcopa": ("en", "zh")}
    runs = [write_run(tmp_path / name, {}, benchmarks=benchmarks, draw=d) for d, name in enumerate("ab")]
    results = Comparison(collect(list(map(str, runs)))).results["likelihood"]
    score = {(c.benchmark, c.language): row["b"].score.mean for c, row in results.cells.items()}
    assert results.benchmarks["xnli"]["b"].score.mean == pytest.approx((score["xnli", "zh"] + score["xnli", "vi"]) / 2)
    assert results.languages["zh"]["b"].score.mean == pytest.approx((score["xnli", "zh"] + score["xcopa", "zh"]) / 2)
    assert "vi" not in results.languages  # a single benchmark: its own row says it
    foreign = [value for (_, language), value in score.items() if language != "en"]
    assert results.overall["b"].score.mean == pytest.approx(np.mean(foreign))


def test_a_cell_that_one_run_lacks_is_shown_but_not_averaged(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, benchmarks={"likelihood.xnli": ("zh", "vi", "ar")})
    b = write_run(tmp_path / "b", {}, benchmarks={"likelihood.xnli": ("zh", "vi")})
    comparison = Comparison(collect([str(a), str(b)]))
    results = comparison.results["likelihood"]
    assert set(results.cells[CellName("likelihood", "xnli", "ar")]) == {"a"}
    cells = [results.cells[CellName("likelihood", "xnli", code)]["a"].score.mean for code in ("zh", "vi")]
    assert results.benchmarks["xnli"]["a"].score.mean == pytest.approx(np.mean(cells))
    assert "Not in every run, so not in the averages: xnli ar." in comparison.warnings
    assert any("whether English is retained is not known" in one for one in comparison.warnings)


def test_entries_need_no_files(two: tuple[str, str]) -> None:
    """From Python, entries can be put together by hand."""
    base, better = collect(two)
    entries = [Entry("A", base.members, "none"), Entry("B", better.members, "none")]
    assert Comparison(entries).results["likelihood"].cells[CellName("likelihood", "xnli", "zh")]["B"].change == "up"
