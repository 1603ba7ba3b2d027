"""Files in SQuAD's format: every question once, and a message that names file and question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.squad import passage_items, squad_rows


def written(folder: Path, data: Any) -> Folder:
    (folder / "en.json").write_text(json.dumps({"data": data}))
    return Folder(folder, "SQuAD")


def article(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"paragraphs": [{"context": "A cat sat.", "qas": list(questions)}]}


def test_items(tmp_path: Path) -> None:
    asked = [{"id": str(n), "question": f"q{n}", "answers": [{"text": "cat"}, {"text": "a cat"}]} for n in range(3)]
    folder = written(tmp_path, [article(asked[0]), article(*asked[1:])])
    items = passage_items("b", squad_rows(folder, "en.json"), "en", lambda context, question: f"{context}|{question}")
    assert [item.id for _, item in items] == ["0", "1", "2"]
    where, item = items[2]
    assert where.endswith("en.json: question 3") and item.prompt == "A cat sat.|q2" and item.answers == ("cat", "a cat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no article"),
        ([{"paragraphs": 3}], "article 1"),
        ([article({"id": "1", "question": "q", "answers": [{"answer": "x"}]})], "question 1"),
    ],
)
def test_what_is_wrong_is_named(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"en\.json.*{message}"):
        list(squad_rows(written(tmp_path, data), "en.json"))
