"""The files of an evaluation: what is written is read again, what is torn is dropped, what is wrong is named."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.results import (
    BenchmarkInfo,
    Evaluation,
    ItemResult,
    ItemWriter,
    Key,
    evaluation_folder,
    read_evaluation,
    read_items,
    write_evaluation,
)

KEY = Key("likelihood", "xnli", "zh-Hant", "none")
FULL = ItemResult(
    id="a/1",
    score=0.5,
    prediction="北京\n第二行\u2028\x00 <b>",
    choice=2,
    gold=0,
    scores={"em": 0.0},
    loglikelihoods=(-1.5, None),
    ambiguous=True,
    in_language=False,
)


def evaluation(**changes: Any) -> Evaluation:
    content: dict[str, Any] = {
        "run": "runs/zh",
        "model": {"objectives": [], "seed": 3},
        "connection": "none",
        "config": {"limit": None},
        "versions": {"pivotune": "0.1.0"},
        "benchmarks": {"likelihood.xnli": BenchmarkInfo(protocol="likelihood", metric="accuracy", chance=1 / 3)},
    }
    return Evaluation(**{**content, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_evaluation(tmp_path, evaluation())
    items = [FULL, ItemResult(id="a/2", score=1.0)]
    with ItemWriter(tmp_path, KEY) as writer:
        for item in items:
            writer.append(item)
    found = read_evaluation(tmp_path)
    assert found == evaluation(items={KEY: items})
    assert read_evaluation(tmp_path, items=False) == evaluation()
    assert len((tmp_path / "items" / KEY.filename).read_bytes().splitlines()) == 2


def test_every_item_is_on_the_disk_at_once(tmp_path: Path) -> None:
    writer = ItemWriter(tmp_path, KEY)
    writer.append(FULL)
    assert read_items(writer.path) == ([FULL], None)
    writer.close()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_line_is_dropped_on_resume(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    items = [ItemResult(id=f"é{k}", score=1.0, prediction="北京") for k in range(3)]
    with ItemWriter(tmp_path, KEY) as writer:
        writer.append(*items)
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole[:-cut])
    found, torn = read_items(writer.path)
    assert found == items[:2] and torn is not None and torn.line == 3
    with caplog.at_level(logging.WARNING), ItemWriter(tmp_path, KEY) as writer:
        assert list(writer.done) == ["é0", "é1"]
        writer.append(items[2])
    assert "the last line has no end" in caplog.text
    assert writer.path.read_bytes() == whole


def test_a_torn_line_is_reported_by_the_reader(tmp_path: Path) -> None:
    write_evaluation(tmp_path, evaluation())
    with ItemWriter(tmp_path, KEY) as writer:
        writer.append(FULL)
    writer.path.write_bytes(writer.path.read_bytes() + b'{"id": "b"')
    found = read_evaluation(tmp_path)
    assert found.items == {KEY: [FULL]} and found.torn == [writer.path]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "malformed line"),
        ("", "malformed line"),
        ("[]", "malformed line: holds a list"),
        ('{"id": "b"}', "missing field: 'score'"),
        ('{"id": "b", "score": 1, "socre": 1}', "unknown field: 'socre'"),
        ('{"id": "b", "score": 1.5}', "bad value: score is 1.5"),
        ('{"id": "b", "score": NaN}', "bad value: score is nan"),
        ('{"id": "b", "score": true}', "bad value: score is True"),
        ('{"id": 7, "score": 1}', "bad value: id is 7"),
        ('{"id": "b", "score": 1, "choice": -1}', "bad value: choice is -1"),
        ('{"id": "b", "score": 1, "in_language": "yes"}', "bad value: in_language is 'yes'"),
        ('{"id": "b", "score": 1, "loglikelihoods": ["x"]}', "bad value: loglikelihoods"),
        ('{"id": "b", "score": 1, "scores": {"em": null}}', "bad value: scores"),
        ('{"id": "a/1", "score": 1}', "duplicate id: 'a/1', as in line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    with ItemWriter(tmp_path, KEY) as writer:
        writer.append(FULL)
    writer.path.write_text(writer.path.read_text() + line + "\n" + ItemResult(id="c", score=1.0).to_json() + "\n")
    with pytest.raises(DataError, match=re.escape(f"{writer.path}:2: {problem}")):
        read_items(writer.path)
    with pytest.raises(DataError):
        ItemWriter(tmp_path, KEY)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / KEY.filename
    path.write_bytes(b'{"id": "\xff", "score": 1}\n')
    with pytest.raises(DataError, match=re.escape(f"{path}:1: malformed line")):
        read_items(path)


def test_a_full_disk_is_one_error_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ItemWriter(tmp_path, KEY) as writer:
        writer.append(FULL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = rf"{KEY.filename}: cannot be written: No space left on device"
        with pytest.raises(PivotuneError, match=message), ItemWriter(tmp_path, KEY) as writer:
            writer.append(ItemResult(id="a/2", score=1.0))
        with pytest.raises(PivotuneError, match=r"evaluation\.json: cannot be written"):
            write_evaluation(tmp_path, evaluation())
    with ItemWriter(tmp_path, KEY) as writer:
        assert writer.done["a/1"] == FULL
    (tmp_path / "file").touch()
    with pytest.raises(PivotuneError, match="cannot be written: Not a directory"):
        ItemWriter(tmp_path / "file", KEY)


def test_an_item_is_written_once(tmp_path: Path) -> None:
    with ItemWriter(tmp_path, KEY) as writer:
        writer.append(FULL)
        with pytest.raises(PivotuneError, match="item 'a/1' is already there"):
            writer.append(FULL)
    with pytest.raises(ValueError, match="score is 2"):
        ItemResult(id="x", score=2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "newer Pivotune"),
        ({"format": "1"}, "format is '1'"),
        ({"run": None}, "run is None, but has to be a string"),
        ({"config": []}, "config is [], but has to be an object"),
        ({"more": 1}, "unknown keys 'more'"),
        ({"benchmarks": {"likelihood.xnli": {"metric": "accuracy"}}}, "benchmarks.likelihood.xnli is"),
        ({"benchmarks": {"xnli": {"metric": "accuracy", "protocol": "likelihood"}}}, "is not likelihood.BENCHMARK"),
        ({"benchmarks": {"a.b": {"metric": "f1", "protocol": "a", "chance": 30}}}, "chance is 30, not between 0 and 1"),
    ],
)
def test_a_wrong_evaluation_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write_evaluation(tmp_path, evaluation())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PivotuneError, match=re.escape(problem)) as caught:
        read_evaluation(tmp_path)
    assert str(path) in str(caught.value)


def test_malformed_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, evaluation())
    path.write_text('{\n"format": 1,\n')
    with pytest.raises(DataError, match=re.escape(f"{path}:3: malformed file")):
        read_evaluation(tmp_path)
    with pytest.raises(PivotuneError, match="holds no evaluation"):
        read_evaluation(tmp_path / "nothing")


def test_files_of_other_benchmarks_and_names_are_errors(tmp_path: Path) -> None:
    write_evaluation(tmp_path, evaluation())
    with ItemWriter(tmp_path, KEY._replace(benchmark="xcopa")) as writer:
        writer.append(FULL)
    with pytest.raises(PivotuneError, match=r"has no benchmark likelihood\.xcopa"):
        read_evaluation(tmp_path)
    writer.path.rename(writer.path.with_name("xnli.zh.jsonl"))
    with pytest.raises(PivotuneError, match="is not named PROTOCOL"):
        read_evaluation(tmp_path)
    with pytest.raises(PivotuneError, match=r"benchmark: got 'a\.b'"):
        ItemWriter(tmp_path, KEY._replace(benchmark="a.b"))


def test_where_the_evaluation_of_a_run_lies(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "run" / "evaluation", evaluation())
    assert evaluation_folder(tmp_path / "run") == tmp_path / "run" / "evaluation"
    assert evaluation_folder(tmp_path / "run" / "evaluation") == tmp_path / "run" / "evaluation"
