"""The file of answers: nothing made is lost, nothing of the user's overwritten. Killed processes: test_generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pivotune.answers import AnswerFile
from pivotune.errors import PivotuneError

SETTINGS = {"run": "r", "connection": "none"}


def test_written_in_the_order_that_is_given(tmp_path: Path) -> None:
    file = AnswerFile(str(tmp_path / "a.jsonl"), SETTINGS)
    file.add([(1, "b"), (0, "a")])
    assert not file.path.exists() and "2 answers are in" in file.kept
    file.finish({"answer": file.done[place]} for place in (0, 1))
    assert [json.loads(line)["answer"] for line in file.path.read_text().splitlines()] == ["a", "b"]
    assert not file.part.exists()


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    output = str(tmp_path / "a.jsonl")
    first = AnswerFile(output, SETTINGS)
    first.add([(0, "a"), (2, "c")])
    with first.part.open("ab") as file:
        file.write(b'[1, "cut in the mid')  # the process was killed while it wrote
    second = AnswerFile(output, SETTINGS)
    assert second.done == {0: "a", 2: "c"}
    second.add([(1, "b")])
    assert AnswerFile(output, SETTINGS).done == {0: "a", 1: "b", 2: "c"}


def test_other_settings_and_files_of_the_user(tmp_path: Path) -> None:
    output = str(tmp_path / "a.jsonl")
    AnswerFile(output, SETTINGS).add([(0, "a")])
    with pytest.raises(PivotuneError, match=r"another connection \('none', now 'matrix'\)"):
        AnswerFile(output, {**SETTINGS, "connection": "matrix"})
    assert AnswerFile(output, {**SETTINGS, "connection": "matrix"}, overwrite=True).done == {}
    mine = tmp_path / "b.jsonl.part"
    for content in ("mine\n", '{"made by": "me"}\n', ""):
        mine.write_text(content)
        with pytest.raises(PivotuneError, match="it is a file of yours"):
            AnswerFile(str(tmp_path / "b.jsonl"), SETTINGS, overwrite=True)
        assert mine.read_text() == content
    (tmp_path / "c.jsonl").write_text("mine")
    with pytest.raises(PivotuneError, match="output"):
        AnswerFile(str(tmp_path / "c.jsonl"), SETTINGS)
