"""Which runs are compared: seeds of one run, names, connections, and what cannot be read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pivotune.checkpoint import INFO
from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import CellName, Comparison, collect, compare
from pivotune.evaluation.results import Key
from pivotune.training import train
from tests.evaluation.compare.made_up import write_run
from tests.runs import configuration, rows, write_base, write_rows


def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, seed=0, info={"objectives": {"deep_supervision": {"thinking_weight": 1.0}}})
    b = write_run(tmp_path / "b", {}, seed=1, info={"objectives": {"deep_supervision": {"thinking_weight": 0.5}}})
    c = write_run(tmp_path / "c", {})
    assert [entry.name for entry in collect([str(a), str(b), str(c)])] == ["a", "b", "c"]
    together = Comparison(collect([f"mine={a},{b}", str(c)]))
    assert [len(entry.members) for entry in together.entries] == [2, 1]
    assert "mine: its runs differ in more than the seed." in together.warnings


def test_seeds_of_real_runs_are_recognised(tmp_path: Path) -> None:
    """By what training itself records."""
    base = write_base(tmp_path / "base")
    data = write_rows(tmp_path / "data.jsonl", rows(8))
    options: dict[str, dict[str, Any]] = {
        "sft-seed0": {"seed": 0},
        "sft-seed1": {"seed": 1},
        "sft-fast-seed2": {"seed": 2, "learning_rate": 2e-2},
    }
    for name, changed in options.items():
        run = train(configuration(base, data, tmp_path / name, max_steps=1, **changed))
        info = json.loads((run / INFO).read_text())
        write_run(run, {}, info=info, seed=info["training"]["seed"], items=20)
    entries = collect([str(tmp_path / name) for name in options])
    assert [entry.name for entry in entries] == ["sft", "sft-fast-seed2"]
    assert [[member.seed for member in entry.members] for entry in entries] == [[0, 1], [2]]


def test_layers_that_each_seed_chose_itself_do_not_part_them(tmp_path: Path) -> None:
    def write(name: str, seed: int, layer: int, *automatic: str) -> str:
        info = {
            "objectives": {"deep_supervision": {"conversion_layer": layer, "thinking_layer": 4}},
            "asked": {"deep_supervision": dict.fromkeys(automatic, "auto")},
            "found": {"deep_supervision": {"layers": {"conversion_layer": layer}}} if automatic else {},
        }
        return str(write_run(tmp_path / name, {}, seed=seed, info=info, items=20))

    both = [write("auto-0", 0, 1, "conversion_layer"), write("auto-1", 1, 2, "conversion_layer")]
    given = [write("given-2", 2, 1), write("given-3", 3, 2)]
    assert [entry.name for entry in collect([*both, *given])] == ["auto", "given-2", "given-3"]


def test_without_their_record_runs_are_not_put_together(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a-{seed}", {}, seed=seed, items=20) for seed in (0, 1)]
    assert [entry.name for entry in collect([str(run) for run in runs])] == ["a"]
    for run in runs:
        (run / INFO).unlink()
    assert [entry.name for entry in collect([str(run) for run in runs])] == ["a-0", "a-1"]


def test_a_run_given_twice_is_an_error(two: tuple[str, str]) -> None:
    with pytest.raises(PivotuneError, match="given twice"):
        collect([two[0], f"{two[0]}/evaluation"])


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / parent / "run", {}, items=20)) for parent in ("sft", "deep")]
    assert [entry.name for entry in collect(runs)] == ["sft/run", "deep/run"]


def test_connections_are_entries_of_their_own_and_share_english(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", {})
    run = write_run(tmp_path / "cc", {}, connection="matrix", draw=3)
    for path in list((run / "evaluation" / "items").iterdir()):
        key = Key.of_file(path)
        if key.language == "en":
            path.rename(path.with_name(key._replace(connection="none").filename))
        else:
            shutil.copy(path, path.with_name(key._replace(connection="english").filename))
    comparison = Comparison(collect([str(base), str(run)]))
    assert sorted(entry.name for entry in comparison.others) == ["cc (english)", "cc (matrix)"]
    for name in ("cc (english)", "cc (matrix)"):
        assert name in comparison.results["likelihood"].cells[CellName("likelihood", "xnli", "en")]
    assert any(one.startswith("connection differs: base: none") for one in comparison.warnings)


def test_evaluations_beside_a_run_are_named_after_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "cc", {}, connection="matrix", items=20)
    write_run(tmp_path / "elsewhere", {}, connection="none", items=20)
    (tmp_path / "elsewhere" / "evaluation").rename(tmp_path / "cc-none")
    path = tmp_path / "cc-none" / "evaluation.json"
    path.write_text(path.read_text().replace(str(tmp_path / "elsewhere"), str(run)))
    entries = collect([str(run), str(path.parent)])
    assert [entry.name for entry in entries] == ["cc (matrix)", "cc (none)"]
    assert all(member.run == run for entry in entries for member in entry.members)
    with pytest.raises(PivotuneError, match="two entries are named 'a'"):
        collect([f"a={run}", f"a={path.parent}"])


def test_a_broken_line_is_named(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(PivotuneError, match=re.escape(f"{path}:7: malformed line")):
        collect(two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: none given"),
        (["nowhere"], "nowhere: no such folder"),
        (["a="], "got 'a='; write NAME=RUN"),
        (["."], "holds no evaluation"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PivotuneError, match=message):
        compare(arguments)
