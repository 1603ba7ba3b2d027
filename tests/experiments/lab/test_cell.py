"""Cells: what their names depend on, that a grid goes on where it stopped, and one of them for real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.cells import read_result, result_file, write_result
from experiments.lab import cell as module
from experiments.lab import grids, tasks
from experiments.lab.cell import Cell, Lab, work
from experiments.lab.cost import Cost, Size, affordable, cost, steps_of, total
from experiments.lab.grids import GridPlan, chosen_rate, run_all
from experiments.lab.rows import ABLATIONS, HEADLINE, TFT, GridSetting, by_name
from experiments.lab.tasks import FactsTask, Record
from pivotune.errors import PivotuneError
from pivotune.lab.base import base_path


def cell(setting: GridSetting, **changed: object) -> Cell:
    options = dict(learning_rate=1e-3, seed=0, budget="steps", epochs=1.0, splits=("heldout",))
    return Cell(setting, **(options | changed))  # type: ignore[arg-type]


class FewFacts(FactsTask):
    """The lab's facts, but few of them."""

    name = "few facts"
    languages = FactsTask.languages[:2]

    def examples(self, split: str, language: str) -> Iterator[Record]:
        for number, record in enumerate(super().examples(split, language)):
            if number % 8 == 0:
                yield record


class OtherFacts(FewFacts):
    def examples(self, split: str, language: str) -> Iterator[Record]:
        for record in super().examples(split, language):
            yield record if split != "heldout" else {**record, "completion": " something else"}


@pytest.fixture(autouse=True)
def few_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "few facts", FewFacts)
    monkeypatch.setitem(tasks.TASKS, "other facts", OtherFacts)


@pytest.fixture(scope="module")
def opened() -> Lab:
    """Its caches are filled once for all tests that only ask for names and numbers."""
    return Lab(str(base_path()), "few facts", FewFacts.languages)


def every(opened: Lab) -> list[GridSetting]:
    return [setting.at_layers((1, 4)) for setting in (*HEADLINE, *ABLATIONS)]


def test_a_name_changes_with_all_that_matters(opened: Lab, tmp_path: Path) -> None:
    one = cell(by_name("logits").at_layers((1, 4)))
    key = opened.key(one)
    assert key == Lab(opened.base, opened.task_name, opened.languages).key(one)  # of another process
    changes: list[dict[str, Any]] = [
        {"learning_rate": 2e-3},
        {"seed": 1},
        {"budget": "flops"},
        {"epochs": 2.0},
        {"splits": ("development",)},
        {"items": 3},
        {"inside": False},
        {"setting": by_name("logits").at_layers((2, 4))},
    ]
    names = [key, *(opened.key(replace(one, **change)) for change in changes)]
    assert len(set(names)) == len(names)
    assert opened.key(replace(one, setting=replace(one.setting, name="another name", rate_of="x"))) == key
    keys = {opened.key(cell(setting)): setting.name for setting in every(opened)}
    assert len(keys) == len(every(opened)), "two rows are the same"

    for changed in (Lab(opened.base, "other facts", opened.languages), Lab(opened.base, "few facts", ("zh",))):
        assert changed.key(one) != key
    base = tmp_path / "base"
    shutil.copytree(base_path(), base)
    assert Lab(str(base), opened.task_name, opened.languages).key(one) == key  # wherever it lies
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    assert Lab(str(base), opened.task_name, opened.languages).key(one) != key


def test_the_shared_options_are_part_of_the_name(opened: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    key = opened.key(cell(TFT))
    monkeypatch.setattr(module, "ANSWER_TOKENS", 7)
    assert opened.key(cell(TFT)) != key
    monkeypatch.undo()
    monkeypatch.setattr(module, "TRAINING", {**module.TRAINING, "weight_decay": 0.1})
    assert opened.key(cell(TFT)) != key


def test_budgets(opened: Lab) -> None:
    steps = opened.steps(cell(TFT, epochs=3.0))
    assert steps == opened.steps(cell(TFT, epochs=3.0, budget="flops"))
    plain = opened.flops(cell(TFT, epochs=3.0))
    for setting in every(opened):
        assert opened.steps(cell(setting, epochs=3.0)) == steps * setting.passes
        if setting.passes == 1:
            spent = opened.flops(cell(setting, epochs=3.0, budget="flops"))
            assert plain - opened.flops_per_step(setting) < spent <= plain * (1 + 1e-9)
    logits, feature, plain_step = (
        opened.flops_per_step(by_name(n).at_layers((1, 4))) for n in ("logits", "feature", "TFT")
    )
    assert plain_step < feature < logits
    assert steps_of(65, 32, 0.5) == 2


def test_flops_by_hand() -> None:
    """3 prompt tokens, 2 of the answer, 4 of the English prompt (2 of them the question), 1 of the English answer."""
    row = {
        "input_ids": [0] * 5,
        "prompt_length": 3,
        "question_start": 0,
        "question_end": 3,
        "english_prompt_ids": [0] * 4,
        "english_question_start": 1,
        "english_question_end": 3,
        "english_answer_ids": [0],
    }
    size = Size(layer=10, head=100, layers=8)
    plain = 6 * (5 * 80 + 2 * 100)
    by_hand = {
        "TFT": plain,
        "logits": plain + 6 * (5 * 1 + 4 * 4) * 10 + 4 * 3 * 100,
        "logits, position-wise": plain + 4 * (2 + 1) * 100,
        "feature": plain + 2 * 4 * 80,
        "feature, LC only": plain + 2 * 4 * 10,
        "feature: gradient through English": plain + 6 * 4 * 80,
        "CC": plain + 6 * 4 * 80,
        "CC: English fixed": plain + 2 * 4 * 80,
        "CC + feature": plain + 6 * 4 * 80,
    }
    found = {setting.name: setting.at_layers((1, 4)) for setting in (*HEADLINE, *ABLATIONS)}
    for name, flops in by_hand.items():
        assert cost(found[name], [row], size).epoch == flops, name
    assert cost(found["CC"], [row], size).afterwards == 2 * (3 + 4) * 80
    alone = {**row, "english_prompt_ids": None}
    assert cost(found["CC + logits"], [alone], size) == Cost(plain, 0.0)
    assert total(Cost(10.0, 5.0), 4, 64, 32) == 25.0
    assert affordable(Cost(10.0, 5.0), 25.0, 64, 32) == 4


# Going on ------------------------------------------------------------------------------------------------------------


def answered(of_lab: Lab, one: Cell, right: int = 1) -> dict[str, Any]:
    """A result as `run` makes it."""
    languages = (*of_lab.languages, "en")
    of_language = {
        language: {
            "items": list(of_lab.gold.get(language, ["a", "b"]))[:2],
            "right": [right, one.seed % 2],
            "given": ["", ""],
        }
        for language in languages
    }
    modes = ("none", "english", "matrix") if one.setting.cc_tuning else ("none",)
    columns = ("question_nats", "answer_nats", "question_cosine", "answer_cosine")
    columns += ("question_cosine_last", "answer_cosine_last", "agreement", "r2", "r2_of_copy")
    return {
        "steps": of_lab.steps(one),
        "flops": of_lab.flops(one) if one.setting.trained else 0.0,
        "flops_per_step": of_lab.flops_per_step(one.setting) if one.setting.trained else 0.0,
        "answers": {split: {mode: of_language for mode in modes} for split in one.splits},
        "inside": {language: {name: [0.1 * one.seed] * 8 for name in columns} for language in of_lab.languages},
        "terms": {name: {"first": 2.0, "last": 1.0} for name in one.setting.terms},
        "transform_matrix": None,
        "training_cpu_seconds": 2.0,
        "seconds": 3.0,
    }


def answer(of_lab: Lab, one: Cell, folder: Path, where: dict[str, Any], keep: bool = False) -> str:
    """In place of `work`."""
    key = of_lab.key(one)
    write_result(folder, key, {"key": key, "cell": module.describe(of_lab, one), **where, **answered(of_lab, one)})
    return key


class Here:
    """A pool that runs everything at once, in this process."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def submit(self, function: Any, *args: Any) -> Any:
        future: Any = grids.ProcessPoolExecutor.Future()  # type: ignore[attr-defined]
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, opened: Lab) -> list[str]:
    """Cells are answered at once; the list tells which ran."""
    from concurrent.futures import Future

    ran: list[str] = []

    def instead(of: Any, one: Cell, folder: Path, where: dict[str, Any], keep: bool) -> str:
        if one.setting.name == "CC" and one.seed == 1:
            raise PivotuneError("the loss is nan")
        ran.append(f"{one.setting.name} {one.seed}")
        return answer(opened, one, folder, where, keep)

    Here.Future = Future  # type: ignore[attr-defined]
    monkeypatch.setattr(grids, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(grids, "_work", instead)
    monkeypatch.setattr(grids, "Lab", lambda *args: opened)
    return ran


def test_a_grid_goes_on_where_it_stopped(opened: Lab, at_once: list[str], tmp_path: Path) -> None:
    plan = GridPlan.of([cell(TFT, seed=seed) for seed in range(4)], opened, tmp_path)
    assert run_all(plan, 1, limit=2) == {} and at_once == ["TFT 0", "TFT 1"]
    # What an interruption leaves: a file that is not whole, and a folder of work.
    keys = list(plan.cells)
    result_file(tmp_path, keys[2]).with_suffix(".unfinished").write_text('{"key": ')
    (tmp_path / "work" / keys[2]).mkdir(parents=True)
    assert run_all(plan, 1) == {} and at_once == ["TFT 0", "TFT 1", "TFT 2", "TFT 3"]
    assert run_all(plan, 1) == {} and len(at_once) == 4 and not plan.open()
    assert [one["cell"]["seed"] for one in plan.results(list(plan.cells.values()))] == [0, 1, 2, 3]


def test_a_failed_cell_stops_no_other(opened: Lab, at_once: list[str], tmp_path: Path, capsys: Any) -> None:
    plan = GridPlan.of([cell(by_name("CC"), seed=seed) for seed in range(3)], opened, tmp_path)
    (failed,) = run_all(plan, 1)
    assert run_all(plan, 1, limit=0) == {}
    assert at_once == ["CC 0", "CC 2"] and list(plan.open()) == [failed]
    assert "FAILED: the loss is nan" in capsys.readouterr().out


def command(folder: Path, *more: str) -> list[str]:
    return [*more, "--task", "few facts", "--learning-rate", "1e-3", "--folder", str(folder / "cells")]


GRIDS = (
    ("headline", "--rows", "TFT; logits; feature, last token; CC + feature; logits, shuffled"),
    ("ablations", "--rows", "feature: weights 3; TFT + English: as many target passes"),
    pytest.param(("layers", "--of", "logits"), marks=pytest.mark.slow),
)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid[0])
def test_every_grid_ends_in_its_section(
    grid: Sequence[str], opened: Lab, at_once: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "docs" / "results" / "few facts.md"
    path.parent.mkdir(parents=True)
    path.write_text("# Results\n\nWritten by hand.\n")
    trial = command(tmp_path, *grid, "--seeds", "2")
    given = [*trial, "--results", str(tmp_path / "RESULTS.md")]
    assert grids.main([*given, "--dry-run"]) == 0 and not at_once
    assert grids.main([*given, "--limit-cells", "1"]) == 0 and "open" in capsys.readouterr().out
    assert grids.main(given) == 0
    text = path.read_text("utf-8")
    assert text.startswith("# Results\n\nWritten by hand.\n") and text.count("<!-- begin: ") == 1
    assert f"python -m experiments.lab {grid[0]}" in text and opened.base_hash[:12] in text
    assert "nan" not in text
    assert grids.main(given) == 0 and path.read_text("utf-8") == text  # nothing ran again, nothing changed
    monkeypatch.chdir(tmp_path)
    assert grids.main(trial) == 0 and path.read_text("utf-8") == text  # a trial leaves it alone


def test_a_rate_that_breaks_the_training_is_a_result(
    at_once: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(grids, "TUNING_SEEDS", 0)  # seed 1 of CC fails
    monkeypatch.setattr(grids, "LEARNING_RATES", (1e-3, 2e-3))
    monkeypatch.setattr(grids, "RATES", tmp_path / "rates.json")
    given = ["learning_rate", "--task", "few facts", "--folder", str(tmp_path), "--rows", "TFT; CC"]
    with pytest.raises(PivotuneError, match=r"CC.*every learning rate"):
        grids.main(given)
    assert not (tmp_path / "rates.json").exists()


def test_learning_rates(
    opened: Lab, at_once: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rates = tmp_path / "rates.json"
    monkeypatch.setattr(grids, "RATES", rates)
    monkeypatch.setattr(grids, "_work", lambda of, one, *more: answer(opened, one, *more))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PivotuneError, match="has none for few facts"):
        chosen_rate(TFT, opened, rates)
    assert grids.main(["learning_rate", "--task", "few facts", "--folder", "cells"]) == 0
    assert (
        chosen_rate(by_name("logits, shuffled"), opened, rates) == grids.LEARNING_RATES[0]
    )  # of equal ones the smallest
    assert "<!-- begin: few facts learning_rate -->" in Path("docs/results/few facts.md").read_text("utf-8")
    assert "may lie beyond" in capsys.readouterr().out
    with pytest.raises(PivotuneError, match="has none for few facts: zh"):
        chosen_rate(TFT, Lab(opened.base, "few facts", ("zh",)), rates)
    before = json.loads(rates.read_text())["few facts: zh, vi"]
    monkeypatch.setattr(grids, "LEARNING_RATES", (5e-3,))
    assert grids.main(["learning_rate", "--task", "few facts", "--folder", "cells", "--rows", "CC"]) == 0
    after = json.loads(rates.read_text())["few facts: zh, vi"]
    assert after["chosen"] == before["chosen"] | {"CC": 5e-3}  # those of other rows stay
    content = json.loads(rates.read_text())
    next(iter(content.values()))["data"] = "another base"
    rates.write_text(json.dumps(content))
    with pytest.raises(PivotuneError, match="another base model or other data"):
        chosen_rate(TFT, opened, rates)


def test_options(capsys: Any) -> None:
    with pytest.raises(PivotuneError, match="'TFTT'"):
        grids.main(["headline", "--rows", "TFTT", "--dry-run"])
    with pytest.raises(PivotuneError, match="'xx'"):
        grids.main(["headline", "--languages", "xx"])
    with pytest.raises(PivotuneError, match="supervises no layer"):
        grids.main(["layers", "--of", "CC", "--dry-run", "--learning-rate", "1"])


def test_a_failure_leaves_its_log(opened: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        print("step 1")
        raise PivotuneError("the loss is nan")

    monkeypatch.setattr(module, "run", fails)
    one = cell(TFT)
    with pytest.raises(PivotuneError):
        work(opened, one, tmp_path, {})
    log = (tmp_path / f"{opened.key(one)}.log").read_text()
    assert log.startswith("step 1") and "the loss is nan" in log and read_result(tmp_path, opened.key(one)) is None


# For real ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_from_training_to_its_result(opened: Lab, tmp_path: Path) -> None:
    one = cell(by_name("CC + feature").at_layers((1, 4)), epochs=0.5, items=6)
    key = work(opened, one, tmp_path, {"commit": "x", "versions": {}, "machine": "y"})
    result = read_result(tmp_path, key)
    assert result is not None and sorted(path.name for path in tmp_path.rglob("*")) == [f"{key}.json", "work"]
    assert result["steps"] == opened.steps(one) > 0 and result["flops"] > 0
    assert set(result["answers"]["heldout"]) == {"none", "english", "matrix"}
    for of_mode in result["answers"]["heldout"].values():
        assert set(of_mode) == {*opened.languages, "en"}
        assert all(len(found["items"]) == len(found["right"]) == len(found["given"]) == 6 for found in of_mode.values())
        assert sum(of_mode["en"]["right"]) >= 4  # the base knows its facts in English, and half a pass forgets few
    for found in result["inside"].values():
        assert len(found["answer_nats"]) == 8 and 0 <= found["agreement"][0] <= 1
        assert all(0 < found["english_mass"][k] + found["target_mass"][k] <= 1 for k in range(8))
    assert set(result["terms"]) >= {"lm", *one.setting.terms}

    again = tmp_path / "again"
    again.mkdir()
    work(opened, one, again, {"commit": "x", "versions": {}, "machine": "y"}, keep=True)
    repeated = read_result(again, key)
    assert repeated is not None and (again / "work" / key / "run" / "pivotune.json").is_file()
    timed = {"seconds", "training_cpu_seconds"}
    assert {k: v for k, v in repeated.items() if k not in timed} == {k: v for k, v in result.items() if k not in timed}
