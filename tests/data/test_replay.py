"""English replay: which sides are drawn, and what a run makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pivotune.checkpoint import INFO
from pivotune.data import ParallelExample
from pivotune.data.examples import Text
from pivotune.data.replay import with_replay
from pivotune.errors import PivotuneError
from pivotune.training import train
from tests.runs import configuration, rows, write_base, write_rows


def pair(number: int, language: str = "zh", answer: str = "yes") -> ParallelExample:
    english = Text(answer, f"question {number}")
    return ParallelExample(str(number), language, Text("是", f"问题{number}"), english, f"rows:{number}")


def english_ids(examples: list[ParallelExample]) -> list[str]:
    return [one.id for one in examples if one.language == "en"]


def test_a_share_is_drawn_by_id_and_seed() -> None:
    examples = [pair(number) for number in range(2000)]
    found = with_replay(examples, 0.2, 0)
    assert [one for one in found if one.language == "zh"] == examples
    drawn = english_ids(found)
    assert 330 < len(drawn) < 470
    for place, one in enumerate(found):
        if one.language == "en":
            before = found[place - 1]
            assert (one.text, one.id, one.english, one.where) == (before.english, before.id, None, before.where)
    assert english_ids(with_replay(examples[::-1], 0.2, 0)) == drawn[::-1]  # whatever their order and company
    assert set(english_ids(with_replay(examples[:500], 0.2, 0))) == {one for one in drawn if int(one) < 500}
    assert set(drawn) < set(english_ids(with_replay(examples, 0.4, 0)))
    assert set(drawn) != set(english_ids(with_replay(examples, 0.2, 1)))
    assert with_replay(examples, 0.0, 0) == examples
    assert len(english_ids(with_replay(examples, 1.0, 0))) == 2000


def test_nothing_is_taught_twice() -> None:
    there = ParallelExample("1", "en", Text("yes", "question 1"))
    found = with_replay([pair(1), pair(2), pair(2, "vi"), there], 1.0, 0)
    assert english_ids(found) == ["2", "1"]


def test_sides_without_an_answer() -> None:
    assert english_ids(with_replay([pair(1, answer=""), pair(2)], 1.0, 0)) == ["2"]
    with pytest.raises(PivotuneError, match=r"data\.english_replay: got 0\.5, but no example has an English answer"):
        with_replay([pair(1, answer="")], 0.5, 0)


def test_a_run_trains_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = write_base(tmp_path / "base"), write_rows(tmp_path / "train.jsonl", rows(16))
    config = configuration(base, data, tmp_path / "run", held_out=data)
    run = train(replace(config, data=replace(config.data, english_replay=1.0)))
    info = json.loads((run / INFO).read_text())
    assert info["rows"] == {"zh": 16, "en": 12} and info["pairs"]["zh"] == 12
    assert "data.train, English replay: 12 English sides are examples of their own." in capsys.readouterr().out
    assert json.loads((run / INFO).read_text())["data"]["english_replay"] == 1.0
    for share in (-0.1, 1.5):
        wrong = replace(config, output=str(tmp_path / "no"), data=replace(config.data, english_replay=share))
        with pytest.raises(PivotuneError, match=r"data\.english_replay"):
            train(wrong)
