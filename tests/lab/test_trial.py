"""One run of a comparison by itself: its configuration, what is asked, and what counts as right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pivotune.lab import trial as module
from pivotune.lab.settings import STYLE, Setting
from pivotune.lab.trial import ask, item, parallel, run_config, spread
from pivotune.lab.world import World
from pivotune.objectives import CCTuningConfig


def test_the_run_of_a_row(tmp_path: Path) -> None:
    row = Setting("cc", cc_tuning=CCTuningConfig(connection_layer=2))
    config = run_config(row, "base", tmp_path / "data", tmp_path / "run", max_steps=7, seed=3)
    assert config.objectives == [CCTuningConfig(connection_layer=2)] and config.data.style == STYLE
    assert (config.training.max_steps, config.training.seed, config.training.use_cpu) == (7, 3, True)
    with pytest.raises(AssertionError):
        run_config(Setting("base", trained=False), "base", tmp_path / "data", tmp_path / "run")


def test_an_answer_is_right_word_for_word(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(world.examples("heldout", "zh"))[:3]
    answers = [records[0]["completion"].strip(), records[1]["completion"].strip() + " .", ""]
    given: list[dict[str, Any]] = []

    def replies(model: Any, tokenizer: Any, asked: Any, **options: Any) -> list[str]:
        given.append(options)
        assert [one.text.question for one in asked] == [record["prompt"] for record in records]
        return answers

    monkeypatch.setattr(module, "generate_texts", replies)
    found = ask(None, None, {"zh": records}, "matrix")["zh"]
    assert found == {"items": [item(record) for record in records], "right": [1, 0, 0], "given": answers}
    assert given[0]["connection"] == "matrix" and given[0]["style"] == STYLE


def test_an_item_is_the_same_in_every_language(world: World) -> None:
    names = [{item(record) for record in world.examples("heldout", language)} for language in ("zh", "vi")]
    assert len(names[0] & names[1]) > 200
    assert not any(name.endswith((".zh", ".vi")) for name in names[0] | names[1])


def test_records_are_checked(world: World) -> None:
    first, *_ = world.examples("training", "zh")
    (found,) = parallel([first])
    assert found.language == "zh" and found.english is not None and found.where == str(first["id"])
    with pytest.raises(ValueError, match=str(first["id"])):
        list(parallel([{**first, "prompt": None}]))


def test_a_sample_is_spread_evenly() -> None:
    records = [{"id": k} for k in range(10)]
    assert [one["id"] for one in spread(records, 4)] == [0, 2, 5, 7]
    assert spread(records, None) == spread(records, 99) == records
